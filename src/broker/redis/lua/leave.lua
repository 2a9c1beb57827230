-- Takes a member out and tells all nodes.
--
-- KEYS: members. ARGV: relay channel, how to relay, connection.
local relay, publish, connection = ARGV[1], ARGV[2], ARGV[3]
local known = redis.call('HGET', KEYS[1], connection)
if not known then return 0 end
redis.call('HDEL', KEYS[1], connection)
-- What is left then is the counter alone.
if redis.call('HLEN', KEYS[1]) == 1 then redis.call('DEL', KEYS[1]) end
redis.call(publish, relay, 'L' .. string.match(known, '^%d+ %S+ (.*)$'))
return 1
