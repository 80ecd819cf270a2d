import type { Cluster, Redis } from 'ioredis'
import type { Keys } from './keys.js'
import { define } from './scripts.js'
import type { Limiter } from './store.js'

/** Places in Redis, by its clock. A reservation that is sent again because its reply was lost takes two places, which costs time and breaks nothing. */
export function createRedisLimiter (redis: Redis | Cluster, keys: Keys): Limiter {
  define(redis, 'interlockReserve', 'reserve', 2)
  const scripts = redis as unknown as { interlockReserve: (places: string, begun: string, max: number, perMs: number, placed: 0 | 1) => Promise<number> }
  return { reserve: (name, max, perMs, placed = false) => scripts.interlockReserve(keys.limit(name), keys.begun(name), max, perMs, placed ? 1 : 0) }
}
