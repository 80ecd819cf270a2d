--[[
  Removes a key as long as it holds what the caller has seen there, or put there.

  KEYS[1] string

  ARGV[1] the value that was seen

  Returns 1, or 0 when it holds something else by now, or nothing
]]
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('DEL', KEYS[1])
