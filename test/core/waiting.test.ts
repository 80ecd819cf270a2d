import fc from 'fast-check'
import t from 'tap'
import type { ModelCall } from '../../src/core/command.js'
import { dueAt } from '../../src/core/schedule.js'
import { isOpen, type State } from '../../src/core/state.js'
import { waitingFor } from '../../src/core/waiting.js'
import { answer, ask, by, call, cancel, create, failure, given, lose, pass, result, retry, rules, START, start, sweep, work, type Scene, type Step } from '../support/core-scene.js'
import { anything, createWorld, type Core } from '../support/core-world.js'
import { post } from '../support/schedule-steps.js'

/** `FC_SEED` plays a run again that failed. */
const seed = Number(process.env.FC_SEED ?? Date.now() % 2 ** 31)
const TIMES = { leaseMs: 10_000, sweepMs: 1000 }
const approval = (name: string, expires: number | null = null) => call(name, { rules: rules({ approval: { expires_ms: expires } }) })
const client = (name: string) => call(name, { rules: rules({ client: { expires_ms: 5000 } }) })
const writes = (name: string, resource: string) => call(name, { rules: rules({ effects: 'write', resources: [resource] }) })
const refers = (name: string, to: string) => call(name, { references: [`p_${to}`], arguments: { at: `{{stepOutputs.p_${to}.x}}` } })
const reads = (name: string) => call(name, { rules: rules({ effects: 'read' }) })
const alone = (name: string) => call(name, { rules: rules({ max_concurrency: 1 }) })
const again = (name: string) => call(name, { rules: rules({ idempotent: true, retry: { attempts: 3, backoff_ms: 700 } }) })
/** A failure that may pass, with what another try needs. */
const brief = (name: string): Step => (scene) => ({ ...failure(name)(scene)!, arguments: { at: name } } as ReturnType<Step>)

/** In short: `tools until 3600000: a result, b resource behind a`. */
function inShort (scene: Scene): string | null {
  const waiting = waitingFor(scene.state(), scene.now)
  if (waiting === null) return null
  const from = (at: number | null) => at === null ? '' : ` until ${at - scene.now}`
  const who = waiting.worker === null ? '' : ` ${waiting.worker}`
  const calls = waiting.calls.map((one) => `${one.call.id.slice(5)} ${one.for}${one.behind.length > 0 ? ` behind ${one.behind.map((id) => id.slice(5)).join(' ')}` : ''}${from(one.due_at)}`)
  return `${waiting.kind}${who}${from(waiting.due_at)}${calls.length > 0 ? `: ${calls.join(', ')}` : ''}`
}

const HOUR = 3_600_000
const rows: { when: string, steps: Step[], waits: string | null }[] = [
  { when: 'nothing has happened', steps: [create()], waits: null },
  { when: 'its run has ended', steps: [start(), work(), answer('done')], waits: null },
  { when: 'its run was cancelled', steps: [start(), work(), by('w1', ask(call('a'))), cancel()], waits: null },
  { when: 'a run waits for its first worker', steps: [start()], waits: 'worker' },
  { when: 'an LLM call is under way', steps: [start(), work('w2')], waits: `model w2 until ${HOUR}` },
  { when: 'its worker was lost', steps: [start(), work('w2'), lose('w2')], waits: `worker until ${HOUR}` },
  { when: 'a turn waits for its next try', steps: [start(), work(), retry({ delay_ms: 300 })], waits: 'retry until 300' },
  { when: 'that wait is over', steps: [start(), work(), retry({ delay_ms: 300 }), pass(300)], waits: `worker until ${HOUR - 300}` },
  { when: 'calls run', steps: [start(), work(), by('w1', ask(call('a'), call('b'))), by('w1', result('a'))], waits: `tools until ${HOUR}: b result` },
  { when: 'nobody has taken the calls', steps: [start(), work(), ask(call('a'), call('b'))], waits: `worker until ${HOUR}: a worker, b worker` },
  { when: 'some are taken', steps: [start(), work(), by('w1', ask(call('a'), call('b')), { calls: 1 })], waits: `tools until ${HOUR}: a result, b worker` },
  { when: 'a call waits for another one\'s output', steps: [start(), work(), by('w1', ask(call('a'), refers('b', 'a')))], waits: `tools until ${HOUR}: a result, b call behind a` },
  { when: 'a call waits for a resource', steps: [start(), work(), by('w1', ask(writes('a', 'x'), writes('b', 'x'), writes('c', 'y')))], waits: `tools until ${HOUR}: a result, b resource behind a, c result` },
  { when: 'a tool has no more room', steps: [start(), work(), by('w1', ask(alone('a'), alone('b')))], waits: `tools until ${HOUR}: a result, b limit behind a` },
  { when: 'the run has no more room', steps: [start({ limits: { max_tool_concurrency: 1 } }), work(), by('w1', ask(call('a'), call('b')))], waits: `tools until ${HOUR}: a result, b limit behind a` },
  {
    when: 'calls go one at a time',
    steps: [start({ policy: { parallel: false } }), work(), by('w1', ask(again('a'), call('b'))), by('w1', brief('a'))],
    waits: 'retry until 700: a retry until 700, b limit behind a'
  },
  {
    when: 'two workers died over calls: each of these runs alone',
    steps: [start(), work(), by('w1', ask(reads('a'), reads('b'))), lose('w1'), work('w2'), lose('w2')],
    waits: `worker until ${HOUR}: a worker, b limit behind a`
  },
  {
    when: 'one of those runs',
    steps: [start(), work(), by('w1', ask(reads('a'), reads('b'))), lose('w1'), work('w2'), lose('w2'), work('w3')],
    waits: `tools until ${HOUR}: a result, b limit behind a`
  },
  { when: 'a call waits for its next try', steps: [start(), work(), by('w1', ask(again('a'))), by('w1', brief('a'))], waits: 'retry until 700: a retry until 700' },
  { when: 'a call waits for its next try beside one that runs', steps: [start(), work(), by('w1', ask(again('a'), call('b'))), by('w1', brief('a'))], waits: `tools until ${HOUR}: a retry until 700, b result` },
  { when: 'a person will be asked once the others are done', steps: [start(), work(), by('w1', ask(approval('a'), call('b')))], waits: `tools until ${HOUR}: a approval behind b, b result` },
  { when: 'a person is asked', steps: [start(), work(), by('w1', ask(approval('a')))], waits: 'action: a approval' },
  { when: 'a person has time', steps: [start(), work(), by('w1', ask(approval('a', 900), client('b')))], waits: 'action until 900: a approval until 900, b client_tool until 5000' },
  {
    when: 'one person is asked after the other',
    steps: [start({ policy: { suspension: 'barrier' } }), work(), by('w1', ask(approval('a'), approval('b'), call('c')))],
    waits: 'action: a approval, b call behind a, c call behind a b'
  },
  { when: 'a run is scheduled', steps: [start({ due_at: START + 500 })], waits: 'due_time until 500' },
  { when: 'a delayed message is left', steps: [start(), work(), post('x', { after: 400 }), by('w1', answer('done'))], waits: 'due_time until 400' },
  { when: 'another run waits behind it', steps: [start(), start({ run_id: 'r2' }), work('w1')], waits: `model w1 until ${HOUR}` }
]
for (const { when, steps, waits } of rows) {
  t.test(`when ${when}, it waits for ${waits ?? 'nothing'}`, async (t) => t.equal(inShort(given(...steps)), waits))
}

function must (holds: boolean, otherwise: string): void {
  if (!holds) throw new Error(otherwise)
}

/** What is said of any state. */
function judge (state: State, now: number): void {
  const waiting = waitingFor(state, now)
  const isIdle = state.run === null && state.queue.length === 0 && state.waiting.length === 0
  must((waiting === null) === isIdle, isIdle ? 'it waits although nothing is going on' : 'it does not say what it waits for')
  if (waiting === null) return
  const phase = state.run?.phase
  must(waiting.run === state.run && (phase === undefined) === (waiting.kind === 'due_time'), 'it waits for its run, if it has one')
  must((waiting.worker !== null) === (phase?.type === 'turn' && phase.worker !== null), 'who has the LLM call')
  const open = phase?.type === 'batch' ? phase.calls.filter(isOpen).map((one) => one.id) : []
  must(JSON.stringify(waiting.calls.map((one) => one.call.id)) === JSON.stringify(open), 'every unsettled call is named, in order')
  for (const one of waiting.calls) {
    must(one.behind.every((id) => open.includes(id) && id !== one.call.id), `${one.call.id} waits behind itself, or behind what is settled`)
    must(!['call', 'resource', 'limit'].includes(one.for) || one.behind.length > 0, `${one.call.id} waits for a ${one.for}, but behind nothing`)
    must((one.for === 'result') === (one.call.worker !== null), `${one.call.id} runs`)
  }
  const due = dueAt(state, now, TIMES)
  must(due !== null || (waiting.kind === 'action' && waiting.due_at === null), 'nobody looks again')
  for (const at of [waiting.due_at, ...waiting.calls.map((one) => one.due_at)]) must(at === null || (due as number) <= Math.max(at, now + TIMES.sweepMs), 'time ends a wait that nobody looks at')
}

t.test('N11: never nothing while anything is active, queued or waiting; always nothing when it is idle: whatever has happened', async (t) => {
  t.comment(`seed ${seed}: FC_SEED=${seed} plays this again`)
  let judged = 0
  fc.assert(fc.property(fc.commands([anything], { maxCommands: 60, size: 'max' }), (commands) => {
    const world = createWorld()
    let now: State | null = null
    const core: Core = {
      get state () { return now },
      set state (state) {
        now = state
        if (state !== null) judge(state, world.now)
        judged++
      }
    }
    fc.modelRun(() => ({ model: world, real: core }), commands)
  }), { seed, numRuns: 300 })
  t.ok(judged > 1000, `${judged} states`)
})

const anyCall = fc.constantFrom<((name: string, before: string) => ModelCall)[]>(
  (name) => call(name), alone, again, (name) => approval(name), (name) => approval(name, 3000), client, (name) => writes(name, 'x'), (name) => writes(name, 'y'), (name, before) => before === '' ? call(name) : refers(name, before)
)
const anyBatch = fc.record({
  calls: fc.array(anyCall, { minLength: 1, maxLength: 7 }),
  suspension: fc.constantFrom('grouped' as const, 'sequential' as const, 'barrier' as const),
  room: fc.integer({ min: 1, max: 8 }),
  moves: fc.array(fc.tuple(fc.nat(99), fc.constantFrom('result', 'failure', 'time', 'lost')), { maxLength: 30 })
})

t.test('N11: a batch with all that calls can wait for says of every call what it is, until it closes', async (t) => {
  t.comment(`seed ${seed}`)
  const seen = new Set<string>()
  fc.assert(fc.property(anyBatch, ({ calls, suspension, room, moves }) => {
    const asked = calls.map((make, i) => make(`n${i}`, i === 0 ? '' : `n${i - 1}`))
    const scene = given(start({ limits: { max_tool_concurrency: room }, policy: { suspension } }), work('w1'), by('w1', ask(...asked), { calls: 3 }))
    for (const [n, move] of moves) {
      const waiting = waitingFor(scene.state(), scene.now)
      for (const one of waiting?.calls ?? []) seen.add(one.for)
      judge(scene.state(), scene.now)
      const running = waiting?.calls.filter((one) => one.for === 'result') ?? []
      const name = running[n % running.length]?.call.id.slice(5)
      if (move === 'time' || name === undefined) scene.given(pass(n * 100)).when(n % 2 === 0 ? sweep() : work('w2', { calls: 2 }))
      else scene.when(by('w1', move === 'lost' ? lose('w1') : move === 'failure' ? brief(name) : result(name, { x: n })))
    }
    judge(scene.state(), scene.now)
  }), { seed, numRuns: 500 })
  t.strictSame([...seen].sort(), ['approval', 'call', 'client_tool', 'limit', 'resource', 'result', 'retry', 'worker'])
})

/** All that may come due, alone and with everything else: the sweep acts on each when its time has come. */
const timed: { what: string, steps: Step[], at: number, then: string[] }[] = [
  { what: 'a delayed message', steps: [start(), work(), post('x', { after: 2000 })], at: 2000, then: [] },
  { what: 'a delayed message of a run that has ended', steps: [start(), work(), post('x', { after: 2000 }), by('w1', answer('done'))], at: 2000, then: ['message.delivered'] },
  { what: 'a scheduled run', steps: [start({ due_at: START + 2000 })], at: 2000, then: [] },
  { what: 'the run\'s timeout', steps: [start({ limits: { run_timeout_ms: 2000 } }), work()], at: 2000, then: ['turn.cancelled 1', 'run.incomplete'] },
  { what: 'the next try of a turn', steps: [start(), work(), retry({ delay_ms: 2000 })], at: 2000, then: [] },
  { what: 'the next try of a call', steps: [start(), work(), by('w1', ask(call('a', { rules: rules({ idempotent: true, retry: { attempts: 2, backoff_ms: 2000 } }) }))), by('w1', brief('a'))], at: 2000, then: ['tool.started a'] },
  { what: 'a decision\'s expiry', steps: [start(), work(), by('w1', ask(approval('a', 2000)))], at: 2000, then: ['tool.failed a', 'suspension.resolved', 'run.resumed', 'batch.completed'] },
  { what: 'a client\'s expiry', steps: [start(), work(), by('w1', ask(call('a', { rules: rules({ client: { expires_ms: 2000 } }) })))], at: 2000, then: ['tool.failed a', 'suspension.resolved', 'run.resumed', 'batch.completed'] }
]
for (const { what, steps, at, then } of timed) {
  t.test(`${what} that has lapsed is acted on by the sweep, which looks then and not before`, async (t) => {
    const scene = given(...steps)
    const idle = { leaseMs: 1e9, sweepMs: 1e9 }
    t.equal(dueAt(scene.state(), scene.now, idle), scene.now + at)
    scene.given(pass(at - 1))
    t.equal(scene.when(sweep()).refusal, 'nothing_due')
    scene.given(pass(1))
    const swept = scene.when(sweep())
    t.strictSame([swept.refusal, swept.said], what === 'the next try of a turn' ? ['nothing_due', []] : [null, then], 'it acts, or a worker may')
    if (what === 'the next try of a turn') t.strictSame(scene.when(work('w2')).effects.map((effect) => effect.type), ['call_model'])
    const next = dueAt(scene.state(), scene.now, TIMES)
    t.ok(next === null || next > scene.now, 'and does not have to look again at once')
  })
}

t.test('several due times at once are all acted on by one sweep', async (t) => {
  const scene = given(
    start({ limits: { run_timeout_ms: 2000 } }), work(), start({ run_id: 'r2', due_at: START + 2000 }), post('x', { after: 1000 }), post('y', { after: 2000 }),
    by('w1', ask(call('a', { rules: rules({ idempotent: true, retry: { attempts: 2, backoff_ms: 500 } }) }))), by('w1', brief('a')), pass(2000)
  )
  const swept = scene.when(sweep())
  t.strictSame(swept.said, ['tool.cancelled a', 'message.delivered', 'message.delivered', 'run.incomplete'])
  t.equal(scene.state().run?.id, 'r2', 'and the run that was due as well is the next one')
  t.strictSame(scene.state().waiting, [])
})
