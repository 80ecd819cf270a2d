import type { Cluster, Redis } from 'ioredis'
import Redlock from 'redlock'
import type { Keys } from '../store/keys.js'
import type { Lease, Leases, Log } from './ports.js'

/** A renewal that got no answer is tried again this often within the time of one. */
const TRIES = 10

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
      const key = keys.lock(conversation)
      /** Until when nobody else can have it, by a clock that nobody sets. */
      let until = performance.now() + ttlMs
      let lock: Redlock.Lock
      try {
        lock = await redlock.acquire(key, ttlMs)
      } catch {
        return null
      }
      if (performance.now() >= until) return null
      const lost = new AbortController()
      let renewal: NodeJS.Timeout
      let deadline: NodeJS.Timeout
      const end = () => {
        clearTimeout(renewal)
        clearTimeout(deadline)
      }
      const lose = (why: string) => {
        if (lost.signal.aborted) return
        end()
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
        try {
          // redlock goes by the wall clock, which may have been set meanwhile.
          lock.expiration = Date.now() + until - begun
          await lock.extend(ttlMs)
          until = begun + ttlMs
          if (!over()) renewAfter(ttlMs / 3)
          else if (!released) lock.unlock().catch(() => { /* it had expired */ }) // too late for us: whoever comes next need not wait
        } catch (error) {
          // A Redis that does not answer has not given it to anybody else.
          const holder = await redis.get(key).catch(() => undefined)
          if (over()) return
          if (holder !== undefined && holder !== lock.value) lose((error as Error).message)
          else renewAfter(ttlMs / 3 / TRIES)
        }
      }
      let released = false
      const over = () => released || lost.signal.aborted
      renewAfter(ttlMs / 3)
      return {
        signal: lost.signal,
        release: () => {
          released = true
          end()
          // Not awaited: it expires by itself, and nothing waits for it that cannot wait for that.
          if (!lost.signal.aborted) lock.unlock().catch(() => { /* it had expired */ })
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
