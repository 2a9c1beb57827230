-- Marks a lease as ended, if it has: from here on it holds nothing and enters nobody.
--
-- KEYS: lease, its mark of having ended. ARGV: for how long that is remembered (ms).
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('SET', KEYS[2], '1', 'PX', ARGV[1])
return 1
