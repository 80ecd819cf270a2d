import type { Clock } from '../../src/engine/ports.js'

export interface FakeClock extends Clock {
  /** Lets time pass: every timer that falls due fires at its time, and what it wakes goes on, before the next one does. */
  pass: (ms: number) => Promise<void>
  /** How many timers are set. */
  timers: () => number
}

/** Resolves once everything that can go on without time passing has done so. */
export async function settled (): Promise<void> {
  for (let i = 0; i < 3; i++) await new Promise(setImmediate)
}

export function createFakeClock (start = Date.UTC(2030, 0, 1)): FakeClock {
  let now = start
  const timers = new Set<{ at: number, callback: () => void }>()
  return {
    now: () => now,
    after (ms, callback) {
      const timer = { at: now + ms, callback }
      timers.add(timer)
      return () => { timers.delete(timer) }
    },
    async pass (ms) {
      const end = now + ms
      await settled()
      for (;;) {
        const [next] = [...timers].filter((timer) => timer.at <= end).sort((a, b) => a.at - b.at)
        if (next === undefined) break
        now = Math.max(now, next.at)
        timers.delete(next)
        next.callback()
        await settled()
      }
      now = end
    },
    timers: () => timers.size
  }
}
