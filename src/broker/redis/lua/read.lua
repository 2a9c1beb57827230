-- Reads a part of a channel's history, and begins its numbering where there is none: then all nodes are told.
--
-- KEYS: numbering, stream.
-- ARGV: relay channel, how to relay, epoch for a new numbering, the era, the numbering's ttl in ms, and while it is empty,
--   size of history, its ttl in ms, after, before ('' for none), limit, '1' for newest first, the most bytes,
--   where the era of all stands.
-- Returns: epoch, top offset, the offset before the oldest that can be read, then offset and body of each.
local relay, publish, candidate, era, numbering_ttl, empty_ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local size, ttl, limit, newest_first = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[11]), ARGV[12] == '1'
local most_bytes = tonumber(ARGV[13])

local epoch, top, fresh = numbering(KEYS[1], KEYS[2], candidate, era, ARGV[14])
if not epoch then return over() end
-- Anybody may ask for any name.
if top == 0 and tonumber(empty_ttl) < tonumber(numbering_ttl) then numbering_ttl = empty_ttl end
if redis.call('PTTL', KEYS[1]) < tonumber(numbering_ttl) then redis.call('PEXPIRE', KEYS[1], numbering_ttl) end
if fresh then redis.call(publish, relay, 'R' .. epoch) end

-- What is too old goes now; entries are in the order of their age.
local oldest_allowed = clock() - ttl
local trimmed = top
while true do
  local entries = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 64)
  local young
  for _, entry in ipairs(entries) do
    if oldest_allowed < tonumber(entry[2][2]) then
      young = entry[1]
      break
    end
  end
  if young then
    if young ~= entries[1][1] then redis.call('XTRIM', KEYS[2], 'MINID', young) end
    trimmed = tonumber(string.match(young, '^%d+')) - 1
    break
  end
  if #entries == 0 then break end
  redis.call('XTRIM', KEYS[2], 'MAXLEN', redis.call('XLEN', KEYS[2]) - #entries)
end
trimmed = math.max(trimmed, top - size)

local answer = { epoch, text(top), text(trimmed) }
local first = math.max(ARGV[9] == '' and 0 or tonumber(ARGV[9]), trimmed) + 1
local last = ARGV[10] == '' and top or math.min(tonumber(ARGV[10]) - 1, top)
local bytes, count = 0, 0
while first <= last and count < limit do
  local chunk = math.min(limit - count, 50)
  local entries
  if newest_first then
    entries = redis.call('XREVRANGE', KEYS[2], text(last) .. '-0', text(first) .. '-0', 'COUNT', chunk)
  else
    entries = redis.call('XRANGE', KEYS[2], text(first) .. '-0', text(last) .. '-0', 'COUNT', chunk)
  end
  if #entries == 0 then break end
  for _, entry in ipairs(entries) do
    local body, offset = entry[2][4], tonumber(string.match(entry[1], '^%d+'))
    bytes = bytes + #body
    if count > 0 and most_bytes < bytes then return answer end
    answer[#answer + 1] = text(offset)
    answer[#answer + 1] = body
    count = count + 1
    if newest_first then last = offset - 1 else first = offset + 1 end
  end
end
return answer
