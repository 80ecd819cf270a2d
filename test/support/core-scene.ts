import type { TObject } from 'typebox'
import type {
  Command, CompleteCall, CompleteTurn, CreateConversation, Executor, Lapse, ModelCall, NewMessage, Recover, RetryTurn, StartRun, TokenCount
} from '../../src/core/command.js'
import type { Effect } from '../../src/core/draft.js'
import type { Event } from '../../src/core/event.js'
import type { Message } from '../../src/core/message.js'
import { Limits, ToolPolicy } from '../../src/core/run.js'
import { claimsOf, type CallRules, type State } from '../../src/core/state.js'
import { transition, type Refusal } from '../../src/core/transition.js'
import { createShelf } from './core-shelf.js'

/** When a scene begins. */
export const START = Date.UTC(2030, 0, 1)

/** Makes the next command out of where the scene stands; null: it only moved the clock. */
export type Step = (scene: Scene) => Command | null

/** What one step led to. */
export interface Then {
  refusal: Refusal | null
  events: Event[]
  /** The events in short: `turn.started 1`, `tool.completed a`. */
  said: string[]
  messages: Message[]
  effects: Effect[]
}

/** A conversation on a stage of its own: commands go in, what comes out is stored as a store does it. */
export interface Scene {
  /** Throws before the conversation exists. */
  state: () => State
  now: number
  log: Event[]
  ledger: Message[]
  docs: Map<string, string>
  /** Fence of the newest claimed turn. */
  fence: () => number
  /** Newest attempt of a call that was started. */
  attempt: (callId: string) => number
  /** Brings the scene somewhere; throws when a step is refused. */
  given: (...steps: Step[]) => Scene
  when: (step: Step) => Then
}

export function createScene (): Scene {
  const shelf = createShelf()
  let state: State | null = null
  const scene: Scene = {
    now: START,
    log: [],
    ledger: shelf.messages,
    docs: shelf.docs,
    state () {
      if (state === null) throw new Error('the conversation does not exist yet')
      return state
    },
    fence: () => claims.fence,
    attempt: (callId) => scene.log.filter((event) => event.type === 'tool.started' && event.call_id === callId).at(-1)?.attempt as number,
    given (...steps) {
      for (const step of steps) {
        const { refusal } = this.when(step)
        if (refusal !== null) throw new Error(`a given step was refused: ${refusal}`)
      }
      return this
    },
    when (step) {
      const command = step(scene)
      const nothing = { events: [], said: [], messages: [], effects: [] }
      if (command === null) return { refusal: null, ...nothing }
      const outcome = transition(frozen(state), frozen(command))
      if (outcome.refusal !== null) return { refusal: outcome.refusal, ...nothing }
      const { change } = outcome
      const messages = shelf.store(change)
      const events = JSON.parse(JSON.stringify(change.events)) as Event[]
      state = JSON.parse(JSON.stringify(change.state)) as State
      scene.log.push(...events)
      for (const effect of change.effects) if (effect.type === 'call_model') claims.fence = effect.fence
      return { refusal: null, events, said: events.map(inShort), messages, effects: change.effects }
    }
  }
  const claims = { fence: 0 }
  return scene
}

/** What is given to the core is not touched: an attempt throws. */
export function frozen<T> (value: T): T {
  if (typeof value === 'object' && value !== null) for (const inner of Object.values(Object.freeze(value))) frozen(inner)
  return value
}

export function given (...steps: Step[]): Scene {
  return createScene().given(...steps)
}

/** Scenes name runs r1, r2 …, calls a, b, c … and workers w1, w2 …; r1 is not mentioned. */
export function inShort ({ type, run_id, call_id, turn }: Event): string {
  const what = call_id !== undefined ? [call_id.replace('call_', '')] : type.startsWith('turn.') ? [turn] : []
  return [type, ...what, ...run_id === undefined || run_id === 'r1' ? [] : [run_id]].join(' ')
}

/** Who works on what, in short: `w1 turn`, `w1 a`. */
export function claimed (scene: Scene): string[] {
  return claimsOf(scene.state()).map((claim) => `${claim.worker} ${claim.call_id === null ? 'turn' : claim.call_id.replace('call_', '')}`)
}

/** Who is told to stop what, in short: `w1 turn cancelled`, `w2 a worker_lost`. */
export function stopped (effects: Effect[]): string[] {
  return effects.flatMap((effect) => {
    if (effect.type !== 'abort') return []
    return [`${effect.worker} ${effect.fence === null ? effect.call_ids.map((id) => id.replace('call_', '')).join(' ') : 'turn'} ${effect.reason}`]
  })
}

// --- Steps ---------------------------------------------------------------------------------------------------------------------------

/** The defaults a request without `limits` or `tool_policy` has. */
function defaultsOf<T> (schema: TObject): T {
  return Object.fromEntries(Object.entries(schema.properties).map(([name, property]) => [name, (property as { default?: unknown }).default])) as T
}
export const limitsWith = (limits: Partial<Limits> = {}): Limits => ({ ...defaultsOf<Limits>(Limits), ...limits })
export const policyWith = (policy: Partial<ToolPolicy> = {}): ToolPolicy => ({ ...defaultsOf<ToolPolicy>(ToolPolicy), ...policy })

export const TOKENS: TokenCount = { input_tokens: 10, output_tokens: 5, total_tokens: 15 }

/** Adds a worker with room for what becomes due. */
export function by (worker: string, step: Step, room: Partial<Executor> = {}): Step {
  return (scene) => {
    const command = step(scene)
    return command === null ? null : { ...command, executor: { worker, turn: true, calls: 8, spread: false, ...room } }
  }
}

export const pass = (ms: number): Step => (scene) => {
  scene.now += ms
  return null
}

export const create = (messages: NewMessage[] = [], over: Partial<CreateConversation> = {}): Step => ({ now }) => ({
  type: 'CreateConversation', at: now, conversation_id: 'c', operation: 'op', tenant: 'me', metadata: {}, messages, has_system: messages[0]?.role === 'system', ...over
})

type RunOptions = Partial<Omit<StartRun, 'limits' | 'policy'>> & { limits?: Partial<Limits>, policy?: Partial<ToolPolicy> }

export const start = ({ limits, policy, ...over }: RunOptions = {}): Step => ({ now }) => {
  const runId = over.run_id ?? 'r1'
  return {
    type: 'StartRun',
    at: now,
    conversation_id: 'c',
    run_id: runId,
    tenant: 'me',
    new_conversation: runId === 'r1',
    due_at: null,
    models: ['model'],
    limits: limitsWith(limits),
    policy: policyWith(policy),
    metadata: {},
    on_active_run: 'queue',
    messages: [{ id: `m_${runId}`, role: 'user', content: `input of ${runId}` }],
    input: `input of ${runId}`,
    spec: '{"tools":[]}',
    ...over
  }
}

/** A worker comes for whatever is due. */
export const work = (worker = 'w1', room: Partial<Executor> = {}): Step => by(worker, ({ now }) => ({ type: 'Advance', at: now }), { spread: true, ...room })

export const rules = (over: Partial<CallRules> = {}): CallRules => ({ effects: 'read', idempotent: false, placement: 'local', timeout_ms: 30_000, ...over })

export const call = (name: string, over: Partial<ModelCall> = {}): ModelCall => ({
  call_id: `call_${name}`, name: 'look', arguments: { at: name }, references: [], provider_id: `p_${name}`, raw: null, rules: rules(), fault: null, ...over
})

/** The model answers the newest claimed turn with text. */
export const answer = (text: string, over: Partial<CompleteTurn> = {}): Step => (scene) => ({
  type: 'CompleteTurn', at: scene.now, fence: scene.fence(), text, finish_reason: 'stop', calls: [], usage: TOKENS,
  message_id: `m_turn${scene.state().turn}`, batch_id: `b${scene.state().turn}`, ...over
})

/** The model answers with tool calls. */
export const ask = (...calls: ModelCall[]): Step => answer('', { finish_reason: 'tool_calls', calls })

export const retry = (over: Partial<RetryTurn> = {}): Step => (scene) => ({
  type: 'RetryTurn', at: scene.now, fence: scene.fence(), reason: 'provider_unavailable', delay_ms: 0, next_model: false, tried: true, usage: null, ...over
})

export const fail = (code = 'provider_refused'): Step => (scene) => ({
  type: 'FailTurn', at: scene.now, fence: scene.fence(), error: { code, message: 'no', retryable: false }, usage: null
})

type Outcome = CompleteCall['outcome']
const settled = (name: string, outcome: Outcome, attempt?: number): Step => (scene) => ({
  type: 'CompleteCall', at: scene.now, call_id: `call_${name}`, attempt: attempt ?? scene.attempt(`call_${name}`), outcome
})

export const result = (name: string, output: unknown = `output of ${name}`, attempt?: number): Step => {
  return settled(name, { status: 'completed', output, text: typeof output === 'string' ? output : JSON.stringify(output), truncated: false }, attempt)
}

export const cutResult = (name: string, output: string, text: string): Step => settled(name, { status: 'completed', output, text, truncated: true })

export const failure = (name: string, message = `${name} broke`): Step => {
  const error = { code: 'tool_error', message }
  return settled(name, { status: 'failed', error, text: JSON.stringify({ error }) })
}

/** What the rate limit said to the worker that asks for a call: begin, or come back after `waitMs`. */
export const place = (name: string, waitMs = 0, worker?: string): Step => (scene) => {
  const { phase } = scene.state().run ?? {}
  const state = phase?.type === 'batch' ? phase.calls.find((one) => one.id === `call_${name}`) : undefined
  return { type: 'PlaceCall', at: scene.now, call_id: `call_${name}`, attempt: state?.attempt ?? 0, worker: worker ?? state?.worker ?? 'nobody', wait_ms: waitMs }
}

export const progress = (name: string, data: unknown): Step => (scene) => ({
  type: 'ProgressCall', at: scene.now, call_id: `call_${name}`, attempt: scene.attempt(`call_${name}`), data
})

export const cancel = (runId = 'r1', reason = 'cancelled'): Step => ({ now }) => ({ type: 'CancelRun', at: now, run_id: runId, reason })

/** A worker is gone: everything it holds now lapses. */
export const lose = (worker: string): Step => (scene) => {
  const lost = claimsOf(scene.state()).filter((claim) => claim.worker === worker)
  return {
    type: 'Lapse',
    at: scene.now,
    fence: lost.find((claim) => claim.fence !== null)?.fence ?? null,
    calls: lost.flatMap(({ call_id, attempt }): Lapse['calls'] => call_id === null ? [] : [{ call_id, attempt, arguments: { at: call_id.replace('call_', '') } }])
  }
}

/** A worker that ends lets go of what it holds. */
export const handOver = (worker: string): Step => (scene) => {
  const command = lose(worker)(scene)
  return command === null ? null : { ...command as Lapse, handed_over: true }
}

/** The sweep looks at the conversation: nobody is gone, but time has passed. */
export const sweep = (): Step => ({ now }) => ({ type: 'Lapse', at: now, fence: null, calls: [] })

/** The worker of the newest turn found row and ledger to disagree, or had to repair the transcript. */
export const recover = (detail: string, over: Partial<Recover> = {}): Step => (scene) => ({
  type: 'Recover', at: scene.now, fence: scene.fence(), detail, messages: scene.ledger.length, delivered: [], ...over
})

/** A step as it was when it was first made, to be delivered again. */
export function remembered (step: Step): Step {
  let made: Command | null | undefined
  return (scene) => made === undefined ? (made = step(scene)) : made
}

/** Makes steps that will be delivered later, and perhaps too late. */
export const prepared = (...steps: Step[]): Step => (scene) => {
  for (const step of steps) step(scene)
  return null
}
