import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import { buildApp } from '../app.js'
import { loadConfig } from '../config.js'
import { openInstance, StartError } from '../instance.js'
import { startSampleApi } from './sample-api.js'

export interface DemoService {
  url: string
  sampleUrl: string
  /** Where Redis is. */
  redis: string
  /** Who answers as the model: the provider's address; null: the built-in scripted model. */
  provider: string | null
  /** Name of the model to ask for; null: the server's own. */
  model: string | null
  /** Warnings and errors it has logged. */
  complaints: string[]
}

/** What the demo takes from its environment. Everything else is its own, so that a `.env` for `npm start` cannot break it. */
const TAKEN = ['REDIS_URL', 'REDIS_SERVER_BIN', 'OPENAI_API_KEY', 'OPENAI_BASE_URL', 'OPENAI_MODEL'] as const

/** Milliseconds within which a Redis that is named in REDIS_URL must answer. */
const PATIENCE_MS = 15_000

/**
 * Starts the service as `npm start` does, API and worker in this process, on free loopback ports and with a Redis of its own in a
 * temporary folder; and beside it the sample API. `closers` grows by what must be undone, also when a later step fails.
 *
 * @throws ConfigError or StartError, whose message is one sentence with a next step.
 */
export async function startService (closers: (() => unknown)[], note: (line: string) => void): Promise<DemoService> {
  const sample = await startSampleApi()
  closers.push(sample.close)
  const dataDir = mkdtempSync(join(tmpdir(), 'interlock-demo-'))
  closers.push(() => rmSync(dataDir, { recursive: true, force: true, maxRetries: 5 }))

  const config = loadConfig({
    ...Object.fromEntries(TAKEN.map((name) => [name, process.env[name]])),
    INTERLOCK_DATA_DIR: dataDir,
    INTERLOCK_KEY_PREFIX: 'interlock-demo',
    INTERLOCK_ALLOWED_TOOL_HOSTS: `127.0.0.1:${sample.port}`,
    INTERLOCK_GRACE_MS: '0'
  })
  const { apiKey, baseUrl, name } = config.model
  const complaints: string[] = []
  const log = pino({ level: 'info' }, {
    write (line: string) {
      const { level, msg } = JSON.parse(line) as { level: number, msg: string }
      if (level >= 40) complaints.push(line.trimEnd())
      else if (/^(fetching|installing) /.test(msg)) note(`There is no Redis on this machine yet: ${msg} …`)
    }
  })
  const instance = await openInstance(config, { worker: true }, log)
  closers.push(instance.stop)
  const app = await buildApp({ services: instance.services, config: { apiKeys: [], host: config.http.host }, logger: log.child({}, { level: 'warn' }) })
  closers.push(() => app.close())
  const url = await app.listen({ host: config.http.host, port: 0 })
  await within(instance.start(), PATIENCE_MS, 'Redis does not answer: start the one that REDIS_URL names, or unset REDIS_URL and the demo starts its own.')

  const usesProvider = apiKey !== undefined || baseUrl !== undefined
  return {
    url,
    sampleUrl: sample.url,
    redis: config.redis.url === undefined ? 'a private Redis in a temporary folder' : 'the Redis of REDIS_URL',
    provider: usesProvider ? new URL(baseUrl ?? 'https://api.openai.com').host : null,
    model: name ?? null,
    complaints
  }
}

async function within<T> (promise: Promise<T>, ms: number, otherwise: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => { timer = setTimeout(() => reject(new StartError(otherwise)), ms) })
  return await Promise.race([promise, late]).finally(() => clearTimeout(timer))
}
