--[[
  Takes the next place in a sliding window, or lets the holder of one begin: never more than so many begin within any stretch of the given length.

  KEYS[1] limit   list: the last places, microseconds of this server's clock, oldest first
  KEYS[2] begun   list: when the last ones were told to begin, likewise

  ARGV[1] how many may begin within any stretch
  ARGV[2] its length in milliseconds
  ARGV[3] 1: the caller has a place, and its time has come

  Returns how many milliseconds to wait; 0: begin now.
]]
local max = tonumber(ARGV[1])
local per = tonumber(ARGV[2]) * 1000
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function remember (key, at, keep)
  -- %.0f because Lua would write sixteen digits as 1.7e+15.
  redis.call('RPUSH', key, string.format('%.0f', at))
  redis.call('LTRIM', key, -max, -1)
  -- One more, because expiry counts whole milliseconds too.
  redis.call('PEXPIRE', key, string.format('%.0f', keep + per / 1000 + 1))
end

local begins = now
-- Whoever was late for a place has begun after it, and the window counts from there.
local begun = redis.call('LINDEX', KEYS[2], -max)
if begun then begins = math.max(begins, begun + per) end
if ARGV[3] == '0' then
  -- Not before the one in front: first come first served, also when the clock was set back.
  local last = redis.call('LINDEX', KEYS[1], -1)
  if last then begins = math.max(begins, last) end
  local freed = redis.call('LINDEX', KEYS[1], -max)
  if freed then begins = math.max(begins, freed + per) end
end

-- Who waits does so in whole milliseconds: the place is as late as that, or the window would be shorter by what was rounded.
local wait = math.ceil((begins - now) / 1000)
if ARGV[3] == '0' then remember(KEYS[1], now + wait * 1000, wait) end
if wait == 0 then remember(KEYS[2], now, 0) end
return wait
