import type { Message } from '../core/message.js'
import type { Row } from '../store/store.js'
import type { Reads } from './patience.js'

/** Text kept in memory for conversations this process has worked on, in characters of JSON. */
const KEPT_CHARS = 64 * 1024 * 1024

export interface LedgerCache {
  /** The whole ledger, at least as of `row`. Only what is not known yet is read: within an epoch and between two rewinds the ledger only grows. */
  read: (conversation: string, row: Row) => Promise<Message[]>
}

export function createLedgerCache (store: Reads): LedgerCache {
  const kept = new Map<string, { generation: string, messages: Message[], chars: number }>()
  let chars = 0

  function forget (conversation: string): void {
    chars -= kept.get(conversation)?.chars ?? 0
    kept.delete(conversation)
  }

  return {
    async read (conversation, row) {
      const found = kept.get(conversation)
      const generation = `${row.epoch} ${row.born} ${row.state.rewinds}`
      const known = found?.generation === generation && found.messages.length <= row.state.messages ? found : { generation, messages: [], chars: 0 }
      while (known.messages.length < row.state.messages) {
        const from = known.messages.length
        const tail = await store.ledger(conversation, from)
        if (tail.length === 0) break
        // Another read may have added the same messages meanwhile.
        if (known.messages.length > from) continue
        forget(conversation)
        for (const json of tail) {
          known.messages.push(JSON.parse(json) as Message)
          known.chars += json.length
        }
      }
      forget(conversation)
      kept.set(conversation, known)
      chars += known.chars
      for (const oldest of kept.keys()) {
        if (chars <= KEPT_CHARS || oldest === conversation) break
        forget(oldest)
      }
      return [...known.messages]
    }
  }
}
