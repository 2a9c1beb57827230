-- Notes an order and tells all nodes that there is one.
--
-- KEYS: orders. ARGV: order, for how long it is kept (ms), how many are kept, where nodes hear of it.
redis.call('XADD', KEYS[1], '*', 'd', ARGV[1])
redis.call('XTRIM', KEYS[1], 'MINID', text(clock() - tonumber(ARGV[2])) .. '-0')
redis.call('XTRIM', KEYS[1], 'MAXLEN', '~', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[4], '')
return 1
