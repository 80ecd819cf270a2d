import type { Command, Executor } from '../core/command.js'
import type { Effect } from '../core/draft.js'
import { dueAt, wanted } from '../core/schedule.js'
import type { Event } from '../core/event.js'
import type { State } from '../core/state.js'
import { transition, type Change, type Outcome, type Refusal } from '../core/transition.js'
import type { Commit, Feed, Row, Store, WorkerNote } from '../store/store.js'
import { patiently, pause } from './patience.js'
import type { Clock, Hints, Ids, Log, Settings } from './ports.js'
import { createRecent } from './recent.js'

/** The store could not be reached in the time the caller had. What was asked may or may not have happened. */
export class UnavailableError extends Error {
  override name = 'UnavailableError'
}

/** Others changed the conversation again and again while this was being decided (M3). Nothing was changed. */
export class ConflictError extends Error {
  override name = 'ConflictError'
}

/** What came of a command. */
export interface Result {
  /** Null: done. Otherwise nothing was changed, and why. */
  refusal: Refusal | null
  /** The row as it stands after the command; null: there is no such conversation. */
  row: Row | null
  /** What the command itself made happen: stored, and in the log. */
  events: Event[]
  effects: Effect[]
}

/**
 * What becomes due may be claimed for this worker. `local`: as it comes by; `spread`: a place is kept for its turn, and it takes also what is to be spread;
 * `sweep`: as `spread`, without a place, so only as far as it has room.
 */
export type Claiming = 'local' | 'spread' | 'sweep'

export interface ExecuteOptions {
  claim?: Claiming
  /** How long to go on trying while the store is away. Default: `IMPATIENT_MS`. */
  patienceMs?: number
}

/** What several changes together do to a ledger of a given length. */
function ledgerOf (length: number, changes: Change[]): Pick<Commit, 'messages' | 'rewind'> {
  let messages: Commit['messages'] = []
  let rewind: number | null = null
  for (const change of changes) {
    if (change.rewind !== null) {
      const kept: number = (rewind ?? length) + messages.length
      const gone = kept - change.rewind
      if (gone > messages.length) rewind = change.rewind
      messages = messages.slice(0, Math.max(0, messages.length - gone))
    }
    messages = [...messages, ...change.messages]
  }
  return { messages, rewind }
}

function creates (command: Command): boolean {
  return command.type === 'CreateConversation' || (command.type === 'StartRun' && command.new_conversation)
}

/** Tells a worker to stop what it works on for nothing. */
function abortNote (conversation: string, { fence, call_ids, reason }: Extract<Effect, { type: 'abort' }>): WorkerNote {
  return { type: 'abort', conversation, fence, call_ids, reason }
}

/** A request must have its 503 within a second. */
export const IMPATIENT_MS = 900

/** What a worker still has room for, and what to do with what was claimed. A process without one claims nothing. */
export interface Performer {
  /** `taken`: calls that commands of the same commit have claimed already. Every job may claim its own share (`CALLS_PER_JOB`). */
  room: (conversation: string, claim: Claiming, taken: number) => Omit<Executor, 'worker'>
  /** `row`: as it stands now; null: the conversation is gone. `claimedAt`: when the commit was decided that led to this, by this process' clock. */
  perform: (conversation: string, row: Row | null, effect: Effect, claimedAt: number) => void
}

/** The way in for commands: one decided behind the other per conversation, in this process. */
export interface Executed {
  execute: (conversation: string, command: Command, options?: ExecuteOptions) => Promise<Result>
  /**
   * Runs `task` when no command of the conversation is under way in this process, with the row as this process knows it: it has all
   * that was committed here, perhaps not what others did. Never, if the store is away.
   */
  between: (conversation: string, task: (row: Row | null) => void) => void
  /**
   * Others may just have taken away what is being claimed here: before a commit that is under way is acted upon, the row is read again. Of all
   * conversations, where none is named.
   */
  doubt: (conversation?: string) => void
  forget: (conversation: string) => void
}

export interface ExecuteDeps {
  store: Store
  feed: Pick<Feed, 'tell'>
  hints: Hints
  clock: Clock
  ids: Ids
  log: Log
  settings: Pick<Settings, 'worker' | 'leaseMs' | 'sweepMs'>
  /** Is told of everything this process has stored, for its metrics. */
  observe?: (events: Event[]) => void
}

interface Pending {
  command: Command
  claim: Claiming | null
  /** Whether it is worth waiting for, beyond what a request can wait. */
  patient: boolean
  /** Whoever asked has been answered, or does not wait any longer. */
  over: boolean
  resolve: (result: Result) => void
  reject: (error: Error) => void
}

interface Actor {
  pending: Pending[]
  between: ((row: Row | null) => void)[]
  row: Row | null | undefined
  /** Since its commit was sent others may have changed the conversation. */
  doubted: boolean
}

/** Rows kept in memory at most: they spare a read, and a commit on an old one is refused. */
const KEPT_ROWS = 5_000
const MAX_CONFLICTS = 8

/**
 * Decides commands and commits what they change. Commands of one conversation that arrive while a commit is on its way go together
 * into the next one. A commit is sent until its outcome is known: its token makes sending it twice harmless. Only after it has been
 * stored is anything done about it: claimed work is performed, hints are queued.
 */
export function createExecute ({ store, feed, hints, clock, ids, log, settings, observe }: ExecuteDeps, performer: Performer | null): Executed {
  const deps = { clock, log }
  const busy = new Set<Actor>()
  const actors = createRecent<Actor>(clock, { most: KEPT_ROWS, isBusy: (actor) => busy.has(actor) })

  function actorOf (conversation: string): Actor {
    const actor = actors.get(conversation) ?? { pending: [], between: [], row: undefined, doubted: false }
    actors.set(conversation, actor)
    return actor
  }

  /** Begins once everything that happens at this moment has happened: results that come together are stored together. */
  function wakeUp (conversation: string, actor: Actor): void {
    if (busy.has(actor)) return
    busy.add(actor)
    process.nextTick(() => void drain(conversation, actor))
  }

  async function drain (conversation: string, actor: Actor): Promise<void> {
    while (actor.pending.length > 0 || actor.between.length > 0) {
      if (actor.between.length > 0) await look(conversation, actor)
      const batch = actor.pending.splice(0).filter((pending) => !pending.over)
      if (batch.length === 0) continue
      try {
        await decide(conversation, actor, batch)
      } catch (error) {
        actor.row = undefined
        for (const pending of batch) pending.reject(error as Error)
      }
    }
    busy.delete(actor)
  }

  async function look (conversation: string, actor: Actor): Promise<void> {
    const tasks = actor.between.splice(0)
    try {
      if (actor.row === undefined) actor.row = await store.load(conversation)
    } catch {
      return
    }
    for (const task of tasks) task(actor.row)
  }

  async function decide (conversation: string, actor: Actor, batch: Pending[]): Promise<void> {
    let fresh = false
    let removal: number | null = null
    const trying = <T>(ask: () => Promise<T>) => patiently(deps, ask, () => batch.some((pending) => !pending.over))
    for (let conflicts = 0; ; conflicts++) {
      // What is to be created is not there: reading that is a trip for nothing, and the version check finds the exception.
      if (actor.row === undefined && batch.some(({ command }) => creates(command))) actor.row = null
      if (actor.row === undefined) {
        actor.row = await trying(() => store.load(conversation))
        fresh = true
      }
      const base = actor.row ?? null
      const now = clock.now()
      const { state, outcomes } = apply(conversation, base, batch)
      const changes = outcomes.flatMap((outcome) => outcome.refusal === null ? [outcome.change] : [])
      const [first] = changes
      if (first === undefined || state === null) {
        if (!fresh) {
          // A refusal may be due to the row kept here being old: only a fresh one may refuse.
          actor.row = await trying(() => store.load(conversation))
          fresh = true
          if (actor.row?.token !== base?.token || actor.row?.born !== base?.born) continue
        }
        batch.forEach((pending, i) => pending.resolve({ refusal: outcomes[i]?.refusal ?? null, row: actor.row ?? null, events: [], effects: [] }))
        return
      }
      const token = `${settings.worker}.${ids.next()}`
      const events = changes.flatMap((change) => change.events)
      const commit: Commit = {
        conversation,
        base,
        removal,
        token,
        state,
        ...ledgerOf(base?.state.messages ?? 0, changes),
        events,
        docs: changes.flatMap((change) => change.docs),
        created: changes.flatMap((change) => change.created),
        due: dueAt(state, now, settings)
      }
      let sent = 0
      actor.doubted = false
      const committed = await trying(() => {
        sent++
        return store.commit(commit)
      })
      if (committed.status === 'conflict') {
        actor.row = committed.row
        fresh = true
        removal = committed.removal
        if (conflicts === MAX_CONFLICTS) {
          const error = new ConflictError(`conversation ${conversation} was changed by others ${conflicts} times in a row; try again`)
          // A worker's word has been paid for: it is tried until it is heard.
          for (const pending of batch.filter((one) => !one.patient)) pending.reject(error)
        }
        batch = batch.filter((one) => !one.over)
        if (batch.length === 0) return
        if (conflicts > 2) await pause(clock, Math.min(100, 2 ** conflicts))
        continue
      }
      const row: Row = { born: committed.born, version: committed.version, token, epoch: committed.epoch, state }
      observe?.(events)
      // Its answer came late, or others have spoken since it was sent: what it has claimed may be theirs by now.
      const standing = performer !== null && (sent > 1 || actor.doubted) ? await asItStands(conversation, actor) : row
      actor.row = standing
      after(conversation, base?.state ?? null, { row, standing }, changes, now)
      batch.forEach((pending, i) => {
        const outcome = outcomes[i] as Outcome
        const { events, effects } = outcome.refusal === null ? outcome.change : { events: [], effects: [] }
        // A worker goes on by what stands, a request is answered by what it did.
        pending.resolve({ refusal: outcome.refusal, row: pending.patient ? standing : row, events, effects })
      })
      return
    }
  }

  function apply (conversation: string, base: Row | null, batch: Pending[]): { state: State | null, outcomes: Outcome[] } {
    let state = base?.state ?? null
    const taken = { calls: 0, turn: false }
    const outcomes = batch.map(({ command, claim }) => {
      let executor: Executor | undefined
      if (claim !== null && performer !== null) {
        const room = performer.room(conversation, claim, taken.calls)
        executor = { ...room, worker: settings.worker, turn: room.turn && !taken.turn }
      }
      const outcome = transition(state, executor === undefined ? command : { ...command, executor })
      if (outcome.refusal !== null) return outcome
      state = outcome.change.state
      for (const effect of outcome.change.effects) {
        if (effect.type === 'run_calls' || effect.type === 'take_places') taken.calls += effect.calls.length
        if (effect.type === 'call_model') taken.turn = true
      }
      return outcome
    })
    return { state, outcomes }
  }

  async function asItStands (conversation: string, actor: Actor): Promise<Row | null> {
    let row: Row | null
    do {
      actor.doubted = false
      row = await patiently(deps, () => store.load(conversation))
    } while (actor.doubted)
    return row
  }

  /** What a stored commit leads to. `standing`: the row now, by which what it has claimed is performed. */
  function after (conversation: string, before: State | null, { row, standing }: { row: Row, standing: Row | null }, changes: Change[], now: number): void {
    for (const change of changes) {
      for (const effect of change.effects) {
        if (effect.type !== 'abort' || effect.worker === settings.worker) performer?.perform(conversation, standing, effect, now)
        else feed.tell(effect.worker, abortNote(conversation, effect)).catch(() => { /* a courtesy: what the worker writes is refused all the same */ })
      }
    }
    const known = new Set(before === null ? [] : wanted(before, now, settings.leaseMs).map((job) => job.id))
    const jobs = wanted(row.state, now, settings.leaseMs).filter((job) => !known.has(job.id))
    if (jobs.length === 0) return
    hints.add(conversation, jobs).catch((error: Error) => {
      log.warn({ conversation_id: conversation, err: error.message }, 'hint not queued; the sweep will find it')
    })
  }

  return {
    execute (conversation, command, { claim, patienceMs = IMPATIENT_MS } = {}) {
      return new Promise((resolve, reject) => {
        const actor = actorOf(conversation)
        const over = () => {
          pending.over = true
          cancel()
        }
        const pending: Pending = {
          command,
          claim: claim ?? null,
          patient: patienceMs > IMPATIENT_MS,
          over: false,
          resolve: (result) => {
            over()
            resolve(result)
          },
          reject: (error) => {
            over()
            reject(error)
          }
        }
        // Also while it still waits for others: they may be more patient.
        const cancel = clock.after(patienceMs, () => pending.reject(new UnavailableError('the store did not answer in time')))
        actor.pending.push(pending)
        wakeUp(conversation, actor)
      })
    },
    between (conversation, task) {
      const actor = actorOf(conversation)
      actor.between.push(task)
      wakeUp(conversation, actor)
    },
    doubt (conversation) {
      const doubted = conversation === undefined ? busy : [actors.get(conversation)]
      for (const actor of doubted) if (actor !== undefined) actor.doubted = true
    },
    forget: (conversation) => {
      const actor = actors.get(conversation)
      if (actor === undefined) return
      actor.row = undefined
      if (!busy.has(actor)) actors.forget(conversation)
    }
  }
}
