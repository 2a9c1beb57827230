-- Notes channels in which a lease may have members, for whoever sweeps it. Before any member is entered there.
--
-- KEYS: lease, its mark of having ended, its channels. ARGV: channels.
-- Returns: 1; -1 where the lease has ended, -2 where it is not held.
if redis.call('EXISTS', KEYS[2]) == 1 then return -1 end
if redis.call('EXISTS', KEYS[1]) == 0 then return -2 end
for at = 1, #ARGV do redis.call('SADD', KEYS[3], ARGV[at]) end
return 1
