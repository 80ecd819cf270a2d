import { Worker } from 'bullmq'
import type { Cluster, Redis } from 'ioredis'
import type { Engine } from '../engine/engine.js'
import type { Log } from '../engine/ports.js'
import { QUEUE, type AdvanceJob } from './queue.js'

export interface WorkerOptions {
  connection: Redis | Cluster
  prefix: string
  /** Conversations advanced at once. */
  concurrency: number
  /** When BullMQ calls a job stalled, in milliseconds. It costs nothing to be wrong: a job is only a hint. */
  stalledMs: number
  sweepMs: number
  log: Log
}

export interface Workers {
  /** Takes no more jobs, then drains the engine for up to `graceMs`. */
  stop: (graceMs: number) => Promise<void>
  /** Milliseconds since the last sweep that worked. */
  idleMs: () => number
}

/** Binds an engine that has started to the queue, and to time: a job becomes `advance`, a tick becomes `sweep`. */
export function startWorkers (engine: Engine, { connection, prefix, concurrency, stalledMs, sweepMs, log }: WorkerOptions): Workers {
  const worker = new Worker<AdvanceJob>(QUEUE, (job) => engine.advance(job.data.conversation), {
    connection,
    prefix,
    concurrency,
    lockDuration: stalledMs,
    stalledInterval: stalledMs,
    // A job may outlive many workers; the engine counts losses itself (FAULTS B4).
    maxStalledCount: 1_000_000,
    removeOnComplete: { count: 0 },
    removeOnFail: { count: 0 }
  })
  worker.on('error', (error) => log.debug({ err: error.message }, 'worker connection'))
  worker.on('failed', (job, error) => log.warn({ conversation_id: job?.data.conversation, err: error.message }, 'job failed; the sweep will look at it'))

  let swept = performance.now()
  let timer: NodeJS.Timeout
  let sweeping: Promise<void> = Promise.resolve()
  const tick = () => {
    sweeping = engine.sweep().then(() => {
      swept = performance.now()
    }, (error: Error) => {
      log.debug({ err: error.message }, 'sweep failed')
    }).finally(() => {
      // Workers that were started together should not look together.
      timer = setTimeout(tick, sweepMs * (0.75 + Math.random() / 2))
    })
  }
  timer = setTimeout(tick, sweepMs * Math.random())

  return {
    async stop (graceMs) {
      await sweeping
      clearTimeout(timer)
      // No new jobs from here on; those under way end when the engine has drained.
      const closed = worker.close()
      await engine.stop(graceMs)
      await closed
    },
    idleMs: () => performance.now() - swept
  }
}
