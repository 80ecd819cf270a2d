import { Redis } from 'ioredis'
import type { Connection } from './connect.js'
import { isUsable, oldestVersion } from './version.js'

/** What an operator must or should know about the Redis, in whole sentences. */
export interface RedisDescription {
  /** Why Interlock must not start on it. */
  refusal?: string
  warnings: string[]
}

/**
 * Judges a server, or all primaries of a cluster, before anything is trusted to it. Managed services may forbid `INFO` or
 * `CONFIG`: what cannot be seen is a warning.
 *
 * @param profile `durable` refuses a server that acknowledges a write before it is on disk (FAULTS decision 11).
 * @throws what the connection throws when Redis does not answer.
 */
export async function describeRedis (connection: Connection, profile: 'fast' | 'durable' = 'fast'): Promise<RedisDescription> {
  const servers = connection instanceof Redis ? [connection] : connection.nodes('master')
  const found = await Promise.all(servers.map((server) => describeServer(server, profile, connection === server)))
  const refusal = found.find((one) => one.refusal)?.refusal
  return { ...(refusal && { refusal }), warnings: [...new Set(found.flatMap(({ warnings }) => warnings))] }
}

const blind = 'When it loses what it had acknowledged, no epoch begins, and readers of events may miss some.'

async function describeServer (server: Redis, profile: 'fast' | 'durable', single: boolean): Promise<RedisDescription> {
  const info = await permitted(server.info())
  if (info === undefined) {
    const wanted = `maxmemory-policy noeviction and appendonly yes${profile === 'durable' ? ' and appendfsync always' : ''}`
    return { warnings: [`Redis does not let us read INFO: check by hand that it is 6.2 or newer, with ${wanted}. ${blind}`] }
  }
  const field = (name: string) => new RegExp(`^${name}:(.*?)\\r?$`, 'm').exec(info)?.[1]

  const version = field('redis_version') ?? 'of unknown version'
  if (!isUsable(version)) return { refusal: `Redis is ${version}, but Interlock needs ${oldestVersion} or newer.`, warnings: [] }
  const policy = field('maxmemory_policy')
  if (policy !== undefined && policy !== 'noeviction') {
    // FAULTS B10: anything else may evict locks and queued work first.
    return { refusal: `Redis has maxmemory-policy ${policy}, under which it may drop runs and locks: set maxmemory-policy to noeviction.`, warnings: [] }
  }
  if (single && field('cluster_enabled') === '1') {
    return { refusal: 'Redis is a cluster: write REDIS_URL as redis+cluster://host:port,host:port.', warnings: [] }
  }

  const warnings: string[] = []
  if (policy === undefined) warnings.push('Redis does not tell its maxmemory-policy: check by hand that it is noeviction.')
  if (field('master_replid') === undefined) {
    warnings.push(`Redis does not tell its master_replid. ${blind}`)
  }
  const persistence = await describePersistence(server, field('aof_enabled'), profile)
  if (persistence.refusal !== undefined) return { refusal: persistence.refusal, warnings: [] }
  warnings.push(...persistence.warnings)
  if (await isOpen(server)) {
    warnings.push('Redis takes commands from other machines without a password: set requirepass, or bind it to 127.0.0.1, or set protected-mode to yes.')
  }
  return { warnings }
}

/** Whether what it acknowledges is on disk, as far as the profile asks for it. */
async function describePersistence (server: Redis, aofEnabled: string | undefined, profile: 'fast' | 'durable'): Promise<RedisDescription> {
  if (aofEnabled === undefined) return { warnings: ['Redis does not tell whether it has an append-only file: check by hand that appendonly is yes.'] }
  if (profile === 'fast') {
    if (aofEnabled === '1') return { warnings: [] }
    return { warnings: ['Redis has appendonly off: runs since its last snapshot are lost when it ends unexpectedly. Set appendonly to yes.'] }
  }
  const remedy = 'set both, or INTERLOCK_PROFILE to fast.'
  if (aofEnabled !== '1') return { refusal: `Redis has appendonly no, but the profile durable needs appendonly yes and appendfsync always: ${remedy}`, warnings: [] }
  const setting = await permitted(server.config('GET', 'appendfsync')) as string[] | undefined
  if (setting?.[1] === undefined) return { warnings: ['Redis does not let us read its appendfsync: check by hand that it is always, as the profile durable needs.'] }
  if (setting[1] === 'always') {
    // While it rewrites its file it would not wait for the disk then, whatever appendfsync says.
    const paused = await permitted(server.config('GET', 'no-appendfsync-on-rewrite')) as string[] | undefined
    if (paused?.[1] !== 'yes') return { warnings: [] }
    return { refusal: 'Redis has no-appendfsync-on-rewrite yes, but the profile durable needs it to wait for the disk always: set it to no, or INTERLOCK_PROFILE to fast.', warnings: [] }
  }
  return { refusal: `Redis has appendfsync ${setting[1]}, but the profile durable needs appendonly yes and appendfsync always: ${remedy}`, warnings: [] }
}

/** Whether anybody who reaches it over a network may command it (FAULTS S27). Where it does not let us look, somebody else takes care of it. */
async function isOpen (server: Redis): Promise<boolean> {
  const values = await Promise.all(['protected-mode', 'bind', 'port', 'tls-port'].map(async (name) => {
    return (await permitted(server.config('GET', name)) as string[] | undefined)?.[1]
  }))
  const [mode, bind, port, tlsPort] = values
  if (mode !== 'no' || bind === undefined || ((port ?? '0') === '0' && (tlsPort ?? '0') === '0')) return false
  const names = bind.split(' ').filter((name) => name !== '')
  if (names.length > 0 && names.every((name) => /^-?(127\.|::1$|localhost$)/.test(name))) return false
  const user = await permitted(server.call('ACL', 'GETUSER', 'default')) as unknown[] | undefined
  const flags = user?.[1]
  return Array.isArray(flags) && flags.includes('on') && flags.includes('nopass')
}

/** undefined when the server forbids the command or does not know it. */
async function permitted<T> (reply: Promise<T>): Promise<T | undefined> {
  try {
    return await reply
  } catch (error) {
    if (/^NOPERM|^ERR unknown (sub)?command/i.test((error as Error).message)) return undefined
    throw error
  }
}
