--[[
  Stores one commit of a conversation, unless someone committed since its state was read. All checks come before the first
  write: an error in a script does not undo what it wrote.

  KEYS[1] row        hash: born, version, state, fence, tokens, epoch; of a deleted conversation epoch and tokens, see remove.lua
  KEYS[2] messages   list, the ledger, append-only
  KEYS[3] events     stream, entry ids are "<seq>-<epoch - 1>"
  KEYS[4] docs       hash, texts beside the row
  KEYS[5] partial    string, text of the running turn; it goes with the fence it was written under
  KEYS[6] due        sorted set of the partition, conversation by time
  KEYS[7] runs       sorted set of tenant and partition, "<run id>:<conversation>"
  KEYS[8] epoch      hash of the partition, see epoch.lua

  ARGV[1]  born of the expected row, "" when there must be none
  ARGV[2]  version of the expected row
  ARGV[3]  token of the commit that made it; versions can repeat when Redis has lost some. Where there must be none: the removal that is known of, or ""
  ARGV[4]  token of this commit, "<process>.<what it has not said before>"
  ARGV[5]  state as JSON, opaque here
  ARGV[6]  fence whose deltas are welcome, "0" for none
  ARGV[7]  due time, "" for none
  ARGV[8]  conversation id
  ARGV[9]  channel for its readers
  ARGV[10] how many of each follow, in this order: texts to put (name, value), messages (number of pieces, then each piece: "=" and
           the literal, or "@" and the name of a text), texts to drop, runs for the index, events (seq, type, run id, JSON);
           five numbers separated by spaces
  ARGV[11] length to cut the ledger back to before messages are appended, "" to leave it
  ARGV[12] what the caller has seen, see epoch.lua

  Returns { 1, seen, epoch, version }                       committed now
          { 2, seen, epoch, version }                       committed before: this token is known, its reply was lost
          { 0, seen, epoch, born, version, token, state }   someone else was first; decide again on this
          { 0, seen, removal }                              there is no such row; removal 0: nor was there one within the last week
]]
local row = redis.call('HMGET', KEYS[1], 'born', 'version', 'tokens', 'state', 'fence', 'epoch')
local born, version, tokens = row[1] or '', row[2] or '0', row[3] or ''
local newest = string.match(tokens, '^%S*')
-- Where there is no row, the last thing that happened to its name is the removal of a former one.
if born == '' then newest = row[6] or '' end
local partition, seen = epoch_of(KEYS[8], ARGV[12])
local epoch = math.max(partition, tonumber(row[6] or 0))

-- Each process has one commit of a conversation under way at a time, and the newest of each is known.
local writer = string.match(ARGV[4], '^[^.]*')
local others = {}
for token in string.gmatch(tokens, '%S+') do
  if token == ARGV[4] then return { 2, seen, epoch, tonumber(ARGV[2]) + 1 } end
  if string.match(token, '^[^.]*') ~= writer and #others < 31 then others[#others + 1] = token end
end
if born ~= ARGV[1] or newest ~= ARGV[3] then
  if born == '' then return { 0, seen, tonumber(newest) or 0 } end
  return { 0, seen, epoch, born, version, newest, row[4] }
end

local cursor = 13
local function take ()
  local value = ARGV[cursor]
  cursor = cursor + 1
  return value
end

local counts = {}
for count in string.gmatch(ARGV[10], '%d+') do counts[#counts + 1] = tonumber(count) end

for _ = 1, counts[1] do
  local name = take()
  redis.call('HSET', KEYS[4], name, take())
end

if ARGV[11] == '0' then
  redis.call('DEL', KEYS[2])
elseif ARGV[11] ~= '' then
  redis.call('LTRIM', KEYS[2], 0, ARGV[11] - 1)
end

for _ = 1, counts[2] do
  local pieces = {}
  for i = 1, tonumber(take()) do
    local piece = take()
    local rest = string.sub(piece, 2)
    if string.byte(piece) == 64 then
      pieces[i] = redis.call('HGET', KEYS[4], rest) or 'null'
    else
      pieces[i] = rest
    end
  end
  redis.call('RPUSH', KEYS[2], table.concat(pieces))
end

for _ = 1, counts[3] do
  redis.call('HDEL', KEYS[4], take())
end

for _ = 1, counts[4] do
  redis.call('ZADD', KEYS[7], 0, take() .. ':' .. ARGV[8])
end

local seq
local published = {}
local part = string.format('-%.0f', epoch - 1)
for _ = 1, counts[5] do
  seq = take()
  local kind, run, json = take(), take(), take()
  redis.call('XADD', KEYS[3], seq .. part, 't', kind, 'r', run, 'd', json)
  published[#published + 1] = seq .. part .. '\t' .. kind .. '\t' .. run .. '\t' .. json
end

if born == '' then
  born = ARGV[4]
  redis.call('HSET', KEYS[1], 'born', born)
  if row[6] then redis.call('PERSIST', KEYS[1]) end
end
version = string.format('%d', tonumber(version) + 1)
table.insert(others, 1, ARGV[4])
redis.call('HSET', KEYS[1], 'version', version, 'state', ARGV[5], 'fence', ARGV[6], 'tokens', table.concat(others, ' '))
if row[5] and row[5] ~= ARGV[6] then redis.call('DEL', KEYS[5]) end

if ARGV[7] == '' then
  redis.call('ZREM', KEYS[6], ARGV[8])
else
  redis.call('ZADD', KEYS[6], ARGV[7], ARGV[8])
end

if seq then redis.call('PUBLISH', ARGV[9], 'e' .. table.concat(published, '\n')) end
return { 1, seen, epoch, tonumber(version) }
