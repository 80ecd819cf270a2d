import { appendWaiting, docNames, drop, emit, type Draft } from './draft.js'
import type { ActiveRun, WaitingMessage } from './state.js'

/** Moves messages into the ledger, in the order given. Returns their events' `seq`s. */
export function deliver (draft: Draft, run: ActiveRun | null, messages: WaitingMessage[]): number[] {
  const { state } = draft
  if (messages.length === 0) return []
  const turn = run?.phase.type === 'turn' ? run.phase.turn : null
  state.waiting = state.waiting.filter((message) => !messages.includes(message))
  return messages.map((message) => {
    appendWaiting(draft, message.id, turn ?? state.turn, message.run_id)
    return emit(draft, run, 'message.delivered', { ...(turn !== null && { turn }), caused_by: [message.cause] }, { message_id: message.id })
  })
}

/** Messages that shall not reach the model any more. They stay readable in the log. */
export function supersede (draft: Draft, run: ActiveRun | null, messages: WaitingMessage[], causedBy: number[]): void {
  const { state } = draft
  state.waiting = state.waiting.filter((message) => !messages.includes(message))
  for (const message of messages) {
    drop(draft, docNames.input(message.id))
    emit(draft, run, 'message.superseded', { caused_by: [message.cause, ...causedBy] }, { message_id: message.id })
  }
}

/**
 * Delayed messages whose time has come are there to steer from now on: the active run, if there is one. Done before a command is
 * recorded, so that what was due earlier comes before what happens now.
 */
export function releaseDelayedMessages ({ state, now }: Draft): boolean {
  const due = state.waiting.filter((message) => message.due_at !== null && message.due_at <= now).sort((a, b) => (a.due_at as number) - (b.due_at as number))
  if (due.length === 0) return false
  state.waiting = [...state.waiting.filter((message) => !due.includes(message)), ...due]
  for (const message of due) {
    message.due_at = null
    message.mode = 'steer'
    // One that was posted to a run which still waits stays with it.
    if (!state.queue.some((run) => run.id === message.run_id)) message.run_id = state.run?.id ?? null
  }
  return true
}
