import { deliver } from './delivery.js'
import { emit, nextFence, type Draft } from './draft.js'
import { endRun } from './ending.js'
import type { ActiveRun, TurnPhase } from './state.js'

/** A turn that nobody has begun. */
export function dueTurn (turn: number, now: number, causedBy: number[]): TurnPhase {
  return { type: 'turn', turn, attempt: 0, tries: 0, model: 0, losses: 0, worker: null, fence: 0, ready_at: now, caused_by: causedBy }
}

/** What follows a turn that is over: its answer ends the run, unless a message waits for one; else the next turn is due. */
export function concludeTurn (draft: Draft, run: ActiveRun, causedBy: number[], answer: { output: unknown } | null): void {
  const { state } = draft
  const waiting = state.waiting.filter((message) => message.run_id === run.id && message.due_at === null)
  if (answer !== null && waiting.length === 0) {
    endRun(draft, run, 'completed', causedBy, { output: answer.output })
  } else {
    run.final = null
    run.phase = dueTurn(state.turn + 1, draft.now, causedBy)
    // Delivered here and not with the turn: nobody may withdraw what an answer was not final for, or the model would be asked nothing.
    if (answer !== null) run.phase.caused_by = [...causedBy, ...deliver(draft, run, waiting)]
  }
}

/** Puts a turn back: it is due again after `delayMs`, for whoever claims it then. Its old fence is worth nothing from here on. */
export function restartTurn (draft: Draft, run: ActiveRun, phase: TurnPhase, reason: string, delayMs: number): void {
  const retrying = emit(draft, run, 'turn.retrying', { turn: phase.turn, caused_by: phase.caused_by }, {
    attempt: phase.attempt + 1, reason, delay_ms: delayMs, model: run.models[phase.model]
  })
  nextFence(draft)
  Object.assign(phase, { worker: null, fence: 0, ready_at: draft.now + delayMs, caused_by: [retrying] })
}
