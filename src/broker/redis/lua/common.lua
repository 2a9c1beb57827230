-- What the scripts share. Numbers that may be large are written as text.

local function text(number)
  return string.format('%.0f', number)
end

-- Redis' own clock, in milliseconds.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Whether all nodes are in another era than `era`: so it is where Redis has forgotten everything, and somebody who came
-- since has begun one. Two nodes in two eras would begin each numbering anew in turns.
local function is_over(era, eras)
  redis.call('HSETNX', eras, 'era', era)
  return redis.call('HGET', eras, 'era') ~= era
end

local function over()
  return redis.error_reply('ERA another one has begun')
end

-- A channel's numbering: its epoch and its top offset; none where the caller's era is over. It begins anew where there is none, and where it was last used in
-- another era: then its end may be lost, and offsets would be used again. What each node sent last stays: what it sends
-- again is not new because the numbering is.
local function numbering(meta, stream, candidate, era, eras)
  local known = redis.call('HMGET', meta, 'e', 'o', 'g')
  if known[1] and known[2] and known[3] == era then return known[1], tonumber(known[2]), false end
  if is_over(era, eras) then return nil end
  redis.call('DEL', stream)
  redis.call('HSET', meta, 'e', candidate, 'o', '0', 'g', era)
  return candidate, 0, true
end

-- Notes an order to all nodes, and says on `relay` that there is one.
local function order(orders, what, kept, most, relay)
  redis.call('XADD', orders, '*', 'd', what)
  redis.call('XTRIM', orders, 'MINID', text(clock() - tonumber(kept)) .. '-0')
  redis.call('XTRIM', orders, 'MAXLEN', '~', most)
  redis.call('PEXPIRE', orders, kept)
  redis.call('PUBLISH', relay, '')
end
