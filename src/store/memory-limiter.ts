import type { Limiter } from './limiter.js'

/** The limiter in memory, with the same promises within one process: for tests and the simulation. `clock` says milliseconds. */
export function createMemoryLimiter (clock: { now: () => number } = { now: () => Date.now() }): Limiter {
  const limits = new Map<string, { places: number[], until: number }>()
  return {
    async reserve (name, max, perMs) {
      const now = clock.now()
      for (const [known, { until }] of limits) if (until <= now) limits.delete(known)
      const places = limits.get(name)?.places ?? []
      const [last = now, freed = -Infinity] = [places.at(-1), places.at(-max)]
      const wait = Math.ceil(Math.max(0, last - now, freed + perMs - now))
      places.push(now + wait)
      limits.set(name, { places: places.slice(-max), until: now + wait + perMs })
      return wait
    }
  }
}
