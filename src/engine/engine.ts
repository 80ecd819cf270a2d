import type { Command, Executor, ModelCall } from '../core/command.js'
import type { Effect } from '../core/draft.js'
import { CALLS_PER_JOB, dueAt, isOverdue, wanted } from '../core/schedule.js'
import { claimsOf, type ActiveRun, type BatchPhase, type CallState, type Claim } from '../core/state.js'
import type { Limiter } from '../store/limiter.js'
import type { Feed, Presence, Row, Store, WorkerNote } from '../store/store.js'
import { readArguments } from './arguments.js'
import { performCall, takePlace } from './call.js'
import type { Event } from '../core/event.js'
import { abortNote, createExecute, UnavailableError, type Executed, type Performer } from './execute.js'
import { createLedgerCache } from './ledger.js'
import type { Model } from './model/model.js'
import { forModel } from './tools/output.js'
import { patientReads } from './patience.js'
import type { Clock, Hints, Ids, Leases, Log, Settings } from './ports.js'
import { createSpecs } from './run-spec.js'
import type { Tools } from './tools/tool.js'
import { performTurn } from './turn.js'

export interface EngineDeps {
  store: Store
  feed: Feed
  presence: Presence
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
  observe?: (events: Event[]) => void
}

export interface Engine extends Executed {
  /** Takes the part of a worker: shows life signs, takes notes, and from now on work. May be tried again when it rejects. */
  start: () => Promise<void>
  /** Performs what is due for a conversation. Resolves when this worker has nothing more to do for it, at once when nothing was due. */
  advance: (conversation: string) => Promise<void>
  /** Looks at every conversation whose due time has passed. Returns how many there were. */
  sweep: () => Promise<number>
  /** Takes no more work, lets what runs finish for up to `graceMs`, then hands the rest over. */
  stop: (graceMs: number) => Promise<void>
  /** What runs here now. */
  load: () => { turns: number, calls: number }
}

/** A result that was paid for is worth waiting for the store. Milliseconds. */
const PATIENT_MS = 24 * 3_600_000

/** Milliseconds that handing over what could not be finished may take, when the store does not answer. */
const HAND_OVER_MS = 2000

/** A claim being worked on. It stays known until its result is stored; `over` once it takes up no room any more. */
interface Work {
  abort: AbortController
  over: boolean
  /** It is left to finish also when it is given up. */
  uncancellable?: true
}

/** What this worker does for one conversation. */
interface Desk {
  /** By fence: one that has lost its right may still be ending while the next one waits for the lease. */
  turns: Map<number, Work>
  calls: Map<string, Work>
  /** Arguments of the calls of the batch this worker opened, so that they need not be read back; not of those that refer to others. */
  arguments: Map<string, Record<string, unknown>>
  tasks: Set<Promise<void>>
}

/** Whether a call is run with just what the model wrote: without references to fill in, and nobody may edit it. */
const isComplete = ({ references, rules }: ModelCall): boolean => references.length === 0 && rules.approval === undefined

/** The worker: performs turns and calls it has claimed, one step each, and takes over from those that are gone. */
export function createEngine (deps: EngineDeps): Engine {
  const { store, feed, presence, hints, tools, clock, log, settings } = deps
  const desks = new Map<string, Desk>()
  const reads = patientReads(store, clock, log)
  const ledger = createLedgerCache(reads, clock)
  const spec = createSpecs(reads, tools, clock)
  const running = { turns: 0, calls: 0 }
  let open = false
  /** When the sign of life was last shown. */
  let beaten = clock.now()
  const timers = new Set<() => void>()
  /** Commits under way that may claim work. */
  const arriving = new Set<Promise<unknown>>()
  let unlisten = () => { /* not listening yet */ }

  const performer: Performer = {
    room (conversation, claim, taken): Omit<Executor, 'worker'> {
      if (!open) return { turn: false, calls: 0, spread: false }
      const spread = claim !== 'local'
      const here = [...desks.get(conversation)?.calls.values() ?? []].filter((work) => !work.over).length
      return {
        // A worker that is full goes on with another conversation's turn first: the queue is first come, first served (N4).
        turn: claim === 'spread' || running.turns < settings.turns,
        calls: Math.min(spread ? CALLS_PER_JOB : settings.localCalls - here - taken, settings.calls - running.calls - taken),
        spread
      }
    },
    perform (conversation, row, effect) {
      // Of commands that were stored together one may have undone what another one claimed: what stands in the row is performed.
      const claims = claimsOf(row.state)
      switch (effect.type) {
        case 'call_model':
          if (claims.some((claim) => claim.fence === effect.fence)) startTurn(conversation, row, effect)
          return
        case 'run_calls':
        case 'take_places': {
          const calls = effect.calls.filter(({ call_id: id, attempt }) => claims.some((claim) => claim.call_id === id && claim.attempt === attempt))
          if (calls.length > 0) startCalls(conversation, row, calls, effect.type === 'take_places')
          return
        }
        case 'abort': take(abortNote(conversation, effect))
      }
    }
  }
  const executed = createExecute(deps, performer)
  const { execute } = executed

  function deskOf (conversation: string): Desk {
    let desk = desks.get(conversation)
    if (desk === undefined) {
      desk = { turns: new Map(), calls: new Map(), arguments: new Map(), tasks: new Set() }
      desks.set(conversation, desk)
    }
    return desk
  }

  /** Keeps track of a piece of work until it is over. Work must not throw; if it does, that is a fault of ours, and logged. */
  function track (conversation: string, work: () => Promise<void>): void {
    const desk = deskOf(conversation)
    const task = work().catch((error: Error) => {
      // A store that is away is no error of ours.
      log[error instanceof UnavailableError ? 'warn' : 'error']({ conversation_id: conversation, err: error }, 'work for a conversation failed; the sweep will look at it')
    }).finally(() => {
      desk.tasks.delete(task)
      if (desk.tasks.size === 0) desks.delete(conversation)
    })
    desk.tasks.add(task)
  }

  /** Comes for work: whatever this claims is not known here before it is stored, and a worker that stops waits for that. */
  async function come (conversation: string, at: number, claim: 'spread' | 'sweep') {
    const coming = execute(conversation, { type: 'Advance', at }, { claim })
    arriving.add(coming)
    try {
      return await coming
    } finally {
      arriving.delete(coming)
    }
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
      if (!work.over) running[kind]--
      work.over = true
    }
    track(conversation, async () => {
      try {
        await perform(finished)
      } finally {
        finished()
        forget()
      }
    })
  }

  function startTurn (conversation: string, row: Row, { turn, attempt, fence }: Extract<Effect, { type: 'call_model' }>): void {
    const desk = deskOf(conversation)
    const work: Work = { abort: new AbortController(), over: false }
    // Whoever holds an older fence here works for nothing, and keeps the lease from this one: the note that says so may come late.
    for (const older of desk.turns.values()) older.abort.abort(new Error('superseded'))
    desk.turns.set(fence, work)
    begin(conversation, 'turns', work, async (finished) => {
      const task = { conversation, row, turn, attempt, fence, signal: work.abort.signal }
      const { command, release } = await performTurn({ ...deps, ledger, spec }, task, async (report) => {
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

  /** Goes on with a put-back turn when its time has come, without waiting for a sweep. */
  function wakeAfter (conversation: string, ms: number): void {
    const cancel = clock.after(ms, () => {
      timers.delete(cancel)
      track(conversation, async () => {
        const at = clock.now()
        const { effects, row } = await execute(conversation, { type: 'Advance', at }, { claim: 'spread', patienceMs: PATIENT_MS })
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

  /** Runs calls that were claimed. `limited`: they have not been started yet, and are once their rate limit allows it. */
  function startCalls (conversation: string, row: Row, calls: { call_id: string, attempt: number }[], limited: boolean): void {
    const desk = deskOf(conversation)
    const run = row.state.run as ActiveRun
    const phase = run.phase as BatchPhase
    const known = desk.arguments
    const missing = calls.filter((call) => !known.has(call.call_id)).map((call) => call.call_id)
    const reading = missing.length === 0 ? Promise.resolve(known) : readArguments(reads, conversation, missing)
    for (const { call_id, attempt: claimed } of calls) {
      const state = phase.calls.find((call) => call.id === call_id) as CallState
      const work: Work = { abort: new AbortController(), over: false, ...(state.rules.uncancellable && { uncancellable: true }) }
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
          if (ms > 0 || started?.status !== 'running') return
          cause = started.cause
        }
        const attempt = limited ? claimed + 1 : claimed
        const orphan = (output: unknown, timedOut: boolean) => {
          const { text, truncated } = forModel(output, run.limits.max_result_chars)
          return say(conversation, {
            type: 'KeepOrphan', at: clock.now(), run_id: run.id, turn: phase.turn, call_id, name: state.name, attempt, known: timedOut ? 'timeout' : null,
            cause, fence: row.state.fence, output, text, truncated
          })
        }
        const command = await performCall(deps, {
          conversation, run_id: run.id, turn: phase.turn, call_id, attempt,
          tool, arguments: given,
          changed: !known.has(call_id), timeout_ms: state.rules.timeout_ms, max_chars: run.limits.max_result_chars, signal: work.abort.signal
        }, {
          progress: (data) => {
            execute(conversation, { type: 'ProgressCall', at: clock.now(), call_id, attempt, data }).catch(() => { /* progress is news, not truth */ })
          },
          late: (output, timedOut) => { track(conversation, async () => { await orphan(output, timedOut) }) }
        })
        finished()
        if (command === null) return
        const heard = await say(conversation, command)
        if (heard === null && command.outcome.status === 'completed') await orphan(command.outcome.output, false)
        if (state.rules.retry !== undefined) wakeForRetry(conversation, call_id)
      }, () => { if (desk.calls.get(call_id) === work) desk.calls.delete(call_id) })
    }
  }

  /** A note from another process, or from ourselves. */
  function take (note: WorkerNote): void {
    if (note.type === 'missed') return void recheck()
    const { conversation } = note
    if (note.type === 'check') {
      // Between two commits, what is claimed for us and what is known here agree. If they do not, a claim's start was lost, or Redis has lost its end:
      // then the row kept here is of a time that never was.
      executed.forget(conversation)
      executed.between(conversation, (row) => {
        const lost = row === null ? [] : claimsOf(row.state).filter((claim) => claim.worker === settings.worker && !isKnown(conversation, claim))
        if (lost.length === 0) return
        track(conversation, () => lapse(conversation, lost).catch((error: Error) => {
          log.warn({ conversation_id: conversation, err: error.message }, 'could not give up a claim that was never begun; the sweep will')
        }))
      })
      return
    }
    const desk = desks.get(conversation)
    if (note.fence !== null) desk?.turns.get(note.fence)?.abort.abort(new Error(note.reason))
    for (const id of note.call_ids) desk?.calls.get(id)?.abort.abort(new Error(note.reason))
    // Whoever asked for a stop may wait for it.
    const announce = () => { feed.announce(conversation, settings.worker).catch(() => { /* nobody may be waiting */ }) }
    void Promise.all(desk?.tasks ?? []).then(announce)
  }

  function isKnown (conversation: string, claim: Claim): boolean {
    const desk = desks.get(conversation)
    return claim.call_id === null ? desk?.turns.has(claim.fence as number) === true : desk?.calls.has(claim.call_id) === true
  }

  /**
   * Ends work whose claim is gone: whoever was stopped or cut off for a while has not heard that it was given up. What is claimed here stands in the row
   * before the work begins, so a row that is read later decides.
   */
  async function recheck (): Promise<void> {
    await Promise.all([...desks].map(async ([conversation, desk]) => {
      const [turns, calls] = [[...desk.turns], [...desk.calls]]
      const row = await store.load(conversation).catch(() => undefined)
      if (row === undefined) return
      const claims = row === null ? [] : claimsOf(row.state).filter((claim) => claim.worker === settings.worker)
      const gone = new Error('the claim is gone')
      for (const [fence, work] of turns) if (!claims.some((claim) => claim.fence === fence)) work.abort.abort(gone)
      for (const [id, work] of calls) if (!claims.some((claim) => claim.call_id === id) && work.uncancellable !== true) work.abort.abort(gone)
    }))
  }

  /** Gives up claims whose worker is gone, and lets time do what it has to do. */
  async function lapse (conversation: string, lost: Claim[]): Promise<void> {
    const calls = lost.filter((claim) => claim.call_id !== null) as (Claim & { call_id: string })[]
    const args = calls.length === 0 ? null : await readArguments(store, conversation, calls.map((claim) => claim.call_id))
    await execute(conversation, {
      type: 'Lapse',
      at: clock.now(),
      fence: lost.find((claim) => claim.fence !== null)?.fence ?? null,
      calls: calls.map(({ call_id, attempt }) => ({ call_id, attempt, arguments: args?.get(call_id) ?? {} }))
    })
  }

  const isOpenForWork = () => open && (running.turns < settings.turns || running.calls < settings.calls)

  async function lookAt (conversation: string): Promise<void> {
    const before = await store.load(conversation)
    if (before === null) return
    const claims = claimsOf(before.state)
    const workers = [...new Set(claims.map((claim) => claim.worker))]
    const left = new Map((await presence.left(workers)).map((ms, i) => [workers[i] as string, ms]))
    await lapse(conversation, claims.filter((claim) => left.get(claim.worker) === 0))
    const found = await store.load(conversation)
    const now = clock.now()
    // A job that nobody has taken for so long may be lost, or nobody can take jobs: then nothing must depend on it.
    const taken = found !== null && isOverdue(found.state, now, settings.leaseMs) && isOpenForWork()
      ? (await come(conversation, now, 'sweep')).row
      : null
    const row = taken ?? found
    const due = row === null ? null : dueAt(row.state, now, settings)
    if (row === null || due === null) return
    await hints.add(conversation, wanted(row.state, now, settings.leaseMs))
    const alive = new Set(claimsOf(row.state).map((claim) => claim.worker))
    // A claim is looked at again when its worker's sign, as it stands now, will have run out.
    const signs = [...alive].flatMap((worker) => left.get(worker) ?? [])
    await store.postpone(conversation, row, signs.length > 0 ? Math.min(due, now + Math.min(...signs) + 1) : due)
    for (const worker of alive) await feed.tell(worker, { type: 'check', conversation })
  }

  async function beat (): Promise<void> {
    const since = beaten
    await presence.beat(settings.worker, settings.leaseMs)
    beaten = clock.now()
    // The sign had lapsed, and our claims with it: others may have them by now.
    if (beaten - since >= settings.leaseMs) await recheck()
  }

  return {
    ...executed,

    async start () {
      await beat()
      unlisten = await feed.listen(settings.worker, take)
      open = true
      const renew = () => {
        timers.delete(next)
        next = clock.after(settings.leaseMs / 3, renew)
        timers.add(next)
        beat().catch(() => { /* tried again soon; if the sign lapses, so do our claims */ })
      }
      let next = clock.after(settings.leaseMs / 3, renew)
      timers.add(next)
    },

    async advance (conversation) {
      const at = clock.now()
      const { effects, row } = await come(conversation, at, 'spread')
      // A job that did nothing must not outlive this: its id is asked for again when there is something to do.
      if (effects.length === 0) {
        const phase = row?.state.run?.phase
        const early = phase?.type === 'turn' && phase.worker === null ? phase.ready_at - at : 0
        // The clock of whoever made the turn due may be a little ahead of ours.
        if (early > 0 && early <= settings.sweepMs) wakeAfter(conversation, early)
        return
      }
      for (let desk = desks.get(conversation); desk !== undefined && desk.tasks.size > 0; desk = desks.get(conversation)) {
        await Promise.all(desk.tasks)
      }
    },

    async sweep () {
      const now = clock.now()
      const due = await store.takeDue(now, now + settings.leaseMs, 256)
      await Promise.all(due.map((conversation) => lookAt(conversation).catch((error: Error) => {
        log.warn({ conversation_id: conversation, err: error.message }, 'could not look at a due conversation; it stays due')
      })))
      return due.length
    },

    async stop (graceMs) {
      open = false
      let timer: () => void = () => { /* not set yet */ }
      const grace = new Promise<void>((resolve) => { timer = clock.after(graceMs, resolve) })
      const idle = async () => {
        while (desks.size > 0 || arriving.size > 0) await Promise.allSettled([...arriving, ...[...desks.values()].flatMap((desk) => [...desk.tasks])])
      }
      await Promise.race([idle(), grace])
      timer()
      const cut = [...desks]
      for (const [, desk] of cut) for (const work of [...desk.turns.values(), ...desk.calls.values()]) work.abort.abort(new Error('the worker stops'))
      const handOver = Promise.all(cut.map(async ([conversation]) => {
        const row = await store.load(conversation).catch(() => null)
        const ours = row === null ? [] : claimsOf(row.state).filter((claim) => claim.worker === settings.worker)
        if (ours.length > 0) await lapse(conversation, ours).catch(() => { /* the sweep of another worker does it */ })
      }))
      await Promise.race([handOver, new Promise<void>((resolve) => { timer = clock.after(HAND_OVER_MS, resolve) })])
      timer()
      for (const cancel of timers) cancel()
      unlisten()
      await presence.leave(settings.worker).catch(() => { /* it lapses */ })
    },

    load: () => ({ ...running })
  }
}
