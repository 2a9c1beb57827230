-- What the scripts share. They say `nil` to Lua's false, and numbers as text where these may be large.

-- A channel's numbering: its epoch and its top offset. It begins anew where there is none, and where it was last seen on
-- a primary whose end was lost (`lost`): offsets would be used again. `run` is the present primary. What each node sent
-- last stays: what it sends again is not new because the numbering is.
local function numbering(meta, stream, candidate, run, lost)
  local known = redis.call('HMGET', meta, 'e', 'o', 'g')
  if known[1] and known[2] and known[3] ~= lost then
    if known[3] ~= run then redis.call('HSET', meta, 'g', run) end
    return known[1], tonumber(known[2]), false
  end
  redis.call('DEL', stream)
  redis.call('HSET', meta, 'e', candidate, 'o', '0', 'g', run)
  return candidate, 0, true
end

local function text(number)
  return string.format('%.0f', number)
end

-- Redis' own clock, in milliseconds.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
