import type { Limiter } from './store.js'

/** The limiter in memory, with the same promises within one process: for tests and the simulation. `clock` says milliseconds. */
export function createMemoryLimiter (clock: { now: () => number } = { now: () => Date.now() }): Limiter {
  const limits = new Map<string, { places: number[], begun: number[], until: number }>()
  return {
    async reserve (name, max, perMs, placed = false) {
      const now = clock.now()
      for (const [known, { until }] of limits) if (until <= now) limits.delete(known)
      const { places, begun, until } = limits.get(name) ?? { places: [], begun: [], until: now }
      const [last, freed] = placed ? [now, -Infinity] : [places.at(-1) ?? now, places.at(-max) ?? -Infinity]
      const wait = Math.ceil(Math.max(0, last - now, freed + perMs - now, (begun.at(-max) ?? -Infinity) + perMs - now))
      if (!placed) places.push(now + wait)
      if (wait === 0) begun.push(now)
      limits.set(name, { places: places.slice(-max), begun: begun.slice(-max), until: Math.max(until, now + wait + perMs) })
      return wait
    }
  }
}
