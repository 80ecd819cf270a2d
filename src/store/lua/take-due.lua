--[[
  Takes conversations whose due time has passed and makes them due again later, so that one sweep looks at each of them and a
  sweep that dies loses nothing.

  KEYS[1] due   sorted set of a partition

  ARGV[1] now
  ARGV[2] when they are due again
  ARGV[3] at most how many

  Returns the conversations
]]
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])
for _, conversation in ipairs(due) do
  redis.call('ZADD', KEYS[1], ARGV[2], conversation)
end
return due
