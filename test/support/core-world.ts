import fc from 'fast-check'
import type { Command, Executor, ModelCall, NewMessage, PostMessage, RepairAction, StartRun } from '../../src/core/command.js'
import { dueAt, wanted } from '../../src/core/schedule.js'
import type { State } from '../../src/core/state.js'
import { transition } from '../../src/core/transition.js'
import { frozen, inShort, limitsWith, policyWith, START, TOKENS } from './core-scene.js'
import { createLedger, REMEMBERED, TIMES, type Ledger, type LiveClaim } from './ledger.js'

/*
 * Everybody around one conversation: callers, workers that take jobs and say what came of them, in any order, twice, or long after they
 * were given up. What they do is drawn by fast-check, and every answer of the core is judged by the ledger.
 */

/** The core under test: it has nothing but its state. */
export interface Core { state: State | null }

export interface World {
  ledger: Ledger
  now: number
  /** Everything a worker was ever given and has not spoken about, also what is given up since. */
  underWay: LiveClaim[]
  /** Commands that came from outside or from workers, to be delivered again. */
  past: Command[]
  /** Names given so far, by kind. */
  named: Map<string, number>
  /** What happened, for whoever has to read a counterexample. */
  story: { command: Command, said: string }[]
  decided: number
}

export function createWorld (): World {
  return { ledger: createLedger(), now: START, underWay: [], past: [], named: new Map(), story: [], decided: 0 }
}

/** Lets the core decide, and the ledger judge: the decision itself, that it touched nothing it was given, and that it would not be taken twice. */
export function decide (world: World, core: Core, command: Command): void {
  const entry: World['story'][number] = { command, said: 'it broke' }
  world.story.push(entry)
  try {
    const outcome = transition(core.state, frozen(command))
    world.decided++
    entry.said = outcome.refusal ?? (outcome.change.events.map(inShort).join(', ') || 'nothing to tell')
    // As a store keeps it: through JSON.
    const state = outcome.refusal === null ? frozen(JSON.parse(JSON.stringify(outcome.change.state)) as State) : core.state
    world.ledger.take(command, outcome, state)
    core.state = state
    if (outcome.refusal !== null) return
    for (const claim of world.ledger.claims()) if (!world.underWay.some((known) => isSame(known, claim))) world.underWay.push(claim)
    if (REPEATABLE.has(command.type)) return
    world.past.push(command)
    const again = transition(core.state, { ...command, executor: undefined })
    if (again.refusal === null) throw new Error(`delivered once more it says ${again.change.events.map(inShort).join(', ') || 'nothing'}, and changes something`)
  } catch (error) {
    throw new Error(`${(error as Error).message}\n${storyOf(world)}`, { cause: error })
  }
}

const storyOf = ({ story }: World) => {
  const lines = story.map(({ command, said }, i) => {
    const { executor } = command
    return `  ${i + 1}. ${inWords(command)}${executor === undefined ? '' : ` (${executor.worker} has room: ${roomOf(executor)})`} → ${said}`
  })
  return ['  what happened, from the beginning:', ...lines].join('\n')
}

/** Each delivery of these counts: news, and other content for a message that waits. */
const REPEATABLE = new Set(['ProgressCall', 'Recover', 'EditMessage'])

const isSame = (a: LiveClaim, b: LiveClaim) => a.fence === b.fence && a.call_id === b.call_id && a.attempt === b.attempt

const roomOf = ({ turn, calls, spread }: Executor) => [...turn ? ['turn'] : [], `${calls} calls`, ...spread ? ['spread'] : []].join(', ')

function inWords (command: Command): string {
  const { type } = command
  switch (command.type) {
    case 'StartRun': {
      const { limits, policy, run_id: id, on_active_run: on, due_at: due } = command
      const usual: Record<string, unknown> = { ...limitsWith(), ...policyWith() }
      const special = Object.entries({ ...limits, ...policy }).filter(([option, value]) => usual[option] !== value).map((option) => option.join('='))
      return [type, id, on, ...due === null ? [] : [`due in ${due - command.at} ms`], ...special].join(' ')
    }
    case 'CompleteTurn': {
      const calls = command.calls.map((call) => `${call.call_id}${call.fault === null ? '' : '!'}${call.rules.effects === 'write' ? '*' : ''} ${call.name}`)
      return `${type} fence ${command.fence}: ${calls.length > 0 ? calls.join(', ') : `"${command.text}" ${command.finish_reason}`}`
    }
    case 'RetryTurn': return `${type} fence ${command.fence} in ${command.delay_ms} ms${command.next_model ? ', next model' : ''}`
    case 'FailTurn': case 'Recover': return `${type} fence ${command.fence}`
    case 'CompleteCall': case 'ProgressCall': return `${type} ${command.call_id} attempt ${command.attempt}${command.type === 'CompleteCall' ? ` ${command.outcome.status}` : ''}`
    case 'CancelRun': return `${type} ${command.run_id}`
    case 'Lapse': return `${type} fence ${command.fence}, ${command.calls.map(({ call_id: id, attempt }) => `${id} attempt ${attempt}`).join(', ') || 'no calls'}`
    case 'PostMessage':
      return `${type} ${command.message_id} to ${command.run_id}: ${command.mode}, ${command.queued}, ${command.completed_calls}${command.due_at === null ? '' : `, in ${command.due_at - command.at} ms`}`
    case 'EditMessage': case 'WithdrawMessage': return `${type} ${command.message_id}`
    case 'Repair': return `${type} ${command.operation}: ${command.action.type}${command.action.type === 'fail_call' ? ` ${command.action.call_id}` : ''}`
    default: return type
  }
}

function name (world: World, kind: string): string {
  const number = (world.named.get(kind) ?? 0) + 1
  world.named.set(kind, number)
  return `${kind}${number}`
}

// --- What can be done ----------------------------------------------------------------------------------------------------------------

/** One thing somebody does: possible or not as things stand, and then a command, or several. */
interface Deed { can: (world: World) => boolean, make: (world: World, core: Core) => Command[], text: string }

const deed = (text: string, can: Deed['can'], make: Deed['make']): fc.Command<World, Core> => ({
  check: (world) => can(world as World),
  run: (world, core) => {
    world.now++
    for (const command of make(world, core)) decide(world, core, command)
  },
  toString: () => text
})

const pick = <T>(from: T[], n: number): T => from[n % from.length] as T

type Room = 'none' | 'all' | 'some' | 'turn' | 'calls' | 'job'
const anyRoom = fc.constantFrom<Room>('all', 'none', 'some', 'turn', 'calls', 'job')
/** Where a worker's word goes in with what it has room for. */
function withRoom (command: Command, worker: string, room: Room): Command {
  if (room === 'none') return command
  const calls = { all: 8, some: 2, turn: 0, calls: 8, job: 8 }[room]
  return { ...command, executor: { worker, turn: room !== 'calls', calls, spread: room === 'job' } }
}

const WORKERS = ['w1', 'w2', 'w3']
const TOO_MANY_RUNS = 8

const anyRun = fc.record({
  on_active_run: fc.constantFrom<StartRun['on_active_run'][]>('queue', 'queue', 'queue', 'reject', 'interrupt', 'rollback'),
  delay: fc.constantFrom(null, null, null, 50, 20_000),
  inputs: fc.integer({ min: 1, max: 2 }),
  models: fc.integer({ min: 1, max: 2 }),
  limits: fc.record({
    max_turns: fc.constantFrom(20, 20, 1, 2),
    max_tool_concurrency: fc.constantFrom(16, 1, 2, 3),
    max_total_tokens: fc.constantFrom(null, null, 30),
    run_timeout_ms: fc.constantFrom(3_600_000, 3_600_000, 15_000),
    max_queued_messages: fc.constantFrom(100, 2)
  }),
  policy: fc.record({
    on_error: fc.constantFrom('continue', 'continue', 'fail_run'),
    message_order: fc.constantFrom('request', 'request', 'completion'),
    cancelled_calls: fc.constantFrom('remove', 'tombstone_started', 'tombstone'),
    final_answer_tool: fc.constantFrom(null, 'final_answer'),
    parallel: fc.constantFrom(true, true, true, false)
  })
})

const startRun = fc.tuple(anyRun, anyRoom, fc.constantFrom(...WORKERS)).map(([run, room, worker]) => deed('a run is posted', (world) => (world.named.get('r') ?? 0) < TOO_MANY_RUNS, (world, core) => {
  const id = name(world, 'r')
  return [withRoom({
    type: 'StartRun',
    at: world.now,
    conversation_id: 'c',
    run_id: id,
    tenant: 'me',
    new_conversation: core.state === null,
    due_at: run.delay === null ? null : world.now + run.delay,
    models: ['first', 'second'].slice(0, run.models),
    limits: limitsWith(run.limits),
    policy: policyWith(run.policy as Partial<StartRun['policy']>),
    metadata: {},
    on_active_run: run.on_active_run,
    messages: Array.from({ length: run.inputs }, (): NewMessage => ({ id: name(world, 'm'), role: 'user', content: `input ${id}` })),
    input: `input ${id}`,
    spec: '{}'
  }, worker, room)]
}))

const seedConversation = fc.boolean().map((system) => deed('a conversation is created', (world) => world.decided === 0, (world) => [{
  type: 'CreateConversation',
  at: world.now,
  conversation_id: 'c',
  operation: 'op',
  tenant: 'me',
  metadata: {},
  has_system: system,
  messages: [
    ...system ? [{ id: 'm_system', role: 'system' as const, content: 'be brief' }] : [],
    { id: 'm_a', role: 'user', content: 'look' },
    { id: 'm_b', role: 'assistant', content: '', tool_calls: [{ call_id: 'call_seed', name: 'look', arguments: {} }] },
    { id: 'm_c', role: 'tool', content: 'seen', tool_call_id: 'call_seed' }
  ]
}]))

const takeJob = fc.tuple(fc.constantFrom(...WORKERS), fc.constantFrom<Room>('job', 'job', 'all', 'some', 'calls')).map(([worker, room]) => {
  return deed(`${worker} takes a job`, (world) => world.ledger.openRuns().length > 0, (world) => [withRoom({ type: 'Advance', at: world.now }, worker, room)])
})

const anyCall = fc.record({
  name: fc.constantFrom('look', 'look', 'look', 'final_answer'),
  fault: fc.constantFrom<ModelCall['fault'][]>(null, null, null, null, { code: 'unknown_tool', message: 'there is no such tool' }),
  references: fc.constant<string[]>([]),
  rules: fc.record({
    effects: fc.constantFrom<('read' | 'write')[]>('read', 'write'),
    idempotent: fc.boolean(),
    placement: fc.constantFrom<('local' | 'spread')[]>('local', 'local', 'spread'),
    timeout_ms: fc.constant(1000)
  }),
  raw: fc.constantFrom(null, null, '{"at'),
  provider_id: fc.constantFrom('', 'p', 'call_0')
})
type AnyReply = { text: string, finish_reason: string, calls: Omit<ModelCall, 'call_id' | 'arguments'>[], usage: boolean }
type AnyWord = AnyReply | { delay_ms: number, next_model: boolean } | 'failure'
const anyReply = fc.oneof<fc.MaybeWeightedArbitrary<AnyWord>[]>(
  { weight: 8, arbitrary: fc.record({ text: fc.constantFrom('', 'let me look'), finish_reason: fc.constant('tool_calls'), calls: fc.array(anyCall, { minLength: 1, maxLength: 5 }), usage: fc.boolean() }) },
  { weight: 3, arbitrary: fc.record({ text: fc.constantFrom('done', ''), finish_reason: fc.constantFrom('stop', 'stop', 'length'), calls: fc.constant<AnyReply['calls']>([]), usage: fc.boolean() }) },
  { weight: 2, arbitrary: fc.record({ delay_ms: fc.constantFrom(0, 400, 20_000), next_model: fc.boolean() }) },
  { weight: 1, arbitrary: fc.constant('failure' as const) }
)

const turnsOf = (world: World) => world.underWay.filter((claim) => claim.call_id === null)
const callsOf = (world: World) => world.underWay.filter((claim) => claim.call_id !== null)
const spoken = (world: World, claim: LiveClaim) => { world.underWay = world.underWay.filter((one) => one !== claim) }
/** Mostly what counts, now and then what was given up: then the command must be refused. */
function choose (world: World, from: LiveClaim[], n: number): LiveClaim {
  const counts = from.filter((claim) => world.ledger.claims().some((live) => isSame(live, claim)))
  return counts.length > 0 && n % 5 !== 0 ? pick(counts, n) : pick(from, n)
}

function turnWord (world: World, claim: LiveClaim, reply: AnyWord): Command {
  const head = { at: world.now, fence: claim.fence as number }
  if (reply === 'failure') return { type: 'FailTurn', ...head, error: { code: 'provider_refused', message: 'no', retryable: false }, usage: null }
  if ('delay_ms' in reply) return { type: 'RetryTurn', ...head, reason: 'provider_unavailable', tried: true, ...reply, usage: TOKENS }
  return {
    type: 'CompleteTurn',
    ...head,
    text: reply.text,
    finish_reason: reply.finish_reason,
    calls: reply.calls.map((call) => {
      const id = name(world, 'call_')
      return { ...call, call_id: id, arguments: call.fault === null ? { at: id } : {}, raw: call.fault === null ? null : call.raw }
    }),
    usage: reply.usage ? TOKENS : null,
    message_id: name(world, 'm'),
    batch_id: name(world, 'b')
  }
}

const modelAnswers = fc.tuple(fc.nat(99), anyReply, anyRoom).map(([n, reply, room]) => deed('a model answers', (world) => turnsOf(world).length > 0, (world) => {
  const claim = choose(world, turnsOf(world), n)
  spoken(world, claim)
  return [withRoom(turnWord(world, claim, reply), claim.worker, room)]
}))

function callWord (world: World, { call_id: id, attempt }: LiveClaim, fails: boolean): Command {
  const error = { code: 'tool_error', message: `${id} broke` }
  return {
    type: 'CompleteCall',
    at: world.now,
    call_id: id as string,
    attempt,
    outcome: fails
      ? { status: 'failed', error, text: JSON.stringify({ error }) }
      : { status: 'completed', output: { of: id, attempt }, text: JSON.stringify({ of: id, attempt }), truncated: attempt % 2 === 0 }
  }
}

const toolAnswers = fc.tuple(fc.nat(99), fc.constantFrom(false, false, false, true), anyRoom).map(([n, fails, room]) => {
  return deed('a tool answers', (world) => callsOf(world).length > 0, (world) => {
    const claim = choose(world, callsOf(world), n)
    spoken(world, claim)
    return [withRoom(callWord(world, claim, fails), claim.worker, room)]
  })
})

const toolTells = fc.nat(99).map((n) => deed('a tool tells how far it is', (world) => callsOf(world).length > 0, (world) => {
  const { call_id, attempt } = choose(world, callsOf(world), n)
  return [{ type: 'ProgressCall', at: world.now, call_id: call_id as string, attempt, data: n }]
}))

const workerRecovers = fc.nat(99).map((n) => deed('a worker repairs a transcript', (world) => turnsOf(world).length > 0, (world) => {
  const { fence } = choose(world, turnsOf(world), n)
  return [{ type: 'Recover', at: world.now, fence: fence as number, detail: 'x', messages: world.ledger.messages.length, delivered: [] }]
}))

/** A worker is given up: paused, cut off or dead. What it still says comes too late. */
const workerIsLost = fc.constantFrom(...WORKERS).map((worker) => {
  const lost = (world: World) => world.ledger.claims().filter((claim) => claim.worker === worker)
  return deed(`${worker} is given up`, (world) => lost(world).length > 0, (world) => [lapse(world, lost(world))])
})

function lapse (world: World, lost: LiveClaim[]): Command {
  return {
    type: 'Lapse',
    at: world.now,
    fence: lost.find((claim) => claim.fence !== null)?.fence ?? null,
    calls: lost.flatMap(({ call_id: id, attempt }) => id === null ? [] : [{ call_id: id, attempt, arguments: world.ledger.argumentsOf(id) }])
  }
}

/** An operator steps in, whether or not there is anything to mend: what was right stays right. */
const operatorRepairs = fc.tuple(fc.constantFrom<RepairAction['type'][]>('retry_turn', 'fail_call', 'release'), fc.nat(99), fc.boolean()).map(([type, n, fits]) => {
  return deed(`an operator repairs: ${type}`, (world) => world.decided > 0, (world) => {
    const { ledger } = world
    const claims = fits ? ledger.claims() : []
    const { fence, calls } = lapse(world, claims) as Extract<Command, { type: 'Lapse' }>
    const open = ledger.openCalls()
    const action: RepairAction = type === 'release' ? { type, fence, calls } : type === 'retry_turn' ? { type } : { type, call_id: open.length > 0 ? pick(open, n) : 'call_1' }
    return [{ type: 'Repair', at: world.now, operation: name(world, 'op'), action, reason: n % 2 === 0 ? null : 'it hung', found: null }]
  })
})

const runIsCancelled = fc.nat(99).map((n) => deed('a run is cancelled', (world) => (world.named.get('r') ?? 0) > 0, (world) => {
  const open = world.ledger.openRuns()
  return [{ type: 'CancelRun', at: world.now, run_id: open.length > 0 ? pick(open, n) : 'r1', reason: 'cancelled' }]
}))

const timePasses = fc.constantFrom(1, 500, 12_000, 100_000).map((ms) => deed(`${ms} ms pass`, (world) => (world.named.get('r') ?? 0) > 0, (world, core) => {
  world.now += ms
  const due = core.state === null ? null : dueAt(core.state, world.now, TIMES)
  return due === null || due > world.now ? [] : [lapse(world, [])]
}))

const commandComesAgain = fc.nat(99).map((n) => deed('a command is delivered again', (world) => repeatable(world).length > 0, (world) => {
  return [{ ...pick(repeatable(world), n), at: world.now }]
}))
/** A request is recognised as long as its id is remembered; nobody repeats one for longer. */
function repeatable (world: World): Command[] {
  const requests = world.past.filter(({ type }) => ['CreateConversation', 'StartRun', 'PostMessage', 'Repair'].includes(type))
  return world.past.filter((command) => !requests.slice(0, -REMEMBERED).includes(command))
}

const anyPost = fc.record({
  mode: fc.constantFrom<PostMessage['mode'][]>('auto', 'interrupt', 'steer', 'queue'),
  queued: fc.constantFrom<PostMessage['queued'][]>('deliver', 'deliver', 'supersede'),
  completed_calls: fc.constantFrom<PostMessage['completed_calls'][]>('keep', 'keep', 'discard'),
  delay: fc.constantFrom(null, null, 100, 20_000)
})
const messageIsPosted = fc.tuple(fc.nat(99), anyPost, anyRoom).map(([n, { delay, ...post }, room]) => deed('a message is posted', (world) => (world.named.get('r') ?? 0) > 0, (world) => {
  const id = name(world, 'm')
  const open = world.ledger.openRuns()
  const run = open.length > 0 ? pick(open, n) : 'r1'
  return [withRoom({ type: 'PostMessage', at: world.now, run_id: run, message_id: id, content: `message ${id}`, due_at: delay === null ? null : world.now + delay, ...post }, 'w1', room)]
}))

const messageIsChanged = fc.tuple(fc.nat(99), fc.boolean()).map(([n, edited]) => deed('a message is edited or withdrawn', (world) => world.ledger.waiting().length > 0, (world) => {
  const { id, run } = pick(world.ledger.waiting(), n)
  const head = { at: world.now, run_id: run ?? 'r1', message_id: id }
  return [edited ? { type: 'EditMessage', ...head, content: `message ${id}, edited` } : { type: 'WithdrawMessage', ...head }]
}))

/** Everything anybody does, the usual things more often. */
export const anything: fc.Arbitrary<fc.Command<World, Core>> = fc.oneof(
  { weight: 6, arbitrary: takeJob },
  { weight: 10, arbitrary: modelAnswers },
  { weight: 14, arbitrary: toolAnswers },
  { weight: 4, arbitrary: startRun },
  { weight: 2, arbitrary: timePasses },
  { weight: 2, arbitrary: workerIsLost },
  { weight: 2, arbitrary: commandComesAgain },
  { weight: 3, arbitrary: messageIsPosted },
  { weight: 1, arbitrary: messageIsChanged },
  { weight: 1, arbitrary: runIsCancelled },
  { weight: 1, arbitrary: toolTells },
  { weight: 1, arbitrary: workerRecovers },
  { weight: 2, arbitrary: operatorRepairs },
  { weight: 1, arbitrary: seedConversation }
)

/** From here on everybody does their best: workers take what is wanted, models answer, tools return. Everything that is open must come to its end. */
export function comeToRest (world: World, core: Core): void {
  for (let steps = 0; steps < 400; steps++) {
    const { state } = core
    if (state === null) return
    world.now++
    const [claim] = world.ledger.claims()
    const due = dueAt(state, world.now, TIMES)
    if (claim !== undefined) {
      const word = claim.call_id === null ? turnWord(world, claim, { text: 'done', finish_reason: 'stop', calls: [], usage: true }) : callWord(world, claim, false)
      decide(world, core, withRoom(word, claim.worker, 'all'))
    } else if (wanted(state, world.now, TIMES.leaseMs).length > 0) {
      decide(world, core, withRoom({ type: 'Advance', at: world.now }, 'w1', 'job'))
    } else if (due !== null) {
      world.now = Math.max(world.now, due)
      decide(world, core, lapse(world, []))
    } else {
      const { ledger } = world
      if (ledger.openRuns().length > 0 || ledger.waiting().length > 0) throw new Error(`at rest with ${ledger.openRuns().join(' ')} open\n${storyOf(world)}`)
      return
    }
  }
  throw new Error(`does not come to rest\n${storyOf(world)}`)
}
