--[[
  Adds streamed text to the running turn and publishes it, while the turn may still be written for.

  KEYS[1] row       hash: fence
  KEYS[2] partial   string: one line that says which turn and attempt, then the text so far

  ARGV[1] fence
  ARGV[2] the first line, without its end
  ARGV[3] text
  ARGV[4] at which byte of the attempt's text it belongs; writing it twice there is harmless (a reply can be lost)
  ARGV[5] channel
  ARGV[6] what the readers are told

  Returns 1, or 0 when the fence has moved on and nothing was written. Text behind a hole (a piece before it was lost) is dropped:
  nobody could read it, and it comes again with that piece.
]]
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then
  return 0
end
local at = #ARGV[2] + 1 + ARGV[4]
if ARGV[4] == '0' then
  redis.call('SET', KEYS[2], ARGV[2] .. '\n' .. ARGV[3])
elseif redis.call('STRLEN', KEYS[2]) < at then
  return 1
else
  redis.call('SETRANGE', KEYS[2], at, ARGV[3])
end
redis.call('PUBLISH', ARGV[5], ARGV[6])
return 1
