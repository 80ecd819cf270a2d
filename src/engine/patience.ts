import type { Store } from '../store/store.js'
import type { Clock, Log } from './ports.js'

export type Reads = Pick<Store, 'load' | 'docs' | 'ledger'>

/**
 * Reads for work that is claimed: tried until they work, however long the store is away. Giving up would cost the claim, and a claimed
 * call that writes could not be given to anyone else (its outcome would be unknown although it never ran).
 */
export function patientReads (store: Reads, clock: Clock, log: Log): Reads {
  async function patiently<T> (read: () => Promise<T>): Promise<T> {
    for (let tries = 1; ; tries++) {
      try {
        return await read()
      } catch (error) {
        if (tries % 10 === 1) log.warn({ err: (error as Error).message, tries }, 'the store does not answer; trying again')
        await new Promise<void>((resolve) => { clock.after(Math.min(1000, 25 * 2 ** tries), resolve) })
      }
    }
  }
  return {
    load: (conversation) => patiently(() => store.load(conversation)),
    docs: (conversation, names) => patiently(() => store.docs(conversation, names)),
    ledger: (conversation, from, limit) => patiently(() => store.ledger(conversation, from, limit))
  }
}
