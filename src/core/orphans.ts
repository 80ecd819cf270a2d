import type { AttachOrphan, DiscardOrphan, KeepOrphan } from './command.js'
import { docNames, drop, emit, iso, put, remember, type Draft } from './draft.js'
import type { CallError } from './run.js'
import type { WaitingMessage } from './state.js'
import type { Refusal } from './transition.js'

/** Orphans a conversation keeps, and characters in those beside the newest; the oldest make room. And how long one is kept, in milliseconds. */
const MAX_ORPHANS = 50
const MAX_ORPHAN_CHARS = 10_000_000
export const ORPHAN_TTL_MS = 7 * 86_400_000

/** How a call was settled, as far as it says why a result of it is late. */
export interface Settled { status: string, attempt: number, error?: CallError }

/**
 * Why nobody waits for a result of an attempt, from how its call was settled: the state forgets that with the batch. Not at all: another attempt is to be
 * waited for, whatever comes of it until this is stored. Null: the call was cancelled, and the state knows more.
 */
export function lateBecause (settled: Settled | null, attempt: number): 'timeout' | 'duplicate' | 'stale' | null {
  if (settled?.status === 'cancelled') return null
  if (settled?.attempt !== attempt) return 'stale'
  // A result that a tool or a client has given is an output, also where it is an error.
  if (settled.error?.code === 'timeout') return 'timeout'
  return settled.error?.code === 'outcome_unknown' || settled.error?.code === 'repaired' ? 'stale' : 'duplicate'
}

/** A result that came after its call was settled: it is kept where one can see it, and never shown to the model by itself (D5-D7). */
export function keepOrphan (draft: Draft, command: KeepOrphan): Refusal | null {
  const { state } = draft
  // Of a call that this conversation does not know: it was made again since, or Redis has lost that part of it.
  if (command.fence < state.created_at || command.cause > state.seq) return 'stale'
  const run = state.run?.id === command.run_id ? state.run : null
  const phase = run?.phase.type === 'batch' ? run.phase : null
  const call = phase?.calls.find((one) => one.id === command.call_id)
  if (call?.status === 'running' && call.attempt === command.attempt) return 'stale'
  const late = call === undefined || call.status === 'cancelled' ? 'cancelled' : call.status === 'completed' && call.attempt === command.attempt ? 'duplicate' : 'stale'
  const reason = command.known ?? (run === null ? 'run_ended' : late)
  const { call_id: id, name, turn, output } = command
  // A run's terminal event is its last: what comes behind it belongs to the conversation.
  const cause = emit(draft, run, 'tool.orphaned', { turn, batch_id: command.batch_id, call_id: id, caused_by: [command.cause] }, {
    name, reason, output: command.truncated ? command.text : output, ...(command.truncated && { truncated: true })
  })
  const text = JSON.stringify({ call_id: id, run_id: command.run_id, turn, name, reason, orphaned_at: iso(draft.now), output })
  put(draft, docNames.orphan(id), text)
  state.orphans = state.orphans.filter((one) => one.call_id !== id)
  let chars = state.orphans.reduce((sum, one) => sum + one.chars, 0)
  const gone: string[] = []
  for (const one of state.orphans) {
    if (state.orphans.length - gone.length < MAX_ORPHANS && chars <= MAX_ORPHAN_CHARS) break
    gone.push(one.call_id)
    chars -= one.chars
  }
  forget(draft, gone)
  state.orphans.push({ call_id: id, run_id: command.run_id, at: draft.now, cause, chars: text.length })
  return null
}

/** Nobody wants it: it is gone, and its text with it. */
export function discardOrphan (draft: Draft, { run_id: runId, call_id: id }: DiscardOrphan): Refusal | null {
  if (!draft.state.orphans.some((one) => one.call_id === id && one.run_id === runId)) return 'not_found'
  forget(draft, [id])
  return null
}

/** The model hears of it after all: as a user message in front of the next LLM call, of this run or of the conversation's next one. */
export function attachOrphan (draft: Draft, command: AttachOrphan): Refusal | null {
  const { state } = draft
  if (state.seen.includes(command.message_id)) return 'duplicate'
  const orphan = state.orphans.find((one) => one.call_id === command.call_id && one.run_id === command.run_id)
  if (orphan === undefined) return 'not_found'
  forget(draft, [orphan.call_id])
  remember(state, command.message_id)
  const { run } = state
  const accepted = emit(draft, run, 'message.accepted', { ...(run !== null && run.turns > 0 && { turn: state.turn }), caused_by: [orphan.cause] }, {
    message_id: command.message_id, mode: 'steer', receipt: 'queued', content: command.content
  })
  const message: WaitingMessage = { id: command.message_id, run_id: run?.id ?? null, mode: 'steer', due_at: null, cause: accepted }
  put(draft, docNames.input(message.id), JSON.stringify(command.content))
  put(draft, docNames.receipt(message.id), JSON.stringify({
    message_id: message.id, receipt: 'queued', mode: 'steer', cancelled_call_ids: [], position: 1 + state.waiting.filter((one) => one.run_id === message.run_id).length
  }))
  state.waiting.push(message)
  return null
}

/** Old ones go whenever something happens in the conversation. */
export function forgetOldOrphans (draft: Draft): boolean {
  const old = draft.state.orphans.filter((one) => one.at + ORPHAN_TTL_MS <= draft.now)
  forget(draft, old.map((one) => one.call_id))
  return old.length > 0
}

function forget (draft: Draft, callIds: string[]): void {
  for (const id of callIds) drop(draft, docNames.orphan(id))
  draft.state.orphans = draft.state.orphans.filter((one) => !callIds.includes(one.call_id))
}
