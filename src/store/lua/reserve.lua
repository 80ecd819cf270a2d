--[[
  Takes the next place in a sliding window: never more than so many begin within any stretch of the given length.

  KEYS[1] limit   list: when the last places begin, microseconds of this server's clock, oldest first

  ARGV[1] how many may begin within any stretch
  ARGV[2] its length in milliseconds

  Returns how many milliseconds to wait before beginning.
]]
local max = tonumber(ARGV[1])
local per = tonumber(ARGV[2]) * 1000
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local begins = now
-- Not before the one in front: first come first served, also when the clock was set back.
local last = redis.call('LINDEX', KEYS[1], -1)
if last then begins = math.max(begins, last) end
local freed = redis.call('LINDEX', KEYS[1], -max)
if freed then begins = math.max(begins, freed + per) end

-- Who waits does so in whole milliseconds: the place is as late as that, or the window would be shorter by what was rounded.
local wait = math.ceil((begins - now) / 1000)
-- %.0f because Lua would write sixteen digits as 1.7e+15.
redis.call('RPUSH', KEYS[1], string.format('%.0f', now + wait * 1000))
redis.call('LTRIM', KEYS[1], -max, -1)
-- One more, because expiry counts whole milliseconds too.
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', wait + per / 1000 + 1))
return wait
