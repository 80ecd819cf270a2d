--[[
  Not a script of its own: stands in front of those that ask which epoch a partition's data is in.

  Redis gives every history of its data an id: a new one when a server starts as a primary, and when a replica is promoted. What the history
  before it had acknowledged may be gone then, so a new epoch begins. Its number is the time, because a counter would be lost with
  the rest and counted again: no epoch ever has the number of one that was lost.

  key    hash of the partition: history, epoch, made (when it got its first data)
  seen   "<epoch> <made>" as the caller has seen them last, "0" for never: after a FLUSHALL only callers know that there was anything

  Returns the epoch, and what to have seen next time
]]
local function epoch_of (key, seen)
  local seen_epoch, seen_made = string.match(seen, '^(%d+) ?(.*)$')
  seen_epoch = tonumber(seen_epoch)
  local info = redis.pcall('INFO', 'replication')
  local history = type(info) == 'string' and string.match(info, 'master_replid:(%x+)')
  local known = redis.call('HMGET', key, 'history', 'epoch', 'made')
  local epoch, made = tonumber(known[2] or 1), known[3] or ''
  -- Where Redis does not tell, all is one epoch.
  if not history then return epoch, '0' end
  if known[1] ~= history or epoch < seen_epoch or (seen_made ~= '' and seen_made ~= made) then
    local time = redis.call('TIME')
    if known[1] or seen_epoch > 0 then
      epoch = math.max(epoch + 1, seen_epoch + 1, time[1] * 1000 + math.floor(time[2] / 1000))
    end
    if made == '' then made = time[1] .. '.' .. time[2] end
    -- Whoever cannot write now may still read. %.0f because Lua would write thirteen digits as 1.7e+12.
    redis.pcall('HSET', key, 'history', history, 'epoch', string.format('%.0f', epoch), 'made', made)
  end
  return epoch, string.format('%.0f %s', epoch, made)
end

