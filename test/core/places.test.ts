import t from 'tap'
import { checkState } from '../../src/core/check.js'
import type { ModelCall } from '../../src/core/command.js'
import { dueAt, wanted } from '../../src/core/schedule.js'
import type { CallState } from '../../src/core/state.js'
import {
  ask, by, call, cancel, claimed, given, lose, pass, place, remembered, result, rules, start, stopped, sweep, work, type Scene, type Step
} from '../support/core-scene.js'

/*
 * Calls under a rate limit: one that waits has not started.
 */

const limited = (name: string, over: Parameters<typeof rules>[0] = {}) => call(name, { rules: rules({ rate_limited: true, effects: 'write', ...over }) })
const stateOf = (scene: Scene, name: string) => (scene.state().run?.phase as { calls: CallState[] }).calls.find((one) => one.id === `call_${name}`) as CallState
const places = (scene: Scene, step: Step) => scene.when(step).effects.flatMap((effect) => effect.type === 'take_places' ? effect.calls.map((one) => one.call_id.slice('call_'.length)) : [])
const times = { leaseMs: 10_000, sweepMs: 1000 }
const due = (scene: Scene) => (dueAt(scene.state(), scene.now, times) ?? NaN) - scene.now
const jobs = (scene: Scene) => wanted(scene.state(), scene.now, times.leaseMs).map((job) => job.id)

t.test('C7: a call under a rate limit is started when its place has come, and the others before anybody has asked', async (t) => {
  const scene = given(start(), work('w1'))
  const opened = scene.when(by('w1', ask(limited('a'), call('b'), limited('c'))))
  t.strictSame(opened.said, ['turn.completed 1', 'batch.started', 'tool.started b'])
  t.strictSame(opened.effects, [
    { type: 'run_calls', calls: [{ call_id: 'call_b', attempt: 1 }] },
    { type: 'take_places', calls: [{ call_id: 'call_a', attempt: 0 }, { call_id: 'call_c', attempt: 0 }] }
  ])
  t.strictSame(claimed(scene), ['w1 a', 'w1 b', 'w1 c'])
  t.match(stateOf(scene, 'a'), { status: 'pending', attempt: 0, started_at: null })
  t.strictSame(scene.when(place('a')).said, ['tool.started a'])
  t.match(stateOf(scene, 'a'), { status: 'running', attempt: 1, worker: 'w1', placed: false })
  t.strictSame(scene.when(place('c', 700)).said, [])
  t.match(stateOf(scene, 'c'), { status: 'pending', attempt: 0, worker: null, placed: true, ready_at: scene.now + 700 })
  t.strictSame(claimed(scene), ['w1 a', 'w1 b'], 'nobody holds what waits')
  t.strictSame(checkState(scene.state()), [])
  scene.given(by('w1', result('a')), by('w1', result('b')))
  t.equal(due(scene), 700, 'the sweep finds it by its time')
  t.strictSame(jobs(scene), [])
  scene.given(pass(700))
  t.strictSame(jobs(scene), [`r1-t1-call_c-a1-p${scene.now}`])
  t.strictSame(places(scene, work('w2')), ['c'], 'and anybody may come for it')
  t.strictSame(scene.when(place('c')).said, ['tool.started c'])
  t.strictSame(scene.when(result('c')).said, ['tool.completed c', 'batch.completed'])
})

t.test('E4: what waits for a rate limit keeps nobody else from starting', async (t) => {
  const scene = given(start({ limits: { max_tool_concurrency: 1 } }), work('w1'))
  t.strictSame(places(scene, by('w1', ask(limited('a'), call('b'), call('c')))), ['a'], 'it has the room while it is asked')
  t.strictSame(scene.when(by('w1', place('a', 50))).said, ['tool.started b'], 'and gives it up to wait')
  scene.given(pass(50))
  t.equal(scene.when(work('w1')).refusal, 'nothing_due', 'its time has come, but there is no room')
  const next = scene.when(by('w1', result('b')))
  t.strictSame([next.said, next.effects.map((effect) => effect.type)], [['tool.completed b'], ['take_places']], 'then it is the first in line')
  t.equal(stateOf(scene, 'a').placed, true, 'with the place it had')
})

t.test('a run takes no more places in advance than it may have calls at work', async (t) => {
  const scene = given(start({ limits: { max_tool_concurrency: 2 } }), work('w1'))
  t.strictSame(places(scene, by('w1', ask(...['a', 'b', 'c', 'd'].map((name) => limited(name))))), ['a', 'b'])
  t.strictSame(places(scene, by('w1', place('a', 100))), [])
  t.strictSame(places(scene, by('w1', place('b', 200))), [])
  scene.given(pass(100), work('w1'))
  t.strictSame(scene.when(by('w1', place('a'))).said, ['tool.started a'])
  t.strictSame(places(scene, by('w1', result('a'))), ['c'])
})

for (const uncancellable of [{}, { uncancellable: true as const }]) {
  t.test(`a call that is cancelled while it waits for a rate limit never starts${'uncancellable' in uncancellable ? ', also one that would be left to finish' : ''}`, async (t) => {
    for (const waits of [[], [place('a', 100)], [place('a', 100), pass(100), work('w2')]] as Step[][]) {
      const scene = given(start(), work('w1'), by('w1', ask(limited('a', uncancellable))), ...waits)
      const worker = stateOf(scene, 'a').worker
      const late = [remembered(place('a')), remembered(place('a', 50))]
      for (const step of late) step(scene)
      const then = scene.when(cancel())
      t.strictSame(then.said, ['tool.cancelled a', 'run.cancelled'])
      t.strictSame(stopped(then.effects), worker === null ? [] : [`${worker} a cancelled`])
      for (const step of late) t.equal(scene.when(step).refusal, 'stale')
      t.notOk(scene.log.some(({ type }) => type === 'tool.started'))
    }
  })
}

t.test('B6: a worker that dies while it asks costs the call nothing', async (t) => {
  const scene = given(start(), work('w1'), by('w1', ask(limited('a'))))
  const late = remembered(place('a'))
  late(scene)
  t.equal(due(scene), 10_000, 'somebody looks when its sign of life has run out')
  scene.given(pass(10_000))
  const then = scene.when(lose('w1'))
  t.strictSame(then.said, [])
  t.match(stateOf(scene, 'a'), { status: 'pending', attempt: 0, worker: null, losses: 0 })
  t.strictSame(jobs(scene), [`r1-t1-call_a-a1-p${scene.now}`])
  t.strictSame(places(scene, work('w2')), ['a'])
  t.equal(scene.when(late).refusal, 'stale', 'the old word is worth nothing')
  t.strictSame(scene.when(place('a')).said, ['tool.started a'])
  t.equal(scene.log.at(-1)?.attempt, 1)
})

t.test('retries and takeovers ask for a place of their own', async (t) => {
  const scene = given(start(), work('w1'), by('w1', ask(limited('a', { idempotent: true, retry: { attempts: 3, backoff_ms: 40 } }))), place('a'))
  scene.given(({ now }) => ({
    type: 'CompleteCall', at: now, call_id: 'call_a', attempt: 1, arguments: { at: 'a' }, outcome: { status: 'failed', error: { code: 'timeout', message: 'slow' }, text: 'slow' }
  }), pass(40))
  t.match(stateOf(scene, 'a'), { placed: false, attempt: 1 })
  t.strictSame(jobs(scene), [`r1-t1-call_a-a2-p${scene.now}`])
  t.strictSame(scene.when(work('w1')).effects, [{ type: 'take_places', calls: [{ call_id: 'call_a', attempt: 1 }] }])
  t.strictSame(scene.when(place('a')).events.map(({ attempt, arguments: args }) => [attempt, args]), [[2, { at: 'a' }]])
  scene.given(lose('w1'))
  t.strictSame(places(scene, work('w2')), ['a'])
  t.strictSame(scene.when(place('a')).events.map(({ attempt }) => attempt), [3])
})

t.test('E15: max_calls is exact for calls that wait for a rate limit', async (t) => {
  const scene = given(start(), work('w1'))
  const opened = scene.when(by('w1', ask(...['a', 'b', 'c', 'd'].map((name) => limited(name, { max_calls: 2 })))))
  t.strictSame(opened.said.slice(2), ['tool.failed c', 'tool.failed d'])
  scene.given(place('a', 100), place('b'))
  scene.given(pass(100), work('w1'), place('a'), by('w1', result('a')), by('w1', result('b')))
  const again = scene.when(by('w1', ask(limited('e', { max_calls: 2 }))))
  t.ok(again.said.includes('tool.failed e'))
})

t.test('E5: without parallel nothing overtakes a call that waits: for a rate limit, its next try, a person or the client', async (t) => {
  const sequential = start({ policy: { parallel: false } })
  const scene = given(sequential, work('w1'), by('w1', ask(limited('a'), call('b'))))
  t.strictSame(scene.when(by('w1', place('a', 50))).said, [])
  scene.given(pass(50), work('w1'), by('w1', place('a')))
  t.strictSame(scene.when(by('w1', result('a'))).said, ['tool.completed a', 'tool.started b'])

  const retried = given(sequential, work('w1'), by('w1', ask(call('a', { rules: rules({ idempotent: true, retry: { attempts: 2, backoff_ms: 40 } }) }), call('b'))))
  t.strictSame(retried.when(by('w1', ({ now }) => ({
    type: 'CompleteCall', at: now, call_id: 'call_a', attempt: 1, arguments: {}, outcome: { status: 'failed', error: { code: 'timeout', message: 'slow' }, text: 'slow' }
  }))).said, [])

  const approval = { approval: { expires_ms: null } }
  const client = { client: { expires_ms: null } }
  const asked = given(sequential, work('w1'), by('w1', ask(
    call('a'), call('b', { rules: rules(approval) }), call('c'), call('d', { rules: rules(client) }), call('e', { rules: rules(approval) })
  )))
  t.strictSame(asked.when(by('w1', result('a'))).said, ['tool.completed a', 'suspension.created', 'run.requires_action'])
  t.strictSame((asked.log.at(-2)?.calls as { call_id: string }[]).map((one) => one.call_id), ['call_b', 'call_e'], 'consent is asked for together; nothing is handed out before its time')
  const suspension = (asked.state().run?.phase as { suspension: { id: string } }).suspension.id
  t.strictSame(asked.when(by('w1', ({ now }) => ({
    type: 'Decide', at: now, operation: 'op', run_id: 'r1', suspension_id: suspension, decisions: [{ call_id: 'call_e', decision: 'approve' }, { call_id: 'call_b', decision: 'approve' }]
  }))).said, ['suspension.resolved', 'run.resumed', 'tool.started b'])
  t.strictSame(asked.when(by('w1', result('b'))).said, ['tool.completed b', 'tool.started c'])
  t.strictSame(asked.when(by('w1', result('c'))).said, ['tool.completed c', 'tool.started d', 'suspension.created', 'run.requires_action'])
  t.strictSame(asked.when(by('w1', ({ now }) => ({
    type: 'SubmitOutputs', at: now, operation: 'op', run_id: 'r1', outputs: [{ call_id: 'call_d', outcome: { status: 'completed', output: 1, text: '1', truncated: false } }]
  }))).said, ['tool.completed d', 'suspension.resolved', 'run.resumed', 'tool.started e'])
})

t.test('J2: calls that wait for a rate limit are siblings that run before anybody is asked', async (t) => {
  const scene = given(start(), work('w1'), by('w1', ask(limited('a'), call('b', { rules: rules({ approval: { expires_ms: null } }) }))))
  t.strictSame(scene.when(by('w1', place('a', 100))).said, [])
  scene.given(pass(100))
  t.equal(scene.when(sweep()).refusal, 'nothing_due')
  scene.given(work('w1'))
  t.strictSame(scene.when(by('w1', place('a'))).said, ['tool.started a'])
  t.strictSame(scene.when(by('w1', result('a'))).said, ['tool.completed a', 'suspension.created', 'run.requires_action'])
})

t.test('E15: max_calls and max_concurrency are kept for what the client runs', async (t) => {
  const client = (name: string) => call(name, { rules: rules({ client: { expires_ms: null }, max_calls: 3, max_concurrency: 2 }) })
  const scene = given(start(), work('w1'))
  const give = (name: string): Step => by('w1', ({ now }) => ({
    type: 'SubmitOutputs', at: now, operation: 'op', run_id: 'r1', outputs: [{ call_id: `call_${name}`, outcome: { status: 'completed', output: 1, text: '1', truncated: false } }]
  }))
  t.strictSame(scene.when(by('w1', ask(...['a', 'b', 'c', 'd'].map(client)))).said.slice(2), ['tool.started a', 'tool.started b', 'suspension.created', 'run.requires_action'])
  scene.given(give('b'))
  t.strictSame(scene.when(give('a')).said, [
    'tool.completed a', 'suspension.resolved', 'run.resumed', 'tool.failed d', 'tool.started c', 'suspension.created', 'run.requires_action'
  ])
})

t.test('E15: nobody is asked to consent to a call that is one too many already', async (t) => {
  const asking = (name: string) => call(name, { rules: rules({ approval: { expires_ms: null }, max_calls: 1 }) })
  const scene = given(start(), work('w1'), by('w1', ask(asking('a'), asking('b'))))
  t.strictSame((scene.log.at(-2)?.calls as { call_id: string }[]).map((one) => one.call_id), ['call_a', 'call_b'], 'the first may be refused')
  const suspension = (scene.state().run?.phase as { suspension: { id: string } }).suspension.id
  scene.given(by('w1', ({ now }) => ({
    type: 'Decide', at: now, operation: 'op', run_id: 'r1', suspension_id: suspension, decisions: [{ call_id: 'call_a', decision: 'reject', reason: null }, { call_id: 'call_b', decision: 'approve' }]
  })), by('w1', result('b')))
  t.strictSame(scene.when(by('w1', ask(asking('c'), call('d')))).said.slice(2), ['tool.started d'])
  t.strictSame(scene.when(by('w1', result('d'))).said.slice(0, 3), ['tool.completed d', 'tool.failed c', 'batch.completed'])
  t.match(scene.log.find((event) => event.type === 'tool.failed' && event.call_id === 'call_c'), { error: { code: 'max_calls' } })
})

t.test('E10: what all outputs put into the arguments of a batch is bounded, so that the row stays small', async (t) => {
  const big = 'x'.repeat(90_000)
  const named = ['b', 'c', 'd', 'e', 'f', 'g']
  const refers = (name: string) => call(name, {
    arguments: { text: '{{stepOutputs.p_a}}', also: '{{stepOutputs.p_z}}' }, references: ['p_a', 'p_z'], rules: rules({ effects: 'write', resources: ['one'] })
  })
  const scene = given(start(), work('w1'), by('w1', ask(call('a'), call('z'), ...named.map(refers))))
  scene.given(by('w1', result('a', big)))
  t.ok(JSON.stringify(scene.state()).length < 420_000, `the row has ${JSON.stringify(scene.state()).length} characters`)
  scene.given(by('w1', result('z', 'small')))
  const failed = scene.log.filter(({ type }) => type === 'tool.failed')
  t.strictSame(failed.map((event) => event.call_id), ['call_f', 'call_g'])
  t.match(failed[0]?.error, { code: 'invalid_arguments', message: /come to more than 400000 characters; refer to parts of them/ })
})

t.test('D12: writers of a resource keep their order also when the first refers to a later call, and only what it needs goes before it', async (t) => {
  const box = rules({ effects: 'write', resources: ['box'] })
  const other = rules({ effects: 'write', resources: ['other'] })
  const orders: [calls: ModelCall[], order: string[]][] = [
    [[call('a', { references: ['p_c'], rules: box }), call('b', { rules: box }), call('c')], ['c', 'a', 'b']],
    [[call('a', { references: ['p_c'], rules: rules({ exclusive: true }) }), call('b'), call('c')], ['c', 'a', 'b']],
    [[call('a', { references: ['p_c'], rules: box }), call('b', { rules: box }), call('c', { references: ['p_b'] })], ['b', 'c', 'a']],
    [[call('a', { references: ['p_c'], rules: box }), call('b', { rules: box, fault: { code: 'unknown_tool', message: 'none' } }), call('c', { rules: box })], ['c', 'a', 'b']],
    // Each resource for itself allows what both together do not: somebody must go first.
    [[call('a', { references: ['p_d'], rules: box }), call('b', { references: ['p_c'], rules: other }), call('c', { rules: box }), call('d', { rules: other })], ['c', 'b', 'd', 'a']]
  ]
  for (const [calls, order] of orders) {
    const scene = given(start(), work('w1'), by('w1', ask(...calls)))
    const states = scene.state().run?.phase
    t.same(states?.type === 'batch' ? [...states.calls].sort((a, b) => a.rank - b.rank).map(({ id }) => id.slice('call_'.length)) : [], order)
  }
})

t.test('E10: many references to a large output cost no more than one; more than 64 are too many', async (t) => {
  let written = 0
  const large = { toJSON: () => {
    written++
    return 'x'.repeat(200_000)
  } }
  const args = { value: '{{stepOutputs.p_a}}'.repeat(3_000) }
  const scene = given(start(), work('w1'), by('w1', ask(call('a'), call('b', { arguments: args, references: ['p_a'] }))))
  scene.given(by('w1', result('a', large)))
  t.ok(written < 10, `written ${written} times`)
  t.match(scene.log.find(({ type }) => type === 'tool.failed'), { call_id: 'call_b', error: { code: 'invalid_arguments', message: /more than 100000 characters/ } })
  const many = Array.from({ length: 65 }, (_, i) => `p_${i}`)
  const wide = given(start(), work('w1'), by('w1', ask(...many.map((_, i) => call(String(i))), call('z', { references: many }))))
  t.match(wide.log.find(({ type }) => type === 'tool.failed'), { call_id: 'call_z', error: { code: 'invalid_arguments', message: /refer to 65 outputs; 64 are the most/ } })
})

t.test('S7: tools, calls and fields may have any name, also those that objects have already', async (t) => {
  const odd = ['__proto__', 'constructor', 'toString', 'hasOwnProperty']
  for (const name of odd) {
    const args = JSON.parse(`{"${name}": {"inner": 1}, "r": "{{stepOutputs.${name}.${name}}}"}`) as Record<string, unknown>
    const scene = given(start(), work('w1'), by('w1', ask(
      call('a', { name, rules: rules({ max_calls: 1, max_concurrency: 1, resources: [`x/{${name}}`], approval: { expires_ms: null } }), arguments: JSON.parse(`{"${name}": {"inner": 1}}`) as Record<string, unknown> }),
      call('b', { arguments: args, references: [name], rules: rules({ resources: [`x/{${name}}`] }) }), call('c', { name, rules: rules({ max_calls: 1 }) })
    )))
    t.match(scene.state().run?.phase, { calls: [{ holds: [null] }, { holds: [null] }, {}] }, name)
    t.strictSame(stateOf(scene, 'b').fault?.message ?? '', `{{stepOutputs.${name}}} could be 2 calls; refer to one by its number, 1 to 3`)
  }
  for (const name of odd) {
    const args = JSON.parse(`{"${name}": {"inner": 1}, "r": "{{stepOutputs.${name}.${name}}}"}`) as Record<string, unknown>
    const scene = given(start(), work('w1'), by('w1', ask(call('a', { name, rules: rules({ max_calls: 1 }) }), call('b', { arguments: args, references: [name] }), call('c', { rules: rules({ approval: { expires_ms: null } }) }))))
    scene.given(by('w1', result('a', JSON.parse(`{"${name}": "found"}`))))
    const started = scene.log.find((event) => event.type === 'tool.started' && event.call_id === 'call_b')
    t.equal(JSON.stringify(started?.arguments), `{"${name}":{"inner":1},"r":"found"}`)
    t.ok(Object.hasOwn(scene.state().run?.used ?? {}, name) && JSON.stringify(scene.state().run?.used) === `{"${name}":1}`, 'and is counted')
  }
})
