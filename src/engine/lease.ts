import type { Cluster, Redis } from 'ioredis'
import Redlock from 'redlock'
import type { Keys } from '../store/keys.js'
import type { Lease, Leases, Log } from './ports.js'

/**
 * The lease on a conversation's LLM calls: a redlock on one client, renewed at a third of its time. It saves money, it does not keep
 * the truth: whoever loses it is stopped as soon as it can be told, and what it still writes is refused by its fence.
 * Waiting for a busy lock is the caller's business, so redlock never retries (a lock it waited for may already have expired).
 */
export function createLeases (redis: Redis | Cluster, keys: Keys, ttlMs: number, log: Log): Leases {
  const redlock = new Redlock([redis as unknown as Redlock.CompatibleRedisClient], { retryCount: 0, driftFactor: 0.01 })
  redlock.on('clientError', () => { /* the connection reports its own outages, and a failed call is seen by its caller */ })

  return {
    async acquire (conversation): Promise<Lease | null> {
      let lock: Redlock.Lock
      try {
        lock = await redlock.acquire(keys.lock(conversation), ttlMs)
      } catch {
        return null
      }
      if (lock.expiration <= Date.now()) return null
      const lost = new AbortController()
      const renewal = setInterval(() => {
        lock.extend(ttlMs).catch((error: Error) => {
          clearInterval(renewal)
          log.warn({ conversation_id: conversation, err: error.message }, 'lease could not be renewed')
          lost.abort(new LeaseLostError())
        })
      }, ttlMs / 3)
      return {
        signal: lost.signal,
        release: () => {
          clearInterval(renewal)
          // Not awaited: it expires by itself, and nothing waits for it that cannot wait for that.
          if (!lost.signal.aborted) lock.unlock().catch(() => { /* it had expired */ })
        }
      }
    }
  }
}

/** A renewal failed: somebody else may be at work already. */
class LeaseLostError extends Error {
  override name = 'LeaseLostError'
  constructor () { super('the lease was lost') }
}
