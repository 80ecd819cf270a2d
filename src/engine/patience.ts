import type { Reads } from '../store/store.js'
import type { Clock, Log } from './ports.js'

/** Lets time pass. */
export const pause = (clock: Clock, ms: number): Promise<void> => new Promise((resolve) => { clock.after(ms, resolve) })

/** Asks the store until it answers, or nobody wants the answer any more: then the last error is thrown. */
export async function patiently<T> ({ clock, log }: { clock: Clock, log: Log }, ask: () => Promise<T>, isWanted = () => true): Promise<T> {
  for (let tries = 1; ; tries++) {
    try {
      return await ask()
    } catch (error) {
      if (tries % 10 === 1) log.warn({ err: (error as Error).message, tries }, 'the store does not answer; trying again')
      if (isWanted()) await pause(clock, Math.min(1000, 25 * 2 ** tries))
      if (!isWanted()) throw error
    }
  }
}

/**
 * Reads for work that is claimed: tried until they work, however long the store is away. Giving up would cost the claim, and a claimed
 * call that writes could not be given to anyone else (its outcome would be unknown although it never ran).
 */
export function patientReads (reads: Reads, clock: Clock, log: Log): Pick<Reads, 'docs' | 'ledger'> {
  const deps = { clock, log }
  return {
    docs: (conversation, names) => patiently(deps, () => reads.docs(conversation, names)),
    ledger: (conversation, from, limit) => patiently(deps, () => reads.ledger(conversation, from, limit))
  }
}
