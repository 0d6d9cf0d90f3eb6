-- Stores what was loaded, or removes what is gone, unless something came between:
-- the lease was dropped or lost, or the key holds another value than the load began
-- from, or that value was stored again. Ends the lease either way. Returns 1 if done.
--
-- KEYS: the value's, the lease's
-- ARGV: the lease's token; the SHA-1 of what the load began from, '' for nothing, and
-- how long it had to live then, 2^53 for ever; the new value and how long it has to
-- live, -1 for ever, 0 to remove the key
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
