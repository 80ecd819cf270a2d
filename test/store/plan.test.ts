import { isDeepStrictEqual } from 'node:util'
import fc from 'fast-check'
import t from 'tap'
import type { Doc, Piece } from '../../src/core/draft.js'
import { planCommit } from '../../src/store/plan.js'
import { commitOf, eventOf, stateOf } from '../support/store-conformance.js'

interface Content { docs: Record<string, string>, messages: string[] }

/** What a commit means (store.ts): messages are joined from all texts it brings; of several words on one text the last counts. */
function meaning (stored: Record<string, string>, docs: Doc[], messages: Piece[][]): Content {
  const after = new Map(Object.entries(stored))
  for (const { name, value } of docs) if (value !== null) after.set(name, value)
  const joined = messages.map((pieces) => pieces.map((piece) => typeof piece === 'string' ? piece : after.get(piece.doc) ?? 'null').join(''))
  const left = new Map(Object.entries(stored))
  for (const { name, value } of docs) {
    if (value === null) left.delete(name)
    else left.set(name, value)
  }
  return { docs: Object.fromEntries(left), messages: joined }
}

const name = fc.constantFrom('a', 'b', 'c', 'd', '__proto__')
const value = fc.oneof(fc.string(), fc.constantFrom('', '@a', '=', '{}'))
const piece = fc.oneof(value, fc.record({ doc: name }))
const content = {
  stored: fc.dictionary(name, value),
  docs: fc.array(fc.record({ name, value: fc.option(value) })),
  messages: fc.array(fc.array(piece, { maxLength: 6 }), { maxLength: 4 })
}

t.test('a text that is joined before it is sent makes the same messages as one that is joined where it is stored', async () => {
  fc.assert(fc.property(fc.record(content), ({ stored, docs, messages }) => {
    const plan = planCommit(commitOf('c', null, { docs, messages }))
    const sent = [...plan.puts.map(([name, value]): Doc => ({ name, value })), ...plan.drops.map((name): Doc => ({ name, value: null }))]
    return isDeepStrictEqual(meaning(stored, sent, plan.messages), meaning(stored, docs, messages))
  }), { numRuns: 500 })
})

t.test('a text that comes and goes within a commit is not stored', async (t) => {
  const plan = planCommit(commitOf('c', null, { docs: [{ name: 'a', value: '"x"' }, { name: 'b', value: '1' }, { name: 'a', value: null }], messages: [['[', { doc: 'a' }, ',', { doc: 'b' }, ']']] }))
  t.same(plan.puts, [['b', '1']])
  t.same(plan.messages, [['["x",1]']], 'and a message of known pieces is one piece')
  const again = planCommit(commitOf('c', null, { docs: [{ name: 'a', value: null }, { name: 'a', value: '2' }] }))
  t.same([again.puts, again.drops], [[['a', '2']], []], 'and one that goes and comes again is')
})

t.test('events are stored as their JSON; the fence is that of a claimed turn', async (t) => {
  const events = [eventOf('c', 1), eventOf('c', 2, { run_id: undefined })]
  t.same(planCommit(commitOf('c', null, { events })).events, events.map((event) => ({ seq: event.seq, type: event.type, run_id: event.run_id ?? null, json: JSON.stringify(event) })))
  t.equal(planCommit(commitOf('c', null)).fence, 0)
  t.equal(planCommit(commitOf('c', null, { state: stateOf('c', { fence: 7 }) })).fence, 7)
})
