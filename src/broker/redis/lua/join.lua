-- Enters a member, or changes its entry; who is new is told to all nodes.
--
-- KEYS: members. ARGV: relay channel, how to relay, connection, entry.
local relay, publish, connection, entry = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local known = redis.call('HGET', KEYS[1], connection)
if known then
  redis.call('HSET', KEYS[1], connection, string.match(known, '^%d+') .. ' ' .. entry)
  return 0
end
local number = redis.call('HINCRBY', KEYS[1], '#', 1)
redis.call('HSET', KEYS[1], connection, text(number) .. ' ' .. entry)
redis.call(publish, relay, 'J' .. entry)
return 1
