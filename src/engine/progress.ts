import type { Clock } from './ports.js'

/** Of one call, progress is told this often at most: a tool may tell of every byte, and what is told is kept for good. Milliseconds. */
const PACE_MS = 200

export interface Progress {
  /** Tells it at once, or when it is time for it; of what comes meanwhile only the newest. */
  tell: (data: unknown) => void
  /** The call is over: what is left is told now, or with false not at all. */
  end: (tellLast: boolean) => void
}

/** Tells of a call's progress at a pace. */
export function paceProgress (clock: Pick<Clock, 'after'>, say: (data: unknown) => void): Progress {
  let newest: { data: unknown } | null = null
  let isOver = false
  /** Null: it is time. */
  let cancel: (() => void) | null = null

  function next (): void {
    cancel = null
    if (newest === null) return
    const { data } = newest
    newest = null
    cancel = clock.after(PACE_MS, next)
    say(data)
  }

  return {
    tell (data) {
      if (isOver) return
      newest = { data }
      if (cancel === null) next()
    },
    end (tellLast) {
      isOver = true
      cancel?.()
      if (tellLast && newest !== null) say(newest.data)
      newest = null
    }
  }
}
