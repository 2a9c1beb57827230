-- Takes out all members of a lease that has ended, tells all nodes, and lets that lease enter nobody any more.
--
-- KEYS: members. ARGV: relay channel, how to relay, lease, for how long the lease is remembered (ms).
local relay, publish, lease, remembered = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local now, left, swept = clock(), 0, 0
local fields = redis.call('HGETALL', KEYS[1])
for at = 1, #fields, 2 do
  local field, value = fields[at], fields[at + 1]
  local first = string.sub(field, 1, 1)
  if first == '!' then
    if tonumber(value) < now - remembered then redis.call('HDEL', KEYS[1], field) end
  elseif first ~= '#' then
    local owner, entry = string.match(value, '^%d+ (%S+) (.*)$')
    if owner == lease then
      redis.call('HDEL', KEYS[1], field)
      redis.call(publish, relay, 'L' .. entry)
      swept = swept + 1
    else
      left = left + 1
    end
  end
end
redis.call('HSET', KEYS[1], '!' .. lease, text(now))
if left == 0 then redis.call('PEXPIRE', KEYS[1], remembered) end
return swept
