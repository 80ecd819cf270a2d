/** What a look at the queue of a worker has found. */
export interface Look {
  /** The job that has waited longest; null: none waits; undefined: the queue could not be read. */
  head: string | null | undefined
  /** This worker could take one more. */
  room: boolean
  /** Redis answers. */
  answers: boolean
  /** A sweep has begun and does not come to its end. */
  hung: boolean
}

/** What to do about it: nothing; open the connections of the queue again; give the process up. */
export type Verdict = 'fine' | 'renew' | 'end'

/** Looks in a row that must find the same standstill. */
export const LOOKS = 5

/**
 * Judges whether a worker gets on with what is due (FAULTS B7, B8): a job that could be taken at once, and that nobody has taken at any of several looks in
 * a row, says that something is wrong here. What does not: Redis is away, nothing waits, this worker is full, or others take the jobs. Looks are counted and
 * not timed, so that a process which was stopped is not judged for the time it could not see.
 */
export function createWatchdog (): (look: Look) => Verdict {
  let last: string | null | undefined
  let still = 0
  let renewed = false
  return ({ head, room, answers, hung }) => {
    const stands = answers && (hung || (room && (head === undefined || (head !== null && head === last))))
    last = head
    if (!stands) {
      still = 0
      renewed = false
      return 'fine'
    }
    if (++still < LOOKS) return 'fine'
    still = 0
    if (renewed) return 'end'
    renewed = true
    return 'renew'
  }
}
