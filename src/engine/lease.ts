import type { Cluster, Redis } from 'ioredis'
import Redlock from 'redlock'
import type { Keys } from '../store/keys.js'
import { define } from '../store/scripts.js'
import type { Lease, Leases, Log } from './ports.js'

/** A renewal that got no answer is tried again this often within the time of one. */
const TRIES = 10

/**
 * The lease on a conversation's LLM calls: a redlock on one client, renewed at a third of its time. It saves money, it does not keep
 * the truth: whoever loses it is stopped as soon as it can be told, and what it still writes is refused by its fence.
 * Waiting for a busy lock is the caller's business, so redlock never retries (a lock it waited for may already have expired). While Redis does not answer
 * the lease is kept until nobody can tell any more whose it is, by a clock that nobody sets.
 */
export function createLeases (redis: Redis | Cluster, keys: Keys, ttlMs: number, log: Log): Leases {
  const redlock = new Redlock([redis as unknown as Redlock.CompatibleRedisClient], { retryCount: 0, driftFactor: 0.01 })
  redlock.on('clientError', () => { /* the connection reports its own outages, and a failed call is seen by its caller */ })
  define(redis, 'interlockRenew', 'renew', 1)
  const scripts = redis as unknown as { interlockRenew: (lock: string, value: string, ttlMs: number) => Promise<number> }

  return {
    async acquire (conversation): Promise<Lease | null> {
      const key = keys.lock(conversation)
      let until = performance.now() + ttlMs
      let lock: Redlock.Lock
      try {
        lock = await redlock.acquire(key, ttlMs)
      } catch {
        return null
      }
      if (performance.now() >= until) return null
      const lost = new AbortController()
      let released = false
      let renewal: NodeJS.Timeout
      let deadline: NodeJS.Timeout
      const rest = () => {
        clearTimeout(renewal)
        clearTimeout(deadline)
      }
      // Not awaited: it expires by itself, and nothing waits for it that cannot wait for that.
      const unlock = () => { lock.unlock().catch(() => { /* it had expired */ }) }
      const lose = (why: string) => {
        rest()
        if (released || lost.signal.aborted) return
        log.warn({ conversation_id: conversation, err: why }, 'lease lost')
        lost.abort(new LeaseLostError())
      }
      const renewAfter = (ms: number) => {
        clearTimeout(deadline)
        deadline = setTimeout(() => lose('it could not be renewed in time'), until - performance.now())
        renewal = setTimeout(() => void renew(), ms)
      }
      async function renew (): Promise<void> {
        const begun = performance.now()
        const renewed = await scripts.interlockRenew(key, lock.value as string, ttlMs).then((held) => held === 1, () => null)
        if (renewed === false) return lose('it is held by somebody else, or by nobody')
        if (renewed === true) until = begun + ttlMs
        if (released) return
        // Too late for us: whoever comes next need not wait.
        if (lost.signal.aborted) return renewed === true ? unlock() : undefined
        renewAfter(renewed === true ? ttlMs / 3 : ttlMs / 3 / TRIES)
      }
      renewAfter(ttlMs / 3)
      return {
        signal: lost.signal,
        release: () => {
          released = true
          rest()
          if (!lost.signal.aborted) unlock()
        }
      }
    }
  }
}

/** The lease could not be renewed: somebody else may be at work soon. */
class LeaseLostError extends Error {
  override name = 'LeaseLostError'
  constructor () { super('the lease was lost') }
}
