import type { Message } from '../core/message.js'
import type { Reads, Row } from '../store/store.js'
import type { Clock } from './ports.js'
import { createRecent } from './recent.js'

/** Text kept in memory at most for conversations this process works on, in characters of JSON. */
const KEPT_CHARS = 64 * 1024 * 1024

/** What a model is to see of conversations, without reading all of it again for every turn. */
export interface LedgerCache {
  /** The whole ledger, at least as of `row`. Only what is not known yet is read: within an epoch and between two rewinds the ledger only grows. */
  read: (conversation: string, row: Row) => Promise<Message[]>
}

/** Keeps ledgers while they are used, `KEPT_CHARS` of them at most. */
export function createLedgerCache (reads: Pick<Reads, 'ledger'>, clock: Pick<Clock, 'now'>): LedgerCache {
  const kept = createRecent<{ generation: string, messages: Message[], chars: number }>(clock, { most: KEPT_CHARS, weigh: ({ chars }) => chars })

  return {
    async read (conversation, row) {
      const found = kept.get(conversation)
      const generation = `${row.epoch} ${row.born} ${row.state.rewinds}`
      const known = found?.generation === generation && found.messages.length <= row.state.messages ? found : { generation, messages: [], chars: 0 }
      while (known.messages.length < row.state.messages) {
        const from = known.messages.length
        const tail = await reads.ledger(conversation, from)
        if (tail.length === 0) break
        // Another read may have added the same messages meanwhile.
        if (known.messages.length > from) continue
        for (const json of tail) {
          known.messages.push(JSON.parse(json) as Message)
          known.chars += json.length
        }
      }
      kept.set(conversation, known)
      return [...known.messages]
    }
  }
}
