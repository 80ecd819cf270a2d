import type { Cluster, Redis } from 'ioredis'
import { define } from './scripts.js'

/** Removes a key as long as it holds this value, in one step. False: it holds something else by now, or nothing. */
export type RemoveIf = (key: string, value: string) => Promise<boolean>

export function createRemoveIf (redis: Redis | Cluster): RemoveIf {
  define(redis, 'interlockRemoveIf', 'remove-if', 1)
  const scripts = redis as unknown as { interlockRemoveIf: (key: string, value: string) => Promise<number> }
  return async (key, value) => await scripts.interlockRemoveIf(key, value) === 1
}
