-- Ends a lease that is still held. Returns 1 if it was.
--
-- KEYS: the lease's
-- ARGV: its token
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
