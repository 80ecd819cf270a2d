--[[
  Deletes a conversation with everything of it: as one step, so that nothing a commit adds meanwhile is left behind. For a week its name keeps an
  epoch that no event of it has reached, so that events of another that is made under that name have other ids; and the tokens of its commits, so that
  one which is heard once more does not do its work again.

  KEYS[1] row        hash: born, epoch, tokens
  KEYS[2] messages   list
  KEYS[3] events     stream
  KEYS[4] docs       hash; "run/<run id>" says which entries of the index are its own
  KEYS[5] partial    string
  KEYS[6] due        sorted set of the partition
  KEYS[7] runs       sorted set of tenant and partition, "<run id>:<conversation>"
  KEYS[8] epoch      hash of the partition: epoch

  ARGV[1] born of the row that is meant
  ARGV[2] conversation id
  ARGV[3] channel for its readers

  Returns 1, or 0 when that row is gone
]]
local row = redis.call('HMGET', KEYS[1], 'born', 'epoch', 'tokens')
if row[1] ~= ARGV[1] then
  return 0
end
for _, name in ipairs(redis.call('HKEYS', KEYS[4])) do
  if string.sub(name, 1, 4) == 'run/' then
    redis.call('ZREM', KEYS[7], string.sub(name, 5) .. ':' .. ARGV[2])
  end
end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5])
redis.call('ZREM', KEYS[6], ARGV[2])
local time = redis.call('TIME')
local epoch = math.max(tonumber(redis.call('HGET', KEYS[8], 'epoch') or 1) + 1, tonumber(row[2] or 0) + 1, time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HSET', KEYS[1], 'epoch', string.format('%.0f', epoch), 'tokens', row[3])
redis.call('EXPIRE', KEYS[1], 604800)
redis.call('PUBLISH', ARGV[3], 'x')
return 1
