--[[
  Removes a lock that nobody alive holds, as long as it is the one that was looked at.

  KEYS[1] lock   string: its holder's own value

  ARGV[1] the value that was seen

  Returns 1, or 0 when somebody else has it by now, or nobody
]]
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('DEL', KEYS[1])
