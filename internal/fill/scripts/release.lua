-- Deletes a lease if it still holds the token. Returns 1 if it did.
--
-- KEYS: the lease
-- ARGV: the token
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
