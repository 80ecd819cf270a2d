import t from 'tap'
import { createKeys } from '../../src/store/keys.js'
import { createMemoryStore } from '../../src/store/memory-store.js'
import { storeConformance } from '../support/store-conformance.js'

const keys = createKeys('il', 16)
const { store, feed, presence, history } = createMemoryStore(keys)

storeConformance(t, {
  store,
  feed,
  presence,
  keys,
  restarted: async () => { history.epoch += 1000 },
  leftovers: async (conversation) => {
    const held = await Promise.all([store.load(conversation), store.partial(conversation), store.ledger(conversation, 0), store.log(conversation, 0, 1)])
    return held.flat().filter((one) => one !== null).map(String)
  }
})
