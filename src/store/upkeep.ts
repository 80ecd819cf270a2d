import type { Cluster, Redis } from 'ioredis'
import type { Keys } from './keys.js'
import { createRemoveIf } from './remove-if.js'

/** What stands beside a row and may be left over: for whoever looks after a conversation that does not go on. */
export interface Upkeep {
  /** When the sweep looks at it next, in milliseconds since 1970; null: never. */
  due: (conversation: string) => Promise<number | null>
  /** The lock on its LLM calls, and for how many milliseconds it still stands; null: it is free. */
  lock: (conversation: string) => Promise<{ value: string, ms: number } | null>
  /** Removes the lock if it is still the one with this value. False: it is not. */
  unlock: (conversation: string, value: string) => Promise<boolean>
}

/** On Redis, whose clock it goes by. */
export function createUpkeep (redis: Redis | Cluster, keys: Keys): Upkeep {
  const removeIf = createRemoveIf(redis)
  return {
    async due (conversation) {
      const score = await redis.zscore(keys.due(keys.partitionOf(conversation)), conversation)
      return score === null ? null : Number(score)
    },
    async lock (conversation) {
      const [value, ms] = await Promise.all([redis.get(keys.lock(conversation)), redis.pttl(keys.lock(conversation))])
      return value === null ? null : { value, ms: Math.max(0, ms) }
    },
    unlock: (conversation, value) => removeIf(keys.lock(conversation), value)
  }
}
