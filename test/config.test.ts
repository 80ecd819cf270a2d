import { createHash } from 'node:crypto'
import { chmodSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import t from 'tap'
import { ConfigError, loadConfig } from '../src/config.js'

const message = (env: NodeJS.ProcessEnv): string => {
  try {
    loadConfig(env)
  } catch (error) {
    if (error instanceof ConfigError) return error.message
    throw error
  }
  return 'accepted'
}

t.test('O1: an empty environment gives the documented defaults', async (t) => {
  t.strictSame(loadConfig({}), {
    logLevel: 'info',
    http: { host: '127.0.0.1', port: 3000, workerPort: 0, apiKeys: [] },
    redis: { url: undefined, dataDir: resolve('.interlock'), serverBin: undefined, keyPrefix: 'il', partitions: 16, profile: 'fast' },
    model: { apiKey: undefined, baseUrl: undefined, name: undefined, concurrency: 0, timeoutMs: 120_000, idleMs: 120_000, attempts: 4 },
    worker: { lockTtlMs: 10_000, sweepMs: 1000, stalledMs: 10_000, watchdogMs: 30_000, turnConcurrency: 64, toolConcurrency: 256, localCalls: 8 },
    graceMs: 10_000,
    tools: { allowedHosts: [], dir: undefined, secrets: undefined, signingSecret: undefined, mcpServers: undefined },
    features: { parallelTools: true }
  })
})

t.test('every variable arrives where it belongs', async (t) => {
  const folder = t.testdir({ tools: {} })
  const bin = join(folder, 'server')
  writeFileSync(bin, '')
  writeFileSync(join(folder, 'secrets.json'), '{"CRM_TOKEN": {"value": "eight or more", "hosts": ["api.crm.example"]}}')
  chmodSync(bin, 0o755)
  const config = loadConfig({
    HOST: '0.0.0.0', PORT: '0', INTERLOCK_WORKER_PORT: '12', LOG_LEVEL: 'silent', REDIS_URL: 'redis+cluster://a:1,b:2', REDIS_SERVER_BIN: bin,
    OPENAI_API_KEY: 'sk-test', OPENAI_BASE_URL: 'http://127.0.0.1:9/v1', OPENAI_MODEL: 'm',
    INTERLOCK_API_KEYS: 'sixteen-letters-or-more, team-1:another:key-of-enough-letters',
    INTERLOCK_ALLOWED_TOOL_HOSTS: 'tools.internal, 10.0.0.0/8,[::1]:8080', INTERLOCK_DATA_DIR: folder, INTERLOCK_KEY_PREFIX: 'x-1',
    INTERLOCK_PARTITIONS: '4', INTERLOCK_PROFILE: 'durable', INTERLOCK_TOOLS_DIR: join(folder, 'tools'), INTERLOCK_MODEL_CONCURRENCY: '1',
    INTERLOCK_MODEL_TIMEOUT_MS: '2', INTERLOCK_MODEL_IDLE_MS: '3', INTERLOCK_MODEL_ATTEMPTS: '5', INTERLOCK_LOCK_TTL_MS: '100',
    INTERLOCK_SWEEP_MS: '10', INTERLOCK_STALLED_MS: '101', INTERLOCK_WATCHDOG_MS: '0', INTERLOCK_TURN_CONCURRENCY: '7', INTERLOCK_TOOL_CONCURRENCY: '9',
    INTERLOCK_LOCAL_CALLS: '0', INTERLOCK_GRACE_MS: '11', FEATURE_PARALLEL_TOOLS: 'false', INTERLOCK_SECRETS: join(folder, 'secrets.json'),
    INTERLOCK_SIGNING_SECRET: 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', INTERLOCK_MCP_SERVERS: '{}'
  })
  const sha256 = (key: string) => createHash('sha256').update(key).digest('hex')
  t.strictSame(config, {
    logLevel: 'silent',
    http: {
      host: '0.0.0.0',
      port: 0,
      workerPort: 12,
      apiKeys: [{ tenant: 'default', sha256: sha256('sixteen-letters-or-more') }, { tenant: 'team-1', sha256: sha256('another:key-of-enough-letters') }]
    },
    redis: { url: 'redis+cluster://a:1,b:2', dataDir: folder, serverBin: bin, keyPrefix: 'x-1', partitions: 4, profile: 'durable' },
    model: { apiKey: 'sk-test', baseUrl: 'http://127.0.0.1:9/v1', name: 'm', concurrency: 1, timeoutMs: 2, idleMs: 3, attempts: 5 },
    worker: { lockTtlMs: 100, sweepMs: 10, stalledMs: 101, watchdogMs: 0, turnConcurrency: 7, toolConcurrency: 9, localCalls: 0 },
    graceMs: 11,
    tools: {
      allowedHosts: ['tools.internal', '10.0.0.0/8', '[::1]:8080'],
      dir: join(folder, 'tools'),
      secrets: join(folder, 'secrets.json'),
      signingSecret: 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw',
      mcpServers: '{}'
    },
    features: { parallelTools: false }
  })
})

t.test('an empty variable counts as absent, and blanks around a value do not matter', async (t) => {
  t.equal(loadConfig({ REDIS_URL: '', PORT: ' ' }).http.port, 3000)
  t.equal(loadConfig({ PORT: ' 8080 ' }).http.port, 8080)
})

t.test('a wrong value is answered by one sentence with the variable, the value and what is accepted', async (t) => {
  t.equal(message({ PORT: '70000' }), 'PORT is "70000"; it must be a whole number from 0 to 65535.')
  t.equal(message({ PORT: '80.5' }), 'PORT is "80.5"; it must be a whole number from 0 to 65535.')
  t.equal(message({ INTERLOCK_LOCK_TTL_MS: '99' }), 'INTERLOCK_LOCK_TTL_MS is "99"; it must be a whole number from 100 to 86400000.')
  t.equal(message({ FEATURE_PARALLEL_TOOLS: 'no' }), 'FEATURE_PARALLEL_TOOLS is "no"; it must be true or false.')
  t.equal(message({ FEATURE_PARALLEL_TODOS: 'true', FEATURE_PARALLEL_LLM: 'true' }), 'accepted')
  for (const name of ['FEATURE_PARALLEL_TODOS', 'FEATURE_PARALLEL_LLM']) {
    t.equal(message({ [name]: 'false' }), `${name} is "false"; it must be true or absent: what it turns off is not there yet.`)
  }
  t.equal(message({ INTERLOCK_PROFILE: 'safe' }), 'INTERLOCK_PROFILE is "safe"; it must be one of fast, durable.')
  t.equal(message({ INTERLOCK_KEY_PREFIX: 'a:b' }), 'INTERLOCK_KEY_PREFIX is "a:b"; it must be 1 to 32 of a-z, 0-9 and -.')
  t.equal(message({ INTERLOCK_TOOLS_DIR: '/no/such/folder' }), 'INTERLOCK_TOOLS_DIR is "/no/such/folder"; it must be a folder.')
  t.equal(message({ REDIS_SERVER_BIN: '/no/such/file' }), 'REDIS_SERVER_BIN is "/no/such/file"; it must be the path of an executable file.')
  t.match(message({ INTERLOCK_ALLOWED_TOOL_HOSTS: 'a,https://b' }), /^INTERLOCK_ALLOWED_TOOL_HOSTS is "a,https:\/\/b"; it must be host names, IP addresses or CIDR blocks/)
  t.equal(message({ PORT: 'x', LOG_LEVEL: 'loud' }).split('\n').length, 2, 'two wrong values, two sentences')
})

t.test('S13: no message holds a secret', async (t) => {
  for (const env of [
    { REDIS_URL: 'redis:/:canary@host' }, { OPENAI_API_KEY: 'canary two' }, { OPENAI_BASE_URL: 'ftp://canary' }, { INTERLOCK_API_KEYS: 'canary' },
    { INTERLOCK_SECRETS: 'canary' }, { INTERLOCK_SECRETS: '{"A": "canary"}' }, { INTERLOCK_SECRETS: '{"A": {"value": "canary-canary"}}' },
    { INTERLOCK_SECRETS: '{"A": {"value": "canary-canary", "hosts": ["canary/"]}}' }, { INTERLOCK_SIGNING_SECRET: 'whsec_canary' },
    { INTERLOCK_API_KEYS: 'Canary:sixteen-letters-or-more' }, { INTERLOCK_API_KEYS: 'a:canary-canary-canary,b:canary-canary-canary' }
  ]) {
    const said = message(env)
    t.match(said, Object.keys(env)[0]!)
    t.notMatch(said, /canary/i)
  }
})

t.test('API keys are refused by the place of the entry, with its fault', async (t) => {
  const long = 'k'.repeat(16)
  t.match(message({ INTERLOCK_API_KEYS: `${long},${long.slice(1)}` }), /entry 2 has a key shorter than 16 characters/)
  t.match(message({ INTERLOCK_API_KEYS: `Team:${long}` }), /entry 1 names a tenant that is not/)
  t.match(message({ INTERLOCK_API_KEYS: `a:${long},b:${long}` }), /entry 2 has the key of another tenant/)
  t.match(message({ INTERLOCK_API_KEYS: `${long}\u00e9` }), /entry 1 has a key with a character that is not visible ASCII/)
  t.match(message({ INTERLOCK_API_KEYS: ',' }), /INTERLOCK_API_KEYS has an unusable value/)
  t.equal(loadConfig({ INTERLOCK_API_KEYS: `${long},${long},` }).http.apiKeys.length, 1, 'the same key twice is one')
})

t.test('a host that others can reach needs API keys', async (t) => {
  for (const HOST of ['0.0.0.0', '::', '10.1.2.3', 'my-host', '::ffff:10.0.0.1']) {
    t.match(message({ HOST }), new RegExp(`^HOST is "${HOST}".*set INTERLOCK_API_KEYS`))
    t.equal(message({ HOST, INTERLOCK_API_KEYS: 'k'.repeat(16) }), 'accepted')
  }
  for (const HOST of ['127.0.0.1', '127.1.2.3', '::1', 'localhost']) t.equal(message({ HOST }), 'accepted')
})
