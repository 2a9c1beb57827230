-- Takes the next offset, appends to history, remembers the key and relays: one step.
--
-- KEYS: numbering, stream, and the idempotency key's entry where there is one.
-- ARGV: relay channel, how to relay, body, id, size of history (0: none), its ttl in ms, the numbering's ttl in ms,
--   epoch for a new numbering, the era, the node's field, its number, the idempotency window in ms, where the
--   era of all stands.
-- Returns: what it is now ('new' or 'known'), id, epoch, offset; 'gone' where it is in and its place is not known.
local relay, publish, body, id = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local size, ttl, numbering_ttl = tonumber(ARGV[5]), ARGV[6], ARGV[7]
local candidate, era, field, number, window = ARGV[8], ARGV[9], ARGV[10], ARGV[11], ARGV[12]

-- What is known already is written once more in some way, so that WAIT waits for the replicas to have it.
if KEYS[3] then
  local first = redis.call('GET', KEYS[3])
  if first then
    redis.call('SET', KEYS[3], first, 'KEEPTTL')
    local id, epoch, offset = string.match(first, '^(%S+) (%S*) (%S*)$')
    return { 'known', id, epoch, offset }
  end
end
if size == 0 then
  redis.call(publish, relay, 'P::' .. body)
  if KEYS[3] then redis.call('SET', KEYS[3], id .. '  ', 'PX', window) end
  return { 'new', id, '', '' }
end

local epoch, offset = numbering(KEYS[1], KEYS[2], candidate, era, ARGV[13])
if not epoch then return over() end
local now = clock()
-- A node numbers what it sends, so what it sends again, or what arrives late from a broken connection, is known. Its field
-- has the last number, the offset which that got, and when.
local sent = redis.call('HGET', KEYS[1], field)
if sent then
  local last, at = string.match(sent, '^(%d+) (%d+)')
  if tonumber(number) <= tonumber(last) then
    redis.call('HSET', KEYS[1], 'g', era)
    if number == last then return { 'known', id, epoch, at } end
    local before = '+'
    for _ = 1, 32 do
      local entries = redis.call('XREVRANGE', KEYS[2], before, '-', 'COUNT', 32)
      for _, entry in ipairs(entries) do
        -- The publication's id stands in its body, after version and flags.
        if string.sub(entry[2][4], 3, 18) == string.sub(body, 3, 18) then
          return { 'known', id, epoch, string.match(entry[1], '^%d+') }
        end
      end
      if #entries < 32 then break end
      before = '(' .. entries[32][1]
    end
    return { 'gone' }
  end
elseif redis.call('HLEN', KEYS[1]) > 64 then
  -- Nodes come and go. What one sent long ago it does not send again.
  local fields = redis.call('HGETALL', KEYS[1])
  for at = 1, #fields, 2 do
    local when = string.match(fields[at + 1], '^%d+ %d+ (%d+)$')
    if when and tonumber(when) < now - 3600000 then redis.call('HDEL', KEYS[1], fields[at]) end
  end
end
offset = text(offset + 1)
redis.call('HSET', KEYS[1], 'o', offset, field, number .. ' ' .. offset .. ' ' .. text(now))
redis.call('XADD', KEYS[2], 'MAXLEN', '~', size, offset .. '-0', 't', text(now), 'd', body)
redis.call('PEXPIRE', KEYS[2], ttl)
redis.call('PEXPIRE', KEYS[1], numbering_ttl)
if KEYS[3] then redis.call('SET', KEYS[3], id .. ' ' .. epoch .. ' ' .. offset, 'PX', window) end
redis.call(publish, relay, 'P' .. epoch .. ':' .. offset .. ':' .. body)
return { 'new', id, epoch, offset }
