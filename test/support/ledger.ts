import { isDeepStrictEqual } from 'node:util'
import type { Command, Executor, ModelCall, PostMessage, StartRun } from '../../src/core/command.js'
import { docNames, iso, type Effect } from '../../src/core/draft.js'
import { TERMINAL, type Event } from '../../src/core/event.js'
import type { Message } from '../../src/core/message.js'
import { MAX_LOSSES, MAX_TURN_LOSSES } from '../../src/core/lapse.js'
import type { Usage } from '../../src/core/run.js'
import { dueAt, wanted } from '../../src/core/schedule.js'
import { claimsOf, type State } from '../../src/core/state.js'
import type { Outcome, Refusal } from '../../src/core/transition.js'
import { transcript } from '../../src/core/transcript.js'
import { createFold, pictureOf } from './core-fold.js'
import { createShelf } from './core-shelf.js'
import { checkPayload } from './payload.js'

/*
 * The truth about a conversation, kept from the commands that went in and from what came out: never from the state under test. It says of
 * every outcome whether it was allowed, and of the state only whether it agrees.
 */

export const TIMES = { leaseMs: 10_000, sweepMs: 1000 }
/** Ids of outside commands that are recognised when they come again. */
export const REMEMBERED = 32

/** The one way a run may end now, because of what was just recorded. */
interface Verdict { type: string, output?: unknown, reason?: string, stop_reason?: string, code?: string, failures?: string[] }

interface RunEntry {
  order: StartRun
  status: 'waiting' | 'active' | 'ended'
  events: number
  startedAt: number | null
  /** Length of the ledger when it became active. */
  start: number
  answers: number
  usage: Usage
  verdict: Verdict | null
}

/** A turn that has started and is neither completed nor cancelled. */
interface TurnEntry { number: number, run: string, attempt: number, model: number, readyAt: number, losses: number }

interface CallEntry {
  asked: ModelCall
  attempt: number
  running: boolean
  startedAt: number | null
  settled: 'completed' | 'failed' | 'cancelled' | null
  /** Position in the order of settling. */
  place: number
  /** What the model must be told; null: nothing yet. */
  text: string | null
  output: unknown
  failure: string | null
}

interface BatchEntry { id: string, run: string, turn: number, text: string, messageId: string, startedAt: number, calls: CallEntry[] }

interface PostedEntry {
  id: string
  content: unknown
  run: string | null
  mode: 'steer' | 'queue'
  dueAt: number | null
  status: 'waiting' | 'delivered' | 'superseded' | 'withdrawn'
}

export interface LiveClaim { worker: string, fence: number | null, call_id: string | null, attempt: number }

export interface Ledger {
  /** Judges an outcome, and learns from it. `state` is what the core says stands now. Throws when a rule is broken. */
  take: (command: Command, outcome: Outcome, state: State | null) => void
  /** Work that counts: who may still say something that is believed. */
  claims: () => LiveClaim[]
  log: Event[]
  messages: Message[]
  /** Runs that have not ended, in order of creation. */
  openRuns: () => string[]
  /** Calls that are not settled. */
  openCalls: () => string[]
  /** Messages that wait, with the run they were posted to. */
  waiting: () => { id: string, run: string | null }[]
  /** Arguments a call was asked with. */
  argumentsOf: (callId: string) => Record<string, unknown>
}

class BrokenRule extends Error {
  override name = 'BrokenRule'
}

function must (holds: boolean, rule: string): asserts holds {
  if (!holds) throw new BrokenRule(rule)
}

function same (found: unknown, wanted: unknown, what: string): void {
  if (!isDeepStrictEqual(found, wanted)) throw new BrokenRule(`${what}: found ${JSON.stringify(found)}, not ${JSON.stringify(wanted)}`)
}

export function createLedger (): Ledger {
  const shelf = createShelf()
  const fold = createFold()
  const log: Event[] = []
  const runs = new Map<string, RunEntry>()
  const calls = new Map<string, CallEntry>()
  const posted = new Map<string, PostedEntry>()
  const claims = new Map<string, LiveClaim>()
  /** Names of all texts that must stand beside the row. */
  const texts = new Set<string>()
  const usedIds = new Set<string>()
  const remembered: string[] = []
  /** Runs that wait, in the order they will be taken. */
  let line: string[] = []
  let exists = false
  let active: string | null = null
  let turn: TurnEntry | null = null
  let turns = 0
  let batch: BatchEntry | null = null
  let fence = 0

  // What one change brings, until it has been seen through.
  let now = 0
  let command: Command
  let aborts: LiveClaim[] = []
  let delivered: string[] = []
  let answer: { id: string, text: string, turn: number } | null = null
  let closing: { batch: BatchEntry, kept: CallEntry[], order: 'request' | 'completion' } | null = null
  let rolledBack: RunEntry | null = null
  let activated: string | null = null

  const entry = (id: string | null): RunEntry => {
    const run = runs.get(id ?? '')
    must(run !== undefined, `run ${id} is not known`)
    return run
  }
  const openCalls = () => batch?.calls.filter((call) => call.settled === null) ?? []
  const waitingFor = (run: string | null) => [...posted.values()].filter((message) => message.status === 'waiting' && message.run === run)
  const limitOf = ({ order: { policy, limits } }: RunEntry) => policy.parallel ? limits.max_tool_concurrency : 1
  const heldBy = (givenFence: number) => claims.get('turn')?.fence === givenFence
  const isDue = ({ order }: RunEntry) => order.due_at === null || order.due_at <= now
  const interrupts = (post: PostMessage) => {
    return post.due_at === null && (post.mode === 'auto' || post.mode === 'interrupt') && post.run_id === active && (turn !== null || batch !== null)
  }
  const remember = (id: string) => {
    remembered.push(id)
    if (remembered.length > REMEMBERED) remembered.shift()
  }

  // --- What must be refused --------------------------------------------------------------------------------------------------------

  /** Undefined: it depends on whether anything is due. */
  function refusalOf (given: Command): Refusal | null | undefined {
    if (given.type === 'CreateConversation') return exists ? 'exists' : null
    if (!exists) return given.type === 'StartRun' && given.new_conversation ? null : 'not_found'
    switch (given.type) {
      case 'StartRun':
        if (remembered.includes(given.run_id)) return 'duplicate'
        return given.on_active_run === 'reject' && (active !== null || line.some((id) => isDue(entry(id)))) ? 'run_active' : null
      case 'CompleteTurn': case 'RetryTurn': case 'FailTurn': case 'Recover': return heldBy(given.fence) ? null : 'stale'
      case 'CompleteCall': case 'ProgressCall': {
        const call = batch?.calls.find(({ asked }) => asked.call_id === given.call_id)
        return call?.running === true && call.attempt === given.attempt ? null : 'stale'
      }
      case 'CancelRun': return (runs.get(given.run_id)?.status ?? 'ended') === 'ended' ? 'run_ended' : null
      case 'PostMessage': {
        if (remembered.includes(given.message_id)) return 'duplicate'
        const run = runs.get(given.run_id)
        if (run === undefined || run.status === 'ended') return 'run_ended'
        return !interrupts(given) && waitingFor(given.run_id).length >= run.order.limits.max_queued_messages ? 'queue_full' : null
      }
      case 'EditMessage': case 'WithdrawMessage': {
        const message = posted.get(given.message_id)
        return message?.status === 'waiting' && message.run === given.run_id && runs.get(given.run_id)?.status !== 'ended' ? null : 'not_found'
      }
      case 'Repair': {
        if (remembered.includes(given.operation)) return 'duplicate'
        const { action } = given
        if (action.type === 'retry_turn') return active !== null && batch === null ? null : 'not_repairable'
        if (action.type === 'release') return active !== null || line.length > 0 || [...posted.values()].some(({ status }) => status === 'waiting') ? null : 'not_repairable'
        const call = batch?.calls.find(({ asked }) => asked.call_id === action.call_id)
        return call === undefined ? 'not_found' : call.settled === null ? null : 'call_settled'
      }
      case 'Advance': case 'Lapse': return undefined
    }
  }

  // --- Facts -----------------------------------------------------------------------------------------------------------------------

  /** What an accepted command makes true, before anything is said about it. */
  function record (given: Command): void {
    const { at } = given
    switch (given.type) {
      case 'CreateConversation':
        remember(given.operation)
        break
      case 'StartRun': {
        remember(given.run_id)
        const usage = { input_tokens: 0, output_tokens: 0, total_tokens: 0, llm_calls: 0, tool_calls: 0 }
        runs.set(given.run_id, { order: given, status: 'waiting', events: 0, startedAt: null, start: 0, answers: 0, usage, verdict: null })
        texts.add(docNames.run(given.run_id))
        for (const { id } of given.messages) texts.add(docNames.input(id))
        const first = given.on_active_run === 'interrupt' || given.on_active_run === 'rollback'
        line = first ? [given.run_id, ...line] : [...line, given.run_id]
        if (active !== null && first) {
          const reason = given.on_active_run === 'interrupt' ? `interrupted_by ${given.run_id}` : 'rolled_back'
          entry(active).verdict = { type: 'run.cancelled', reason }
          if (reason === 'rolled_back') rolledBack = entry(active)
        }
        break
      }
      case 'RetryTurn':
        spend(given.usage)
        claims.delete('turn')
        if (turn !== null && given.next_model) turn.model = Math.min(turn.model + 1, entry(turn.run).order.models.length - 1)
        break
      case 'FailTurn':
        spend(given.usage)
        claims.delete('turn')
        entry(active).verdict = { type: 'run.failed', code: given.error.code }
        break
      case 'CompleteTurn':
        spend(given.usage)
        claims.delete('turn')
        entry(active).answers++
        if (given.calls.length === 0 && given.text !== '') answer = { id: given.message_id, text: given.text, turn: turns }
        break
      case 'CompleteCall': {
        const call = calls.get(given.call_id) as CallEntry
        claims.delete(given.call_id)
        call.text = given.outcome.text
        if (given.outcome.status === 'completed') call.output = given.outcome.truncated ? given.outcome.text : given.outcome.output
        else call.failure = given.outcome.error.code
        break
      }
      case 'CancelRun': entry(given.run_id).verdict = { type: 'run.cancelled', reason: given.reason }; break
      case 'Lapse': lapse(given.fence, given.calls, at); break
      case 'PostMessage': {
        remember(given.message_id)
        const mode = given.mode === 'queue' && given.due_at === null ? 'queue' : 'steer'
        if (interrupts(given) && given.queued === 'deliver') for (const message of waitingFor(given.run_id)) if (message.dueAt === null) message.mode = 'steer'
        if (interrupts(given)) entry(active).verdict = conclude(entry(active), null)
        posted.set(given.message_id, { id: given.message_id, content: given.content, run: given.run_id, mode, dueAt: given.due_at, status: 'waiting' })
        texts.add(docNames.input(given.message_id)).add(docNames.receipt(given.message_id))
        break
      }
      case 'EditMessage': (posted.get(given.message_id) as PostedEntry).content = given.content; break
      case 'Repair': {
        remember(given.operation)
        const { action } = given
        if (action.type === 'release') {
          takeAway(action.fence, action.calls)
        } else if (action.type === 'fail_call') {
          abandon(action.call_id)
          ;(calls.get(action.call_id) as CallEntry).failure = 'repaired'
        } else if (claims.has('turn')) {
          abandon('turn')
        } else if (turn !== null) {
          turn.readyAt = Math.min(turn.readyAt, at)
        }
      }
    }
  }

  function spend (usage: { input_tokens: number, output_tokens: number, total_tokens: number } | null): void {
    const spent = entry(active).usage
    if (usage === null) return
    spent.input_tokens += usage.input_tokens
    spent.output_tokens += usage.output_tokens
    spent.total_tokens += usage.total_tokens
  }

  function lapse (lostFence: number | null, lost: { call_id: string, attempt: number }[], at: number): void {
    const run = active === null ? null : entry(active)
    if (run === null) return
    if (run.startedAt !== null && at >= run.startedAt + run.order.limits.run_timeout_ms) {
      run.verdict = { type: 'run.incomplete', stop_reason: 'run_timeout' }
      return
    }
    takeAway(lostFence, lost)
  }

  /** Claims are worth nothing any more. */
  function takeAway (lostFence: number | null, lost: { call_id: string, attempt: number }[]): void {
    if (active === null) return
    const run = entry(active)
    if (turn !== null && lostFence !== null && heldBy(lostFence)) {
      abandon('turn')
      turn.losses++
      if (turn.losses >= MAX_TURN_LOSSES) run.verdict = { type: 'run.failed', code: 'worker_lost' }
    }
    for (const { call_id: id, attempt } of lost) {
      const call = batch?.calls.find(({ asked }) => asked.call_id === id)
      if (call === undefined || !call.running || call.attempt !== attempt || !claims.has(id)) continue
      abandon(id)
      if ((call.asked.rules.effects === 'read' || call.asked.rules.idempotent) && attempt < MAX_LOSSES) call.running = false
      else call.failure = 'outcome_unknown'
    }
  }

  /** Somebody works for nothing now, and must be told. */
  function abandon (key: string): void {
    const claim = claims.get(key)
    if (claim === undefined) return
    aborts.push(claim)
    claims.delete(key)
  }

  // --- Events ----------------------------------------------------------------------------------------------------------------------

  function hear (event: Event): void {
    const { type, run_id: runId, caused_by: causes } = event
    same(event.seq, log.length + 1, 'seq')
    same([event.time, event.conversation_id], [iso(now), 'c'], 'time and conversation')
    must(causes.every((seq) => seq >= 1 && seq < event.seq), `${type} ${event.seq} is caused by ${causes.join(' ')}`)
    must(type === 'run.created' ? causes.length === 0 : causes.length > 0, `${type} must say what caused it`)
    if (runId === undefined) must((type === 'message.delivered' || type === 'conversation.recovered') && event.run_seq === undefined, `${type} belongs to a run`)
    else {
      const run = entry(runId)
      must(run.status !== 'ended', `${type} of ${runId} comes after its end`)
      same(event.run_seq, ++run.events, 'run_seq')
    }
    log.push(event)
    fold.apply(event)
    if (TERMINAL.has(type)) return end(event, entry(runId as string))
    switch (type) {
      case 'run.created': return same([event.run_seq, command.type === 'StartRun' && command.run_id], [1, runId], 'run.created')
      case 'run.started': {
        activate()
        same(active, runId, 'the run that started')
        const run = entry(runId as string)
        must(run.startedAt === null, 'a run starts once')
        run.startedAt = now
        return
      }
      case 'turn.started': return startTurn(event)
      case 'turn.retrying':
        must(turn !== null && !claims.has('turn'), 'only an open turn that nobody holds is tried again')
        turn.attempt++
        turn.readyAt = now + (event.delay_ms as number)
        return same([event.turn, event.attempt, event.model], [turn.number, turn.attempt, entry(turn.run).order.models[turn.model]], 'turn.retrying')
      case 'turn.completed': return completeTurn(event)
      case 'turn.cancelled':
        must(turn?.number === event.turn, 'only the open turn is cancelled')
        must(isStopping(runId as string), 'a turn is cancelled only with its run, or by an interrupt')
        abandon('turn')
        turn = null
        return
      case 'batch.started': return startBatch(event)
      case 'batch.completed': return completeBatch(event)
      case 'tool.started': return startCall(event, callOf(event))
      case 'tool.progress': return must(callOf(event).running, 'news only of a running call')
      case 'tool.completed': case 'tool.failed': case 'tool.cancelled': return settle(event, callOf(event))
      case 'message.accepted': return same([command.type === 'PostMessage' || command.type === 'EditMessage', event.message_id], [true, (command as PostMessage).message_id], type)
      case 'message.delivered': return deliver(event)
      case 'message.superseded': case 'message.withdrawn': {
        const message = posted.get(event.message_id as string)
        must(message?.status === 'waiting', `${type} of a message that waits`)
        must(type === 'message.withdrawn' ? command.type === 'WithdrawMessage' : supersedes(), `${type} because of a ${command.type}`)
        message.status = type === 'message.withdrawn' ? 'withdrawn' : 'superseded'
        texts.delete(docNames.input(message.id))
        return
      }
      case 'conversation.recovered': return same(command.type === 'Recover' || command.type === 'Repair', true, type)
    }
  }

  const supersedes = () => rolledBack !== null || (command.type === 'PostMessage' && command.queued === 'supersede')
  /** Whether the run is being ended or interrupted by this very command. */
  const isStopping = (runId: string) => entry(runId).verdict !== null || (command.type === 'PostMessage' && command.run_id === runId)

  function callOf (event: Event): CallEntry {
    const call = batch?.calls.find(({ asked }) => asked.call_id === event.call_id)
    must(call !== undefined && call.settled === null, `${event.type} of an open call, not of ${event.call_id}`)
    same([event.run_id, event.turn, event.batch_id, event.lane, event.name], [batch?.run, batch?.turn, batch?.id, 'main', call.asked.name], event.type)
    return call
  }

  /** If no run is active the first in line whose time has come is. */
  function activate (): void {
    if (active !== null) return
    const next = line.find((id) => isDue(entry(id)))
    if (next === undefined) return
    line = line.filter((id) => id !== next)
    active = next
    activated = next
    const run = entry(next)
    run.status = 'active'
    for (const { id } of run.order.messages) texts.delete(docNames.input(id))
  }

  /** Delayed messages whose time has come wait as others do, behind them. Returns whether there were any. */
  function release (): boolean {
    const due = [...posted.values()].filter(({ status, dueAt: at }) => status === 'waiting' && at !== null && at <= now)
    for (const message of due.sort((a, b) => (a.dueAt as number) - (b.dueAt as number))) {
      posted.delete(message.id)
      const run = message.run !== null && entry(message.run).status === 'waiting' ? message.run : active
      posted.set(message.id, { ...message, dueAt: null, mode: 'steer', run })
    }
    return due.length > 0
  }

  function startTurn (event: Event): void {
    cutIfInterrupted()
    const run = entry(active)
    same(event.run_id, active, 'the turn\'s run')
    must(run.startedAt !== null, 'a run starts before its turns')
    must(turn === null && !claims.has('turn'), 'one turn at a time')
    must(batch === null, `no turn starts while calls are open: ${openCalls().map(({ asked }) => asked.call_id).join(' ')}`)
    same([event.turn, event.attempt, event.model, event.lane], [++turns, 1, run.order.models[0], 'main'], 'turn.started')
    must(conclude(run, null) === null, 'no turn starts above a limit')
    must(waitingFor(active).every((message) => message.mode === 'queue' || message.dueAt !== null), 'messages that steer are delivered before the turn starts')
    turn = { number: turns, run: run.order.run_id, attempt: 1, model: 0, readyAt: now, losses: 0 }
  }

  function completeTurn (event: Event): void {
    must(turn !== null && command.type === 'CompleteTurn', 'an open turn is completed by its answer')
    const { text, finish_reason: reason, usage } = command
    same([event.turn, event.attempt, event.text, event.finish_reason, event.usage], [turn.number, turn.attempt, text, reason, usage], 'turn.completed')
    turn = null
    if (command.calls.length > 0) return
    const run = entry(active)
    run.verdict = command.finish_reason === 'length' ? { type: 'run.incomplete', output: command.text, stop_reason: 'length' } : conclude(run, { output: command.text })
  }

  function startBatch (event: Event): void {
    must(batch === null && turn === null && command.type === 'CompleteTurn', 'a batch starts with the answer that asked for it')
    const { calls: asked } = command
    must(asked.length > 0 && log.at(-2)?.type === 'turn.completed', 'batch.started follows turn.completed')
    const shown = asked.map(({ call_id, name, arguments: args, raw }) => ({ call_id, name, arguments: args, ...(raw !== null && { raw_arguments: raw }) }))
    same([event.turn, event.batch_id, event.calls], [turns, command.batch_id, shown], 'batch.started')
    same(log.at(-2)?.tool_calls, shown, 'tool_calls')
    const entries = asked.map((one): CallEntry => ({
      asked: one, attempt: 0, running: false, startedAt: null, settled: null, place: 0, text: null, output: null, failure: null
    }))
    batch = { id: command.batch_id, run: active as string, turn: turns, text: command.text, messageId: command.message_id, startedAt: now, calls: entries }
    for (const call of entries) {
      calls.set(call.asked.call_id, call)
      texts.add(docNames.call(call.asked.call_id))
    }
    texts.add(docNames.batch(turns)).add(docNames.text(turns))
    entry(active).usage.tool_calls += asked.length
  }

  /** Two workers have died over it. No call is tried again here for another reason. */
  const isSuspect = (call: CallEntry): boolean => call.attempt - (call.running ? 1 : 0) > 1

  function startCall (event: Event, call: CallEntry): void {
    const run = entry(active)
    const { calls: all } = batch as BatchEntry
    must(!call.running, 'a running call does not start')
    must(call.asked.fault === null, 'a call that cannot run does not start')
    must(all.filter(({ running }) => running).length < limitOf(run), `no more than ${limitOf(run)} calls run at once`)
    const earlier = all.slice(0, all.indexOf(call)).filter((one) => one.settled === null && !one.running && one.asked.fault === null && (!isSuspect(one) || isSuspect(call)))
    const others = openCalls().filter((one) => one !== call && one.asked.fault === null && (one.running || (run.order.policy.parallel && !isSuspect(one))))
    must(!isSuspect(call) || others.length === 0, 'a call that two workers have died over runs alone, behind the others (F27)')
    must(!all.some((one) => one.running && isSuspect(one)), 'nothing starts beside a call that two workers have died over (F27)')
    must(earlier.length === 0, `calls start in request order: ${earlier.map(({ asked }) => asked.call_id).join(' ')} first`)
    same([event.attempt, event.arguments], [call.attempt + 1, call.asked.arguments], 'tool.started')
    must(call.attempt === 0 || command.type === 'Lapse' || command.type === 'Repair' || isSuspect(call), 'a call starts again only when its worker was lost')
    call.attempt++
    call.running = true
    call.startedAt ??= now
  }

  function settle (event: Event, call: CallEntry): void {
    const { call_id: id, fault } = call.asked
    const own = command.type === 'CompleteCall' && command.call_id === id
    switch (event.type) {
      case 'tool.completed':
        must(own && call.running && call.failure === null, 'a call completes by its own result')
        same(event.output, call.output, 'output')
        break
      case 'tool.failed':
        if (fault !== null && !call.running) call.failure = fault.code
        must(call.failure !== null, 'a call fails for a reason')
        same((event.error as { code: string }).code, call.failure, 'error code')
        if (!own) call.text = JSON.stringify({ error: event.error })
        if (own) same(event.error, command.type === 'CompleteCall' && command.outcome.status === 'failed' && command.outcome.error, 'error')
        break
      default: {
        must(isStopping(event.run_id as string), 'a call is cancelled only with its run, or by an interrupt')
        const { cancelled_calls: option } = entry(active).order.policy
        if (option === 'tombstone' || (option === 'tombstone_started' && call.asked.rules.effects === 'write' && call.attempt > 0)) call.text = 'tombstone'
      }
    }
    same(event.duration_ms, call.startedAt === null ? 0 : now - call.startedAt, 'duration_ms')
    abandon(id)
    call.running = false
    call.settled = event.type.slice('tool.'.length) as CallEntry['settled']
    call.place = 1 + (batch as BatchEntry).calls.filter(({ place }) => place > 0).length
    texts.add(docNames.done(id))
    if (call.text !== null) texts.add(docNames.message(id))
  }

  function completeBatch (event: Event): void {
    must(batch !== null && openCalls().length === 0, 'the barrier opens when every call is settled')
    const count = (status: string) => (batch as BatchEntry).calls.filter((call) => call.settled === status).length
    same(event.counts, { completed: count('completed'), failed: count('failed'), cancelled: 0 }, 'counts')
    same([event.batch_id, event.turn, event.duration_ms], [batch.id, batch.turn, now - batch.startedAt], 'batch.completed')
    const run = entry(batch.run)
    const { policy } = run.order
    const final = batch.calls.find((call) => call.asked.name === policy.final_answer_tool && call.settled === 'completed')
    const failures = batch.calls.filter((call) => call.settled === 'failed').sort((a, b) => a.place - b.place).map((call) => call.asked.call_id)
    leave(batch.calls)
    if (final !== undefined) run.verdict = conclude(run, { output: outputOf(final) })
    else if (failures.length > 0 && policy.on_error === 'fail_run') run.verdict = { type: 'run.failed', code: 'tool_failed', failures }
    else run.verdict = conclude(run, null)
  }

  /** The final answer's value is the whole output, also when the event shows it cut. */
  const outputOf = (call: CallEntry) => finals.get(call.asked.call_id)
  const finals = new Map<string, unknown>()

  /** The batch is over: these of its calls enter the ledger. */
  function leave (kept: CallEntry[]): void {
    if (batch === null) return
    closing = { batch, kept, order: entry(batch.run).order.policy.message_order }
    for (const { asked } of batch.calls) texts.delete(docNames.message(asked.call_id))
    texts.delete(docNames.text(batch.turn))
    batch = null
  }

  function cutIfInterrupted (): void {
    if (command.type !== 'PostMessage' || batch === null || openCalls().length > 0) return
    const keeps = command.completed_calls === 'keep'
    leave(batch.calls.filter((call) => call.text !== null && (keeps || call.settled === 'cancelled')))
  }

  /** What an answer leads to, or a batch without one (null). Null: the run goes on. */
  function conclude (run: RunEntry, given: { output: unknown } | null): Verdict | null {
    const { limits, run_id: id } = run.order
    const messages = waitingFor(id).filter((message) => message.dueAt === null)
    if (given !== null && messages.length === 0) return { type: 'run.completed', output: given.output }
    if (run.answers >= limits.max_turns) return { type: 'run.incomplete', stop_reason: 'max_turns' }
    if (limits.max_total_tokens !== null && run.usage.total_tokens >= limits.max_total_tokens) return { type: 'run.incomplete', stop_reason: 'max_total_tokens' }
    if (given !== null) for (const message of messages) message.mode = 'steer'
    return null
  }

  function deliver (event: Event): void {
    const message = posted.get(event.message_id as string)
    must(message?.status === 'waiting' && (message.dueAt === null || message.dueAt <= now), 'a message is delivered once, and not before its time')
    const ending = event.run_id !== undefined && entry(event.run_id).verdict !== null
    must(message.mode === 'steer' || ending || event.run_id === undefined, 'a queued message waits for an answer')
    const before = waitingFor(message.run)
    const first = before.find((one) => one.dueAt === null && (one.mode === message.mode || ending))
    must(message.dueAt !== null || first === message, `messages are delivered in order: ${first?.id} before ${message.id}`)
    message.status = 'delivered'
    delivered.push(message.id)
    texts.delete(docNames.input(message.id))
  }

  function end (event: Event, run: RunEntry): void {
    const { run_id: id } = run.order
    const { verdict } = run
    must(verdict !== null, `${event.type} of ${id} has no reason`)
    const found: Verdict = { type: event.type }
    const error = event.error as { code: string, failures?: { call_id: string }[] } | null
    if (event.output !== null || 'output' in verdict) found.output = event.output
    if (event.reason !== undefined) found.reason = event.reason as string
    if (event.stop_reason !== null) found.stop_reason = event.stop_reason as string
    if (error !== null) found.code = error.code
    if (error?.failures !== undefined) found.failures = error.failures.map((failure) => failure.call_id)
    same(found, { ...verdict }, `end of ${id}`)
    same(event.usage, run.usage, 'usage')
    if (id === active) {
      must(turn === null || event.type === 'run.failed', 'an open turn ends before its run')
      must(openCalls().length === 0, 'open calls end before their run')
      abandon('turn')
      turn = null
      cutIfInterrupted()
      leave(batch?.calls.filter((call) => call.text !== null) ?? [])
      active = null
    } else {
      line = line.filter((one) => one !== id)
      for (const message of run.order.messages) texts.delete(docNames.input(message.id))
    }
    must(waitingFor(id).every((message) => message.dueAt !== null || run.status === 'waiting'), 'messages of a run that ends are delivered before its last event')
    for (const message of waitingFor(id)) message.run = null
    run.status = 'ended'
    run.verdict = null
    texts.add(docNames.end(id))
  }

  // --- Messages --------------------------------------------------------------------------------------------------------------------

  function read (added: Message[], rewind: number | null): void {
    same(rewind, rolledBack === null || rolledBack.status !== 'ended' ? null : rolledBack.start, 'where the ledger is cut back to')
    const length = shelf.messages.length - added.length
    const rest = added.map((message, i) => ({ message, at: length + i }))
    const next = (what: string): Message => {
      const found = rest.shift()
      must(found !== undefined, `${what} is missing in the ledger`)
      return found.message
    }
    if (command.type === 'CreateConversation') rest.splice(0, command.messages.length)
    while (rest.length > 0) {
      const { message, at } = rest[0] as { message: Message, at: number }
      if (message.role === 'assistant') {
        if (message.tool_calls === undefined) readAnswer(next('the answer'))
        else readBatch(next)
      } else {
        must(message.role === 'user', `a ${message.role} message stands alone`)
        if (activated !== null && entry(activated).order.messages[0]?.id === message.id) {
          entry(activated).start = at
          for (const { id, content } of entry(activated).order.messages) {
            const input = next(`input ${id}`)
            same([input.id, input.role, input.content, input.run_id], [id, 'user', content, activated], 'an input')
          }
          activated = null
        } else {
          const one = posted.get(delivered.shift() ?? '')
          const { id, content } = next('a message')
          same([id, content], [one?.id, one?.content], 'a delivered message')
        }
      }
    }
    if (rolledBack === null && closing !== null) must(closing.kept.length === 0, 'a batch enters the ledger when it closes')
    must(answer === null, 'an answer enters the ledger at once')
    same([delivered, activated], [[], null], 'messages that are delivered, and inputs, enter the ledger')
    const ids = shelf.messages.map((message) => message.id)
    must(new Set(ids).size === ids.length, 'every message stands in the ledger once')
    for (const { tool_calls: asked, tool_call_id: told } of added) {
      for (const id of [...(asked ?? []).map((one) => `asked ${one.call_id}`), ...told === undefined ? [] : [`told ${told}`]]) {
        must(!usedIds.has(id), `${id} once`)
        usedIds.add(id)
      }
    }
  }

  function readAnswer (message: Message): void {
    must(answer !== null, 'an assistant message comes from an answer')
    same([message.id, message.content, message.turn], [answer.id, answer.text, answer.turn], 'the answer')
    answer = null
  }

  function readBatch (next: (what: string) => Message): void {
    must(closing !== null, 'calls enter the ledger when their batch closes')
    const { batch: { turn: number, run, text, messageId }, kept, order } = closing
    const head = next('the assistant message')
    const asked = kept.map(({ asked: { call_id, name, arguments: args, provider_id } }) => ({ call_id, name, arguments: args, ...(provider_id !== '' && { provider_id }) }))
    same([head.id, head.content, head.turn, head.run_id, head.tool_calls], [messageId, text, number, run, asked], 'the assistant message')
    for (const call of order === 'request' ? kept : [...kept].sort((a, b) => a.place - b.place)) {
      const { call_id: id, name } = call.asked
      const told = next(`the result of ${id}`)
      same([told.role, told.tool_call_id, told.name, told.turn, told.run_id], ['tool', id, name, number, run], 'a result')
      if (call.settled === 'cancelled') must((told.content as string).includes('cancelled'), 'a tombstone says so')
      else same(told.content, call.text, `what the model is told of ${id}`)
    }
    closing = null
  }

  // --- Effects ---------------------------------------------------------------------------------------------------------------------

  function perform (effects: Effect[], executor: Executor | undefined): void {
    const told: LiveClaim[] = []
    let room = executor?.calls ?? 0
    for (const effect of effects) {
      switch (effect.type) {
        case 'abort': {
          const keys = effect.fence === null ? effect.call_ids : ['turn']
          told.push(...keys.map((key) => ({ worker: effect.worker, fence: effect.fence, call_id: key === 'turn' ? null : key, attempt: 0 })))
          break
        }
        case 'call_model': {
          must(executor?.turn === true && !claims.has('turn'), 'a turn goes to a worker that has room for it, and to one only')
          must(turn !== null && turn.readyAt <= now, 'a turn is claimed when it is due')
          must(effect.fence > fence, `fence ${effect.fence} is above every earlier one, ${fence}`)
          same([effect.turn, effect.attempt], [turn.number, turn.attempt], 'call_model')
          fence = effect.fence
          claims.set('turn', { worker: executor.worker, fence, call_id: null, attempt: turn.attempt })
          entry(turn.run).usage.llm_calls++
          sendable(shelf.messages)
          break
        }
        case 'run_calls':
          for (const { call_id: id, attempt } of effect.calls) {
            const call = batch?.calls.find(({ asked }) => asked.call_id === id)
            must(call?.running === true && call.attempt === attempt && !claims.has(id), `${id} goes to one worker, once it has started`)
            must(executor !== undefined && room-- > 0, 'a worker gets no more calls than it has room for')
            must(executor.spread || call.asked.rules.placement === 'local', `${id} is to be spread`)
            claims.set(id, { worker: executor.worker, fence: null, call_id: id, attempt })
          }
      }
    }
    const plain = (all: LiveClaim[]) => all.map(({ worker, fence: of, call_id: id }) => `${worker} ${of} ${id}`).sort()
    same(plain(told), plain(aborts), 'who is told to stop')
    takesAllItCan(executor, room)
  }

  function takesAllItCan (executor: Executor | undefined, room: number): void {
    if (executor === undefined) return
    must(!executor.turn || !isTurnDue(), 'a worker with room takes the turn that is due')
    must(room <= 0 || freeCalls().every(({ asked }) => asked.rules.placement === 'spread' && !executor.spread), 'a worker with room takes the calls that are free')
  }

  /** A worker or the sweep came and found nothing to do. */
  function nothingDue (given: Command): void {
    const run = active === null ? null : entry(active)
    const over = run !== null && run.startedAt !== null && now >= run.startedAt + run.order.limits.run_timeout_ms
    must(given.type !== 'Lapse' || !over, 'the sweep ends a run whose time is up')
    must(run !== null || !line.some((id) => isDue(entry(id))), 'a run whose time has come becomes active')
    takesAllItCan(given.executor, given.executor?.calls ?? 0)
  }

  const freeCalls = () => batch?.calls.filter((call) => call.running && !claims.has(call.asked.call_id)) ?? []
  const isTurnDue = () => active !== null && batch === null && !claims.has('turn') && (turn === null || turn.readyAt <= now)

  /** The ledger as it would be sent must need no repair, and be accepted. */
  function sendable (messages: Message[]): void {
    const made = transcript(messages, null)
    must(made !== null, 'there is something to answer')
    same(made.repairs, [], 'repairs')
    same(checkPayload({ model: 'm', messages: made.messages }), [], 'faults of the payload')
  }

  // --- What must hold whenever nothing moves -----------------------------------------------------------------------------------------

  function agree (state: State): void {
    same(pictureOf(state), fold.picture(), 'the picture of the state and of the events')
    same(state.messages, shelf.messages.length, 'the number of messages')
    const names = [...shelf.docs.keys()].sort()
    same(names, [...texts].sort(), 'texts beside the row')
    const plain = (all: LiveClaim[]) => all.map(({ worker, fence: of, call_id: id, attempt }) => `${worker} ${of} ${id} ${attempt}`).sort()
    same(plain(claimsOf(state)), plain([...claims.values()]), 'claims')

    if (active !== null) {
      const run = entry(active)
      must(run.verdict === null, `${active} must have ended: ${JSON.stringify(run.verdict)}`)
      const idle = batch?.calls.filter((call) => call.settled === null && !call.running) ?? []
      must(idle.every(({ asked }) => asked.fault === null), 'calls that cannot run have failed')
      const atWork = batch?.calls.filter(({ running }) => running) ?? []
      const held = atWork.some(isSuspect) || (atWork.length > 0 && idle.every(isSuspect))
      must(idle.length === 0 || held || atWork.length === limitOf(run), 'calls that may run have started')
      if (batch !== null) must(openCalls().length > 0, 'a settled batch has closed')
    }
    must(active !== null || line.every((id) => !isDue(entry(id))), 'a run whose time has come is active when no other is')
    must(active !== null || waitingFor(null).every(({ dueAt: at }) => at !== null), 'messages of a run that is over are in the ledger')

    const jobs = wanted(state, now, TIMES.leaseMs)
    same(jobs.length, isTurnDue() ? 1 : Math.ceil(freeCalls().length / 8), 'wanted jobs')
    const due = dueAt(state, now, TIMES)
    const retryAt = turn !== null && !claims.has('turn') && turn.readyAt > now ? turn.readyAt : null
    must(active === null || claims.size > 0 || jobs.length > 0 || retryAt !== null, 'while a run is active somebody outside owes an answer')
    const later = active !== null || line.length > 0 || [...posted.values()].some(({ status }) => status === 'waiting')
    must((due !== null) === later, later ? 'somebody looks again as long as anything is open' : 'nobody looks at a conversation at rest')
    if (due === null) return
    must(retryAt === null || due <= retryAt, 'somebody looks when a retry is due')
    const run = active === null ? null : entry(active)
    if (run !== null && run.startedAt !== null) must(due <= run.startedAt + run.order.limits.run_timeout_ms, 'somebody looks when the run times out')
    if (command.type === 'Lapse') must(due > now, 'who has just looked does not have to look again at once')
  }

  function checkDocs (events: Event[]): void {
    const doc = (name: string) => JSON.parse(shelf.docs.get(name) ?? 'null') as Record<string, unknown>
    for (const event of events) {
      if (TERMINAL.has(event.type)) {
        const { status, output, usage, error, stop_reason, reason, last_seq, run_seq, ended_at } = doc(docNames.end(event.run_id as string))
        const found = [`run.${status}`, output, usage, error, stop_reason, reason ?? undefined, last_seq, run_seq, iso(ended_at as number)]
        const told = [event.type, event.output, event.usage, event.error, event.stop_reason, event.reason, event.seq, event.run_seq, event.time]
        same(found, told, 'how a run ended, beside the row')
      } else if (/^tool\.(completed|failed|cancelled)$/.test(event.type)) {
        const { status, turn: number, batch_id, run_id, duration_ms, attempt } = doc(docNames.done(event.call_id as string))
        same([`tool.${status}`, number, batch_id, run_id, duration_ms, attempt],
          [event.type, event.turn, event.batch_id, event.run_id, event.duration_ms, calls.get(event.call_id as string)?.attempt], 'how a call was settled, beside the row')
      }
    }
  }

  return {
    log,
    messages: shelf.messages,
    claims: () => [...claims.values()],
    openRuns: () => [...runs.values()].filter((run) => run.status !== 'ended').map((run) => run.order.run_id),
    waiting: () => [...posted.values()].filter((message) => message.status === 'waiting').map(({ id, run }) => ({ id, run })),
    openCalls: () => openCalls().map(({ asked }) => asked.call_id),
    argumentsOf: (callId) => calls.get(callId)?.asked.arguments ?? {},

    take (given, outcome, state) {
      now = given.at
      const expected = refusalOf(given)
      if (outcome.refusal !== null) {
        if (expected !== undefined) same(outcome.refusal, expected, 'refusal')
        else nothingDue(given)
        return
      }
      must(expected === undefined || expected === null, `this must be refused as ${expected}`)
      must(state !== null, 'a conversation stays')
      command = given
      aborts = []
      delivered = []
      answer = closing = rolledBack = activated = null
      const before = { turn: (turn as TurnEntry | null)?.number, batch: (batch as BatchEntry | null)?.id }
      const stops = given.type === 'PostMessage' && interrupts(given)
      const change = outcome.change
      const released = release()
      if (expected === undefined) must(change.events.length + change.messages.length + change.effects.length > 0 || released, 'what changes nothing is refused')
      if (given.type === 'CompleteCall' && given.outcome.status === 'completed') finals.set(given.call_id, given.outcome.output)
      record(given)
      exists = true
      for (const event of JSON.parse(JSON.stringify(change.events)) as Event[]) hear(event)
      cutIfInterrupted()
      activate()
      if (stops) must((turn as TurnEntry | null)?.number !== before.turn || before.turn === undefined, 'an interrupt ends the turn')
      if (stops) must((batch as BatchEntry | null)?.id !== before.batch || before.batch === undefined, 'an interrupt ends the batch')
      const added = shelf.store(change)
      read(added, change.rewind)
      const starts = change.events.find((event) => event.type === 'turn.started')
      if (starts !== undefined) same(starts.message_count, shelf.messages.length, 'message_count')
      same(change.created, given.type === 'StartRun' ? [given.run_id] : [], 'runs that came into being')
      if (isTurnDue()) sendable(shelf.messages)
      perform(change.effects, given.executor)
      if (change.messages.length > 0) sendable([...shelf.messages, { id: 'probe', role: 'user', content: 'and?', turn: null, run_id: null, created_at: iso(now) }])
      checkDocs(log.slice(log.length - change.events.length))
      agree(state)
    }
  }
}
