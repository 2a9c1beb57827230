-- Holds a node's lease on.
--
-- KEYS: lease, its mark of having ended. ARGV: ttl (ms).
-- Returns: 1 held, 0 new, -1 where it was found to have ended, and its members are swept.
if redis.call('EXISTS', KEYS[2]) == 1 then return -1 end
local held = redis.call('EXISTS', KEYS[1])
redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
return held
