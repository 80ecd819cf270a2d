import { Queue } from 'bullmq'
import type { Hints, Log } from '../engine/ports.js'
import type { Line } from './line.js'

/** A job says which conversation to look at, and nothing else: what there is to do stands in its state. */
export interface AdvanceJob { conversation: string }

/**
 * For every connection of BullMQ's: it would ask `INFO` once, and work never again if that one answer is late or not allowed, a worker in a loop that lets
 * nothing else happen. The version is judged at start (redis/describe.ts).
 */
export const UNASKED = { skipVersionCheck: true }

/** BullMQ refuses `:` in names. */
export const QUEUE = 'advance'

/** Milliseconds after which the queue counts as away: over a connection that has never been ready BullMQ waits for ever. */
const AWAY_MS = 1000

async function promptly<T> (answer: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => { timer = setTimeout(() => reject(new Error('the queue does not answer')), AWAY_MS) })
  return await Promise.race([answer, late]).finally(() => clearTimeout(timer))
}

/** Every promise rejects after a second at the latest. */
export interface HintQueue extends Hints {
  /** Jobs waiting and being worked on. */
  counts: () => Promise<Record<string, number>>
  /** The job that has waited longest; null: none waits, or somebody has paused the queue. */
  head: () => Promise<string | null>
  /** Goes on over a new connection. */
  renew: () => void
  close: () => Promise<void>
}

/**
 * Hints as BullMQ jobs. An id the queue knows is ignored, so asking twice is harmless; a finished job is removed at once, so its id
 * can be asked for again. Nothing depends on a job being there: the sweep asks for what is missing, and takes what is not fetched.
 */
export function createHintQueue (connect: () => Line, prefix: string, log: Log): HintQueue {
  let line = connect()
  let queue = open()

  function open (): Queue<AdvanceJob> {
    const made = new Queue<AdvanceJob>(QUEUE, { connection: line.connection, prefix, ...UNASKED })
    made.on('error', (error) => log.debug({ err: error.message }, 'queue connection'))
    return made
  }

  return {
    async add (conversation, jobs) {
      const data = { conversation }
      const one = (id: string) => ({ name: 'advance', data, opts: { jobId: id, removeOnComplete: true, removeOnFail: true } })
      const [first] = jobs
      if (first === undefined) return
      await promptly<unknown>(jobs.length === 1 ? queue.add('advance', data, one(first.id).opts) : queue.addBulk(jobs.map((job) => one(job.id))))
    },
    counts: async () => await promptly(queue.getJobCounts('waiting', 'active')),
    async head () {
      const [paused, [oldest]] = await promptly(Promise.all([queue.isPaused(), queue.getRanges(['waiting'], 0, 0, true)]))
      return paused ? null : oldest ?? null
    },
    renew () {
      const before = { queue, line }
      line = connect()
      queue = open()
      before.queue.close().catch(() => { /* that it does not work is why it goes */ })
      void before.line.close()
    },
    async close () {
      // Of a queue whose connection never worked, closing would wait for that; the connection itself is closed by whoever opened it.
      await Promise.race([queue.close().catch(() => {}), line.close()])
    }
  }
}
