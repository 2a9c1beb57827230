-- Reads the orders after one of them; all, where those that are there are older than that one: then they count anew.
--
-- KEYS: orders. ARGV: the id of the last one that was read, at most how many.
-- Returns: Redis' clock (ms), then id and order of each.
local function parts(id)
  local time, number = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(time), tonumber(number)
end

local answer, last = { text(clock()) }, ARGV[1]
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not newest then return answer end
local newest_time, newest_number = parts(newest[1])
local last_time, last_number = parts(last)
if newest_time < last_time or (newest_time == last_time and newest_number < last_number) then last = '0-0' end
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', ARGV[2])) do
  answer[#answer + 1] = entry[1]
  answer[#answer + 1] = entry[2][2]
end
return answer
