import { setTimeout as sleep } from 'node:timers/promises'
import { UnrecoverableError, Worker } from 'bullmq'
import type { Engine } from '../engine/engine.js'
import type { Log } from '../engine/ports.js'
import type { Line } from './line.js'
import { QUEUE, UNASKED, type AdvanceJob, type HintQueue } from './queue.js'
import { createWatchdog, LOOKS } from './watchdog.js'

export interface WorkerOptions {
  connect: () => Line
  prefix: string
  /** LLM turns at once. */
  concurrency: number
  /** When BullMQ calls a job stalled, in milliseconds. It costs nothing to be wrong: a job is only a hint. */
  stalledMs: number
  sweepMs: number
  /** For how long due work may stand still before the connections of the queue are opened anew, and again before `onStuck`. Milliseconds; 0: for ever. */
  watchdogMs: number
  /** Whether Redis answers. Must settle. */
  answers: () => Promise<boolean>
  /** Due work stands still although everything was tried. */
  onStuck: () => void
  log: Log
}

export interface Workers {
  /** Takes no more jobs, then drains the engine for up to `graceMs`. Ends some seconds later at the latest, whatever Redis does. */
  stop: (graceMs: number) => Promise<void>
  /** Milliseconds since the last sweep that worked. */
  idleMs: () => number
  /** The watchdog has found that due work stands still, and nothing has moved since. */
  isStuck: () => boolean
}

/** Milliseconds that closing what is over may take. */
const CLOSE_MS = 2000

/** Undefined: somebody else has put something into our queue. */
function conversationOf (data: unknown): string | undefined {
  const { conversation } = (data ?? {}) as Partial<AdvanceJob>
  return typeof conversation === 'string' ? conversation : undefined
}

/** Binds an engine that has started to the queue, and to time: a job becomes `advance`, a tick becomes `sweep`. */
export function startWorkers (engine: Engine, hints: HintQueue, options: WorkerOptions): Workers {
  const { connect, prefix, concurrency, stalledMs, sweepMs, watchdogMs, answers, onStuck, log } = options
  let fetching = fetch()
  let stopping = false

  /** Fetches jobs over a connection of its own. */
  function fetch () {
    const line = connect()
    let jobs = 0
    const worker = new Worker<unknown>(QUEUE, async ({ data }) => {
      const conversation = conversationOf(data)
      if (conversation === undefined) throw new UnrecoverableError('this is no job of ours: it names no conversation')
      jobs++
      fit()
      await engine.advance(conversation).finally(() => {
        jobs--
        fit()
      })
    }, {
      connection: line.connection,
      prefix,
      ...UNASKED,
      concurrency,
      lockDuration: stalledMs,
      stalledInterval: stalledMs,
      // A job may outlive many workers; the engine counts losses itself (FAULTS B4).
      maxStalledCount: 1_000_000,
      // After an error of the connection; BullMQ would wait 15 s.
      runRetryDelay: 500,
      removeOnComplete: { count: 0 },
      removeOnFail: { count: 0 }
    })
    // A worker that is full keeps one job to go on with, and leaves the others to those who have room.
    function fit (): void {
      worker.concurrency = Math.max(1, concurrency - engine.load().turns)
    }
    worker.on('error', (error) => log.debug({ err: error.message }, 'worker connection'))
    worker.on('failed', (job, error) => log.warn({ conversation_id: conversationOf(job?.data), err: error.message }, 'job failed; the sweep will look at it'))
    return {
      hasRoom: () => jobs < worker.concurrency,
      /** `force`: jobs under way go on, but nobody tells the queue of their end. */
      async close (force: boolean): Promise<void> {
        await Promise.race([worker.close(force).catch(() => {}), force ? sleep(CLOSE_MS, undefined, { ref: false }) : new Promise(() => {})])
        await line.close()
      },
      cut: () => line.close()
    }
  }

  let swept = performance.now()
  let began: number | null = null
  let timer: NodeJS.Timeout
  let ticks = 0
  const tick = () => {
    const own = ++ticks
    began = performance.now()
    engine.sweep().then(() => {
      swept = performance.now()
    }, (error: Error) => {
      log.debug({ err: error.message }, 'sweep failed')
    }).finally(() => {
      if (own !== ticks || stopping) return
      began = null
      // Workers that were started together should not look together.
      timer = setTimeout(tick, sweepMs * (0.75 + Math.random() / 4))
    })
  }
  timer = setTimeout(tick, sweepMs * Math.random())

  const judge = createWatchdog()
  let stuck = false
  let watching: NodeJS.Timeout | undefined
  const watch = async () => {
    const [answered, head] = await Promise.all([answers(), hints.head().catch(() => undefined)])
    if (stopping) return
    const verdict = judge({ head, answers: answered, room: fetching.hasRoom(), hung: began !== null && performance.now() - began > watchdogMs })
    if (verdict === 'renew') renew()
    else if (verdict === 'end') onStuck()
    else if (head === null || !fetching.hasRoom()) stuck = false
    if (verdict !== 'end') watching = setTimeout(() => void watch(), watchdogMs / LOOKS)
  }
  if (watchdogMs > 0) watching = setTimeout(() => void watch(), watchdogMs / LOOKS)

  function renew (): void {
    stuck = true
    log.warn({ watchdog_ms: watchdogMs }, 'due work stands still; opening the connections of the queue again')
    const before = fetching
    hints.renew()
    fetching = fetch()
    void before.close(true)
    if (began !== null && performance.now() - began > watchdogMs) tick()
  }

  return {
    async stop (graceMs) {
      stopping = true
      clearTimeout(timer)
      clearTimeout(watching)
      // No new jobs from here on; those under way end when the engine has drained.
      const closed = fetching.close(false)
      await engine.stop(graceMs)
      await Promise.race([closed, sleep(CLOSE_MS, undefined, { ref: false })])
      await fetching.cut()
    },
    idleMs: () => performance.now() - swept,
    isStuck: () => stuck
  }
}
