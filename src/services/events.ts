import { docNames } from '../core/draft.js'
import { TERMINAL } from '../core/event.js'
import type { RunEnd, RunRecord } from '../core/state.js'
import { ProblemError } from '../errors.js'
import { fenceOf } from '../store/plan.js'
import type { Reads, Signal, StoredEvent } from '../store/store.js'
import { answering, conversationOf, rowOf, type Context } from './context.js'
import { conversationView } from './conversation-view.js'
import { readRun } from './run-view.js'
import type { Caller, CursorFault, EventCursor, EventSource, LiveItem, LiveOptions, Services } from './services.js'

/** Events read from the log at once. */
const PAGE = 200

/**
 * Signals held for a reader that is slower than they come. Beyond that it reads them from the log when it gets there. By number, not by size: all readers of
 * a process hold the same texts, and each that had to read for itself would hold its own.
 */
const HELD = 256

/** A reader that was not woken for this long looks by itself: a lost wake-up costs time, never an event. Milliseconds. */
const LOOK_MS = 15_000

/** How long a reader waits before it asks a Redis that was away again. Milliseconds. */
const AWAY_MS = 500

/** What was deleted since it was looked for is no fault: its stream ends, and a reader that comes back is told. */
function unlessGone (error: unknown): null {
  if (error instanceof ProblemError && error.code === 'not_found') return null
  throw error
}

/** What part of a conversation's log is asked for. */
interface Scope {
  conversation: string
  run_id: string | null
  /** No event of the scope has a lower `seq`. */
  first: number
  /** `seq` of the run's terminal event, once it has ended. */
  last: number | null
}

/** The log of a conversation: page by page, or live. */
export function createEventService (context: Context): Services['events'] {
  const { store, reads, feed, clock } = context

  /** Checks what can be checked before the conversation is read: whose the run is. */
  async function scopeOf (from: Pick<Reads, 'docs'>, caller: Caller, where: EventSource): Promise<Scope> {
    const runId = where.run_id
    if (runId === undefined) return { conversation: where.conversation_id ?? '', run_id: null, first: 1, last: null }
    const conversation = where.conversation_id ?? await conversationOf(context, caller, runId)
    const [record, end] = await from.docs(conversation, [docNames.run(runId), docNames.end(runId)])
    return {
      conversation,
      run_id: runId,
      first: record == null ? 1 : (JSON.parse(record) as RunRecord).created_seq,
      last: end == null ? null : (JSON.parse(end) as RunEnd).last_seq
    }
  }

  const wants = (scope: Scope, runId: string | null) => scope.run_id === null || scope.run_id === runId
  const isLast = (scope: Scope, event: StoredEvent) => scope.run_id !== null && event.run_id === scope.run_id && TERMINAL.has(event.type)

  /** Where to begin reading. A run's events begin in the middle of the log: what stands before them, a reader need not have seen. */
  const begin = (scope: Scope, after: EventCursor, epoch: number): EventCursor => after.seq < scope.first ? { seq: scope.first - 1, epoch } : after

  /** Events behind the cursor, or null: the event it stands at is not there any more. One read, which includes that event. */
  async function read (from: Pick<Reads, 'log'>, conversation: string, { seq, epoch }: EventCursor, most = PAGE): Promise<StoredEvent[] | null> {
    const behind = await from.log(conversation, Math.max(0, seq - 1), most + 1)
    if (seq > 0) {
      const at = behind.shift()
      // What took the place of a lost event is of a later epoch than anybody has seen that one in.
      if (at?.seq !== seq || at.epoch > epoch) return null
    }
    return behind[0] === undefined || behind[0].seq === seq + 1 ? behind : null
  }

  /** Why a cursor is not good, where the newest event is `newest`; and the oldest one that is there. */
  async function faultOf (conversation: string, cursor: EventCursor, newest: number): Promise<{ fault: CursorFault, first_seq: number }> {
    const [oldest] = await store.log(conversation, 0, 1)
    const firstSeq = oldest?.seq ?? newest + 1
    return { fault: cursor.seq > newest ? 'cursor_ahead' : cursor.seq < firstSeq ? 'events_trimmed' : 'events_lost', first_seq: firstSeq }
  }

  return {
    page: (caller, where, after, limit) => answering(async () => {
      const scope = await scopeOf(store, caller, where)
      const { state, epoch } = await rowOf(context, caller, scope.conversation)
      const last = scope.last ?? state.seq
      const data: StoredEvent[] = []
      // No more than was asked for is read, where all of it is of this scope: events can be large.
      for (let cursor = begin(scope, after, epoch), most = Math.min(limit, PAGE); ; most = PAGE) {
        const events = await read(store, scope.conversation, cursor, most)
        if (events === null) return { data: [], ...await faultOf(scope.conversation, cursor, state.seq), last_seq: last, epoch }
        for (const event of events) {
          if (data.length === limit) break
          cursor = event
          if (wants(scope, event.run_id)) data.push(event)
        }
        const over = events.length < most || data.length === limit || (scope.last !== null && cursor.seq >= scope.last)
        if (over) return { data, fault: null, first_seq: 1, last_seq: last, epoch }
      }
    }),

    live: (caller, where, options) => live(caller, where, options)
  }

  async function* live (caller: Caller, where: EventSource, { after: from, head = [], signal }: LiveOptions): AsyncGenerator<LiveItem> {
    for (const event of head) yield { kind: 'event', event }
    const after = head.at(-1) ?? from
    const held: Signal[] = []
    let wake: () => void = () => { /* nobody waits yet */ }
    const abort = () => wake()
    const hear = (one: Signal) => {
      if (held.length >= HELD) held.splice(0, held.length, { kind: 'gap' })
      else held.push(one)
      wake()
    }
    signal.addEventListener('abort', abort)
    // First listen, then read: what happens in between is seen twice, and told once.
    const named = where.conversation_id ?? await insist(() => conversationOf(context, caller, where.run_id ?? '')).catch(unlessGone)
    if (named === null) return
    const conversation = named
    const unsubscribe = await insist(() => feed.subscribe(conversation, hear))
    const open = () => answering(() => Promise.all([
      unlessLeft(scopeOf(reads, caller, { ...where, conversation_id: conversation })), rowOf(context, caller, conversation)
    ]))
    const opened = await insist(open).catch((error: unknown) => {
      unsubscribe()
      return unlessGone(error)
    })
    if (opened === null) return
    let [scope] = opened
    const [, row] = opened
    let cursor = begin(scope, after, row.epoch)
    let ended = false
    /** Until something is heard; true: until the time was over. */
    async function pause (ms: number): Promise<boolean> {
      let over = false
      let cancel = () => { /* set at once */ }
      await new Promise<void>((resolve) => {
        wake = resolve
        cancel = clock.after(ms, () => {
          over = true
          resolve()
        })
      })
      cancel()
      return over
    }

    /** A reader that leaves waits for nothing any more, however large it is. */
    function unlessLeft<T> (task: Promise<T>): Promise<T> {
      return new Promise((resolve, reject) => {
        const leave = () => { reject(new Error('the reader has left')) }
        if (signal.aborted) leave()
        signal.addEventListener('abort', leave)
        task.then(resolve, reject).finally(() => { signal.removeEventListener('abort', leave) })
      })
    }

    const isBehind = () => scope.last !== null && cursor.seq >= scope.last

    /** Goes on when that is why something failed, and Redis may be back. */
    async function away (error: unknown): Promise<void> {
      if (signal.aborted || !(error instanceof ProblemError) || error.code !== 'unavailable') throw error
      await pause(AWAY_MS)
    }

    /** As often as it takes: the reader has been answered 200 by now, and waits with us. */
    async function insist<T> (task: () => Promise<T>): Promise<T> {
      for (;;) {
        try {
          return await answering(task)
        } catch (error) {
          await away(error)
        }
      }
    }

    /** Reads on when Redis was away: the reader has missed nothing that anybody else has had. */
    async function* patiently (items: () => AsyncGenerator<LiveItem>): AsyncGenerator<LiveItem> {
      while (!signal.aborted && !ended) {
        try {
          return yield* items()
        } catch (error) {
          await away(error)
        }
      }
    }

    /** What is stored beyond the cursor; `ended` once that was the last of the run. */
    async function* stored (): AsyncGenerator<LiveItem> {
      for (let told = false; !ended;) {
        const events = await answering(() => unlessLeft(read(reads, conversation, cursor)))
        if (events === null) {
          // Once: should it happen twice in a row, the next look will tell.
          if (told) return
          told = true
          yield* reset()
          continue
        }
        for (const event of events) {
          cursor = event
          if (wants(scope, event.run_id)) yield { kind: 'event', event }
          ended = isLast(scope, event)
          if (ended) return
        }
        if (events.length < PAGE || isBehind()) return
      }
    }

    /** What the reader counted on is lost: it is told what holds now, and where the stream goes on. */
    async function* reset (): AsyncGenerator<LiveItem> {
      const found = await open().catch(unlessGone)
      const run = found === null || scope.run_id === null ? null : await answering(() => readRun(store, conversation, scope.run_id as string))
      // Nothing of it is left, and a reader that comes back is told so.
      ended = found === null || (scope.run_id !== null && run === null)
      if (found === null) return
      const [now, { state, epoch }] = found
      const lastSeq = now.last ?? state.seq
      const { fault: reason } = await answering(() => faultOf(conversation, cursor, state.seq))
      scope = now
      cursor = { seq: lastSeq, epoch }
      const snapshot = scope.run_id === null ? conversationView(found[1], clock.now()) : run
      yield { kind: 'reset', json: JSON.stringify({ type: 'stream.reset', conversation_id: conversation, reason, epoch, last_seq: lastSeq, snapshot }) }
      ended ||= scope.last !== null
      if (!ended && fenceOf(state) > 0) yield* text()
    }

    /** The text of the turn that is running, from its beginning: a reader that has some of it loses nothing by hearing it again. */
    async function* text (): AsyncGenerator<LiveItem> {
      const partial = await answering(() => unlessLeft(reads.partial(conversation)))
      if (partial === null || !wants(scope, partial.run_id)) return
      yield { kind: 'delta', json: JSON.stringify({ type: 'turn.delta', conversation_id: conversation, ...partial, offset: 0 }) }
    }

    try {
      yield* patiently(stored)
      if (ended || isBehind()) return
      if (fenceOf(row.state) > 0) yield* patiently(text)

      while (!signal.aborted && !ended) {
        const next = held.shift()
        if (next === undefined) {
          if (await pause(LOOK_MS)) held.push({ kind: 'gap' })
          continue
        }
        if (next.kind === 'removed') return
        if (next.kind === 'delta') {
          if (wants(scope, next.run_id)) yield { kind: 'delta', json: next.json }
          continue
        }
        if (next.kind === 'stopped') continue
        const events = next.kind === 'events' ? next.events : []
        const [first] = events
        // Of another epoch: what the reader has seen may be lost, also when the numbers go on.
        if (first === undefined || first.seq > cursor.seq + 1 || first.epoch !== cursor.epoch) {
          yield* patiently(stored)
          if (next.kind === 'gap') yield* patiently(text)
        }
        for (const event of events) {
          if (event.seq !== cursor.seq + 1 || event.epoch !== cursor.epoch || ended) continue
          cursor = event
          if (wants(scope, event.run_id)) yield { kind: 'event', event }
          ended = isLast(scope, event)
        }
      }
    } finally {
      signal.removeEventListener('abort', abort)
      unsubscribe()
    }
  }
}
