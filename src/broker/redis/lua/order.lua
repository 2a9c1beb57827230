-- Notes an order and tells all nodes that there is one.
--
-- KEYS: orders. ARGV: order, for how long it is kept (ms), how many are kept, where nodes hear of it.
order(KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4])
return 1
