--[[
  Changes when a conversation is due, as long as it is as the caller saw it: a commit since then has set a time of its own.

  KEYS[1] row   hash: born, tokens
  KEYS[2] due   sorted set of the partition

  ARGV[1] born
  ARGV[2] token of the commit that made the row
  ARGV[3] due time
  ARGV[4] conversation id
]]
local row = redis.call('HMGET', KEYS[1], 'born', 'tokens')
if row[1] == ARGV[1] and string.match(row[2], '^%S*') == ARGV[2] then
  redis.call('ZADD', KEYS[2], 'XX', ARGV[3], ARGV[4])
end
