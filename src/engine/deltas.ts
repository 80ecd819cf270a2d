import type { Delta } from '../store/store.js'
import type { Clock } from './ports.js'

/** Streamed text goes out in groups: one write per this many milliseconds, the first at once. */
const GROUP_MS = 25

export interface Deltas {
  push: (text: string) => void
  /** Sends what is left. Does not wait for it: whatever is sent next on the same connection comes after. */
  end: () => void
}

/**
 * Publishes the text of one attempt, piece by piece, each with its offset. `refused` is called when the fence turns out to be old:
 * the attempt is worth nothing any more. A failed write loses nothing that matters: the whole text comes with `turn.completed`.
 */
export function createDeltas (
  head: Omit<Delta, 'offset' | 'byte' | 'text'>, append: (delta: Delta) => Promise<boolean>, clock: Clock, refused: () => void
): Deltas {
  let offset = 0
  let byte = 0
  let waiting = ''
  let cancel: (() => void) | null = null

  function flush (): void {
    // Half a surrogate pair waits for its other half: alone it has no bytes.
    const half = /[\ud800-\udbff]$/.test(waiting) ? waiting.slice(-1) : ''
    const text = waiting.slice(0, waiting.length - half.length)
    if (text === '') return
    const delta = { ...head, offset, byte, text }
    offset += text.length
    byte += Buffer.byteLength(text)
    waiting = half
    append(delta).then((wrote) => { if (!wrote) refused() }, () => { /* see above */ })
  }

  return {
    push (text) {
      waiting += text
      if (cancel !== null) return
      flush()
      cancel = clock.after(GROUP_MS, function next () {
        cancel = waiting === '' ? null : clock.after(GROUP_MS, next)
        flush()
      })
    },
    end () {
      cancel?.()
      cancel = null
      flush()
    }
  }
}
