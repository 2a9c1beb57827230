-- Takes a member out and tells all nodes.
--
-- KEYS: members. ARGV: relay channel, how to relay, connection, for how long ended leases are remembered (ms).
local relay, publish, connection = ARGV[1], ARGV[2], ARGV[3]
local known = redis.call('HGET', KEYS[1], connection)
if not known then return 0 end
redis.call('HDEL', KEYS[1], connection)
local left = redis.call('HLEN', KEYS[1])
if left == 1 then
  -- The counter alone.
  redis.call('DEL', KEYS[1])
elseif left < 16 then
  local members = false
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if string.sub(field, 1, 2) == 'c_' then members = true end
  end
  if not members then redis.call('PEXPIRE', KEYS[1], ARGV[4]) end
end
redis.call(publish, relay, 'L' .. string.match(known, '^%d+ %S+ (.*)$'))
return 1
