-- Stores the data of a load, or deletes the key, unless something happened since the load
-- began: the lease was deleted or has expired, the key holds another value, or the same
-- value was stored again. In each case it ends the lease. Returns 1 if it stored or deleted.
--
-- KEYS: the key, its lease
-- ARGV: 1. the token of the lease
--       2. the SHA-1 of what the key held when the load began, '' for nothing
--       3. how long that value had to live then in milliseconds, 2^53 for no expiry
--       4. the data
--       5. how long the data lives in milliseconds, -1 for no expiry, 0 to delete the key
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2])
local held = redis.call('GET', KEYS[1])
if (held and redis.sha1hex(held) or '') ~= ARGV[2] then return 0 end
if held then
  local left = redis.call('PTTL', KEYS[1])
  if left == -1 then left = 9007199254740992 end
  if left > tonumber(ARGV[3]) then return 0 end
end
if ARGV[5] == '0' then
  redis.call('DEL', KEYS[1])
elseif ARGV[5] == '-1' then
  redis.call('SET', KEYS[1], ARGV[4])
else
  redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5])
end
return 1
