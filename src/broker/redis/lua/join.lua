-- Enters a member, or changes its entry; who is new is told to all nodes.
--
-- KEYS: members. ARGV: relay channel, how to relay, connection, lease, entry.
-- Returns: 1 new, 0 known, -1 where that lease has ended and was swept.
local relay, publish, connection, lease, entry = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if redis.call('HEXISTS', KEYS[1], '!' .. lease) == 1 then return -1 end
local known = redis.call('HGET', KEYS[1], connection)
local number = known and string.match(known, '^%d+') or text(redis.call('HINCRBY', KEYS[1], '#', 1))
redis.call('HSET', KEYS[1], connection, number .. ' ' .. lease .. ' ' .. entry)
redis.call('PERSIST', KEYS[1])
if known then return 0 end
redis.call(publish, relay, 'J' .. entry)
return 1
