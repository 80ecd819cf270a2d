import type { Cluster, Redis } from 'ioredis'
import type { Keys } from './keys.js'
import type { Presence } from './store.js'

/** One key per worker process, renewed for all it holds together: as long as it stands, so do the worker's claims. */
export function createPresence (redis: Redis | Cluster, keys: Keys): Presence {
  return {
    beat: async (worker, ttlMs) => { await redis.set(keys.worker(worker), '1', 'PX', ttlMs) },
    leave: async (worker) => { await redis.del(keys.worker(worker)) },
    left: async (workers) => {
      const left = await Promise.all(workers.map((worker) => redis.pttl(keys.worker(worker))))
      return left.map((ms) => Math.max(0, ms))
    }
  }
}
