import type { Clock } from './ports.js'

/** Things that spare a read, by name, as long as they are in use. */
export interface Recent<T> {
  /** Counts as use. */
  get: (name: string) => T | undefined
  /** Counts as use, and lets go of what is not in use any more. */
  set: (name: string, thing: T) => void
  forget: (name: string) => void
}

export interface RecentOptions<T> {
  /** How much is kept at most: the one that was not used for longest goes first. */
  most: number
  /** How much of that a thing takes up when it is set. Default 1. */
  weigh?: (thing: T) => number
  /** Things that must stay as they are. Default: none. */
  isBusy?: (thing: T) => boolean
}

/** What nobody has used for so long goes, however few there are: a conversation that rests costs a worker nothing. Milliseconds. */
const IDLE_MS = 60_000

/** Keeps what this process has used lately: memory follows the work under way, and not how much there has ever been (FAULTS I19). */
export function createRecent<T> (clock: Pick<Clock, 'now'>, { most, weigh = () => 1, isBusy = () => false }: RecentOptions<T>): Recent<T> {
  // Insertion order is order of use.
  const kept = new Map<string, { thing: T, weight: number, used: number }>()
  let total = 0

  function forget (name: string): void {
    total -= kept.get(name)?.weight ?? 0
    kept.delete(name)
  }

  return {
    get (name) {
      const found = kept.get(name)
      if (found === undefined) return undefined
      kept.delete(name)
      kept.set(name, Object.assign(found, { used: clock.now() }))
      return found.thing
    },
    set (name, thing) {
      const now = clock.now()
      forget(name)
      const weight = weigh(thing)
      total += weight
      kept.set(name, { thing, weight, used: now })
      for (const [oldest, { thing: other, used }] of kept) {
        if (total <= most && now - used < IDLE_MS) break
        if (oldest !== name && !isBusy(other)) forget(oldest)
      }
    },
    forget
  }
}
