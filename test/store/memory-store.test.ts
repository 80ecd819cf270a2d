import t from 'tap'
import { createKeys } from '../../src/store/keys.js'
import { createMemoryStore } from '../../src/store/memory-store.js'
import { storeConformance } from '../support/store-conformance.js'

const keys = createKeys('il', 16)
const { store, feed, presence } = createMemoryStore(keys)

storeConformance(t, {
  store,
  feed,
  presence,
  keys,
  leftovers: async (conversation) => {
    const [row, messages, events, partial] = await Promise.all([store.load(conversation), store.ledger(conversation, 0), store.log(conversation, 0, 1), store.partial(conversation)])
    return [row === null ? [] : ['row'], messages, events, partial === null ? [] : ['partial']].flat().map(String)
  }
})
