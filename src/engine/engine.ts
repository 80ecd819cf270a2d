import type { Executor } from '../core/command.js'
import type { Event } from '../core/event.js'
import { CALLS_PER_JOB, dueAt, isOverdue, wanted } from '../core/schedule.js'
import { claimsOf, type Claim } from '../core/state.js'
import type { Presence, WorkerNote } from '../store/store.js'
import { readArguments } from './arguments.js'
import { createExecute, type Executed, type Performer } from './execute.js'
import { pause } from './patience.js'
import { createClaimedWork, type WorkDeps } from './work.js'

export interface EngineDeps extends Omit<WorkDeps, 'signStands' | 'ended'> {
  presence: Presence
  observe?: (events: Event[]) => void
}

/** A worker. What it is told to execute, it may claim for itself. */
export interface Engine extends Executed {
  /** Takes the part of a worker: shows signs of life, takes notes, and from now on work. May be tried again when it rejects. */
  start: () => Promise<void>
  /**
   * Begins what is due for a conversation, a turn as soon as there is a place for it, first come, first served (N4). Resolves when it has begun; at once
   * when nothing was due, or when there are calls that this worker has no room for: the sweep asks again.
   */
  advance: (conversation: string) => Promise<void>
  /** Looks at every conversation whose due time has passed. Returns how many there were. */
  sweep: () => Promise<number>
  /** Takes no more work, lets what runs finish for up to `graceMs`, then hands the rest over. */
  stop: (graceMs: number) => Promise<void>
  /** What runs here now. */
  load: () => { turns: number, calls: number }
}

/**
 * What part of the time that a sign of life holds may lie between two of ours before we doubt those of others. Theirs may be a third older than ours: had
 * Redis been away for less than this, they would have had the rest to come back.
 */
const DOUBT = 1 / 2

/** The least time in which a living worker is back after an outage: its connection tries four times a second. Milliseconds. */
const RETURN_MS = 1000

/** Into how many parts a renewal's time is cut, to show a sign of life again that could not be shown. */
const BEAT_TRIES = 10

/** How often one sweep takes what is due, as long as there is any: a worker that held very many conversations is not missed one sweep after the other. */
const SWEEP_ROUNDS = 16

/** Milliseconds that handing over what could not be finished may take, when the store does not answer. */
const HAND_OVER_MS = 2000

/** The worker: performs turns and calls it has claimed, one step each, and takes over from those that are gone. */
export function createEngine (deps: EngineDeps): Engine {
  const { store, feed, presence, hints, clock, log, settings } = deps
  let open = false
  /** When the sign of life was last sent, of those that were shown: from then on it stands for a lease at least. */
  let beaten = clock.now()
  /**
   * From when on a sign of life that is not there says that its worker is gone. Where none could be shown for a while, because Redis was away, the living
   * come back together with us: they have the time of one renewal.
   */
  let signsCountFrom = 0
  const returnMs = Math.max(settings.leaseMs / 3, RETURN_MS)
  /** Places that are taken for turns about to be claimed. */
  let reserved = 0
  /** Jobs that wait for a place, in the order in which they came. */
  const line: (() => void)[] = []
  /** Commits under way that may claim work. */
  const arriving = new Set<Promise<unknown>>()
  let unlisten = () => { /* not listening yet */ }
  /** Cancels the next sign of life. */
  let rest = () => { /* none is planned yet */ }
  /** None is planned any more. */
  let rested = false

  const performer: Performer = {
    room (conversation, claim, taken): Omit<Executor, 'worker'> {
      if (!open) return { turn: false, calls: 0, spread: false }
      const spread = claim !== 'local'
      const { running } = work
      return {
        // A job has its place already.
        turn: claim === 'spread' || isRoomy(),
        calls: Math.min(spread ? CALLS_PER_JOB : settings.localCalls - work.callsOf(conversation) - taken, settings.calls - running.calls - taken),
        spread
      }
    },
    perform (conversation, row, effect, claimedAt) {
      if (effect.type === 'abort') return work.abort(conversation, effect.fence, effect.call_ids, effect.reason)
      if (row === null) return
      // Of commands that were stored together one may have undone what another one claimed: what stands in the row is performed.
      const claims = claimsOf(row.state).filter(({ worker }) => worker === settings.worker)
      switch (effect.type) {
        case 'call_model':
          if (claims.some((claim) => claim.fence === effect.fence)) work.startTurn(conversation, row, effect, claimedAt)
          return
        case 'run_calls':
        case 'take_places': {
          const calls = effect.calls.filter(({ call_id: id, attempt }) => claims.some((claim) => claim.call_id === id && claim.attempt === attempt))
          if (calls.length > 0) work.startCalls(conversation, row, calls, claimedAt, effect.type === 'take_places')
        }
      }
    }
  }
  const executed = createExecute(deps, performer)
  const { execute } = executed
  const work = createClaimedWork({ ...deps, signStands, ended: handOut }, executed)

  /** Whatever a command claims is not known here before it is stored, and a worker that stops waits for that. */
  const claiming: Executed['execute'] = async (conversation, command, options) => {
    const coming = execute(conversation, command, options)
    arriving.add(coming)
    try {
      return await coming
    } finally {
      arriving.delete(coming)
    }
  }

  /** Comes for work. */
  const come = (conversation: string, at: number, claim: 'spread' | 'sweep') => claiming(conversation, { type: 'Advance', at }, { claim })

  /** Hands out the places there are, to those in line first. Who is handed one has it until it has come. */
  function handOut (): void {
    while (line.length > 0 && (isRoomy() || !open)) {
      reserved++
      line.shift()?.()
    }
  }

  const isRoomy = () => work.running.turns + reserved < settings.turns

  /** A note from another process, or from ourselves. */
  function take (note: WorkerNote): void {
    if (note.type === 'missed') return recheck()
    const { conversation } = note
    if (note.type === 'check') {
      // Between two commits, what is claimed for us and what is known here agree. If they do not, a claim's start was lost, or Redis has lost its end:
      // then the row kept here is of a time that never was.
      executed.forget(conversation)
      executed.between(conversation, (row) => {
        const lost = row === null ? [] : claimsOf(row.state).filter((claim) => claim.worker === settings.worker && !work.isKnown(conversation, claim))
        if (lost.length === 0) return
        work.track(conversation, () => lapse(conversation, lost).catch((error: Error) => {
          log.warn({ conversation_id: conversation, err: error.message }, 'could not give up a claim that was never begun; the sweep will')
        }))
      })
      return
    }
    if (note.type === 'report') {
      const announce = () => feed.announce(conversation, note.run_id, settings.worker).catch(() => { /* who waits does not wait for ever */ })
      // Between two commits, so that what one of them claims is known here.
      return executed.between(conversation, () => void work.settledRun(conversation, note.run_id).then(announce))
    }
    // What it is about may be known here only when the commit that claims it has been answered.
    executed.doubt(conversation)
    work.abort(conversation, note.fence, note.call_ids, note.reason)
  }

  /** Others may have what we have claimed. */
  function recheck (): void {
    executed.doubt()
    work.recheck()
  }

  async function signStands (signal: AbortSignal): Promise<void> {
    while (!signal.aborted && clock.now() - beaten >= settings.leaseMs) {
      await beat().catch(() => pause(clock, settings.leaseMs / 3 / BEAT_TRIES))
    }
  }

  /** Gives up claims whose worker is gone, or goes, and lets time do what it has to do. */
  async function lapse (conversation: string, lost: Claim[], handedOver = false): Promise<void> {
    const calls = lost.filter((claim) => claim.call_id !== null) as (Claim & { call_id: string })[]
    const args = calls.length === 0 ? null : await readArguments(deps.reads, conversation, calls.map((claim) => claim.call_id))
    await execute(conversation, {
      type: 'Lapse',
      at: clock.now(),
      fence: lost.find((claim) => claim.fence !== null)?.fence ?? null,
      calls: calls.map(({ call_id, attempt }) => ({ call_id, attempt, arguments: args?.get(call_id) ?? {} })),
      ...(handedOver && { handed_over: true })
    })
  }

  const isOpenForWork = () => open && (work.running.turns < settings.turns || work.running.calls < settings.calls)

  async function lookAt (conversation: string): Promise<void> {
    const before = await store.load(conversation)
    if (before === null) return
    const claims = claimsOf(before.state)
    // Without claims there is nobody to judge.
    const workers = claims.length === 0 ? [] : [...new Set([settings.worker, ...claims.map((claim) => claim.worker)])]
    const left = new Map((await presence.left(workers)).map((ms, i) => [workers[i] as string, ms]))
    // Ours is gone as well, though it was shown: Redis' clock may have gone ahead, and everybody's are. Whoever is alive shows another.
    if (open && left.get(settings.worker) === 0) {
      signsCountFrom = clock.now() + returnMs
      await beat()
    }
    const signsCount = clock.now() >= signsCountFrom
    const isLost = (worker: string) => worker !== settings.worker && left.get(worker) === 0 && signsCount
    await lapse(conversation, claims.filter((claim) => isLost(claim.worker)))
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
    const next = Math.max(now + Math.min(...signs) + 1, signsCountFrom)
    await store.postpone(conversation, row, signs.length > 0 ? Math.min(due, next) : due)
    for (const worker of alive) await feed.tell(worker, { type: 'check', conversation })
  }

  async function beat (): Promise<void> {
    const [since, sent] = [beaten, clock.now()]
    await presence.beat(settings.worker, settings.leaseMs)
    beaten = sent
    const now = clock.now()
    const doubted = now + returnMs
    // The clock may have been set back since.
    signsCountFrom = now - since >= DOUBT * settings.leaseMs ? doubted : Math.min(signsCountFrom, doubted)
    // The sign had lapsed, and our claims with it: others may have them by now.
    if (now - since >= settings.leaseMs) recheck()
  }

  /** Shows signs of life from now on, three in the time that one holds; one that could not be shown, as soon as it can. */
  function beatAfter (ms: number): void {
    rest = clock.after(ms, () => {
      beat().then(() => settings.leaseMs / 3, () => settings.leaseMs / 3 / BEAT_TRIES).then((next) => { if (!rested) beatAfter(next) })
    })
  }

  return {
    ...executed,
    execute: claiming,

    async start () {
      await beat()
      // What was before us we have not seen: Redis may just have come back.
      signsCountFrom = clock.now() + returnMs
      unlisten = await feed.listen(settings.worker, take)
      open = true
      beatAfter(settings.leaseMs / 3)
    },

    async advance (conversation) {
      let hasPlace = isRoomy()
      if (hasPlace) reserved++
      for (;;) {
        const at = clock.now()
        const coming = come(conversation, at, hasPlace ? 'spread' : 'sweep')
        const { effects, row } = await coming.finally(() => {
          if (hasPlace) reserved--
          handOut()
        })
        // A job that did nothing must not outlive this: its id is asked for again when there is something to do.
        if (effects.length > 0 || row === null) return
        const phase = row.state.run?.phase
        if (phase?.type !== 'turn' || phase.worker !== null) return
        const early = phase.ready_at - at
        // The clock of whoever made the turn due may be a little ahead of ours.
        if (early > 0 && early <= settings.sweepMs) work.wakeAfter(conversation, early)
        if (early > 0 || hasPlace || !open) return
        await new Promise<void>((resolve) => {
          line.push(resolve)
          handOut()
        })
        hasPlace = true
      }
    },

    async sweep () {
      // Before others are judged by theirs.
      if (open && clock.now() - beaten >= DOUBT * settings.leaseMs) await beat()
      let looked = 0
      for (let rounds = 0; rounds < SWEEP_ROUNDS; rounds++) {
        const now = clock.now()
        // Soon again, should this sweep come to nothing.
        const due = await store.takeDue(now, now + Math.min(2 * settings.sweepMs, settings.leaseMs), 256)
        if (due.length === 0) break
        await Promise.all(due.map((conversation) => lookAt(conversation).catch((error: Error) => {
          log.warn({ conversation_id: conversation, err: error.message }, 'could not look at a due conversation; it stays due')
        })))
        looked += due.length
      }
      return looked
    },

    async stop (graceMs) {
      open = false
      handOut()
      let timer: () => void = () => { /* not set yet */ }
      const grace = new Promise<void>((resolve) => { timer = clock.after(graceMs, resolve) })
      const idle = async () => {
        while (arriving.size > 0 || work.conversations().length > 0) await Promise.allSettled([...arriving, ...work.conversations().map(work.settled)])
      }
      await Promise.race([idle(), grace])
      timer()
      work.abortAll('the worker stops')
      const handOver = Promise.all(work.conversations().map(async (conversation) => {
        const row = await store.load(conversation).catch(() => null)
        const ours = row === null ? [] : claimsOf(row.state).filter((claim) => claim.worker === settings.worker)
        if (ours.length > 0) await lapse(conversation, ours, true).catch(() => { /* the sweep of another worker does it */ })
      }))
      await Promise.race([handOver, new Promise<void>((resolve) => { timer = clock.after(HAND_OVER_MS, resolve) })])
      timer()
      work.close()
      rested = true
      rest()
      unlisten()
      await presence.leave(settings.worker).catch(() => { /* it lapses */ })
    },

    load: () => ({ ...work.running })
  }
}
