--[[
  Reads a row, and the epoch it is read in.

  KEYS[1] row     hash: born, version, tokens, state
  KEYS[2] epoch   hash of the partition, see epoch.lua

  ARGV[1] newest epoch the caller knows of

  Returns { epoch, born, version, tokens, state }, or { epoch } when there is no such row
]]
local epoch = epoch_of(KEYS[2], ARGV[1])
local row = redis.call('HMGET', KEYS[1], 'born', 'version', 'tokens', 'state')
if not row[1] then return { epoch } end
return { epoch, row[1], row[2], row[3], row[4] }
