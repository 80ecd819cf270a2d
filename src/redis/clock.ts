import type { Connection } from './connect.js'

/** How often the clock is compared with that of Redis. Milliseconds. */
const LOOK_MS = 2000

export interface SharedClock {
  /** Milliseconds since 1970. */
  now: () => number
  /** Compares it with that of Redis now. Rejects when Redis does not answer. */
  look: () => Promise<void>
  stop: () => void
}

/**
 * The time of Redis, which all processes share: what one of them calls due the others must find due, whatever their own clocks say (FAULTS F72). In
 * between it goes on by the monotonic clock of this process, so that a machine's clock may be set without any timeout being early or late. Until
 * Redis has been asked it is the machine's own.
 */
export function createSharedClock (redis: Connection): SharedClock {
  let origin = Date.now() - performance.now()

  async function look (): Promise<void> {
    const sent = performance.now()
    const [seconds = 0, microseconds = 0] = await redis.time()
    const said = seconds * 1000 + microseconds / 1000
    // It was said at some moment in between, so this is all that is known. An estimate that fits is as good as any other.
    origin = Math.min(Math.max(origin, said - performance.now()), said - sent)
  }

  const quietly = () => { look().catch(() => { /* Redis is away; what is known goes on */ }) }
  const timer = setInterval(quietly, LOOK_MS)
  // It may be another machine than before.
  redis.on('ready', quietly)
  return {
    now: () => Math.round(origin + performance.now()),
    look,
    stop: () => {
      clearInterval(timer)
      redis.off('ready', quietly)
    }
  }
}
