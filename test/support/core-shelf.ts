import type { Message } from '../../src/core/message.js'
import type { Change } from '../../src/core/transition.js'

/** What a store keeps beside the row: the texts, and the ledger joined from them. */
export interface Shelf {
  docs: Map<string, string>
  messages: Message[]
  /** Stores a change as one commit: texts come, messages are joined, texts go. Returns the new messages; throws when a text to join is missing. */
  store: (change: Change) => Message[]
}

export function createShelf (): Shelf {
  const docs = new Map<string, string>()
  const messages: Message[] = []
  return {
    docs,
    messages,
    store (change) {
      if (change.rewind !== null) messages.length = change.rewind
      for (const { name, value } of change.docs) if (value !== null) docs.set(name, value)
      const added = change.messages.map((pieces) => JSON.parse(pieces.map((piece) => {
        if (typeof piece === 'string') return piece
        const text = docs.get(piece.doc)
        if (text === undefined) throw new Error(`a message is joined from ${piece.doc}, which is not there`)
        return text
      }).join('')) as Message)
      messages.push(...added)
      for (const { name, value } of change.docs) if (value === null) docs.delete(name)
      return added
    }
  }
}
