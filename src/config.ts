import { createHash } from 'node:crypto'
import { accessSync, constants, statSync } from 'node:fs'
import { BlockList, isIP } from 'node:net'
import { resolve } from 'node:path'
import { envSchema } from 'env-schema'
import { Type, type Static, type TSchema } from 'typebox'
import { openSecrets } from './engine/tools/secrets.js'
import { openSigning } from './engine/tools/signature.js'
import { acceptedRedisUrls, parseRedisUrl } from './redis/url.js'

/** A setting cannot be used. The message is one sentence per variable for the operator, and holds no secret. */
export class ConfigError extends Error {
  override name = 'ConfigError'
}

/** All settings of a process, checked. Times are milliseconds. The variables: docs/configuration.md. */
export interface Config {
  logLevel: Static<typeof Variables>['LOG_LEVEL']
  http: {
    host: string
    /** 0 lets the system choose one. */
    port: number
    /** Where a worker without the API answers for its health. 0 lets the system choose one. */
    workerPort: number
    /** Who may call. Empty: no authentication, which loopback alone allows. */
    apiKeys: ApiKey[]
  }
  redis: {
    /** Absent: an embedded server. */
    url?: string
    /** Absolute. The embedded server keeps its data in the folder `redis` of it. */
    dataDir: string
    /** The server to embed, instead of the one that would be found. */
    serverBin?: string
    /** First part of every key, so that several installations can share a Redis. */
    keyPrefix: string
    /** Number of hash tags the conversations are spread over; fixed at the first start. */
    partitions: number
    /** `durable`: what was answered with 2xx survives the loss of the machine; `fast` may lose its last second (FAULTS decision 11). */
    profile: 'fast' | 'durable'
  }
  model: {
    /** Absent: the built-in scripted model answers. */
    apiKey?: string
    baseUrl?: string
    /** The model of runs that name none. */
    name?: string
    /** LLM calls at once per worker process and provider. 0: no cap of our own. */
    concurrency: number
    /** Until the response headers. */
    timeoutMs: number
    /** Between two chunks of a stream. */
    idleMs: number
    /** Tries of one turn per model, the first included. */
    attempts: number
  }
  worker: {
    /** How long a lost worker can hold a conversation. */
    lockTtlMs: number
    sweepMs: number
    /** When BullMQ calls a job stalled. */
    stalledMs: number
    /** For how long due work may stand still before a worker opens its queue again, and then before it ends. 0: for ever. */
    watchdogMs: number
    /** Conversations advanced at once, per process. */
    turnConcurrency: number
    /** Calls run at once, per process. */
    toolConcurrency: number
    /** Calls of one batch that the worker which opened it keeps. */
    localCalls: number
  }
  /** Drain time on SIGTERM. */
  graceMs: number
  tools: {
    /** Hosts, addresses or CIDR blocks that tools may reach although private. */
    allowedHosts: string[]
    /** Absolute folder of module tools. Absent: none. */
    dir?: string
    /** For `openSecrets`, which has accepted it. Absent: none. */
    secrets?: string
    /** For `openSigning`, which has accepted it. Absent: requests are not signed. */
    signingSecret?: string
    /** MCP servers as JSON text, or the path of a file with it; not looked into here. Absent: none. */
    mcpServers?: string
  }
  /** `false` runs the same work one at a time. */
  features: { parallelTools: boolean }
}

/** The key itself is not kept: compare hashes, in constant time (FAULTS S1). */
export interface ApiKey {
  tenant: string
  /** SHA-256 of the key's UTF-8 bytes, lower-case hexadecimal. */
  sha256: string
}

const whole = (minimum: number, maximum: number, standard: number) => Type.Integer({ minimum, maximum, default: standard })
const time = (minimum: number, standard: number) => whole(minimum, 86_400_000, standard)
const toggle = () => Type.Boolean({ default: true })
/** A switch for what this version does not do: turning it off would mean nothing, and is refused. */
const notYet = () => Type.Literal(true, { default: true, description: 'true or absent: what it turns off is not there yet' })
/** `description` completes "… must be". */
const text = (description: string, pattern = '') => Type.String({ pattern, description })

const Variables = Type.Object({
  HOST: Type.String({ pattern: '^[A-Za-z0-9.:-]+$', description: 'a host name or an IP address', default: '127.0.0.1' }),
  PORT: whole(0, 65_535, 3000),
  LOG_LEVEL: Type.Enum(['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'], { default: 'info' }),
  REDIS_URL: Type.Optional(text(acceptedRedisUrls)),
  REDIS_SERVER_BIN: Type.Optional(text('the path of an executable file')),
  OPENAI_API_KEY: Type.Optional(text('one line of visible ASCII characters', '^[\\x21-\\x7e]+$')),
  OPENAI_BASE_URL: Type.Optional(text('an http or https URL')),
  OPENAI_MODEL: Type.Optional(text('the name of a model')),
  INTERLOCK_API_KEYS: Type.Optional(text('keys of at least 16 visible ASCII characters, separated by commas, each alone or as tenant:key')),
  INTERLOCK_ALLOWED_TOOL_HOSTS: Type.Optional(text('host names, IP addresses or CIDR blocks, separated by commas')),
  INTERLOCK_DATA_DIR: Type.String({ default: '.interlock' }),
  INTERLOCK_KEY_PREFIX: Type.String({ pattern: '^[a-z0-9-]{1,32}$', description: '1 to 32 of a-z, 0-9 and -', default: 'il' }),
  INTERLOCK_PARTITIONS: whole(1, 1024, 16),
  INTERLOCK_WORKER_PORT: whole(0, 65_535, 0),
  INTERLOCK_PROFILE: Type.Enum(['fast', 'durable'], { default: 'fast' }),
  INTERLOCK_TOOLS_DIR: Type.Optional(text('a folder')),
  INTERLOCK_SECRETS: Type.Optional(Type.String()),
  INTERLOCK_SIGNING_SECRET: Type.Optional(Type.String()),
  INTERLOCK_MCP_SERVERS: Type.Optional(Type.String()),
  INTERLOCK_MODEL_CONCURRENCY: whole(0, 10_000, 0),
  INTERLOCK_MODEL_TIMEOUT_MS: time(1, 120_000),
  INTERLOCK_MODEL_IDLE_MS: time(1, 120_000),
  INTERLOCK_MODEL_ATTEMPTS: whole(1, 100, 4),
  INTERLOCK_LOCK_TTL_MS: time(100, 10_000),
  INTERLOCK_SWEEP_MS: time(10, 1000),
  INTERLOCK_STALLED_MS: time(100, 10_000),
  INTERLOCK_WATCHDOG_MS: time(0, 30_000),
  INTERLOCK_TURN_CONCURRENCY: whole(1, 10_000, 64),
  INTERLOCK_TOOL_CONCURRENCY: whole(1, 10_000, 256),
  INTERLOCK_LOCAL_CALLS: whole(0, 10_000, 8),
  INTERLOCK_GRACE_MS: time(0, 10_000),
  FEATURE_PARALLEL_TOOLS: toggle(),
  FEATURE_PARALLEL_TODOS: notYet(),
  FEATURE_PARALLEL_LLM: notYet()
})
type Variable = keyof typeof Variables.properties

/** Their values never appear in a message. */
const secrets = new Set<Variable>([
  'REDIS_URL', 'OPENAI_API_KEY', 'OPENAI_BASE_URL', 'INTERLOCK_API_KEYS', 'INTERLOCK_SECRETS', 'INTERLOCK_SIGNING_SECRET', 'INTERLOCK_MCP_SERVERS'
])

/**
 * Reads and checks the settings. A variable that is set but empty counts as absent, as compose files produce it.
 *
 * @throws ConfigError naming each variable that is wrong, what it is and what it must be.
 */
export function loadConfig (env: NodeJS.ProcessEnv = process.env): Config {
  const given: Partial<Record<string, string>> = {}
  for (const name of Object.keys(Variables.properties)) given[name] = env[name]?.trim() || undefined
  const values = validate(given)
  const apiKeys = parseApiKeys(values.INTERLOCK_API_KEYS)
  if (apiKeys.length === 0 && !isLoopback(values.HOST)) {
    throw new ConfigError(`HOST is "${values.HOST}", which other machines can reach, without authentication: set INTERLOCK_API_KEYS to ${accepted('INTERLOCK_API_KEYS')}, or HOST to 127.0.0.1.`)
  }
  return {
    logLevel: values.LOG_LEVEL,
    http: { host: values.HOST, port: values.PORT, workerPort: values.INTERLOCK_WORKER_PORT, apiKeys },
    redis: {
      url: checked('REDIS_URL', values.REDIS_URL, (url) => parseRedisUrl(url) !== undefined),
      dataDir: resolve(values.INTERLOCK_DATA_DIR),
      serverBin: checked('REDIS_SERVER_BIN', values.REDIS_SERVER_BIN, isExecutable),
      keyPrefix: values.INTERLOCK_KEY_PREFIX,
      partitions: values.INTERLOCK_PARTITIONS,
      profile: values.INTERLOCK_PROFILE
    },
    model: {
      apiKey: values.OPENAI_API_KEY,
      baseUrl: checked('OPENAI_BASE_URL', values.OPENAI_BASE_URL, isHttpUrl),
      name: values.OPENAI_MODEL,
      concurrency: values.INTERLOCK_MODEL_CONCURRENCY,
      timeoutMs: values.INTERLOCK_MODEL_TIMEOUT_MS,
      idleMs: values.INTERLOCK_MODEL_IDLE_MS,
      attempts: values.INTERLOCK_MODEL_ATTEMPTS
    },
    worker: {
      lockTtlMs: values.INTERLOCK_LOCK_TTL_MS,
      sweepMs: values.INTERLOCK_SWEEP_MS,
      stalledMs: values.INTERLOCK_STALLED_MS,
      watchdogMs: values.INTERLOCK_WATCHDOG_MS,
      turnConcurrency: values.INTERLOCK_TURN_CONCURRENCY,
      toolConcurrency: values.INTERLOCK_TOOL_CONCURRENCY,
      localCalls: values.INTERLOCK_LOCAL_CALLS
    },
    graceMs: values.INTERLOCK_GRACE_MS,
    tools: {
      allowedHosts: list(checked('INTERLOCK_ALLOWED_TOOL_HOSTS', values.INTERLOCK_ALLOWED_TOOL_HOSTS, (hosts) => list(hosts).every(isToolHost))),
      dir: checked('INTERLOCK_TOOLS_DIR', values.INTERLOCK_TOOLS_DIR && resolve(values.INTERLOCK_TOOLS_DIR), isFolder),
      secrets: opened(values.INTERLOCK_SECRETS, openSecrets),
      signingSecret: opened(values.INTERLOCK_SIGNING_SECRET, openSigning),
      mcpServers: values.INTERLOCK_MCP_SERVERS
    },
    features: { parallelTools: values.FEATURE_PARALLEL_TOOLS }
  }
}

function validate (given: Partial<Record<string, string>>): Static<typeof Variables> {
  try {
    return envSchema<Static<typeof Variables>>({ schema: Variables, data: given, env: false })
  } catch (error) {
    const { errors = [] } = error as { errors?: { instancePath: string }[] }
    const wrong = new Set(errors.map(({ instancePath }) => instancePath.slice(1) as Variable))
    if (wrong.size === 0) throw error
    throw new ConfigError([...wrong].map((name) => sentence(name, given[name] ?? '')).join('\n'))
  }
}

function checked (name: Variable, value: string | undefined, accepts: (value: string) => boolean): string | undefined {
  if (value !== undefined && !accepts(value)) throw new ConfigError(sentence(name, value))
  return value
}

/** The value as it is, once what will open it later has opened it without an error. */
function opened (value: string | undefined, open: (value: string | undefined) => unknown): string | undefined {
  try {
    open(value)
  } catch (error) {
    throw new ConfigError((error as Error).message)
  }
  return value
}

function sentence (name: Variable, value: string): string {
  const what = secrets.has(name) ? 'has an unusable value' : `is "${value}"`
  return `${name} ${what}; it must be ${accepted(name)}.`
}

function accepted (name: Variable): string {
  const schema: TSchema & { type?: string, minimum?: number, maximum?: number, enum?: string[], description?: string } = Variables.properties[name]
  if (schema.type === 'integer') return `a whole number from ${schema.minimum} to ${schema.maximum}`
  if (schema.type === 'boolean') return schema.description ?? 'true or false'
  return schema.enum ? `one of ${schema.enum.join(', ')}` : schema.description ?? 'a text'
}

function list (value: string | undefined): string[] {
  return (value ?? '').split(',').map((entry) => entry.trim()).filter((entry) => entry !== '')
}

/** A key without a tenant belongs to the tenant `default`. A key may hold colons if its tenant is named. */
function parseApiKeys (value: string | undefined): ApiKey[] {
  const tenants = new Map<string, string>()
  for (const [index, entry] of list(value).entries()) {
    const colon = entry.indexOf(':')
    const tenant = colon < 0 ? 'default' : entry.slice(0, colon)
    const key = entry.slice(colon + 1)
    const fault = keyFault(tenant, key) ?? ((tenants.get(key) ?? tenant) === tenant ? undefined : 'has the key of another tenant')
    if (fault) throw new ConfigError(`INTERLOCK_API_KEYS: entry ${index + 1} ${fault}; it must be ${accepted('INTERLOCK_API_KEYS')}.`)
    tenants.set(key, tenant)
  }
  if (value !== undefined && tenants.size === 0) throw new ConfigError(sentence('INTERLOCK_API_KEYS', value))
  return [...tenants].map(([key, tenant]) => ({ tenant, sha256: createHash('sha256').update(key).digest('hex') }))
}

function keyFault (tenant: string, key: string): string | undefined {
  if (!/^[a-z0-9-]{1,32}$/.test(tenant)) return 'names a tenant that is not 1 to 32 of a-z, 0-9 and -'
  if (key.length < 16) return 'has a key shorter than 16 characters'
  return /^[\x21-\x7e]+$/.test(key) ? undefined : 'has a key with a character that is not visible ASCII'
}

const loopback = new BlockList()
loopback.addSubnet('127.0.0.0', 8, 'ipv4')
loopback.addAddress('::1', 'ipv6')

function isLoopback (host: string): boolean {
  const version = isIP(host)
  return version === 0 ? host === 'localhost' : loopback.check(host, version === 6 ? 'ipv6' : 'ipv4')
}

function isHttpUrl (value: string): boolean {
  return /^https?:\/\//.test(value) && URL.canParse(value)
}

/** Catches a URL or a wildcard early; what reads the list judges addresses and blocks exactly. */
function isToolHost (value: string): boolean {
  return /^[A-Za-z0-9._:[\]-]+(\/\d{1,3})?$/.test(value)
}

function isExecutable (path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return statSync(path).isFile()
  } catch {
    return false
  }
}

function isFolder (path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false
}
