--[[
  Reads a row, and the epoch it is read in.

  KEYS[1] row     hash: born, version, tokens, state, epoch
  KEYS[2] epoch   hash of the partition, see epoch.lua

  ARGV[1] what the caller has seen, see epoch.lua

  Returns { seen, epoch, born, version, token of the newest commit, state }, or { seen } when there is no such row
]]
local epoch, seen = epoch_of(KEYS[2], ARGV[1])
local row = redis.call('HMGET', KEYS[1], 'born', 'version', 'tokens', 'state', 'epoch')
if not row[1] then return { seen } end
return { seen, math.max(epoch, tonumber(row[5] or 0)), row[1], row[2], string.match(row[3], '^%S*'), row[4] }
