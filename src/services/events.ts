import { docNames } from '../core/draft.js'
import { TERMINAL } from '../core/event.js'
import type { RunEnd, RunRecord } from '../core/state.js'
import { fenceOf } from '../store/plan.js'
import type { Row, Signal, StoredEvent } from '../store/store.js'
import { answering, conversationOf, rowOf, type Context } from './context.js'
import { conversationView } from './conversation-view.js'
import { readRun } from './run-view.js'
import type { Caller, EventSource, LiveItem, LiveOptions, Services } from './services.js'

/** Events read from the log at once. */
const PAGE = 200

/** Signals held for a reader that is slower than they come. Beyond that it reads them from the log when it gets there. */
const HELD = 256

/** A reader that was not woken for this long looks by itself: a lost wake-up costs time, never an event. Milliseconds. */
const LOOK_MS = 15_000

/** What part of a conversation's log is asked for. */
interface Scope {
  conversation: string
  run_id: string | null
  /** No event of the scope has a lower `seq`. */
  first: number
  /** `seq` of the run's terminal event, once it has ended. */
  last: number | null
}

export function createEventService (context: Context): Services['events'] {
  const { store, feed, clock } = context

  /** Checks what can be checked before the conversation is read: whose the run is. */
  async function scopeOf (caller: Caller, where: EventSource): Promise<Scope> {
    const runId = where.run_id
    if (runId === undefined) return { conversation: where.conversation_id ?? '', run_id: null, first: 1, last: null }
    const conversation = where.conversation_id ?? await conversationOf(context, caller, runId)
    const [record, end] = await store.docs(conversation, [docNames.run(runId), docNames.end(runId)])
    return {
      conversation,
      run_id: runId,
      first: record == null ? 1 : (JSON.parse(record) as RunRecord).created_seq,
      last: end == null ? null : (JSON.parse(end) as RunEnd).last_seq
    }
  }

  const wants = (scope: Scope, runId: string | null) => scope.run_id === null || scope.run_id === runId
  const isLast = (scope: Scope, event: StoredEvent) => scope.run_id !== null && event.run_id === scope.run_id && TERMINAL.has(event.type)

  return {
    page: (caller, where, after, limit) => answering(async () => {
      const scope = await scopeOf(caller, where)
      const { state } = await rowOf(context, caller, scope.conversation)
      const data: StoredEvent[] = []
      let cursor = Math.max(after, scope.first - 1)
      while (data.length < limit && (scope.last === null || cursor < scope.last)) {
        const events = await store.log(scope.conversation, cursor, PAGE)
        for (const event of events) {
          if (data.length === limit) break
          cursor = event.seq
          if (wants(scope, event.run_id)) data.push(event)
        }
        if (events.length < PAGE) break
      }
      return { data, last_seq: scope.last ?? state.seq }
    }),

    live: (caller, where, options) => live(caller, where, options)
  }

  /**
   * Told to a reader whose cursor the log never reached: what it counted on is lost. `snapshot` is what holds now, and `last_seq` where
   * the stream goes on.
   */
  async function reset (scope: Scope, row: Row, lastSeq: number): Promise<object> {
    const snapshot = scope.run_id === null ? conversationView(row, clock.now()) : await readRun(store, scope.conversation, scope.run_id)
    return { type: 'stream.reset', conversation_id: scope.conversation, reason: 'cursor_ahead', last_seq: lastSeq, snapshot }
  }

  async function* live (caller: Caller, where: EventSource, { after: from, head = [], signal }: LiveOptions): AsyncGenerator<LiveItem> {
    for (const event of head) yield { kind: 'event', event }
    const after = head.at(-1)?.seq ?? from
    const held: Signal[] = []
    let wake: () => void = () => { /* nobody waits yet */ }
    const abort = () => wake()
    const hear = (one: Signal) => {
      if (held.length >= HELD) held.splice(0, held.length, { kind: 'gap' })
      else held.push(one)
      wake()
    }
    // First listen, then read: what happens in between is seen twice, and told once.
    const conversation = where.conversation_id ?? await answering(() => conversationOf(context, caller, where.run_id ?? ''))
    const unsubscribe = await answering(() => feed.subscribe(conversation, hear))
    signal.addEventListener('abort', abort)
    const opened = await answering(() => Promise.all([
      scopeOf(caller, { ...where, conversation_id: conversation }), rowOf(context, caller, conversation)
    ])).catch((error: unknown) => {
      unsubscribe()
      throw error
    })
    const [scope, row] = opened
    let cursor = Math.max(after, scope.first - 1)

    /** What the log holds beyond the cursor. */
    async function* stored (): AsyncGenerator<LiveItem> {
      for (;;) {
        const events = await answering(() => store.log(scope.conversation, cursor, PAGE))
        for (const event of events) {
          cursor = event.seq
          if (wants(scope, event.run_id)) yield { kind: 'event', event }
          if (isLast(scope, event)) return
        }
        if (events.length < PAGE) return
      }
    }

    /** The text of the turn that is running, from its beginning: a reader that has some of it loses nothing by hearing it again. */
    async function* text (): AsyncGenerator<LiveItem> {
      const partial = await answering(() => store.partial(scope.conversation))
      if (partial === null || !wants(scope, partial.run_id)) return
      yield { kind: 'delta', json: JSON.stringify({ type: 'turn.delta', conversation_id: scope.conversation, ...partial, offset: 0 }) }
    }

    const over = () => scope.last !== null && cursor >= scope.last

    try {
      const end = scope.last ?? row.state.seq
      if (after > end) {
        cursor = end
        yield { kind: 'reset', json: JSON.stringify(await answering(() => reset(scope, row, end))) }
      }
      if (over()) return
      for await (const item of stored()) {
        yield item
        if (item.kind === 'event' && isLast(scope, item.event)) return
      }
      if (fenceOf(row.state) > 0) yield* text()

      while (!signal.aborted) {
        const next = held.shift()
        if (next === undefined) {
          let cancel = () => { /* set at once */ }
          await new Promise<void>((resolve) => {
            wake = resolve
            cancel = clock.after(LOOK_MS, () => {
              held.push({ kind: 'gap' })
              resolve()
            })
          })
          cancel()
          continue
        }
        if (next.kind === 'removed') return
        if (next.kind === 'delta') {
          if (wants(scope, next.run_id)) yield { kind: 'delta', json: next.json }
          continue
        }
        if (next.kind === 'stopped') continue
        const events = next.kind === 'events' ? next.events : []
        const hole = next.kind === 'gap' || (events[0]?.seq ?? 0) > cursor + 1
        if (hole) {
          for await (const item of stored()) {
            yield item
            if (item.kind === 'event' && isLast(scope, item.event)) return
          }
          if (next.kind === 'gap') yield* text()
        }
        for (const event of events) {
          if (event.seq <= cursor) continue
          cursor = event.seq
          if (wants(scope, event.run_id)) yield { kind: 'event', event }
          if (isLast(scope, event)) return
        }
      }
    } finally {
      signal.removeEventListener('abort', abort)
      unsubscribe()
    }
  }
}
