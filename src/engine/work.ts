import type { Command, ModelCall } from '../core/command.js'
import { docNames, type Effect } from '../core/draft.js'
import { lateBecause, type Settled } from '../core/orphans.js'
import { wanted } from '../core/schedule.js'
import { claimsOf, type ActiveRun, type BatchPhase, type CallState, type Claim } from '../core/state.js'
import type { Feed, Limiter, Reads, Row, Store } from '../store/store.js'
import { readArguments } from './arguments.js'
import { performCall } from './call.js'
import { UnavailableError, type Executed } from './execute.js'
import { createLedgerCache } from './ledger.js'
import type { Model } from './model/model.js'
import { patiently, patientReads } from './patience.js'
import { takePlace } from './place.js'
import type { Clock, Hints, Ids, Leases, Log, Settings } from './ports.js'
import { paceProgress } from './progress.js'
import { createSpecs } from './run-spec.js'
import { forModel } from './tools/output.js'
import type { Tools } from './tools/tool.js'
import { performTurn } from './turn.js'

export interface WorkDeps {
  store: Store
  /** What claimed work reads, however large it is. */
  reads: Reads
  feed: Feed
  leases: Leases
  limiter: Limiter
  hints: Hints
  model: Model
  tools: Tools
  clock: Clock
  ids: Ids
  log: Log
  settings: Settings
  random: () => number
  /**
   * Resolves once this worker's sign of life stands for certain, at once unless the process was stopped or cut off for very long. Where it had to be shown
   * again, `recheck` has begun.
   */
  signStands: (signal: AbortSignal) => Promise<void>
  /** Some work takes up no room here any more. */
  ended: () => void
}

/** The turns and calls this worker has claimed: performs them, one step each, and commits what comes of them. */
export interface ClaimedWork {
  /** What runs here now. */
  running: { turns: number, calls: number }
  /** Calls of a conversation that run here. */
  callsOf: (conversation: string) => number
  /** `claimedAt`: not later than the claim was stored, by this process' clock. */
  startTurn: (conversation: string, row: Row, turn: Extract<Effect, { type: 'call_model' }>, claimedAt: number) => void
  /** `limited`: they have not been started yet, and are once their rate limit allows it. */
  startCalls: (conversation: string, row: Row, calls: { call_id: string, attempt: number }[], claimedAt: number, limited: boolean) => void
  /** Goes on with what was put back when its time has come, without waiting for a sweep. */
  wakeAfter: (conversation: string, ms: number) => void
  /** Keeps track of another piece of work until it is over. Work must not throw; if it does, that is logged. */
  track: (conversation: string, work: () => Promise<void>) => Promise<void>
  /** Whether a claim is worked on here. */
  isKnown: (conversation: string, claim: Claim) => boolean
  /** Stops a turn, or calls; null and none: nothing. */
  abort: (conversation: string, fence: number | null, callIds: string[], reason: string) => void
  /** As `settled`, for one run: its turn and calls. */
  settledRun: (conversation: string, runId: string) => Promise<void>
  /**
   * Begins to end work whose claim is gone: whoever was stopped or cut off for a while has not heard that it was given up. What is claimed here stands in the
   * row before the work begins, so a row that is read later decides.
   */
  recheck: () => void
  /** The conversations that have work here. */
  conversations: () => string[]
  /** Resolves when nothing that a conversation has here is left, be it begun meanwhile. */
  settled: (conversation: string) => Promise<void>
  /** Stops all turns and calls there are. */
  abortAll: (reason: string) => void
  /** Wakes up for nothing more. */
  close: () => void
}

/** A result that was paid for is worth waiting for the store. Milliseconds. */
const PATIENT_MS = 24 * 3_600_000

/** A claim being worked on. It stays known until its result is stored, and `done` resolves; `over` once it takes up no room any more. */
interface Work {
  run_id: string
  claimed_at: number
  abort: AbortController
  over: boolean
  done: Promise<void>
  /** It has begun, and is left to finish also when it is given up. */
  uncancellable?: true
}

function newWork (runId: string, claimedAt: number): Work {
  return { run_id: runId, claimed_at: claimedAt, abort: new AbortController(), over: false, done: Promise.resolve() }
}

/** What this worker does for one conversation. */
interface Desk {
  /** By fence: one that has lost its right may still be ending while the next one waits for the lease. */
  turns: Map<number, Work>
  calls: Map<string, Work>
  /** Arguments of the calls of the batch this worker opened, so that they need not be read back; not of those that refer to others. */
  arguments: Map<string, Record<string, unknown>>
  tasks: Set<Promise<void>>
  /** The looks at whether its claims stand, and when the row was read that the last of them saw: not later than that. */
  looks: Promise<void>
  looked_at: number
}

/** Whether a call is run with just what the model wrote: without references to fill in, and nobody may edit it. */
const isComplete = ({ references, rules }: ModelCall): boolean => references.length === 0 && rules.approval === undefined

/** Performs what this worker has claimed. What it learns of a claim that is gone stops the work. */
export function createClaimedWork (deps: WorkDeps, executed: Executed): ClaimedWork {
  const { store, hints, tools, clock, log, settings } = deps
  const { execute } = executed
  const desks = new Map<string, Desk>()
  const reads = patientReads(deps.reads, clock, log)
  const ledger = createLedgerCache(reads, clock)
  const spec = createSpecs(reads, tools, clock)
  const running = { turns: 0, calls: 0 }
  const timers = new Set<() => void>()

  function deskOf (conversation: string): Desk {
    let desk = desks.get(conversation)
    if (desk === undefined) {
      desk = { turns: new Map(), calls: new Map(), arguments: new Map(), tasks: new Set(), looks: Promise.resolve(), looked_at: -Infinity }
      desks.set(conversation, desk)
    }
    return desk
  }

  function track (conversation: string, work: () => Promise<void>): Promise<void> {
    const desk = deskOf(conversation)
    const task = work().catch((error: Error) => {
      // A store that is away is no error of ours.
      log[error instanceof UnavailableError ? 'warn' : 'error']({ conversation_id: conversation, err: error }, 'work for a conversation failed; the sweep will look at it')
    }).finally(() => {
      desk.tasks.delete(task)
      if (desk.tasks.size === 0) desks.delete(conversation)
    })
    desk.tasks.add(task)
    return task
  }

  /** Commits what a worker has to say, however long the store is away. Null: it was refused; otherwise the row as it is then. */
  async function say (conversation: string, command: Command): Promise<Row | null> {
    const { refusal, row } = await execute(conversation, command, { claim: 'local', patienceMs: PATIENT_MS })
    if (refusal !== null) log.info({ conversation_id: conversation, command: command.type, refusal }, 'a worker\'s word was refused')
    return refusal === null ? row : null
  }

  /** Runs one claimed piece of work: what it has to say is committed, and only then is the claim forgotten here. */
  function begin (conversation: string, kind: 'turns' | 'calls', work: Work, perform: (finished: () => void) => Promise<void>, forget: () => void): void {
    running[kind]++
    const finished = () => {
      if (work.over) return
      work.over = true
      running[kind]--
      deps.ended()
    }
    work.done = track(conversation, async () => {
      try {
        await perform(finished)
      } finally {
        finished()
        forget()
      }
    })
  }

  /**
   * Before anything is begun that cannot be taken back: resolves once the claim was seen to stand less than a third of a lease ago, or its work has been
   * stopped. Notes may be late or lost: when the answer to the commit, the lock or an argument took long to come, others may have ended the claim, and
   * its worker has not heard.
   */
  async function claimStands (conversation: string, desk: Desk, work: Work, signal: AbortSignal): Promise<void> {
    const isOld = () => clock.now() - Math.max(work.claimed_at, desk.looked_at) >= settings.leaseMs / 3
    let looks: Promise<void>
    // A store that takes so long for each answer is slow: what it says is as new as it gets.
    let slow = 0
    do {
      if (isOld() && !signal.aborted) look(conversation, desk)
      await (looks = desk.looks)
      await deps.signStands(signal)
    } while (!signal.aborted && (looks !== desk.looks || (isOld() && ++slow < 3)))
  }

  function startTurn (conversation: string, row: Row, effect: Extract<Effect, { type: 'call_model' }>, claimedAt: number): void {
    const { turn, attempt, fence } = effect
    const desk = deskOf(conversation)
    const work = newWork((row.state.run as ActiveRun).id, claimedAt)
    // Whoever holds an older fence here works for nothing, and keeps the lease from this one: the note that says so may come late.
    for (const older of desk.turns.values()) older.abort.abort(new Error('superseded'))
    desk.turns.set(fence, work)
    begin(conversation, 'turns', work, async (finished) => {
      const task = { conversation, row, turn, attempt, fence, signal: work.abort.signal }
      const stands = (signal: AbortSignal) => claimStands(conversation, desk, work, signal)
      const { command, release } = await performTurn({ ...deps, ledger, spec, claimStands: stands }, task, async (report) => {
        return (await execute(conversation, report, { patienceMs: PATIENT_MS })).refusal === null
      })
      finished()
      try {
        if (command === null) return
        if (command.type === 'CompleteTurn') desk.arguments = new Map(command.calls.filter(isComplete).map((call) => [call.call_id, call.arguments]))
        await say(conversation, command)
        if (command.type === 'RetryTurn') wakeAfter(conversation, command.delay_ms)
      } finally {
        release()
      }
    }, () => { desk.turns.delete(fence) })
  }

  function wakeAfter (conversation: string, ms: number): void {
    const cancel = clock.after(ms, () => {
      timers.delete(cancel)
      track(conversation, async () => {
        const at = clock.now()
        const { effects, row } = await execute(conversation, { type: 'Advance', at }, { claim: 'sweep', patienceMs: PATIENT_MS })
        // Without room here it is for another worker.
        const jobs = effects.length > 0 || row === null ? [] : wanted(row.state, at, settings.leaseMs)
        if (jobs.length > 0) await hints.add(conversation, jobs).catch(() => { /* the sweep finds it */ })
      })
    })
    timers.add(cancel)
  }

  const callIn = (row: Row | null, callId: string): CallState | undefined => {
    const phase = row?.state.run?.phase
    return phase?.type === 'batch' ? phase.calls.find((one) => one.id === callId) : undefined
  }

  /** Tries a call again when its time has come. */
  function wakeForRetry (conversation: string, callId: string): void {
    executed.between(conversation, (row) => {
      const call = callIn(row, callId)
      if (call?.status === 'pending') wakeAfter(conversation, Math.max(0, call.ready_at - clock.now()))
    })
  }

  function startCalls (conversation: string, row: Row, calls: { call_id: string, attempt: number }[], claimedAt: number, limited: boolean): void {
    const desk = deskOf(conversation)
    const run = row.state.run as ActiveRun
    const phase = run.phase as BatchPhase
    const known = desk.arguments
    const missing = calls.filter((call) => !known.has(call.call_id)).map((call) => call.call_id)
    const reading = missing.length === 0 ? Promise.resolve(known) : readArguments(reads, conversation, missing)
    for (const { call_id, attempt: claimed } of calls) {
      const state = phase.calls.find((call) => call.id === call_id) as CallState
      const work = newWork(run.id, claimedAt)
      // One that was given up and has not heard of it yet.
      const former = desk.calls.get(call_id)
      if (former?.over === false && former.uncancellable !== true) former.abort.abort(new Error('superseded'))
      desk.calls.set(call_id, work)
      begin(conversation, 'calls', work, async (finished) => {
        const [args, prepared] = await Promise.all([reading, spec(conversation, run.id)])
        if (prepared === null) return
        // They are gone with their conversation: whoever deleted it does not want this run, least of all without arguments.
        const given = known.get(call_id) ?? args.get(call_id)
        if (given === undefined) return
        const tool = prepared.tools.get(state.name)
        if (tool === undefined) throw new Error(`call ${call_id} names an unknown tool`)
        let { cause } = state
        if (limited) {
          const ms = await takePlace(deps, { tenant: row.state.tenant, tool, placed: state.placed, signal: work.abort.signal })
          if (ms === null) return
          // Its room is another call's while it waits.
          if (ms > 0) finished()
          const placed = await say(conversation, { type: 'PlaceCall', at: clock.now(), call_id, attempt: claimed, worker: settings.worker, wait_ms: ms })
          // A timer may fire a little early; longer waits than a day are the sweep's.
          if (placed !== null && ms > 0 && ms <= 86_400_000) wakeAfter(conversation, ms + 1)
          const started = callIn(placed, call_id)
          if (ms > 0 || started?.status !== 'running' || started.worker !== settings.worker || started.attempt !== claimed + 1) return
          cause = started.cause
        }
        const attempt = limited ? claimed + 1 : claimed
        const orphan = async (output: unknown, timedOut: boolean) => {
          const { text, truncated } = forModel(output, run.limits.max_result_chars)
          const [done] = timedOut ? [] : await reads.docs(conversation, [docNames.done(call_id)])
          const known = timedOut ? 'timeout' : lateBecause(done == null ? null : JSON.parse(done) as Settled, attempt)
          return await say(conversation, {
            type: 'KeepOrphan', at: clock.now(), run_id: run.id, turn: phase.turn, batch_id: phase.id, call_id, name: state.name, attempt,
            known, cause, fence: row.state.fence, output, text, truncated
          })
        }
        const progress = paceProgress(clock, (data) => {
          execute(conversation, { type: 'ProgressCall', at: clock.now(), call_id, attempt, data }).catch(() => { /* progress is news, not truth */ })
        })
        await claimStands(conversation, desk, work, work.abort.signal)
        if (state.rules.uncancellable) work.uncancellable = true
        const command = await performCall(deps, {
          conversation, run_id: run.id, turn: phase.turn, call_id, attempt,
          tool, arguments: given,
          changed: !known.has(call_id), timeout_ms: state.rules.timeout_ms, max_chars: run.limits.max_result_chars, signal: work.abort.signal
        }, {
          progress: progress.tell,
          late: (output, timedOut) => { track(conversation, async () => { await orphan(output, timedOut) }) }
        })
        progress.end(command !== null)
        finished()
        if (command === null) return
        const heard = await say(conversation, command)
        if (heard === null) {
          const { outcome } = command
          if (outcome.status === 'completed') await orphan(outcome.output, false)
          // What the tool itself has answered; what was wrong before it was asked says nothing.
          else if (outcome.error.code === 'tool_error' || outcome.error.code === 'http_error') await orphan({ error: outcome.error }, false)
        }
        if (state.rules.retry !== undefined) wakeForRetry(conversation, call_id)
      }, () => { if (desk.calls.get(call_id) === work) desk.calls.delete(call_id) })
    }
  }

  function isKnown (conversation: string, claim: Claim): boolean {
    const desk = desks.get(conversation)
    return claim.call_id === null ? desk?.turns.has(claim.fence as number) === true : desk?.calls.has(claim.call_id) === true
  }

  function look (conversation: string, desk: Desk): void {
    const before = desk.looks
    desk.looks = lookAt(conversation, desk).then(() => before)
  }

  async function lookAt (conversation: string, desk: Desk): Promise<void> {
    const { turns, calls, sent, row } = await patiently({ clock, log }, async () => {
      // What has come since the last try stands in the row by now, or has ended.
      return { turns: [...desk.turns], calls: [...desk.calls], sent: clock.now(), row: await store.load(conversation) }
    })
    desk.looked_at = sent
    const claims = row === null ? [] : claimsOf(row.state).filter((claim) => claim.worker === settings.worker)
    const gone = new Error('the claim is gone')
    for (const [fence, work] of turns) if (!claims.some((claim) => claim.fence === fence)) work.abort.abort(gone)
    for (const [id, work] of calls) if (!claims.some((claim) => claim.call_id === id) && work.uncancellable !== true) work.abort.abort(gone)
  }

  return {
    running,
    callsOf: (conversation) => [...desks.get(conversation)?.calls.values() ?? []].filter((work) => !work.over).length,
    startTurn,
    startCalls,
    wakeAfter,
    track,
    isKnown,
    abort (conversation, fence, callIds, reason) {
      const desk = desks.get(conversation)
      if (fence !== null) desk?.turns.get(fence)?.abort.abort(new Error(reason))
      for (const id of callIds) desk?.calls.get(id)?.abort.abort(new Error(reason))
    },
    async settledRun (conversation, runId) {
      for (;;) {
        const desk = desks.get(conversation)
        const left = [...desk?.turns.values() ?? [], ...desk?.calls.values() ?? []].filter((work) => work.run_id === runId)
        if (left.length === 0) return
        await Promise.all(left.map((work) => work.done))
      }
    },
    recheck () {
      for (const [conversation, desk] of desks) look(conversation, desk)
    },
    conversations: () => [...desks.keys()],
    async settled (conversation) {
      for (let desk = desks.get(conversation); desk !== undefined && desk.tasks.size > 0; desk = desks.get(conversation)) {
        await Promise.all(desk.tasks)
      }
    },
    abortAll (reason) {
      for (const desk of desks.values()) for (const work of [...desk.turns.values(), ...desk.calls.values()]) work.abort.abort(new Error(reason))
    },
    close () {
      for (const cancel of timers) cancel()
    }
  }
}
