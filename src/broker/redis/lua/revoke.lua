-- Notes that tokens are revoked, for as long as any of them would count, and tells all nodes.
--
-- KEYS: revocations, their ends, orders. ARGV: which tokens, issued before when (s), until when they would count (s), for
--   how long orders are kept (ms), how many are kept, where nodes hear of them.
local now, which = math.floor(clock() / 1000), ARGV[1]
local before, till = tonumber(ARGV[2]), tonumber(ARGV[3])
for _, over in ipairs(redis.call('ZRANGE', KEYS[2], '-inf', text(now), 'BYSCORE', 'LIMIT', 0, 1000)) do
  redis.call('HDEL', KEYS[1], over)
  redis.call('ZREM', KEYS[2], over)
end
local known = redis.call('HGET', KEYS[1], which)
if known then
  local known_before, known_till = string.match(known, '^(%d+) (%d+)$')
  before, till = math.max(before, tonumber(known_before)), math.max(till, tonumber(known_till))
end
local revoked = text(before) .. ' ' .. text(till)
redis.call('HSET', KEYS[1], which, revoked)
redis.call('ZADD', KEYS[2], text(till), which)
local last = tonumber(redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2])
local ttl = text((last - now + 1) * 1000)
redis.call('PEXPIRE', KEYS[1], ttl)
redis.call('PEXPIRE', KEYS[2], ttl)
order(KEYS[3], 'V' .. revoked .. ' ' .. which, ARGV[4], ARGV[5], ARGV[6])
return 1
