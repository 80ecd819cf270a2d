import { docNames } from '../core/draft.js'
import { TERMINAL } from '../core/event.js'
import type { RunEnd } from '../core/state.js'
import { MAX_QUEUED_RUNS } from '../core/transition.js'
import { notFound, queueFull, runActive, validationFailed } from '../errors.js'
import type { Run } from '../schemas/run.js'
import { partitionSuffix } from '../store/keys.js'
import { storedEvent } from '../store/plan.js'
import type { Signal } from '../store/store.js'
import { listCalls, readCall } from './calls.js'
import { answering, conversationOf, rowOf, type Context } from './context.js'
import { prepareRun } from './run-request.js'
import { readRun, requireRun, runView } from './run-view.js'
import type { Services } from './services.js'

/** How many runs a filtered list looks at for one page: the page may be short, and its cursor goes on. */
const LOOKED_AT = 500

/** How long `cancel` with `wait` waits for workers to say that they have stopped: by then a dead one's claims have lapsed. Milliseconds. */
const STOP_WAIT_MS = 15_000

/** Runs: created, read, listed, cancelled, waited for. */
export function createRunService (context: Context): Services['runs'] {
  const { store, feed, presence, keys, executed, clock } = context

  /** Resolves with what `done` makes of a signal, or with null after `ms`. */
  async function listening<T> (
    conversation: string, ms: number, done: (signal: Signal) => T | null | Promise<T | null>, start: () => Promise<T | null>
  ): Promise<T | null> {
    let finish: (value: T | null) => void = () => { /* set below */ }
    const result = new Promise<T | null>((resolve) => { finish = resolve })
    const cancel = clock.after(ms, () => finish(null))
    const subscribed = feed.subscribe(conversation, (signal) => {
      Promise.resolve(done(signal)).then((value) => { if (value !== null) finish(value) }, () => { /* the next signal, or the time, ends it */ })
    })
    try {
      // Redis may have gone away: the time is over all the same.
      await Promise.race([subscribed, result])
      const at = await start()
      return at ?? await result
    } finally {
      cancel()
      subscribed.then((stop) => stop(), () => { /* there is nothing to stop */ })
    }
  }

  const ended = (run: Run) => run.ended_at !== null

  return {
    create: (caller, body) => answering(async () => {
      const conversation = body.conversation_id ?? `conv_${caller.operation}`
      const runId = `run_${caller.operation}${partitionSuffix(keys.partitionOf(conversation))}`
      // The row remembers the last operations only; what this one has made is there for good.
      if (caller.repeated === true && (await store.docs(conversation, [docNames.run(runId)]))[0] != null) {
        return { run: await requireRun(store, conversation, runId), events: [] }
      }
      const request = await prepareRun(context, body)
      const at = clock.now()
      if (body.conversation_id !== undefined) {
        const { state } = await rowOf(context, caller, conversation)
        if (state.has_system && body.instructions !== undefined) {
          throw validationFailed([{ pointer: '/instructions', detail: 'the conversation begins with a system message of its own; leave this out' }])
        }
      }
      const { refusal, row, events } = await executed.execute(conversation, {
        type: 'StartRun',
        at,
        conversation_id: conversation,
        run_id: runId,
        tenant: caller.tenant,
        new_conversation: body.conversation_id === undefined,
        ...request
      }, { claim: 'local' })
      if (refusal === 'queue_full') throw queueFull(MAX_QUEUED_RUNS)
      if (refusal === 'run_active') throw runActive(activeRuns(row?.state))
      if (row === null || refusal === 'not_found') throw notFound('conversation')
      if (refusal === 'duplicate') return { run: await requireRun(store, conversation, runId), events: [] }
      const run = runView(row, runId, { created_at: at, created_seq: 0, request: JSON.parse(request.spec) }, null)
      // What the same commit did to other runs, such as the one that this one ends, is theirs.
      return { run, events: events.flatMap((event) => event.run_id === runId ? [storedEvent(event, row.epoch)] : []) }
    }),

    get: (caller, runId) => answering(async () => requireRun(store, await conversationOf(context, caller, runId), runId)),

    list: (caller, { status, conversation_id: only, metadata, cursor, limit }) => answering(async () => {
      let before = cursor === undefined ? null : cursor
      const data: Run[] = []
      for (let looked = 0; looked < LOOKED_AT;) {
        const step = only === undefined && status === undefined && metadata === undefined ? limit + 1 : 100
        const found = await store.listRuns(caller.tenant, before, step)
        const kept = found.filter((run) => only === undefined || run.conversation_id === only)
        const runs = await Promise.all(kept.map((run) => readRun(store, run.conversation_id, run.run_id)))
        for (const run of runs) {
          if (run === null || (status !== undefined && !status.includes(run.status))) continue
          if (Object.entries(metadata ?? {}).some(([name, value]) => run.metadata[name] !== value)) continue
          if (data.length === limit) return { data, next_cursor: data.at(-1)?.id ?? null }
          data.push(run)
        }
        if (found.length < step) return { data, next_cursor: null }
        before = found.at(-1)?.run_id ?? null
        looked += found.length
      }
      return { data, next_cursor: before }
    }),

    cancel: (caller, runId, { wait }) => answering(async () => {
      const conversation = await conversationOf(context, caller, runId)
      const stop = async () => {
        const { refusal } = await executed.execute(conversation, { type: 'CancelRun', at: clock.now(), run_id: runId, reason: 'cancelled' }, { claim: 'local' })
        if (refusal === 'not_found') throw notFound('run')
      }
      const awaited = new Set<string>()
      const isOver = () => awaited.size === 0 ? true : null
      const ask = () => Promise.all([...awaited].map((worker) => feed.tell(worker, { type: 'report', conversation, run_id: runId })))
      await stop()
      if (wait) await listening(conversation, STOP_WAIT_MS, (signal) => {
        // What was said meanwhile is lost.
        if (signal.kind === 'gap') void ask().catch(() => { /* the next one, or the time, ends it */ })
        if (signal.kind !== 'stopped' || signal.run_id !== runId || !awaited.delete(signal.worker)) return null
        return isOver()
      }, async () => {
        // Whoever has ended the run, and however often this is asked.
        const [end] = await store.docs(conversation, [docNames.end(runId)])
        const { workers = [] } = end == null ? {} : JSON.parse(end) as RunEnd
        const left = await presence.left(workers)
        workers.forEach((worker, i) => { if (left[i] !== 0) awaited.add(worker) })
        await ask()
        return isOver()
      })
      return await requireRun(store, conversation, runId)
    }),

    wait: (caller, runId, ms) => answering(async () => {
      const conversation = await conversationOf(context, caller, runId)
      const look = async () => {
        const run = await requireRun(store, conversation, runId)
        return ended(run) ? run : null
      }
      const run = await listening(conversation, ms, (signal) => {
        const over = signal.kind === 'gap' || (signal.kind === 'events' && signal.events.some((event) => event.run_id === runId && TERMINAL.has(event.type)))
        return over ? look() : null
      }, look)
      return run ?? await requireRun(store, conversation, runId)
    }),

    calls: (caller, runId, query) => answering(async () => {
      const conversation = await conversationOf(context, caller, runId)
      return await listCalls(context, conversation, runId, query)
    }),

    call: (caller, runId, callId) => answering(async () => {
      const conversation = await conversationOf(context, caller, runId)
      return await readCall(context, conversation, runId, callId)
    })
  }
}

function activeRuns (state: { run: { id: string } | null, queue: { id: string }[] } | undefined): string[] {
  return state === undefined ? [] : [...state.run === null ? [] : [state.run.id], ...state.queue.map((run) => run.id)]
}
