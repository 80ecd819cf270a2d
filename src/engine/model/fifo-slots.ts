/** Lets a limited number of holders in at once, first come first served. */
export interface FifoSlots {
  /** Resolves when a slot is ours; rejects with the signal's reason when aborted before that, and the place in the queue is given up. */
  take: (signal: AbortSignal) => Promise<void>
  /** Hands the slot to whoever has waited longest. Once per successful `take`. */
  release: () => void
}

/** `limit`: how many hold a slot at once. */
export function fifoSlots (limit: number): FifoSlots {
  let free = limit
  // A Set keeps the order of arrival and forgets one that gives up without looking through the others.
  const waiting = new Set<() => void>()

  return {
    take (signal) {
      return new Promise((resolve, reject) => {
        signal.throwIfAborted()
        if (free > 0) {
          free -= 1
          return resolve()
        }
        const admit = () => {
          signal.removeEventListener('abort', leave)
          resolve()
        }
        const leave = () => {
          waiting.delete(admit)
          reject(signal.reason)
        }
        signal.addEventListener('abort', leave, { once: true })
        waiting.add(admit)
      })
    },
    release () {
      const [next] = waiting
      if (next === undefined) {
        free += 1
        return
      }
      waiting.delete(next)
      next()
    }
  }
}
