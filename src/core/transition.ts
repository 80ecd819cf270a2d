import { completeCall, startCall } from './batch.js'
import type { Command, CompleteCall, CompleteTurn, CreateConversation, FailTurn, PlaceCall, ProgressCall, Recover, RetryTurn, StartRun, TokenCount } from './command.js'
import { releaseDelayedMessages } from './delivery.js'
import { append, docNames, emit, iso, messageJson, put, remember, type Doc, type Draft, type Effect, type Piece } from './draft.js'
import { endQueuedRun, endRun, rollBack } from './ending.js'
import type { Event } from './event.js'
import { lapse } from './lapse.js'
import { editMessage, postMessage, withdrawMessage } from './messages.js'
import { attachOrphan, discardOrphan, forgetOldOrphans, keepOrphan } from './orphans.js'
import { arrange } from './references.js'
import { mend, repair } from './repair.js'
import { conflict, fillResources, type Holder } from './resources.js'
import { holderOf } from './schedule.js'
import { settle } from './settle.js'
import { decide, submitOutputs } from './suspension.js'
import type { ActiveRun, BatchPhase, CallState, QueuedRun, State, TurnPhase } from './state.js'
import { concludeTurn, restartTurn } from './turn.js'

/** Why a command changed nothing. `stale`: it comes from a worker that lost the right to write, or for something already settled. */
export type Refusal = 'stale' | 'nothing_due' | 'duplicate' | 'run_active' | 'run_ended' | 'not_found' | 'exists' | 'queue_full' | 'suspension_resolved' | 'call_settled' | 'not_repairable'

/** What a command changes: to be stored in one step. */
export interface Change {
  state: State
  messages: Piece[][]
  events: Event[]
  docs: Doc[]
  effects: Effect[]
  created: string[]
  rewind: number | null
}

/** What became of a command. */
export type Outcome = { refusal: Refusal } | { refusal: null, change: Change }

/**
 * The whole behaviour of a conversation: what a command does to its state, as a function. It records the one fact the command
 * carries and then draws the consequences (`settle`) until nothing more follows. The state passed in is not touched.
 * Null is a conversation that does not exist.
 */
export function transition (state: State | null, command: Command): Outcome {
  if (state === null && !makesConversation(command)) return { refusal: 'not_found' }
  const draft: Draft = {
    state: state === null ? blank(command as CreateConversation | StartRun) : clone(state),
    now: command.at,
    executor: command.executor ? { ...command.executor } : null,
    events: [],
    messages: [],
    docs: [],
    effects: [],
    created: [],
    rewind: null
  }
  const released = [releaseDelayedMessages(draft), forgetOldOrphans(draft)].includes(true)
  const refusal = state !== null && command.type === 'CreateConversation' ? 'exists' : record(draft, command)
  if (refusal !== null && refusal !== 'nothing_due') return { refusal }
  const changed = settle(draft) || released
  if (refusal === 'nothing_due' && !changed) return { refusal }
  const { state: next, messages, events, docs, effects, created, rewind } = draft
  return { refusal: null, change: { state: next, messages, events, docs, effects, created, rewind } }
}

function makesConversation (command: Command): command is CreateConversation | StartRun {
  return command.type === 'CreateConversation' || (command.type === 'StartRun' && command.new_conversation)
}

/** Records the fact. Draws no conclusions from it. */
function record (draft: Draft, command: Command): Refusal | null {
  switch (command.type) {
    case 'CreateConversation': return createConversation(draft, command)
    case 'StartRun': return startRun(draft, command)
    case 'Advance': return 'nothing_due'
    case 'RetryTurn': return retryTurn(draft, command)
    case 'CompleteTurn': return completeTurn(draft, command)
    case 'FailTurn': return failTurn(draft, command)
    case 'PlaceCall': return placeCall(draft, command)
    case 'CompleteCall': return concludeCall(draft, command)
    case 'ProgressCall': return progressCall(draft, command)
    case 'CancelRun': return cancelRun(draft, command.run_id, command.reason)
    case 'Lapse': return lapse(draft, command)
    case 'PostMessage': return postMessage(draft, command)
    case 'EditMessage': return editMessage(draft, command)
    case 'WithdrawMessage': return withdrawMessage(draft, command)
    case 'Decide': return decide(draft, command)
    case 'SubmitOutputs': return submitOutputs(draft, command)
    case 'KeepOrphan': return keepOrphan(draft, command)
    case 'DiscardOrphan': return discardOrphan(draft, command)
    case 'AttachOrphan': return attachOrphan(draft, command)
    case 'Recover': return recover(draft, command)
    case 'Repair': return repair(draft, command)
  }
}

function createConversation (draft: Draft, command: CreateConversation): null {
  for (const message of command.messages) append(draft, [messageJson(draft, message, null, null)])
  draft.state.has_system = command.has_system
  remember(draft.state, command.operation)
  return null
}

/** Runs of a conversation that wait, or are scheduled: they stand in the row, which every commit writes. */
export const MAX_QUEUED_RUNS = 250

function startRun (draft: Draft, command: StartRun): Refusal | null {
  const { state } = draft
  if (state.tenant !== command.tenant) return 'not_found'
  if (state.seen.includes(command.run_id)) return 'duplicate'
  const busy = state.run !== null || state.queue.some((run) => run.due_at === null || run.due_at <= command.at)
  if (busy && command.on_active_run === 'reject') return 'run_active'
  const isFirst = command.on_active_run === 'interrupt' || command.on_active_run === 'rollback'
  if (!isFirst && state.queue.length >= MAX_QUEUED_RUNS) return 'queue_full'
  remember(state, command.run_id)
  const run: QueuedRun = {
    id: command.run_id,
    created_at: command.at,
    due_at: command.due_at,
    models: command.models,
    limits: command.limits,
    policy: command.policy,
    metadata: command.metadata,
    run_seq: 0,
    cause: 0,
    inputs: command.messages.map((message) => message.id)
  }
  run.cause = emit(draft, run, 'run.created', {}, { input: command.input, model: command.models[0], on_active_run: command.on_active_run })
  put(draft, docNames.run(run.id), `{"created_at":${command.at},"created_seq":${run.cause},"request":${command.spec}}`)
  for (const message of command.messages) put(draft, docNames.input(message.id), JSON.stringify(message.content))
  if (state.run !== null && command.on_active_run === 'interrupt') endRun(draft, state.run, 'cancelled', [run.cause], { reason: `interrupted_by ${run.id}` })
  if (state.run !== null && command.on_active_run === 'rollback') rollBack(draft, state.run, run.cause)
  if (isFirst) state.queue.unshift(run)
  else state.queue.push(run)
  draft.created.push(run.id)
  return null
}

function retryTurn (draft: Draft, command: RetryTurn): Refusal | null {
  const held = heldTurn(draft.state, command.fence)
  if (held === null) return 'stale'
  count(held.run, command.usage)
  if (command.tried) held.phase.tries++
  if (command.next_model && held.phase.model + 1 < held.run.models.length) {
    held.phase.model++
    held.phase.tries = 0
  }
  restartTurn(draft, held.run, held.phase, command.reason, command.delay_ms)
  return null
}

function completeTurn (draft: Draft, command: CompleteTurn): Refusal | null {
  const held = heldTurn(draft.state, command.fence)
  if (held === null) return 'stale'
  const { run, phase } = held
  count(run, command.usage)
  run.answers++
  phase.worker = null
  const calls = command.calls.map(({ call_id, name, arguments: args, raw }) => {
    return { call_id, name, arguments: args, ...(raw !== null && { raw_arguments: raw.slice(0, run.limits.max_result_chars) }) }
  })
  const completed = emit(draft, run, 'turn.completed', { turn: phase.turn, caused_by: phase.caused_by }, {
    attempt: phase.attempt, text: command.text, finish_reason: command.finish_reason, tool_calls: calls, usage: command.usage
  })
  const head = { id: command.message_id, role: 'assistant', content: command.text, turn: phase.turn, run_id: run.id, created_at: iso(command.at) }
  if (calls.length === 0) {
    if (command.text !== '') append(draft, [JSON.stringify(head)])
    if (command.finish_reason === 'length') endRun(draft, run, 'incomplete', [completed], { output: command.text, stop_reason: 'length' })
    else concludeTurn(draft, run, [completed], { output: command.text })
    return null
  }
  put(draft, docNames.text(phase.turn), JSON.stringify(head).slice(0, -1) + ',')
  put(draft, docNames.batch(phase.turn), JSON.stringify({ run_id: run.id, batch_id: command.batch_id, calls: calls.map((call) => call.call_id) }))
  for (const call of command.calls) {
    put(draft, docNames.call(call.call_id), JSON.stringify({
      call_id: call.call_id, name: call.name, arguments: call.arguments, ...(call.provider_id !== '' && { provider_id: call.provider_id })
    }))
  }
  const batch: BatchPhase = { type: 'batch', turn: phase.turn, id: command.batch_id, cause: 0, started_at: command.at, calls: [], suspension: null, suspensions: 0, filled: 0 }
  batch.cause = emit(draft, run, 'batch.started', { turn: phase.turn, batch_id: batch.id, caused_by: [completed] }, { calls })
  const holders = command.calls.map(({ rules, arguments: args }) => holderOf({ rules, holds: fillResources(rules.resources ?? [], args) }))
  const places = arrange(command.calls, (a, b) => command.calls[a]?.fault === null && conflict(holders[a] as Holder, holders[b] as Holder))
  batch.calls = command.calls.map((call, i): CallState => ({
    id: call.call_id,
    name: call.name,
    status: 'pending',
    attempt: 0,
    worker: null,
    since: command.at,
    started_at: null,
    rules: call.rules,
    rank: places[i]?.rank ?? i,
    after: places[i]?.after ?? {},
    holds: holders[i]?.holds ?? [],
    ready_at: 0,
    placed: false,
    losses: 0,
    approved: false,
    expires_at: null,
    fault: call.fault ?? places[i]?.fault ?? null,
    arguments: call.arguments,
    cause: batch.cause,
    settled: 0,
    error: null
  }))
  run.usage.tool_calls += batch.calls.length
  run.phase = batch
  return null
}

function failTurn (draft: Draft, command: FailTurn): Refusal | null {
  const held = heldTurn(draft.state, command.fence)
  if (held === null) return 'stale'
  count(held.run, command.usage)
  held.phase.worker = null
  endRun(draft, held.run, 'failed', held.phase.caused_by, { error: command.error })
  return null
}

function placeCall (draft: Draft, command: PlaceCall): Refusal | null {
  const { run } = draft.state
  const phase = run?.phase.type === 'batch' ? run.phase : null
  const call = phase?.calls.find((one) => one.id === command.call_id)
  if (run === null || phase === null || call?.status !== 'pending' || call.worker !== command.worker || call.attempt !== command.attempt) return 'stale'
  if (command.wait_ms === 0) startCall(draft, run, phase, call)
  else Object.assign(call, { worker: null, since: command.at, ready_at: command.at + command.wait_ms, placed: true })
  return null
}

function concludeCall (draft: Draft, command: CompleteCall): Refusal | null {
  const found = runningCall(draft.state, command.call_id, command.attempt)
  if (found === null) return 'stale'
  const { run, phase, call } = found
  const { outcome } = command
  const { retry } = call.rules
  const again = retry !== undefined && command.arguments !== undefined && call.attempt < retry.attempts
  if (again && outcome.status === 'failed' && MAY_PASS.has(outcome.error.code)) {
    const readyAt = command.at + retry.backoff_ms * 2 ** (call.attempt - 1)
    Object.assign(call, { status: 'pending', worker: null, since: command.at, ready_at: readyAt, arguments: command.arguments })
  } else {
    completeCall(draft, run, phase, call, outcome)
  }
  return null
}

/** Failures of a call that another try may not have. */
const MAY_PASS = new Set(['timeout', 'http_error', 'tool_error'])

function progressCall (draft: Draft, command: ProgressCall): Refusal | null {
  const found = runningCall(draft.state, command.call_id, command.attempt)
  if (found === null) return 'stale'
  const { run, phase, call } = found
  emit(draft, run, 'tool.progress', { turn: phase.turn, batch_id: phase.id, call_id: call.id, caused_by: [call.cause] }, { name: call.name, data: command.data })
  return null
}

function cancelRun (draft: Draft, runId: string, reason: string): Refusal | null {
  const { state } = draft
  if (state.run?.id === runId) {
    endRun(draft, state.run, 'cancelled', [state.run.cause], { reason })
    return null
  }
  const queued = state.queue.find((run) => run.id === runId)
  if (queued === undefined) return 'run_ended'
  endQueuedRun(draft, queued, reason)
  return null
}

/** Makes the row agree with what stands beside it. */
function recover (draft: Draft, command: Recover): Refusal | null {
  const held = heldTurn(draft.state, command.fence)
  if (held === null) return 'stale'
  mend(draft.state, command)
  emit(draft, held.run, 'conversation.recovered', { turn: held.phase.turn, caused_by: held.phase.caused_by }, { detail: command.detail })
  return null
}

/** The turn a fence gives the right to write for, or null: the fence is old, or the turn is over. */
function heldTurn (state: State, fence: number): { run: ActiveRun, phase: TurnPhase } | null {
  const { run } = state
  if (run?.phase.type !== 'turn' || run.phase.worker === null || run.phase.fence !== fence) return null
  return { run, phase: run.phase }
}

function runningCall (state: State, callId: string, attempt: number): { run: ActiveRun, phase: BatchPhase, call: CallState } | null {
  const { run } = state
  if (run?.phase.type !== 'batch') return null
  const call = run.phase.calls.find((one) => one.id === callId)
  if (call === undefined || call.status !== 'running' || call.attempt !== attempt) return null
  return { run, phase: run.phase, call }
}

function count (run: ActiveRun, usage: TokenCount | null): void {
  if (usage === null) return
  run.usage.input_tokens += usage.input_tokens
  run.usage.output_tokens += usage.output_tokens
  run.usage.total_tokens += usage.total_tokens
}

function blank (command: CreateConversation | StartRun): State {
  return {
    id: command.conversation_id,
    tenant: command.tenant,
    created_at: command.at,
    metadata: command.type === 'CreateConversation' ? command.metadata : {},
    seq: 0,
    turn: 0,
    // Not 0: a conversation that is deleted and made again under the same id must refuse who still works for its former self.
    fence: command.at,
    messages: 0,
    has_system: false,
    run: null,
    queue: [],
    waiting: [],
    rewinds: 0,
    seen: [],
    orphans: []
  }
}

/** A deep copy of plain data; several times faster than `structuredClone`, and on the path of every command. */
function clone<T> (value: T): T {
  if (Array.isArray(value)) return value.map(clone) as T
  if (value === null || typeof value !== 'object') return value
  // Spread copies every key as it is, also one that a model has named `__proto__`; assigning to it afterwards sets what is its own by then.
  const copy = { ...value } as Record<string, unknown>
  for (const key in copy) {
    const inner = copy[key]
    if (typeof inner === 'object' && inner !== null) copy[key] = clone(inner)
  }
  return copy as T
}
