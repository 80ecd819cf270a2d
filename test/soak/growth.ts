import { mean, type Held, type Look } from '../support/soak.js'

/** A figure of one process, early and late, in words. */
export interface Growth { what: string, before: string, after: string, flat: boolean }

/** Runs in which code is compiled, and seconds in which caches fill: what a worker has used lately it keeps for a minute. */
const WARM_UP = 1000
const WARM_UP_S = 65
/** Runs whose figures are averaged at either end. */
const STRETCH = 2000

/** How much later figures may be above earlier ones: what a garbage collector and an allocator need to breathe. */
const MORE = 1.15

/** Connections that are kept for a while come and go: so many more at one look than at another are none that pile up. */
const MORE_HANDLES = 20

const times = (value: number) => value * MORE
const mb = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MB`

/**
 * Compares the first 2,000 runs after the warm-up with the last 2,000. Memory, at work and after a full collection, may be 15 % more; of what keeps
 * an event loop alive there may be a handful more. Of a shorter soak, its two halves are compared.
 */
export function growth (looks: Look[]): Growth[] {
  const all = looks.at(-1)?.runs ?? 0
  const warm = looks.find(({ runs, seconds }) => runs >= WARM_UP && seconds >= WARM_UP_S)?.runs ?? all
  const long = all >= warm + 2 * STRETCH
  const early = looks.filter(({ runs }) => long ? runs > warm && runs <= warm + STRETCH : runs <= all / 2)
  const late = looks.filter(({ runs }) => runs > (long ? all - STRETCH : all / 2))
  if (early.length === 0 || late.length === 0) return []
  return Object.keys(looks[0]?.processes ?? {}).flatMap((name) => {
    const compare = (what: string, figure: (held: Held) => number, show: (value: number) => string, allowed: (value: number) => number): Growth => {
      const of = (some: Look[]) => mean(some.map(({ processes }) => figure(processes[name] as Held)))
      const [before, after] = [of(early), of(late)]
      return { what: `${name}: ${what}`, before: show(before), after: show(after), flat: after <= allowed(before) }
    }
    return [
      compare('resident at work', (held) => held.rssAtWork, mb, times),
      compare('heap when settled', (held) => held.heap, mb, times),
      compare('outside the heap when settled', (held) => held.external, mb, times),
      compare('timers, sockets and the like', handles, (value) => value.toFixed(1), (value) => value + MORE_HANDLES)
    ]
  })
}

function handles ({ handles: all }: Held): number {
  return Object.values(all).reduce((sum, count) => sum + count, 0)
}
