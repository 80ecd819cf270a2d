import { closeEarly } from './batch.js'
import type { EditMessage, PostMessage, WithdrawMessage } from './command.js'
import { supersede } from './delivery.js'
import { abortWorker, docNames, drop, emit, iso, nextFence, put, remember, type Draft } from './draft.js'
import { isOpen, type ActiveRun, type QueuedRun, type WaitingMessage } from './state.js'
import { resolve } from './suspension.js'
import type { Refusal } from './transition.js'
import { dueTurn } from './turn.js'

/** What the sender of a message is told (API.md: the receipt). Kept beside the row, so that a repeated request gets the same. */
export interface Receipt {
  message_id: string
  receipt: 'interrupted' | 'queued' | 'scheduled'
  /** How it is delivered: the mode asked for, or what `auto` came to. */
  mode: 'interrupt' | 'steer' | 'queue'
  cancelled_call_ids: string[]
  /** Its place among the messages that wait, from 1; 0: it does not wait for others. */
  position: number
}

/** A message while a run is active: it interrupts, steers or queues. From here on it reaches the ledger exactly once, whatever happens. */
export function postMessage (draft: Draft, command: PostMessage): Refusal | null {
  const { state } = draft
  const active = state.run?.id === command.run_id ? state.run : null
  const run = active ?? state.queue.find((one) => one.id === command.run_id)
  if (run === undefined) return state.seen.includes(command.message_id) ? 'duplicate' : 'run_ended'
  if (state.seen.includes(command.message_id)) return 'duplicate'

  const interrupts = command.due_at === null && (command.mode === 'auto' || command.mode === 'interrupt') && active !== null && isCancellable(active)
  const others = state.waiting.filter((message) => message.run_id === run.id)
  if (!interrupts && others.length >= run.limits.max_queued_messages) return 'queue_full'
  remember(state, command.message_id)

  const delivered = command.mode === 'queue' && command.due_at === null ? 'queue' : 'steer'
  const told: Receipt = {
    message_id: command.message_id,
    receipt: command.due_at !== null ? 'scheduled' : interrupts ? 'interrupted' : 'queued',
    mode: interrupts ? 'interrupt' : delivered,
    cancelled_call_ids: [],
    position: interrupts ? 0 : others.length + 1
  }
  const turn = active === null || active.turns === 0 ? {} : { turn: state.turn }
  const accepted = emit(draft, run, 'message.accepted', { ...turn, caused_by: [run.cause] }, {
    message_id: told.message_id,
    mode: told.mode,
    receipt: told.receipt,
    content: command.content,
    ...(command.due_at !== null && { due_at: iso(command.due_at) })
  })
  const message: WaitingMessage = { id: command.message_id, run_id: run.id, mode: delivered, due_at: command.due_at, cause: accepted }
  put(draft, docNames.input(message.id), JSON.stringify(command.content))

  if (interrupts) {
    told.cancelled_call_ids = interrupt(draft, active as ActiveRun, command.completed_calls === 'keep', accepted)
    const ready = state.waiting.filter((one) => one.run_id === run.id && one.due_at === null)
    if (command.queued === 'supersede') supersede(draft, active, ready, [accepted])
    else for (const one of ready) one.mode = 'steer'
  }
  state.waiting.push(message)
  put(draft, docNames.receipt(message.id), JSON.stringify(told))
  return null
}

/** Whether anything is under way that could be stopped: an LLM call, the wait before its next try, or unsettled calls. */
function isCancellable ({ phase }: ActiveRun): boolean {
  return phase.type === 'batch' || phase.attempt > 0
}

/** Gives a message that still waits another content. */
export function editMessage (draft: Draft, command: EditMessage): Refusal | null {
  const found = waitingOf(draft, command)
  if (found === null) return 'not_found'
  const { run, message } = found
  put(draft, docNames.input(message.id), JSON.stringify(command.content))
  message.cause = emit(draft, run, 'message.accepted', { caused_by: [message.cause] }, {
    message_id: message.id,
    mode: message.mode,
    receipt: message.due_at === null ? 'queued' : 'scheduled',
    content: command.content,
    edited: true,
    ...(message.due_at !== null && { due_at: iso(message.due_at) })
  })
  return null
}

/** Takes back a message that still waits. */
export function withdrawMessage (draft: Draft, command: WithdrawMessage): Refusal | null {
  const found = waitingOf(draft, command)
  if (found === null) return 'not_found'
  const { run, message } = found
  draft.state.waiting = draft.state.waiting.filter((one) => one !== message)
  drop(draft, docNames.input(message.id))
  emit(draft, run, 'message.withdrawn', { caused_by: [message.cause] }, { message_id: message.id })
  return null
}

function waitingOf (
  { state }: Draft, { run_id: runId, message_id: messageId }: EditMessage | WithdrawMessage
): { run: ActiveRun | QueuedRun, message: WaitingMessage } | null {
  const message = state.waiting.find((one) => one.id === messageId && one.run_id === runId)
  const run = state.run?.id === runId ? state.run : state.queue.find((one) => one.id === runId)
  return message === undefined || run === undefined ? null : { run, message }
}

/** Stops what the run is doing and makes a new turn due. Returns the calls that were cancelled. */
function interrupt (draft: Draft, run: ActiveRun, keepCompleted: boolean, causedBy: number): string[] {
  const { phase } = run
  const cancelled: string[] = []
  let causes = [causedBy]
  if (phase.type === 'turn') {
    abortWorker(draft, phase.worker, phase.fence, [], 'interrupted')
    causes = [emit(draft, run, 'turn.cancelled', { turn: phase.turn, caused_by: [...phase.caused_by, causedBy] }, { reason: 'interrupted' })]
  } else {
    if (phase.suspension !== null) causes.push(resolve(draft, run, phase, 'superseded'))
    cancelled.push(...phase.calls.filter(isOpen).map((call) => call.id))
    causes.push(...closeEarly(draft, run, phase, 'interrupted', causedBy, keepCompleted))
  }
  nextFence(draft)
  run.final = null
  run.phase = dueTurn(draft.state.turn + 1, draft.now, causes)
  return cancelled
}
