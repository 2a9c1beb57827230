-- Begins a channel's numbering anew, drops its history and tells all nodes.
--
-- KEYS: numbering, stream.
-- ARGV: relay channel, how to relay, the new epoch, the era, where that of all stands, the numbering's ttl in ms; and, where only a numbering
--   that has lost its end is meant: its epoch, and an offset that it had reached.
-- Returns: 1 if it did.
local relay, publish, candidate, era, eras, numbering_ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local known = redis.call('HMGET', KEYS[1], 'e', 'o')
if not known[1] then return 0 end
if is_over(era, eras) then return over() end
if ARGV[7] and (known[1] ~= ARGV[7] or tonumber(ARGV[8]) <= tonumber(known[2])) then return 0 end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[1], 'e', candidate, 'o', '0', 'g', era)
redis.call('PEXPIRE', KEYS[1], numbering_ttl)
redis.call(publish, relay, 'R' .. candidate)
return 1
