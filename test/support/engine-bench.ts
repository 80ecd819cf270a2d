import type { StartRun } from '../../src/core/command.js'
import type { Event } from '../../src/core/event.js'
import type { Limits, ToolPolicy } from '../../src/core/run.js'
import type { WantedJob } from '../../src/core/schedule.js'
import type { CallRules } from '../../src/core/state.js'
import type { RunTool } from '../../src/core/tool.js'
import { createEngine, type Engine } from '../../src/engine/engine.js'
import { createExecute, type Executed } from '../../src/engine/execute.js'
import type { Model, ModelAnswer, ModelListener, ModelRequest } from '../../src/engine/model/model.js'
import type { Ids, Lease, Leases, Log, Settings } from '../../src/engine/ports.js'
import { ToolError, type ToolContext, type Tools } from '../../src/engine/tools/tool.js'
import { createKeys } from '../../src/store/keys.js'
import { createMemoryLimiter } from '../../src/store/memory-limiter.js'
import { createMemoryStore } from '../../src/store/memory-store.js'
import type { Commit, Feed, Presence, Store, WorkerNote } from '../../src/store/store.js'
import { limitsWith, policyWith } from './core-scene.js'
import { createFakeClock, settled, type FakeClock } from './fake-clock.js'

/** An LLM call that waits for the test to answer it. */
export interface Asked {
  request: ModelRequest
  signal: AbortSignal
  text: (text: string) => void
  answer: (answer: Partial<ModelAnswer>) => Promise<void>
  fail: (error: Error) => Promise<void>
}

/** A tool call that waits for the test to settle it. */
export interface Ran {
  tool: RunTool
  args: Record<string, unknown>
  context: ToolContext
  done: (output: unknown) => Promise<void>
  fail: (error: unknown) => Promise<void>
}

/** What happens to the next calls of a store method: it rejects before or after it was done, or is not answered. */
type StoreFault = 'before' | 'after' | 'never'

/** A process: its own engine or, for one that only takes requests, its own `execute`, on what all share. */
export interface Process { executed: Executed, store: Store, notes: WorkerNote[], logged: string[] }
export interface Worker extends Process { engine: Engine }

export interface EngineBench {
  clock: FakeClock
  store: Store
  presence: Presence
  feed: Feed
  /** Faults of the next calls of a method, first come first served. */
  faults: Partial<Record<keyof Store, StoreFault[]>>
  commits: Commit[]
  /** Happens just before a commit arrives at the store. */
  beforeCommit: ((commit: Commit) => Promise<void>) | null
  /** Happens when a commit has been stored, before its answer goes out. */
  afterCommit: ((commit: Commit) => Promise<void>) | null
  /** Every hint, in order. */
  hints: { conversation: string, jobs: WantedJob[] }[]
  /** Hints fail while this is set. */
  queueAway: boolean
  /** LLM calls and tool calls that have begun, in order. */
  asked: Asked[]
  ran: Ran[]
  /** Who holds which lease, and the leases that were given. */
  locks: Map<string, string>
  leases: { conversation: string, lost: AbortController }[]
  worker: (name: string, settings?: Partial<Settings>) => Promise<Worker>
  api: (name?: string) => Process
  /** Posts a run on conversation `c`. */
  start: (process: Process, over?: RunOptions) => ReturnType<Executed['execute']>
  events: (conversation?: string) => Promise<Event[]>
  /** The events in short. */
  said: (conversation?: string) => Promise<string[]>
}

export type RunOptions = Partial<Omit<StartRun, 'limits' | 'policy'>> & { limits?: Partial<Limits>, policy?: Partial<ToolPolicy>, tools?: string[] }

/** What the tools of the bench are: `write` writes, `pay` writes and is idempotent, `far` is spread. */
const RULES: Record<string, Partial<CallRules>> = {
  write: { effects: 'write' }, pay: { effects: 'write', idempotent: true }, far: { placement: 'spread' }
}

export const LEASE_MS = 10_000
export const SWEEP_MS = 1000

/** The engine on a store in memory and on a clock that the test moves; model, tools and leases do what the test says. */
export function createBench (): EngineBench {
  const clock = createFakeClock()
  const memory = createMemoryStore(createKeys('il', 4))
  memory.clock.now = clock.now
  let ids = 0
  const nextId: Ids = { next: () => String(++ids).padStart(26, '0') }

  const store = Object.fromEntries(Object.entries(memory.store).map(([name, method]) => [name, async (...args: unknown[]) => {
    const fault = bench.faults[name as keyof Store]?.shift()
    if (fault === 'before') throw new Error('the store is away')
    if (name === 'commit') {
      bench.commits.push(args[0] as Commit)
      await bench.beforeCommit?.(args[0] as Commit)
    }
    const result = await (method as (...args: unknown[]) => Promise<unknown>)(...args)
    if (name === 'commit') await bench.afterCommit?.(args[0] as Commit)
    if (fault === 'after') throw new Error('the reply was lost')
    if (fault === 'never') await new Promise(() => { /* no answer comes */ })
    return result
  }])) as unknown as Store

  const model: Model = {
    complete: (request, { signal, onText }: ModelListener) => new Promise((resolve, reject) => {
      signal.addEventListener('abort', () => reject(signal.reason as Error))
      bench.asked.push({
        request,
        signal,
        text: onText,
        async answer (answer) {
          resolve({ text: '', refusal: null, finish_reason: answer.tool_calls === undefined ? 'stop' : 'tool_calls', tool_calls: [], usage: null, ...answer })
          await settled()
        },
        async fail (error) {
          reject(error)
          await settled()
        }
      })
    })
  }

  const tools: Tools = {
    listings: async () => [],
    expand: async () => ({ tools: [], faults: [] }),
    check: async () => [],
    describe: ({ name }) => ({ type: 'function', function: { name, parameters: {} } }),
    rules: ({ name }, timeoutMs) => ({ effects: 'read', idempotent: false, placement: 'local', timeout_ms: timeoutMs, ...RULES[name] }),
    validate: () => { /* nothing is wrong with it */ },
    parse (_, raw) {
      try {
        return JSON.parse(raw) as Record<string, unknown>
      } catch {
        throw new ToolError('invalid_arguments', 'no JSON')
      }
    },
    run: (tool, args, context) => new Promise((resolve, reject) => {
      context.signal.addEventListener('abort', () => reject(context.signal.reason as Error))
      bench.ran.push({
        tool,
        args,
        context,
        async done (output) {
          resolve(output)
          await settled()
        },
        async fail (error) {
          reject(error as Error)
          await settled()
        }
      })
    }),
    close: async () => {}
  }

  const leases = (worker: string): Leases => ({
    async acquire (conversation): Promise<Lease | null> {
      if (bench.locks.has(conversation)) return null
      bench.locks.set(conversation, worker)
      const lost = new AbortController()
      bench.leases.push({ conversation, lost })
      return { signal: lost.signal, release: () => { if (bench.locks.get(conversation) === worker) bench.locks.delete(conversation) } }
    }
  })

  function parts (name: string, settings: Partial<Settings>) {
    const logged: string[] = []
    const notes: WorkerNote[] = []
    const write = (_: unknown, message?: string) => { logged.push(message ?? '') }
    const log = { debug: write, info: write, warn: write, error: write } as Log
    const feed: Feed = {
      ...memory.feed,
      tell: async (worker, note) => {
        notes.push(note)
        await memory.feed.tell(worker, note)
      }
    }
    const hints = {
      add: async (conversation: string, jobs: WantedJob[]) => {
        if (bench.queueAway) throw new Error('the queue is away')
        bench.hints.push({ conversation, jobs })
      }
    }
    return {
      logged,
      notes,
      deps: {
        store, reads: store, feed, presence: memory.presence, hints, tools, clock, ids: nextId, log, model, leases: leases(name), random: () => 0.5,
        settings: { worker: name, leaseMs: LEASE_MS, sweepMs: SWEEP_MS, turns: 64, calls: 256, localCalls: 8, modelAttempts: 4, ...settings }
      }
    }
  }

  const bench: EngineBench = {
    clock,
    store: memory.store,
    presence: memory.presence,
    feed: memory.feed,
    faults: {},
    commits: [],
    beforeCommit: null,
    afterCommit: null,
    hints: [],
    queueAway: false,
    asked: [],
    ran: [],
    locks: new Map(),
    leases: [],
    async worker (name, settings = {}) {
      const { deps, logged, notes } = parts(name, settings)
      const engine = createEngine({ ...deps, limiter: createMemoryLimiter(clock) })
      await engine.start()
      return { engine, executed: engine, store, logged, notes }
    },
    api (name = 'api') {
      const { deps, logged, notes } = parts(name, {})
      return { executed: createExecute(deps, null), store, logged, notes }
    },
    start ({ executed }, { limits, policy, tools: names = ['look', 'write', 'pay', 'far'], ...over } = {}) {
      const runId = over.run_id ?? 'run_1'
      return executed.execute(over.conversation_id ?? 'c', {
        type: 'StartRun',
        at: clock.now(),
        conversation_id: 'c',
        run_id: runId,
        tenant: 'me',
        new_conversation: true,
        due_at: null,
        models: ['small'],
        limits: limitsWith(limits),
        policy: policyWith(policy),
        metadata: {},
        on_active_run: 'queue',
        messages: [{ id: `msg_${runId}`, role: 'user', content: `input of ${runId}` }],
        input: `input of ${runId}`,
        spec: JSON.stringify({ instructions: null, model_options: {}, tools: names.map((name) => ({ kind: 'module', name })) }),
        ...over
      }, { claim: 'local' })
    },
    events: async (conversation = 'c') => (await memory.store.log(conversation, 0, 100_000)).map(({ json }) => JSON.parse(json) as Event),
    said: async (conversation = 'c') => (await bench.events(conversation)).map(({ type, attempt }) => typeof attempt === 'number' && attempt > 1 ? `${type} ${attempt}` : type)
  }
  return bench
}

/** Tool calls as a model writes them. */
export function calls (...names: string[]): ModelAnswer['tool_calls'] {
  return names.map((name, i) => ({ id: `p${i}`, name, arguments: JSON.stringify({ n: i }) }))
}
