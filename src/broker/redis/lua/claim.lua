-- Notes channels in which a lease may have members, for whoever sweeps it. Before any member is entered there.
--
-- KEYS: lease's channels, its mark of having ended. ARGV: their ttl (ms), channels.
-- Returns: 1, or -1 where the lease has ended.
if redis.call('EXISTS', KEYS[2]) == 1 then return -1 end
for at = 2, #ARGV do redis.call('SADD', KEYS[1], ARGV[at]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
