import type { Logger } from 'pino'
import { monotonicFactory } from 'ulid'
import type { Config } from './config.js'
import { createEngine, type Engine } from './engine/engine.js'
import { createExecute, type Executed } from './engine/execute.js'
import { createLeases } from './engine/lease.js'
import type { Clock, Ids, Log, Settings } from './engine/ports.js'
import { listModels } from './engine/model/list-models.js'
import { openaiModel } from './engine/model/openai-model.js'
import { startScriptedModel } from './engine/model/scripted/scripted-model.js'
import { openTools } from './engine/tools/tools.js'
import { createHintQueue } from './queue/queue.js'
import { startWorkers, type Workers } from './queue/workers.js'
import type { Line } from './queue/line.js'
import { createSharedClock } from './redis/clock.js'
import { closeRedis, connectRedis, reconnectWith, whenReady, type Connection, type Role } from './redis/connect.js'
import { describeRedis } from './redis/describe.js'
import { openRedis } from './redis/embedded.js'
import { createActionService } from './services/actions.js'
import { createConversationService } from './services/conversations.js'
import type { Context } from './services/context.js'
import { createEventService } from './services/events.js'
import { createIdempotencyService } from './services/idempotency.js'
import { createMessageService } from './services/messages.js'
import { createMetrics } from './services/metrics.js'
import { createRunService } from './services/runs.js'
import { createOrphanService } from './services/orphans.js'
import type { Services } from './services/services.js'
import { createFeed } from './store/feed.js'
import { createKeys } from './store/keys.js'
import { createPresence } from './store/presence.js'
import { createRedisLimiter } from './store/redis-limiter.js'
import { createRedisReads, createRedisStore } from './store/redis-store.js'
import { createUpkeep } from './store/upkeep.js'

/** The process cannot do its work as it is set up. The message is for the operator: what is wrong, and what to do. */
export class StartError extends Error {
  override name = 'StartError'
}

export interface Instance {
  services: Services
  /**
   * Takes work from now on. Resolves when everything works, however long Redis takes; with false when it was stopped before. Rejects with a `StartError`
   * when it never will.
   */
  start: () => Promise<boolean>
  /** Resolves when this process is of no use any more and should end, to be started again. */
  broken: Promise<void>
  /** Takes no more work, finishes what it can in the grace time and hands over the rest. Requests are still answered. */
  drain: () => Promise<void>
  /** Stops work, hands over what cannot be finished, and closes every connection. */
  stop: () => Promise<void>
}

export interface Roles {
  /** Performs turns and calls. */
  worker: boolean
}

/** Milliseconds without a working sweep after which a worker is not ready; or three times its interval, where that is more. */
const STUCK_MS = 15_000

/** Random numbers for ids, from bytes fetched in bulk: an id takes sixteen, and asking the system for each is felt. */
function pooledRandom (): () => number {
  const pool = new Uint8Array(4096)
  let next = pool.length
  return () => {
    if (next === pool.length) {
      crypto.getRandomValues(pool)
      next = 0
    }
    return (pool[next++] as number) / 256
  }
}

/** Puts a process together from its parts. Nothing here decides anything. */
export async function openInstance (config: Config, roles: Roles, log: Logger): Promise<Instance> {
  const redisLog = log.child({ component: 'redis' })
  const redis = await openRedis(config, redisLog)
  const connections: Connection[] = []
  const connect = (role: Role) => {
    const connection = connectRedis(redis.url, role, redisLog)
    connections.push(connection)
    return connection
  }
  const command = connect('command')
  const shared = createSharedClock(command)
  const clock: Clock = {
    now: shared.now,
    after (ms, callback) {
      const timer = setTimeout(callback, ms)
      return () => clearTimeout(timer)
    }
  }
  const keys = createKeys(config.redis.keyPrefix, config.redis.partitions)
  // One for work and one for readers: a reader who catches up keeps no work waiting.
  const [workBulk, readerBulk] = [connect('bulk'), connect('bulk')]
  for (const one of [workBulk, readerBulk]) reconnectWith(command, one)
  const store = createRedisStore(command, workBulk, keys)
  const feed = createFeed(connect('subscriber'), command, keys)
  const line = (role: Role): Line => {
    const connection = connect(role)
    return { connection, close: () => closeRedis(connection) }
  }
  const hints = createHintQueue(() => line('queue'), keys.queuePrefix, log.child({ component: 'queue' }))
  const ulid = monotonicFactory(pooledRandom())
  const ids: Ids = { next: () => ulid() }
  const provider = await openProvider(config, roles, log)
  const tools = await openTools({
    ...(config.tools.dir !== undefined && { dir: config.tools.dir }),
    ...(config.tools.secrets !== undefined && { secrets: config.tools.secrets }),
    ...(config.tools.signingSecret !== undefined && { signingSecret: config.tools.signingSecret }),
    ...(config.tools.mcpServers !== undefined && { mcpServers: config.tools.mcpServers }),
    allowedHosts: config.tools.allowedHosts
  }).catch((error: Error) => { throw new StartError(error.message, { cause: error }) })

  const settings: Settings = {
    worker: ids.next(),
    leaseMs: config.worker.lockTtlMs,
    sweepMs: config.worker.sweepMs,
    turns: config.worker.turnConcurrency,
    calls: config.worker.toolConcurrency,
    localCalls: config.worker.localCalls,
    modelAttempts: config.model.attempts
  }
  let engine: Engine | null = null
  const metrics = createMetrics(() => engine?.load() ?? { turns: 0, calls: 0 })
  const engineLog = log.child({ component: 'engine', worker: settings.worker })
  const limiter = createRedisLimiter(command, keys)
  const presence = createPresence(command, keys)
  const common = { store, reads: createRedisReads(workBulk, keys), feed, hints, tools, clock, ids, log: engineLog, settings, observe: metrics.observe }
  if (roles.worker) {
    const model = openaiModel({ ...provider.connection, timeoutMs: config.model.timeoutMs, idleMs: config.model.idleMs, concurrency: config.model.concurrency })
    const leases = createLeases(connect('lock'), keys, settings.leaseMs, engineLog)
    engine = createEngine({ ...common, presence, leases, limiter, model, random: Math.random })
  }
  const executed: Executed = engine ?? createExecute(common, null)
  const context: Context = {
    store, reads: createRedisReads(readerBulk, keys), feed, keys, executed, presence, upkeep: createUpkeep(command, keys), hints, settings, tools, clock, ids,
    defaultModel: provider.model, parallelTools: config.features.parallelTools
  }

  let workers: Workers | null = null
  let tellBroken = () => { /* set below */ }
  const broken = new Promise<void>((resolve) => { tellBroken = resolve })
  let state = 'starting' as 'starting' | 'working' | 'stopping'
  const isStopping = () => state === 'stopping'

  const services: Services = {
    runs: createRunService(context),
    messages: createMessageService(context),
    actions: createActionService(context),
    orphans: createOrphanService(context),
    conversations: createConversationService(context),
    events: createEventService(context),
    idempotency: createIdempotencyService(command, keys, clock),
    tools: () => tools.listings(),
    models: async () => {
      const known = await provider.list() ?? []
      const names = provider.model === null ? known : [...new Set([provider.model, ...known])]
      return names.map((id) => ({ id, default: id === provider.model }))
    },
    health: {
      ready: async () => {
        const answers = await command.ping().then(() => 'ok', () => 'does not answer')
        const checks: Record<string, string> = { process: state === 'working' ? 'ok' : state, redis: answers }
        if (roles.worker) checks.worker = workers === null ? 'starting' : workers.idleMs() < Math.max(STUCK_MS, 3 * settings.sweepMs) && !workers.isStuck() ? 'ok' : 'makes no progress'
        return { ready: Object.values(checks).every((check) => check === 'ok'), checks }
      }
    },
    metrics: metrics.read
  }

  /** Redis can go away again right after it came: what a start asks of it is asked until it answers. */
  async function untilAnswered<T> (ask: () => Promise<T>): Promise<T> {
    for (;;) {
      try {
        return await ask()
      } catch (error) {
        if (error instanceof StartError || state === 'stopping') throw error
        const { name, message } = error as Error
        if (name === 'ReplyError' && message.startsWith('NOPERM')) throw new StartError(`Redis refuses what Interlock needs (${message}): give the user of REDIS_URL the right to it.`)
        log.warn({ err: (error as Error).message }, 'Redis did not answer during the start; asking again')
        await new Promise((resolve) => setTimeout(resolve, 250))
      }
    }
  }

  const start = async (): Promise<boolean> => {
    await Promise.all(connections.map(whenReady))
    if (isStopping()) return false
    await untilAnswered(shared.look)
    const { refusal, warnings } = await untilAnswered(() => describeRedis(command, config.redis.profile))
    if (refusal !== undefined) throw new StartError(refusal)
    for (const warning of warnings) log.warn({}, warning)
    await untilAnswered(() => fixPartitions(command, keys.meta, config.redis.partitions))
    if (engine !== null) {
      const own = engine
      await untilAnswered(() => own.start())
      if (isStopping()) {
        await own.stop(0)
        return false
      }
      workers = startWorkers(own, hints, {
        connect: () => line('worker'),
        prefix: keys.queuePrefix,
        concurrency: settings.turns,
        stalledMs: config.worker.stalledMs,
        sweepMs: settings.sweepMs,
        watchdogMs: config.worker.watchdogMs,
        answers: () => command.ping().then(() => true, () => false),
        onStuck () {
          log.fatal({ watchdog_ms: config.worker.watchdogMs }, 'due work stands still and new connections did not help; ending, so that the process is started again')
          tellBroken()
        },
        log: log.child({ component: 'worker', worker: settings.worker })
      })
    }
    state = 'working'
    return true
  }
  let starting: Promise<boolean> | undefined

  let draining: Promise<void> | undefined
  const drain = () => {
    state = 'stopping'
    return draining ??= workers?.stop(config.graceMs) ?? Promise.resolve()
  }

  return {
    services,
    start: () => starting ??= start().catch((error: unknown) => {
      // Stopping closes the connections that were waited for.
      if (isStopping()) return false
      throw error
    }),
    broken,
    drain,
    async stop () {
      await drain()
      await hints.close()
      shared.stop()
      await Promise.all(connections.map(closeRedis))
      await Promise.all([tools.close(), provider.close()])
      await redis.stop()
    }
  }
}

/** The number of partitions is part of every key: it is fixed by whoever starts first. */
async function fixPartitions (redis: Connection, key: string, partitions: number): Promise<void> {
  await redis.hsetnx(key, 'partitions', partitions)
  const fixed = await redis.hget(key, 'partitions')
  if (fixed !== String(partitions)) {
    throw new StartError(`INTERLOCK_PARTITIONS is ${partitions}, but the conversations in this Redis are spread over ${fixed}: set it to ${fixed}, or use another INTERLOCK_KEY_PREFIX.`)
  }
}

/** The model of runs that name none, where OpenAI itself answers. */
const OPENAI_MODEL = 'gpt-5-mini'

interface Provider {
  connection: { apiKey: string, baseUrl: string }
  /** The model of runs that name none. */
  model: string | null
  list: () => Promise<string[] | null>
  close: () => Promise<void>
}

/** The provider of the settings, or the built-in scripted model behind the same protocol. */
async function openProvider ({ model }: Config, roles: Roles, log: Log): Promise<Provider> {
  const close = async () => { /* nothing of ours */ }
  if (model.apiKey !== undefined || model.baseUrl !== undefined) {
    const connection = { apiKey: model.apiKey ?? 'none', baseUrl: model.baseUrl ?? 'https://api.openai.com/v1' }
    return { connection, model: model.name ?? (model.baseUrl === undefined ? OPENAI_MODEL : null), list: () => listModels(connection), close }
  }
  if (!roles.worker) {
    log.info({}, 'no OPENAI_API_KEY here: runs that name no model are for the built-in scripted model; if workers have a key, set the same here')
    return { connection: { apiKey: 'none', baseUrl: '' }, model: model.name ?? 'scripted', list: async () => ['scripted'], close }
  }
  const scripted = await startScriptedModel()
  log.info({}, 'no OPENAI_API_KEY: the built-in scripted model answers')
  const connection = { apiKey: 'none', baseUrl: scripted.baseUrl }
  return { connection, model: model.name ?? 'scripted', list: () => listModels(connection), close: () => scripted.close() }
}
