import { createEngine, type Engine } from '../../src/engine/engine.js'
import { createExecute, type Executed } from '../../src/engine/execute.js'
import type { Hints, Ids, Log, Settings } from '../../src/engine/ports.js'
import { docNames } from '../../src/core/draft.js'
import { createKeys } from '../../src/store/keys.js'
import { TERMINAL, type Event } from '../../src/core/event.js'
import { createActionService } from '../../src/services/actions.js'
import { createOrphanService } from '../../src/services/orphans.js'
import { createMemoryLimiter } from '../../src/store/memory-limiter.js'
import { createMemoryStore } from '../../src/store/memory-store.js'
import type { Delta, Feed, Limiter, Presence, Signal, Store, StoredEvent, WorkerNote } from '../../src/store/store.js'
import { makeFaults, type Fault } from './faults.js'
import { createLeases, type Grant, type LockTable } from './leases.js'
import { createMachine, type Controls, type Fortune, type Host, type Machine } from './machine.js'
import { createProvider, type LlmCall } from './provider.js'
import { createQueue } from './queue.js'
import { createRandom } from './random.js'
import { createTimeline } from './timeline.js'
import { createToolbox, type Execution } from './toolbox.js'
import { createUsers, type Entrance, type Request } from './users.js'
import { makeWorkload, type Role, type Workload } from './workload.js'

export const LEASE_MS = 1000
const SWEEP_MS = 200
const STALLED_MS = 800
/** Nothing goes wrong any more from here on. */
const CALM_AFTER_MS = 4000
/** By when everything must have come to rest after that. */
export const REST_MS = 25_000
const START = 1_893_456_000_000

/** One life of a conversation, from its creation to its end: what its readers have been told. */
export interface Life {
  conversation: string
  events: StoredEvent[]
  /** The same, read. */
  told: Event[]
  /** When each event was published. */
  times: number[]
  /** Streamed text as a reader keeps it, per `<run>.<turn>.<attempt>`. */
  texts: Map<string, string>
  /** Readings of streamed text that made no sense. */
  garbled: string[]
  /** Messages that were accepted and not yet delivered. */
  waiting: Set<unknown>
  /** The attempt that may stream now: `<run>.<turn>.<attempt>`. */
  streaming: string | null
  removed: boolean
}

/** All that can be seen from outside, after everything has come to rest. */
export interface Evidence {
  seed: number
  faults: Fault[]
  /** Faults that did happen. */
  struck: Fault[]
  workload: Workload
  lives: Life[]
  requests: Request[]
  llmCalls: LlmCall[]
  executions: Execution[]
  grants: Grant[]
  /** When a process was killed, by its name. */
  deaths: Map<string, number>
  /** What the product itself called an error. */
  errors: string[]
  /** The calls whose orphans are listed at the end, by run. */
  orphans: Map<string, string[]>
  /** What is stored of each conversation that stands at the end. `asked`: the arguments its calls are shown with. */
  stored: Map<string, { ledger: string[], log: StoredEvent[], partial: unknown, asked: Map<string, unknown> }>
  /** Requests that waited too long for an answer. */
  late: string[]
  /** What should be gone once everything is at rest. */
  leftovers: string[]
  /** Not everything had come to rest in time. */
  stuck: string | null
  happened: number
}

/** Lets one seed happen. `without`: faults of it, by their number, that are left out. */
export async function simulate (seed: number, options: { without?: Set<number>, trace?: (line: string) => void } = {}): Promise<Evidence> {
  const { without = new Set(), trace: tell = null } = options
  const workload = makeWorkload(createRandom(seed, 'workload'))
  const planned = makeFaults(createRandom(seed, 'faults'), workload.machines.length, LEASE_MS)
  const faults = planned.filter((_, i) => !without.has(i))
  const calmFrom = START + (faults.length === 0 && workload.errorRate === 0 ? 0 : CALM_AFTER_MS)

  const timeline = createTimeline(START)
  const trace = tell === null ? null : (who: string, what: string) => {
    tell(`${(timeline.now() - START).toFixed(1).padStart(8)}  ${who.padEnd(5)} ${what}`)
  }
  const keys = createKeys('il', 4)
  const memory = createMemoryStore(keys)
  memory.clock.now = () => timeline.now()
  const locks: LockTable = new Map()
  const grants: Grant[] = []
  const chance = createRandom(seed, 'chance')
  const calm = () => timeline.now() >= calmFrom
  const queue = createQueue(timeline, createRandom(seed, 'queue'), STALLED_MS, trace)
  const deaths = new Map<string, number>()
  const errors: string[] = []
  const struck: Fault[] = []
  let deafUntil = 0

  // --- What readers are told ---------------------------------------------------------------------------------------------------------
  const lives: Life[] = []
  const living = new Map<string, Life>()
  const lifeOfRun = new Map<string, Life>()
  const runOfCall = new Map<string, string>()
  const openRuns = new Set<string>()
  const seqOf = (runId: string) => lifeOfRun.get(runId)?.events.length ?? 0

  function lifeOf (conversation: string): Life {
    let life = living.get(conversation)
    if (life === undefined) {
      life = { conversation, events: [], told: [], times: [], texts: new Map(), garbled: [], waiting: new Set(), streaming: null, removed: false }
      living.set(conversation, life)
      lives.push(life)
    }
    return life
  }

  function hear (conversation: string, signal: Signal): void {
    const life = lifeOf(conversation)
    if (signal.kind === 'events') {
      for (const event of signal.events) {
        trace?.('log', `${event.seq} ${event.type}${event.run_id === null ? '' : ` ${event.run_id}`}`)
        const told = JSON.parse(event.json) as Event
        life.events.push(event)
        life.told.push(told)
        life.times.push(timeline.now())
        users.people.hear(conversation, told)
        if (event.type === 'turn.completed') for (const { call_id: id } of told.tool_calls as { call_id: string }[]) runOfCall.set(id, event.run_id as string)
        if (event.type.startsWith('message.')) {
          const { message_id: id } = told
          if (event.type === 'message.accepted') life.waiting.add(id)
          else life.waiting.delete(id)
        }
        if (event.type.startsWith('turn.')) {
          const { turn, attempt } = told
          life.streaming = event.type === 'turn.started' || event.type === 'turn.retrying' ? `${event.run_id}.${turn}.${String(attempt)}` : null
        }
        if (event.type === 'run.created' && event.run_id !== null) {
          lifeOfRun.set(event.run_id, life)
          openRuns.add(event.run_id)
        } else if (TERMINAL.has(event.type) && event.run_id !== null) {
          openRuns.delete(event.run_id)
        }
      }
    } else if (signal.kind === 'delta') {
      const { run_id: run, turn, attempt, offset, text } = JSON.parse(signal.json) as Delta
      const name = `${run}.${turn}.${attempt}`
      const before = life.texts.get(name) ?? ''
      if (name !== life.streaming) life.garbled.push(`${name} streams, but the turn is at ${life.streaming}`)
      if (offset > before.length) life.garbled.push(`${name}: text at ${offset}, but the reader has ${before.length}`)
      life.texts.set(name, before.slice(0, offset) + text)
    } else if (signal.kind === 'removed') {
      trace?.('log', `${conversation} is removed`)
      life.removed = true
      living.delete(conversation)
      for (const [run, one] of lifeOfRun) if (one === life) openRuns.delete(run)
    }
  }
  for (let i = 0; i < workload.sessions.length; i++) await memory.feed.subscribe(`conv_${i + 1}`, (signal) => hear(`conv_${i + 1}`, signal))

  // --- Processes ---------------------------------------------------------------------------------------------------------------------
  const provider = createProvider({ seed, timeline, errorRate: workload.errorRate, leaseMs: LEASE_MS, calm, seqOf, trace })
  const toolbox = createToolbox({ seed, timeline, leaseMs: LEASE_MS, seqOf, trace })
  const fortunes = workload.machines.map((_, number): Fortune => {
    return { number, skew: workload.skews[number] as number, lives: 0, steps: 0, pending: faults.filter((fault) => fault.machine === number).sort((a, b) => a.step - b.step) }
  })
  const running = new Map<number, { controls: Controls, engine: Engine | null, entrance: Entrance | null, stopping: boolean }>()
  // Redis counts the starts of all processes, by its own clock.
  const limits = createMemoryLimiter({ now: () => timeline.now() })
  const ears = new Map<string, { machine: Machine, listener: (note: WorkerNote) => void }>()
  let ids = 0

  const host: Host = { timeline, latency: createRandom(seed, 'latency'), smooth: faults.length === 0, calm, trace, strike }

  function strike (fault: Fault, machine: Machine): void {
    struck.push(fault)
    const now = timeline.now()
    switch (fault.kind) {
      case 'crash':
        kill(fault.machine, fault.lost)
        timeline.at(now + fault.ms, () => start(fault.machine, workload.machines[fault.machine] as Role))
        break
      case 'stop':
        shut(fault.machine, fault.grace, fault.ms)
        break
      case 'outage':
        for (const { controls } of running.values()) controls.cut(fault.ms)
        break
      case 'deafness':
        deafUntil = Math.max(deafUntil, now + fault.ms)
        break
      case 'queue_lost':
        queue.lose()
        break
      case 'queue_slow':
        queue.slowUntil = now + fault.ms
        break
      case 'queue_double':
        queue.doubleUntil = now + fault.ms
        break
    }
    void machine
  }

  function kill (number: number, lost: boolean): void {
    const process = running.get(number)
    if (process === undefined) return
    process.controls.kill(lost)
    deaths.set(process.controls.machine.name, timeline.now())
    queue.leave(process.controls.machine)
    ears.delete(process.controls.machine.name)
    running.delete(number)
  }

  function shut (number: number, grace: number, ms: number): void {
    const process = running.get(number)
    if (process === undefined || process.stopping) return
    process.stopping = true
    process.entrance = null
    const { controls: { machine }, engine } = process
    queue.leave(machine)
    const end = () => {
      if (!machine.alive()) return
      trace?.(machine.name, 'has stopped')
      kill(number, false)
      timeline.at(timeline.now() + ms, () => start(number, workload.machines[number] as Role))
    }
    if (engine === null) end()
    else machine.deliver(timeline.now(), () => { engine.stop(grace).then(end, (error: Error) => errors.push(`stop failed: ${error.message}`)) })
  }

  function start (number: number, role: Role): boolean {
    if (running.has(number)) return false
    const controls = createMachine(host, fortunes[number] as Fortune)
    const { machine } = controls
    const { clock } = machine
    const send = <T>(what: string, perform: () => Promise<T>) => machine.send('command', what, perform)
    const { store: stored, presence: signs } = memory
    const store: Store = {
      load: (conversation) => send(`load ${conversation}`, () => stored.load(conversation)),
      commit: (commit) => send(`commit ${commit.conversation} on ${commit.base?.version ?? 'nothing'}`, () => stored.commit(commit)),
      docs: (conversation, names) => send('docs', () => stored.docs(conversation, names)),
      ledger: (conversation, from, limit) => send('ledger', () => stored.ledger(conversation, from, limit)),
      log: (conversation, after, limit) => send('log', () => stored.log(conversation, after, limit)),
      append: (conversation, fence, delta) => send('append', () => stored.append(conversation, fence, delta)),
      partial: (conversation) => send('partial', () => stored.partial(conversation)),
      remove: (conversation) => send(`remove ${conversation}`, () => stored.remove(conversation)),
      takeDue: (now, until, limit) => send('take due', () => stored.takeDue(now, until, limit)),
      postpone: (conversation, base, due) => send(`postpone ${conversation} to ${due - START}`, () => stored.postpone(conversation, base, due)),
      findRun: (tenant, run) => send('find run', () => stored.findRun(tenant, run)),
      listRuns: (tenant, before, limit) => send('list runs', () => stored.listRuns(tenant, before, limit))
    }
    const presence: Presence = {
      beat: (worker, ttl) => send('beat', () => signs.beat(worker, ttl)),
      leave: (worker) => send('leave', () => signs.leave(worker)),
      left: (workers) => send('left', () => signs.left(workers))
    }
    const feed: Feed = {
      ...memory.feed,
      announce: (conversation, runId, worker) => send('announce', () => memory.feed.announce(conversation, runId, worker)),
      tell: (worker, note) => send(`tell ${worker} to ${note.type}`, async () => {
        const ear = ears.get(worker)
        if (ear !== undefined && timeline.now() >= deafUntil) ear.machine.deliver(timeline.now() + chance.next(), () => ear.listener(note))
      }),
      listen: async (worker, listener) => {
        ears.set(worker, { machine, listener })
        return () => ears.delete(worker)
      }
    }
    const limiter: Limiter = { reserve: (name, max, perMs, placed) => send('reserve', () => limits.reserve(name, max, perMs, placed)) }
    const hints: Hints = {
      add: (conversation, jobs) => machine.send('queue', `jobs ${jobs.map(({ id }) => id).join(' ')}`, () => queue.add(conversation, jobs))
    }
    const nextId: Ids = { next: () => String(++ids).padStart(26, '0') }
    const settings: Settings = {
      worker: machine.name, leaseMs: LEASE_MS, sweepMs: SWEEP_MS, turns: 4, calls: 12, localCalls: 2, modelAttempts: 3
    }
    const log: Log = {
      debug: () => {},
      info: () => {},
      warn: () => {},
      error: (fields: unknown, message?: string) => {
        const { err } = fields as { err?: Error }
        errors.push(`${message ?? ''}${err === undefined ? '' : `: ${err.stack}`}`)
        trace?.(machine.name, `ERROR ${message ?? ''} ${err?.message ?? JSON.stringify(fields)}`)
      }
    }
    const shared = { store, reads: store, feed, hints, tools: toolbox.toolsOf(machine), clock, ids: nextId, log, settings }
    trace?.(machine.name, `starts as ${role}`)

    let engine: Engine | null = null
    if (role !== 'api') {
      const leases = createLeases(machine, timeline, locks, LEASE_MS, grants)
      engine = createEngine({ ...shared, presence, leases, limiter, model: provider.modelOf(machine), random: chance.next })
    }
    const executed: Executed = engine ?? createExecute(shared, null)
    const context = { ...shared, executed }
    const entrance = role === 'worker' ? null : { machine, executed, store, actions: createActionService(context), orphans: createOrphanService(context) }
    const process = { controls, engine, entrance, stopping: false }
    running.set(number, process)
    if (engine === null) return true

    const worker = engine
    const open = (): void => {
      worker.start().then(() => {
        if (process.stopping) return
        queue.join({ machine, room: settings.turns, advance: worker.advance })
        const tick = (): void => {
          if (process.stopping) return
          const again = () => { clock.after(SWEEP_MS * (0.75 + chance.next() / 4), tick) }
          worker.sweep().then(again, again)
        }
        clock.after(SWEEP_MS * chance.next(), tick)
      }, () => { clock.after(20, open) })
    }
    machine.deliver(timeline.now(), open)
    return true
  }

  // --- Everything goes its way -------------------------------------------------------------------------------------------------------
  workload.machines.forEach((role, number) => start(number, role))
  const users = createUsers({
    seed,
    timeline,
    random: createRandom(seed, 'users'),
    keys,
    entrances: () => [...running.values()].flatMap(({ entrance }) => entrance ?? []),
    calm,
    calmFrom,
    failed: (error) => { errors.push(error.stack ?? error.message) },
    trace
  })
  workload.sessions.forEach((session, i) => users.begin(i + 1, session))
  timeline.at(calmFrom, () => {
    trace?.('---', 'from here on nothing goes wrong')
    for (const { controls } of running.values()) controls.heal()
    deafUntil = queue.slowUntil = queue.doubleUntil = 0
    return false
  })

  const idle = () => {
    if (running.size < workload.machines.length || toolbox.goesOn()) return false
    for (const { waiting } of living.values()) if (waiting.size > 0) return false
    for (const { controls, engine, stopping } of running.values()) {
      if (stopping || !controls.quiet()) return false
      const load = engine?.load()
      if (load !== undefined && load.turns + load.calls > 0) return false
    }
    return true
  }
  let restSince: number | null = null
  await timeline.run(() => {
    const now = timeline.now()
    if (now > calmFrom + REST_MS) return true
    if (users.open() > 0 || openRuns.size > 0) {
      restSince = null
      return false
    }
    for (const [conversation, lock] of locks) if (lock.until <= now) locks.delete(conversation)
    restSince = locks.size === 0 && queue.size() === 0 && idle() ? restSince ?? now : null
    // A late note or a sweep may still come.
    return restSince !== null && now - restSince > 300
  })
  const now = timeline.now()
  const stuck = now > calmFrom + REST_MS
    ? [`runs ${[...openRuns].join(' ')}`, `requests ${users.open()}`, idle() ? '' : 'a worker is busy', locks.size > 0 ? 'locked' : '', `jobs ${queue.size()}`].join(', ')
    : null

  const stored: Evidence['stored'] = new Map()
  const leftovers: string[] = []
  const orphans = new Map<string, string[]>()
  for (const { conversation, told } of living.values()) {
    const { store } = memory
    const calls = told.flatMap((event) => event.type === 'turn.completed' ? (event.tool_calls as { call_id: string }[]).map((call) => call.call_id) : [])
    const shown = await store.docs(conversation, calls.map(docNames.call))
    const asked = new Map(calls.map((id, i) => [id, shown[i] == null ? null : (JSON.parse(shown[i]) as { arguments: unknown }).arguments]))
    // It only reads here.
    const orphansOf = createOrphanService({ store, reads: store, clock: { now: () => timeline.now(), after: () => () => {} }, executed: null as never })
    for (const run of new Set(told.flatMap((event) => event.type === 'tool.orphaned' ? runOfCall.get(event.call_id as string) ?? [] : []))) {
      orphans.set(run, (await orphansOf.list({ tenant: 'tenant', operation: '' }, run)).data.map((one) => one.call_id))
    }
    stored.set(conversation, {
      ledger: await store.ledger(conversation, 0),
      log: await store.log(conversation, 0, 100_000),
      partial: await store.partial(conversation),
      asked
    })
  }
  for (let i = 0; i < workload.sessions.length; i++) {
    const conversation = `conv_${i + 1}`
    if (!living.has(conversation) && await memory.store.load(conversation) !== null) leftovers.push(`${conversation} stands, but nobody was told`)
  }
  if (stuck === null) {
    leftovers.push(...(await memory.store.takeDue(now + 1e12, now + 2e12, 1000)).map((conversation) => `${conversation} is due for ever`))
    for (const [conversation, { partial }] of stored) if (partial !== null) leftovers.push(`text of a running turn in ${conversation}`)
  }
  return {
    seed, faults, struck, workload, lives, requests: users.requests, late: users.late, llmCalls: provider.calls, executions: toolbox.executions, grants, deaths, errors,
    orphans, stored, leftovers, stuck,
    happened: timeline.happened()
  }
}
