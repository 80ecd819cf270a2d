import type { WantedJob } from '../../src/core/schedule.js'
import type { Machine } from './machine.js'
import type { Random } from './random.js'
import type { Timeline } from './timeline.js'

interface Job { id: string, conversation: string }

/** A worker as the queue sees it. */
export interface Consumer { machine: Machine, room: number, advance: (conversation: string) => Promise<void> }

/** The job queue: knows an id until its job is done, gives each job to some worker, and to another when that one is silent for too long. */
export interface JobQueue {
  add: (conversation: string, jobs: WantedJob[]) => void
  join: (consumer: Consumer) => void
  leave: (machine: Machine) => void
  /** Forgets everything that waits. */
  lose: () => void
  slowUntil: number
  doubleUntil: number
  /** Jobs waiting and being worked on. */
  size: () => number
}

export function createQueue (timeline: Timeline, random: Random, stalledMs: number, trace: ((who: string, what: string) => void) | null): JobQueue {
  const known = new Set<string>()
  let waiting: Job[] = []
  const active = new Map<Job, Consumer>()
  const consumers = new Set<Consumer>()

  function dispatch (): void {
    while (waiting.length > 0) {
      const free = [...consumers].filter((consumer) => consumer.room > 0)
      if (free.length === 0) return
      const job = waiting.shift() as Job
      const consumer = random.pick(free)
      give(job, consumer)
      if (timeline.now() < queue.doubleUntil) give({ ...job }, random.pick(free))
    }
  }

  function give (job: Job, consumer: Consumer): void {
    const { machine } = consumer
    active.set(job, consumer)
    consumer.room--
    const slow = timeline.now() < queue.slowUntil ? random.next() * 800 : 0
    machine.deliver(timeline.now() + 0.1 + random.next() + slow, () => {
      trace?.(machine.name, `takes job ${job.id}`)
      const done = () => {
        machine.send('queue', `job ${job.id} is done`, () => over(job)).catch(() => machine.clock.after(50, done))
      }
      consumer.advance(job.conversation).then(done, done)
    })
    watch(job, consumer)
  }

  /** A worker renews its jobs as long as it runs. */
  function watch (job: Job, consumer: Consumer): void {
    timeline.at(timeline.now() + stalledMs, () => {
      if (active.get(job) !== consumer) return false
      if (!consumer.machine.disturbedSince(timeline.now() - stalledMs)) {
        watch(job, consumer)
        return false
      }
      trace?.('queue', `job ${job.id} has stalled`)
      active.delete(job)
      consumer.room++
      waiting.push(job)
      dispatch()
      return false
    })
  }

  function over (job: Job): void {
    const consumer = active.get(job)
    if (consumer === undefined) return
    active.delete(job)
    known.delete(job.id)
    consumer.room++
    dispatch()
  }

  const queue: JobQueue = {
    slowUntil: 0,
    doubleUntil: 0,
    add (conversation, jobs) {
      for (const { id } of jobs) {
        if (known.has(id)) continue
        known.add(id)
        waiting.push({ id, conversation })
      }
      dispatch()
    },
    join (consumer) {
      consumers.add(consumer)
      dispatch()
    },
    leave (machine) {
      for (const consumer of consumers) if (consumer.machine === machine) consumers.delete(consumer)
    },
    lose () {
      waiting = []
      known.clear()
    },
    size: () => waiting.length + active.size
  }
  return queue
}
