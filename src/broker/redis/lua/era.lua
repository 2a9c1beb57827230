-- The era that all nodes are in: it ends where Redis may have lost publications that were acknowledged.
--
-- KEYS: era. ARGV: this primary's replication id; what this node knows of the data that it has ('whole', 'lost', or ''
--   for nothing); the next era.
-- Returns: the era; '' where somebody who knows more has to say.
local known = redis.call('HMGET', KEYS[1], 'run', 'era')
local run, verdict, candidate = ARGV[1], ARGV[2], ARGV[3]
if known[2] and (not known[1] or known[1] == run) then
  -- Where there is no `run`, some node that had it all along has brought it back.
  redis.call('HSET', KEYS[1], 'run', run)
  return known[2]
end
if known[1] and verdict == '' then return '' end
local era = verdict == 'whole' and known[2] or candidate
redis.call('HSET', KEYS[1], 'run', run, 'era', era)
return era
