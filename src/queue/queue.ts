import { Queue } from 'bullmq'
import type { Cluster, Redis } from 'ioredis'
import type { Hints, Log } from '../engine/ports.js'

/** A job says which conversation to look at, and nothing else: what there is to do stands in its state. */
export interface AdvanceJob { conversation: string }

/** BullMQ refuses `:` in names. */
export const QUEUE = 'advance'

export interface HintQueue extends Hints {
  /** Jobs waiting and being worked on. */
  counts: () => Promise<Record<string, number>>
  close: () => Promise<void>
}

/**
 * Hints as BullMQ jobs. An id the queue knows is ignored, so asking twice is harmless; a finished job is removed at once, so its id
 * can be asked for again. Nothing depends on a job being there: the sweep asks for what is missing.
 */
export function createHintQueue (connection: Redis | Cluster, prefix: string, log: Log): HintQueue {
  const queue = new Queue<AdvanceJob>(QUEUE, { connection, prefix })
  queue.on('error', (error) => log.debug({ err: error.message }, 'queue connection'))
  return {
    async add (conversation, jobs) {
      const data = { conversation }
      const one = (id: string) => ({ name: 'advance', data, opts: { jobId: id, removeOnComplete: true, removeOnFail: true } })
      const [first] = jobs
      if (first === undefined) return
      if (jobs.length === 1) await queue.add('advance', data, one(first.id).opts)
      else await queue.addBulk(jobs.map((job) => one(job.id)))
    },
    counts: async () => await queue.getJobCounts('waiting', 'active'),
    close: () => queue.close()
  }
}
