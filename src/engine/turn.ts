import { toUSVString } from 'node:util'
import type { Command, ModelCall, RetryTurn, TokenCount } from '../core/command.js'
import { checkLedger, checkState } from '../core/check.js'
import type { Message } from '../core/message.js'
import type { RunError } from '../core/run.js'
import { referencesIn } from '../core/references.js'
import type { ActiveRun, TurnPhase } from '../core/state.js'
import { transcript } from '../core/transcript.js'
import type { Row, Store } from '../store/store.js'
import { createDeltas } from './deltas.js'
import type { LedgerCache } from './ledger.js'
import { ModelError, type Model, type ModelAnswer } from './model/model.js'
import { pause } from './patience.js'
import type { Clock, Ids, Lease, Leases, Log, Settings } from './ports.js'
import type { PreparedSpec } from './run-spec.js'
import { ToolError, type Tools } from './tools/tool.js'

export interface TurnDeps {
  store: Store
  model: Model
  tools: Tools
  leases: Leases
  ledger: LedgerCache
  spec: (conversation: string, runId: string) => Promise<PreparedSpec | null>
  clock: Clock
  ids: Ids
  log: Log
  settings: Settings
  /** Resolves once the claim of this turn has just been seen to stand, or the signal has fired. */
  claimStands: (signal: AbortSignal) => Promise<void>
  /** A number from 0 to 1, for jitter. */
  random: () => number
}

export interface TurnTask { conversation: string, row: Row, turn: number, attempt: number, fence: number, signal: AbortSignal }

/** A `Retry-After` beyond this is no reason to wait: the try counts as failed, and the next model or the caller decides. Milliseconds. */
const LONGEST_WAIT_MS = 600_000

/**
 * One LLM call: takes the lease, reads what the model must see, asks it, and says in a command what came of it. Null: the attempt was
 * stopped or lost its right to write, and says nothing. It never throws for what a provider or a network can do.
 * `report` commits a command in between without ending the attempt; false: it was refused, and the attempt is over.
 */
export async function performTurn (
  deps: TurnDeps, task: TurnTask, report: (command: Command) => Promise<boolean>
): Promise<{ command: Command | null, release: () => void }> {
  const { conversation, row, fence, signal } = task
  const taking = acquire(deps, conversation, signal)
  try {
    const run = row.state.run as ActiveRun
    const [lease, ledger, spec] = await Promise.all([taking, deps.ledger.read(conversation, row), deps.spec(conversation, run.id)])
    if (lease !== null) return { command: spec === null ? null : await ask(deps, task, { lease, ledger, spec }, report), release: lease.release }
    const command = signal.aborted ? null : retry(deps, fence, 'lease_busy', deps.settings.leaseMs / 2)
    return { command, release: () => { /* no lease was taken */ } }
  } catch (error) {
    // Whatever went wrong: a lease that was taken, or still comes, must not be kept.
    taking.then((lease) => lease?.release(), () => { /* there is none */ })
    throw error
  }
}

/** Asks the model under a lease. */
async function ask (
  deps: TurnDeps, task: TurnTask, { lease, ledger, spec }: { lease: Lease, ledger: Message[], spec: PreparedSpec },
  report: (command: Command) => Promise<boolean>
): Promise<Command | null> {
  const { conversation, row: { state }, fence, signal } = task
  const run = state.run as ActiveRun
  const phase = run.phase as TurnPhase
  const stop = new AbortController()
  const stopped = AbortSignal.any([signal, lease.signal, stop.signal])

  const sent = transcript(ledger, state.has_system ? null : spec.instructions)
  if (sent === null) return fail(deps, fence, 'nothing_to_answer', 'the conversation holds no message to answer; post a run with an input', false, null)
  const wrong = [...checkState(state), ...checkLedger(state, ledger), ...sent.repairs]
  if (wrong.length > 0) {
    const known = new Set(ledger.map((message) => message.id))
    const delivered = state.waiting.filter((message) => known.has(message.id)).map((message) => message.id)
    const repaired = await report({ type: 'Recover', at: deps.clock.now(), fence, detail: wrong.join('; '), messages: ledger.length, delivered })
    // Refused: it was only that others have gone on, and this attempt is over.
    if (!repaired) return null
    deps.log.error({ conversation_id: conversation, run_id: run.id, turn: task.turn, wrong }, 'row and ledger disagreed; repaired before the LLM call')
  }

  const deltas = createDeltas(
    { run_id: run.id, turn: task.turn, attempt: task.attempt, lane: 'main' },
    (delta) => deps.store.append(conversation, fence, delta), deps.clock, () => stop.abort(new Error('the fence is old'))
  )
  try {
    await deps.claimStands(stopped)
    stopped.throwIfAborted()
    const answer = await deps.model.complete({
      model: run.models[phase.model] as string,
      messages: sent.messages,
      ...(spec.offered.length > 0 && { tools: spec.offered, parallel_tool_calls: run.policy.parallel }),
      options: spec.options,
      request_id: `${run.id}.${task.turn}.${task.attempt}`
    }, { signal: stopped, onText: deltas.push })
    deltas.end()
    return conclude(deps, run, spec, fence, answer)
  } catch (error) {
    deltas.end()
    if (signal.aborted || stop.signal.aborted) return null
    if (lease.signal.aborted) return retry(deps, fence, 'lease_lost', 0)
    return failed(deps, run, phase, fence, error)
  }
}

/** Waits for a busy lease as long as a dead holder can keep it. One that is just being given up is free within milliseconds. */
async function acquire ({ leases, clock, settings }: TurnDeps, conversation: string, signal: AbortSignal): Promise<Lease | null> {
  const until = clock.now() + 2 * settings.leaseMs
  for (let wait = 2; !signal.aborted; wait *= 2) {
    const lease = await leases.acquire(conversation)
    if (lease !== null) return lease
    if (clock.now() >= until) return null
    await pause(clock, Math.min(wait, 250))
  }
  return null
}

/** What an answer means. */
function conclude (deps: TurnDeps, run: ActiveRun, spec: PreparedSpec, fence: number, answer: ModelAnswer): Command {
  const { usage } = answer
  if (answer.refusal !== null) return fail(deps, fence, 'refusal', `the model refused to answer; post the run with another input, instructions or model: ${answer.refusal.slice(0, 500)}`, false, usage)
  // A call that was cut by the token limit is never run, whatever its arguments look like (FAULTS M3).
  const calls = answer.finish_reason === 'length' ? [] : answer.tool_calls
  const ids = calls.map(({ id }) => id)
  return {
    type: 'CompleteTurn',
    at: deps.clock.now(),
    fence,
    // Half surrogate pairs have no bytes: neither Redis nor a provider takes them back as they are.
    text: toUSVString(answer.text),
    finish_reason: answer.finish_reason,
    calls: calls.map(({ id, name, arguments: written }): ModelCall => {
      const raw = toUSVString(written)
      const printable = name.replace(/[^a-zA-Z0-9_-]/g, '_').slice(0, 64) || 'unknown'
      const tool = spec.tools.get(name)
      const call = { call_id: `call_${deps.ids.next()}`, name: printable, arguments: {}, references: [], provider_id: id, raw: null, fault: null }
      if (tool === undefined) {
        const known = [...spec.tools.keys()].join(', ') || 'none'
        const fault = { code: 'unknown_tool', message: `there is no tool "${printable}"; the tools are: ${known}` }
        return { ...call, raw, fault, rules: { effects: 'read', idempotent: false, placement: 'local', timeout_ms: run.limits.tool_timeout_ms } }
      }
      const known = { ...call, rules: deps.tools.rules(tool, run.limits.tool_timeout_ms) }
      try {
        const args = deps.tools.parse(tool, raw)
        return { ...known, arguments: args, references: referencesIn(args, ids) }
      } catch (error) {
        const message = error instanceof ToolError ? error.message : 'the arguments cannot be read'
        return { ...known, raw, fault: { code: 'invalid_arguments', message } }
      }
    }),
    usage,
    message_id: `msg_${deps.ids.next()}`,
    batch_id: `batch_${deps.ids.next()}`
  }
}

/** What becomes of a turn whose call failed: another try, the next model, or the end of the run. */
function failed (deps: TurnDeps, run: ActiveRun, phase: TurnPhase, fence: number, error: unknown): Command {
  if (!(error instanceof ModelError)) {
    deps.log.error({ run_id: run.id, turn: phase.turn, err: error }, 'LLM call failed in an unexpected way')
    return fail(deps, fence, 'internal', 'the LLM call failed inside Interlock; its log has the reason', true, null)
  }
  deps.log.warn({ run_id: run.id, turn: phase.turn, attempt: phase.attempt, code: error.code, status: error.status }, 'LLM call failed')
  const tries = phase.tries + 1
  const wait = Math.max(error.retryAfterMs ?? 0, backoff(tries, deps.random()))
  const tried = { tried: true, usage: error.usage }
  if (error.retryable && tries < deps.settings.modelAttempts && wait <= LONGEST_WAIT_MS) return retry(deps, fence, error.code, wait, tried)
  if (error.retryable && phase.model + 1 < run.models.length) return retry(deps, fence, error.code, 0, { ...tried, next_model: true })
  const often = phase.attempt > 1 ? ` (after ${phase.attempt} attempts)` : ''
  return fail(deps, fence, error.code, error.message + often, error.retryable, error.usage)
}

/** Milliseconds before the next try: 0.5, 1, 2 … 30 s, of which half is chance. */
export function backoff (tries: number, random: number): number {
  const full = Math.min(30_000, 500 * 2 ** (tries - 1))
  return Math.round(full / 2 + random * full / 2)
}

function retry (deps: TurnDeps, fence: number, reason: string, delayMs: number, what: Partial<Pick<RetryTurn, 'tried' | 'next_model' | 'usage'>> = {}): Command {
  return { type: 'RetryTurn', at: deps.clock.now(), fence, reason, delay_ms: delayMs, next_model: false, tried: false, usage: null, ...what }
}

function fail (deps: TurnDeps, fence: number, code: string, message: string, retryable: boolean, usage: TokenCount | null): Command {
  const error: RunError = { code, message, retryable }
  return { type: 'FailTurn', at: deps.clock.now(), fence, error, usage }
}
