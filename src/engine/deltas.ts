import type { Delta } from '../store/store.js'
import type { Clock } from './ports.js'

/** Streamed text goes out in groups: one write per this many milliseconds, the first at once. */
const GROUP_MS = 25

/** Where the text of one attempt goes as it comes. */
export interface Deltas {
  push: (text: string) => void
  /** Sends what is left. Does not wait for it: whatever is sent next on the same connection comes after, and what is not shown with a large answer is in it. */
  end: () => void
}

/**
 * Publishes the text of one attempt, piece by piece, each with its offset. `refused` is called when the fence turns out to be old:
 * the attempt is worth nothing any more. What may be lost is sent again with what follows it, never waited for: the whole text comes
 * with `turn.completed`.
 */
export function createDeltas (
  head: Omit<Delta, 'offset' | 'byte' | 'text'>, append: (delta: Delta) => Promise<boolean>, clock: Clock, refused: () => void
): Deltas {
  let whole = ''
  /** How much of it has been sent, in UTF-16 units and in bytes of UTF-8. */
  let sent = { offset: 0, byte: 0 }
  let cancel: (() => void) | null = null

  function flush (): void {
    // Half a surrogate pair waits for its other half: alone it has no bytes.
    const half = (whole.charCodeAt(whole.length - 1) & 0xfc00) === 0xd800 ? 1 : 0
    const from = sent
    const text = whole.slice(from.offset, whole.length - half)
    if (text === '') return
    sent = { offset: from.offset + text.length, byte: from.byte + Buffer.byteLength(text) }
    append({ ...head, ...from, text }).then((wrote) => { if (!wrote) refused() }, () => {
      if (from.offset < sent.offset) sent = from
    })
  }

  return {
    push (text) {
      whole += text
      if (cancel !== null) return
      flush()
      cancel = clock.after(GROUP_MS, function next () {
        cancel = sent.offset === whole.length ? null : clock.after(GROUP_MS, next)
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
