import t, { type Test } from 'tap'
import type { Repair, RepairAction } from '../../src/core/command.js'
import { checkLedger, checkState } from '../../src/core/check.js'
import { MAX_LOSSES } from '../../src/core/lapse.js'
import { claimsOf, type BatchPhase } from '../../src/core/state.js'
import { answer, ask, by, call, claimed, create, given, pass, remembered, result, retry, rules, start, stopped, work, type Scene, type Step } from '../support/core-scene.js'

let operations = 0
const repair = (action: RepairAction, over: Partial<Repair> = {}): Step => ({ now }) => ({
  type: 'Repair', at: now, operation: `op${++operations}`, action, reason: null, found: null, ...over
})
const failCall = (name: string, over: Partial<Repair> = {}) => repair({ type: 'fail_call', call_id: `call_${name}` }, over)
const retryTurn = (over: Partial<Repair> = {}) => repair({ type: 'retry_turn' }, over)
/** Everything that is claimed now. */
const release = (over: Partial<Repair> = {}): Step => (scene) => {
  const claims = claimsOf(scene.state())
  return repair({
    type: 'release',
    fence: claims.find((claim) => claim.fence !== null)?.fence ?? null,
    calls: claims.flatMap(({ call_id: id, attempt }) => id === null ? [] : [{ call_id: id, attempt, arguments: { at: id.replace('call_', '') } }])
  }, over)(scene)
}
const approval = (name: string) => call(name, { rules: rules({ approval: { expires_ms: null } }) })
const client = (name: string) => call(name, { rules: rules({ client: { expires_ms: 60_000 } }) })
const write = (name: string) => call(name, { rules: rules({ effects: 'write' }) })

/** Brings what is left to its end, and asserts that nothing was left out. */
function ends (t: Test, scene: Scene): void {
  for (let steps = 0; scene.state().run !== null; steps++) {
    if (steps > 50) throw new Error('it never ends')
    const { phase } = scene.state().run!
    const [claim] = claimed(scene)
    if (phase.type === 'batch' && phase.suspension !== null) scene.given(...phase.calls.filter(({ status }) => status === 'suspended').map((one) => failCall(one.id.slice(5))))
    else if (claim === undefined) scene.given(pass(60_000), work('w9'))
    else scene.given(claim.endsWith(' turn') ? by('w9', answer('done')) : by('w9', result(claim.split(' ')[1]!)))
  }
  t.strictSame([...checkState(scene.state()), ...checkLedger(scene.state(), scene.ledger)], [])
}

t.test('retry_turn takes a claimed turn away: a new fence, its worker told, due at once, and the run ends as ever', async (t) => {
  const scene = given(start(), work('w1'))
  const fence = scene.fence()
  const then = scene.when(retryTurn({ reason: 'it hangs' }))
  t.strictSame(then.said, ['conversation.recovered', 'turn.retrying 1'])
  t.match(then.events, [
    { caused_by: [3], turn: 1, detail: 'retry_turn: turn 1 is begun again; it hangs' },
    { caused_by: [3, 4], attempt: 2, reason: 'repair', delay_ms: 0 }
  ])
  t.strictSame(stopped(then.effects), ['w1 turn repair'])
  t.ok(scene.state().fence > fence)
  t.equal(scene.when(answer('too late')).refusal, 'stale')
  t.strictSame(scene.given(work('w2')).when(by('w2', answer('done'))).said, ['turn.completed 1', 'run.completed'])
  t.equal(scene.state().run, null)
})

t.test('retry_turn is no loss: it may be done more often than workers may die', async (t) => {
  const scene = given(start())
  for (let i = 0; i < 2 * MAX_LOSSES; i++) scene.given(work('w1'), retryTurn())
  ends(t, scene)
  t.equal(scene.log.at(-1)?.type, 'run.completed')
})

t.test('retry_turn ends the wait for the next try, which has been told already', async (t) => {
  const scene = given(start(), work('w1'), retry({ delay_ms: 60_000 }))
  t.strictSame(scene.when(work('w2')).said, [])
  t.strictSame(scene.when(retryTurn()).said, ['conversation.recovered'])
  t.strictSame(scene.given(work('w2')).state().run?.phase, { ...scene.state().run?.phase, worker: 'w2', attempt: 2 })
  ends(t, scene)
})

t.test('retry_turn of a turn that nobody has begun leaves it as it is, and in the same commit a worker may take it', async (t) => {
  const scene = given(start())
  t.strictSame(scene.when(by('w1', retryTurn())).said, ['conversation.recovered', 'run.started', 'turn.started 1'])
  ends(t, scene)
})

for (const [what, one, status, before] of [
  ['a running call', call('a'), 'running', [by('w1', ask(call('a'), call('b')))]],
  ['a call that nobody has taken', call('a'), 'running', [ask(call('a'), call('b'))]],
  ['a call that waits for a person', approval('a'), 'suspended', [by('w1', ask(approval('a'), call('b'))), by('w1', result('b'))]],
  ['a call of the client', client('a'), 'suspended', [by('w1', ask(client('a'), call('b'))), by('w1', result('b'))]],
  ['a call that waits until others are done before it asks a person', approval('a'), 'pending', [by('w1', ask(approval('a'), call('b')))]]
] as const) {
  t.test(`fail_call settles ${what} as failed, and tells the model why`, async (t) => {
    const scene = given(start(), work('w1'), ...before)
    t.equal((scene.state().run?.phase as BatchPhase).calls.find(({ id }) => id === one.call_id)?.status, status)
    const claims = claimed(scene)
    const then = scene.when(failCall('a', { reason: 'the shop is closed' }))
    t.strictSame(then.said.slice(0, 2), ['conversation.recovered', 'tool.failed a'])
    t.match(then.events[1], { caused_by: [then.events[0]?.seq], error: { code: 'repaired', message: 'an operator has ended this call: the shop is closed' } })
    t.strictSame(stopped(then.effects), claims.includes('w1 a') ? ['w1 a repair'] : [])
    t.equal(scene.when(failCall('a')).refusal, status === 'suspended' ? 'not_found' : 'call_settled')
    ends(t, scene)
    t.match(scene.ledger.find((message) => message.tool_call_id === 'call_a'), { content: /"code":"repaired".*the shop is closed/ })
    t.equal(scene.log.at(-1)?.type, 'run.completed')
  })
}

t.test('fail_call says of a started call that writes that it may have taken effect, and leaves what refers to it without an input', async (t) => {
  const after = call('b', { references: ['p_a'], arguments: { at: '{{stepOutputs.p_a.x}}' } })
  const scene = given(start(), work('w1'), by('w1', ask(write('a'), after)))
  const then = scene.when(failCall('a'))
  t.match(then.events[1]?.error, { message: 'an operator has ended this call (it had been started, and may have taken effect)' })
  t.match(then.events[2], { type: 'tool.failed', call_id: 'call_b', error: { code: 'dependency_failed' } })
  ends(t, scene)
})

t.test('fail_call does not stop a call that must not be stopped', async (t) => {
  const scene = given(start(), work('w1'), by('w1', ask(call('a', { rules: rules({ uncancellable: true }) }))))
  t.strictSame(stopped(scene.when(failCall('a')).effects), [])
  ends(t, scene)
})

t.test('fail_call of one of two suspended calls leaves the other to be decided', async (t) => {
  const scene = given(start(), work('w1'), by('w1', ask(approval('a'), approval('b'))))
  t.strictSame(scene.when(failCall('a')).said, ['conversation.recovered', 'tool.failed a'])
  t.equal(scene.state().run?.status, 'requires_action')
  t.strictSame(scene.when(failCall('b')).said.slice(0, 4), ['conversation.recovered', 'tool.failed b', 'suspension.resolved', 'run.resumed'])
  ends(t, scene)
})

t.test('release gives up a turn as if its worker had died', async (t) => {
  const scene = given(start(), work('w1'))
  const then = scene.when(release())
  t.strictSame([then.said, stopped(then.effects)], [['conversation.recovered', 'turn.retrying 1'], ['w1 turn repair']])
  t.strictSame(claimed(scene), [])
  ends(t, scene)
})

t.test('release gives up calls as if their workers had died: those that read run again, those that write do not', async (t) => {
  const scene = given(start(), work('w1'), by('w1', ask(call('read'), write('write'), call('done'))), by('w1', result('done')))
  const then = scene.when(release())
  t.strictSame(then.said, ['conversation.recovered', 'tool.failed write', 'tool.started read'])
  t.match(then.events[1], { error: { code: 'outcome_unknown' } })
  t.match(then.events[2], { attempt: 2, arguments: { at: 'read' }, caused_by: [then.events[0]?.seq] })
  t.strictSame(claimed(scene), [])
  ends(t, scene)
})

t.test('release leaves alone what has changed hands since it was asked for', async (t) => {
  const late = remembered(release())
  const scene = given(start(), work('w1'))
  late(scene)
  scene.given(retryTurn(), work('w2'))
  t.strictSame(scene.when(late).said, ['conversation.recovered'])
  t.strictSame(claimed(scene), ['w2 turn'])
  ends(t, scene)
})

t.test('release of a conversation in which only time is waited for says so and takes nothing', async (t) => {
  const scene = given(start({ due_at: Date.UTC(2030, 0, 2) }))
  const then = scene.when(release())
  t.match(then.events, [{ type: 'conversation.recovered', caused_by: [1] }])
  t.equal(then.events[0]?.run_id, undefined)
})

const refusals: { when: string, steps: Step[], repair: Step, refusal: string }[] = [
  { when: 'nothing is going on', steps: [create()], repair: retryTurn(), refusal: 'not_repairable' },
  { when: 'nothing is going on', steps: [create()], repair: release(), refusal: 'not_repairable' },
  { when: 'nothing is going on', steps: [create()], repair: failCall('a'), refusal: 'not_found' },
  { when: 'tools are at work', steps: [start(), work(), by('w1', ask(call('a')))], repair: retryTurn(), refusal: 'not_repairable' },
  { when: 'the call is another turn\'s', steps: [start(), work(), by('w1', ask(call('a')))], repair: failCall('b'), refusal: 'not_found' },
  { when: 'the call has its result', steps: [start(), work(), by('w1', ask(call('a'), call('b'))), result('a')], repair: failCall('a'), refusal: 'call_settled' },
  { when: 'a turn is under way', steps: [start(), work()], repair: failCall('a'), refusal: 'not_found' }
]
for (const { when, steps, repair: step, refusal } of refusals) {
  t.test(`when ${when}, what does not fit is refused as ${refusal} and changes nothing`, async (t) => {
    const scene = given(...steps)
    const before = JSON.stringify(scene.state())
    t.equal(scene.when(step).refusal, refusal)
    t.equal(JSON.stringify(scene.state()), before)
  })
}

t.test('a repair that is asked for twice under one name is done once', async (t) => {
  const scene = given(start(), work('w1'))
  const once = remembered(retryTurn())
  scene.given(once, work('w2'))
  t.equal(scene.when(once).refusal, 'duplicate')
  t.strictSame(claimed(scene), ['w2 turn'])
})

t.test('I29: what row and ledger were found to disagree in is mended, unless the row has changed since', async (t) => {
  const scene = given(start(), work('w1'))
  const found = { seq: scene.state().seq, wrong: ['the ledger has 1 messages, the row says 7'], messages: 1, delivered: [] }
  const wrong = structuredClone(scene.state())
  wrong.messages = 7
  const { transition } = await import('../../src/core/transition.js')
  const decide = (seq: number) => {
    const outcome = transition(wrong, { type: 'Repair', at: scene.now, operation: 'op', action: { type: 'release', fence: null, calls: [] }, reason: null, found: { ...found, seq } })
    return outcome.refusal === null ? outcome.change : null
  }
  t.equal(decide(found.seq)?.state.messages, 1)
  t.match(decide(found.seq)?.events[0], { detail: 'release: all claims are given up; the ledger has 1 messages, the row says 7' })
  t.equal(decide(found.seq - 1)?.state.messages, 7)
  t.match(decide(found.seq - 1)?.events[0], { detail: 'release: all claims are given up' })
})
