--[[
  Renews a lease, if it is still that of the caller. Not redlock's own way: that one deletes the lock when it got no answer in time, although nobody else
  has it.

  KEYS[1] lock   string: whose it is

  ARGV[1] what redlock has written there
  ARGV[2] for how long, in milliseconds

  Returns 1, or 0 when it is somebody else's, or nobody's
]]
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
