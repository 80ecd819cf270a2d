import { Redis } from 'ioredis'
import root, { type Test } from 'tap'
import type { HttpTool } from '../../src/core/tool.js'
import type { Client } from './client.js'
import { gather, judge, type Exception } from './invariants.js'
import { startModelServer, type ModelServer } from './model-server.js'
import { privateRedis, testRedis, type PrivateRedis, type PrivateRedisOptions } from './redis.js'
import { startProcess, startService, type Env, type ProcessKind, type Service, type ServiceOptions, type ServiceProcess } from './service.js'
import { startToolServer, type ToolServer } from './tool-server.js'

/** All that a whole run needs, of its own: a key prefix, a model server and a tool server that record. */
export interface World {
  model: ModelServer
  tools: ToolServer
  redis: { url: string, prefix: string }
  /** The server itself, where the test has one of its own. */
  server: PrivateRedis | null
  /** The settings of a process of this world. */
  env: (over?: Env) => Env
  /** API and worker in the test process. */
  service: (over?: Omit<ServiceOptions, 'env'> & { env?: Env }) => Promise<Service>
  process: (kind: ProcessKind, over?: Env) => Promise<ServiceProcess>
  /** The keys in Redis that hold its prefix. */
  keys: () => Promise<string[]>
  /** A client whose conversations are to be judged although no service or process here has made it. */
  watch: (client: Client) => Client
  /** An HTTP tool named like its route on the tool server. */
  tool: (route: string, over?: Partial<HttpTool>) => HttpTool
}

export interface StoryOptions {
  env?: Env
  /** A Redis server of its own, to be killed; perhaps with settings. Default: a prefix of its own on the one all tests share. */
  ownRedis?: boolean | PrivateRedisOptions
  /** What cannot be asked of this test: see `Exception`. */
  except?: Exception[]
  /** It takes its time: `npm test` leaves it out, `npm run matrix` does not. */
  long?: boolean
}

export const API_KEY = 'sk-canary-of-the-provider'

/** Some Redis stays up between the tests of a file that is run by hand. */
let held: Promise<unknown> | undefined

/**
 * A test of whole runs. Whatever else it asserts: every payload was valid, and the four records (HTTP, SSE, LLM requests, tool attempts) of every
 * conversation it made agree with each other (`judge`).
 */
export function story (title: string, tell: (t: Test, world: World) => Promise<void>, options: StoryOptions = {}): void {
  const skip = options.long === true && process.env.INTERLOCK_TEST_SHORT !== undefined && 'it takes long: npm run matrix'
  void root.test(title, { skip }, async (t) => {
    held ??= testRedis(root)
    await held
    const { world, conclude } = await openWorld(t, options)
    await tell(t, world)
    await conclude()
  })
}

async function openWorld (t: Test, { env: settings, ownRedis = false, except = [] }: StoryOptions): Promise<{ world: World, conclude: () => Promise<void> }> {
  const server = ownRedis === false ? null : await privateRedis(t, ownRedis === true ? {} : ownRedis)
  const redis = server === null ? await testRedis(t) : { url: server.url, prefix: 'own' }
  const model = await startModelServer()
  const tools = await startToolServer()
  t.teardown(() => Promise.all([model.close(), tools.close()]))
  const services: (Service | ServiceProcess)[] = []
  const clients: Client[] = []
  const env = (over: Env = {}): Env => ({
    REDIS_URL: redis.url,
    INTERLOCK_KEY_PREFIX: redis.prefix,
    OPENAI_API_KEY: API_KEY,
    OPENAI_BASE_URL: model.baseUrl,
    OPENAI_MODEL: 'test',
    INTERLOCK_ALLOWED_TOOL_HOSTS: '127.0.0.1',
    INTERLOCK_SWEEP_MS: '200',
    ...settings,
    ...over
  })
  const kept = <T extends Service | ServiceProcess>(service: T): T => {
    services.push(service)
    clients.push(service.client)
    return service
  }
  const world: World = {
    model,
    tools,
    redis,
    server,
    env,
    service: async ({ env: over, ...rest } = {}) => kept(await startService(t, { env: env(over), ...rest })),
    process: async (kind, over) => kept(await startProcess(t, kind, env(over))),
    keys: () => keysWith(redis),
    watch: (client) => {
      clients.push(client)
      return client
    },
    tool: (route, over) => ({ kind: 'http', name: route, url: `${tools.url}/${route}`, parameters: { type: 'object' }, ...over })
  }

  async function conclude (): Promise<void> {
    t.same(model.violations, [], 'every payload was valid')
    const streams = clients.flatMap((client) => client.seen.streams)
    // Another process than the one that was used: what it reads is what is stored.
    const { client: reader } = await startService(t, { env: env({ INTERLOCK_API_KEYS: '' }), roles: { api: true, worker: false } })
    for (const conversation of new Set(clients.flatMap((client) => [...client.seen.conversations]))) {
      const evidence = await gather(reader, conversation, { streams, requests: model.requests(), attempts: tools.attempts })
      if (evidence !== null) t.same(judge(evidence, except), [], `the records of ${conversation} agree`)
    }
    for (const line of services.flatMap((service) => service.logs)) {
      const { level, msg, status, error } = JSON.parse(line) as { level: number, msg: string, status?: number, error?: { code?: string } }
      // That Redis was away is no error of ours, whether a request or a stream met it.
      if (level >= 50 && status !== 503 && error?.code !== 'unavailable') t.fail(`an error was logged: ${msg}`, { line })
      // Every input here holds a marker `conv:…`; Redis keys hold `conv:conv_…`.
      if (line.includes(API_KEY) || /\bconv:(?!conv_)/.test(line)) t.fail('a key or the text of a message was logged', { line })
    }
  }

  return { world, conclude }
}

async function keysWith ({ url, prefix }: { url: string, prefix: string }): Promise<string[]> {
  const redis = new Redis(url)
  const found: string[] = []
  for await (const keys of redis.scanStream({ match: `*${prefix}*`, count: 1000 }) as AsyncIterable<string[]>) found.push(...keys)
  await redis.quit()
  return found
}
