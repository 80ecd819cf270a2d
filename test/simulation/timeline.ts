/** Virtual time: things happen one after the other, in the order of their times. Nothing waits. */
export interface Timeline {
  now: () => number
  /** Lets something happen at a time (milliseconds, fractions allowed; a time that has passed is now). */
  at: (time: number, happen: Happening) => { cancel: () => void }
  /** Lets time pass until `over` says so or nothing is left to happen. */
  run: (over: () => boolean) => Promise<void>
  happened: () => number
}

/** True: it has woken code of the product, which goes on until it waits again before anything else happens. */
export type Happening = () => boolean

const IMMEDIATES = 32

interface Entry { time: number, order: number, happen: Happening | null }

export function createTimeline (start: number): Timeline {
  const heap: Entry[] = []
  let now = start
  let order = 0
  let happened = 0

  const before = (a: Entry, b: Entry) => a.time < b.time || (a.time === b.time && a.order < b.order)

  function push (entry: Entry): void {
    let i = heap.length
    heap.push(entry)
    while (i > 0) {
      const parent = (i - 1) >> 1
      if (!before(entry, heap[parent] as Entry)) break
      heap[i] = heap[parent] as Entry
      i = parent
    }
    heap[i] = entry
  }

  function pop (): Entry | undefined {
    const first = heap[0]
    const last = heap.pop()
    if (first === undefined || last === undefined || heap.length === 0) return first
    let i = 0
    for (;;) {
      let child = 2 * i + 1
      if (child >= heap.length) break
      if (child + 1 < heap.length && before(heap[child + 1] as Entry, heap[child] as Entry)) child++
      if (!before(heap[child] as Entry, last)) break
      heap[i] = heap[child] as Entry
      i = child
    }
    heap[i] = last
    return first
  }

  return {
    now: () => now,
    at (time, happen) {
      const entry: Entry = { time: Math.max(time, now), order: order++, happen }
      push(entry)
      return { cancel: () => { entry.happen = null } }
    },
    run: (over) => new Promise((resolve, reject) => {
      let asked = 0
      let ended = false
      // Between two of its immediates Node runs all that was woken. Asking for many at once spares a turn of its event loop for each.
      const onceTheyWait = () => {
        if (asked > 0) return
        asked = IMMEDIATES
        for (let i = 0; i < IMMEDIATES; i++) setImmediate(step)
      }
      const end = (settle: () => void) => {
        ended = true
        settle()
      }
      const step = () => {
        asked--
        if (ended) return
        try {
          for (;;) {
            const entry = pop()
            if (entry === undefined) return end(resolve)
            if (entry.happen === null) continue
            now = entry.time
            happened++
            const woken = entry.happen()
            if (over()) return end(resolve)
            if (woken) return onceTheyWait()
          }
        } catch (error) {
          end(() => reject(error as Error))
        }
      }
      onceTheyWait()
    }),
    happened: () => happened
  }
}
