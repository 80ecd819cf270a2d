--[[
  Not a script of its own: stands in front of those that ask which epoch a partition's data is in.

  Redis gives every history of its data an id: a new one when a server starts as a primary, and when a replica is promoted. What the history
  before it had acknowledged may be gone then, so a new epoch begins. Its number is the time, because a counter would be lost with
  the rest and counted again: no epoch ever has the number of one that was lost.

  key    hash of the partition: history, epoch
  seen   newest epoch the caller knows of, 0 for none: after a FLUSHALL only callers do
]]
local function epoch_of (key, seen)
  seen = tonumber(seen)
  local info = redis.pcall('INFO', 'replication')
  local history = type(info) == 'string' and string.match(info, 'master_replid:(%x+)')
  local known = redis.call('HMGET', key, 'history', 'epoch')
  local epoch = tonumber(known[2] or 1)
  -- Where Redis does not tell, all is one epoch.
  if not history or (known[1] == history and epoch >= seen) then return epoch end
  if known[1] or seen > 0 then
    local time = redis.call('TIME')
    epoch = math.max(epoch + 1, seen + 1, time[1] * 1000 + math.floor(time[2] / 1000))
  end
  -- Whoever cannot write now may still read. %.0f because Lua would write thirteen digits as 1.7e+12.
  redis.pcall('HSET', key, 'history', history, 'epoch', string.format('%.0f', epoch))
  return epoch
end

