import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Cluster, Redis } from 'ioredis'
import type { Keys } from './keys.js'
import type { Limiter } from './store.js'

/** Places in Redis, by its clock. A reservation that is sent again because its reply was lost takes two places, which costs time and breaks nothing. */
export function createRedisLimiter (redis: Redis | Cluster, keys: Keys): Limiter {
  redis.defineCommand('interlockReserve', { numberOfKeys: 2, lua: readFileSync(join(import.meta.dirname, 'lua', 'reserve.lua'), 'utf8') })
  const scripts = redis as unknown as { interlockReserve: (places: string, begun: string, max: number, perMs: number, placed: 0 | 1) => Promise<number> }
  return { reserve: (name, max, perMs, placed = false) => scripts.interlockReserve(keys.limit(name), keys.begun(name), max, perMs, placed ? 1 : 0) }
}
