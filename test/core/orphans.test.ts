import t from 'tap'
import type { KeepOrphan } from '../../src/core/command.js'
import { docNames } from '../../src/core/draft.js'
import { ORPHAN_TTL_MS } from '../../src/core/orphans.js'
import { answer, ask, by, call, cancel, failure, given, lose, pass, result, rules, start, sweep, work, type Scene, type Step } from '../support/core-scene.js'

/** A result of a call comes, and nobody waits for it. */
const late = (name: string, over: Partial<KeepOrphan> = {}): Step => (scene) => ({
  type: 'KeepOrphan', at: scene.now, run_id: 'r1', turn: 1, batch_id: 'batch_1', call_id: `call_${name}`, name: 'look', attempt: 1, known: null, cause: 1, fence: scene.state().fence,
  output: `late ${name}`, text: `late ${name}`, truncated: false, ...over
})
const writes = (name: string) => call(name, { rules: rules({ effects: 'write' }) })
const tried = (name: string): Step => (scene) => ({ ...failure(name)(scene)!, arguments: {} } as ReturnType<Step>)
const kept = (scene: Scene) => [...scene.docs.keys()].filter((name) => name.startsWith('orphan/'))

const begun = [start(), work('w1')]
const rows: { when: string, steps: Step[], reason: string | null }[] = [
  { when: 'runs', steps: [...begun, by('w1', ask(call('a'), call('b')))], reason: null },
  { when: 'has its result', steps: [...begun, by('w1', ask(call('a'), call('b'))), result('a')], reason: 'duplicate' },
  { when: 'was started again', steps: [...begun, by('w1', ask(call('a'), call('b'))), lose('w1'), work('w2')], reason: 'stale' },
  { when: 'was started again and has its result', steps: [...begun, by('w1', ask(call('a'), call('b'))), lose('w1'), work('w2'), result('a')], reason: 'stale' },
  { when: 'waits for being started again', steps: [...begun, by('w1', ask(call('a', { rules: rules({ idempotent: true, retry: { attempts: 2, backoff_ms: 50 } }) }))), tried('a')], reason: 'stale' },
  { when: 'was given up, and nobody knows what came of it', steps: [...begun, by('w1', ask(writes('a'), call('b'))), lose('w1')], reason: 'stale' },
  { when: 'is of a run that has ended', steps: [...begun, by('w1', ask(call('a'), call('b'))), cancel()], reason: 'run_ended' }
]
for (const { when, steps, reason } of rows) {
  t.test(`D6, D7, D8: a result whose call ${when} is ${reason === null ? 'no orphan' : `an orphan: ${reason}`}`, async (t) => {
    const scene = given(...steps)
    const ledger = scene.ledger.length
    const then = scene.when(late('a'))
    t.equal(then.refusal, reason === null ? 'stale' : null)
    t.strictSame(then.events.map((event) => [event.type, event.reason]), reason === null ? [] : [['tool.orphaned', reason]])
    t.equal(scene.ledger.length, ledger, 'and nothing of it enters the ledger')
  })
}

t.test('D5: large orphans make room for newer ones: ten million characters are kept beside the newest', async (t) => {
  const scene = given(...begun, by('w1', answer('done')))
  const large = (name: string) => late(name, { output: 'x'.repeat(4_000_000) })
  for (const name of ['a', 'b', 'c']) scene.given(large(name))
  t.strictSame(kept(scene), ['a', 'b', 'c'].map((name) => docNames.orphan(`call_${name}`)))
  scene.given(large('d'))
  t.strictSame(kept(scene), ['b', 'c', 'd'].map((name) => docNames.orphan(`call_${name}`)), 'and of the oldest nothing is left')
})

t.test('D5: a conversation keeps its last fifty orphans, each for a week', async (t) => {
  const scene = given(...begun, by('w1', answer('done')))
  for (let i = 0; i < 60; i++) scene.given(late(`n${i}`), pass(1000))
  t.strictSame(scene.state().orphans.map((one) => one.call_id), Array.from({ length: 50 }, (_, i) => `call_n${i + 10}`))
  t.strictSame(kept(scene), Array.from({ length: 50 }, (_, i) => docNames.orphan(`call_n${i + 10}`)), 'and nothing of the others is left')
  scene.given(late('n10'))
  t.equal(scene.state().orphans.length, 50, 'a call has one')
  // The first left is now n11, which came at the eleventh second.
  scene.given(pass(ORPHAN_TTL_MS - 49_000), sweep())
  t.equal(scene.state().orphans.length, 49)
  scene.given(pass(ORPHAN_TTL_MS), sweep())
  t.strictSame([scene.state().orphans, kept(scene)], [[], []])
})
