import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Cluster, Redis } from 'ioredis'
import type { Keys } from './keys.js'

/** How often things may begin, over all processes. */
export interface Limiter {
  /**
   * Takes the next place of `name` in a strict sliding window: never more than `max` (1 to 10,000) begin within any `perMs` (whole
   * milliseconds, at least 1), first come first served. Resolves with how many milliseconds to wait; 0: begin now, and at once. One round
   * trip. Who has waited asks again and says that it has a place (`placed`): it keeps that however late it comes, and waits once more only as long
   * as others, who were late, still fill the window. A place that is taken is used up also if nobody begins. All who use a name give the same
   * numbers; when they change, the new ones are kept from the next place on, counting no more of the earlier places than the old ones made known.
   */
  reserve: (name: string, max: number, perMs: number, placed?: boolean) => Promise<number>
}

/** Places in Redis, by its clock. A reservation that is sent again because its reply was lost takes two places, which costs time and breaks nothing. */
export function createRedisLimiter (redis: Redis | Cluster, keys: Keys): Limiter {
  redis.defineCommand('interlockReserve', { numberOfKeys: 2, lua: readFileSync(join(import.meta.dirname, 'lua', 'reserve.lua'), 'utf8') })
  const scripts = redis as unknown as { interlockReserve: (places: string, begun: string, max: number, perMs: number, placed: 0 | 1) => Promise<number> }
  return { reserve: (name, max, perMs, placed = false) => scripts.interlockReserve(keys.limit(name), keys.begun(name), max, perMs, placed ? 1 : 0) }
}
