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
 * @param profile `durable` additionally asks that every write is on disk before it is acknowledged (FAULTS decision 11).
 * @throws what the connection throws when Redis does not answer.
 */
export async function describeRedis (connection: Connection, profile: 'fast' | 'durable' = 'fast'): Promise<RedisDescription> {
  const servers = connection instanceof Redis ? [connection] : connection.nodes('master')
  const found = await Promise.all(servers.map((server) => describeServer(server, profile, connection === server)))
  const refusal = found.find((one) => one.refusal)?.refusal
  return { ...(refusal && { refusal }), warnings: [...new Set(found.flatMap(({ warnings }) => warnings))] }
}

async function describeServer (server: Redis, profile: 'fast' | 'durable', single: boolean): Promise<RedisDescription> {
  const info = await permitted(server.info())
  if (info === undefined) return { warnings: ['Redis does not let us read INFO: check by hand that it is 6.2 or newer, with maxmemory-policy noeviction and appendonly yes.'] }
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
  if (field('aof_enabled') !== '1') {
    warnings.push('Redis has appendonly off: runs since its last snapshot are lost when it ends unexpectedly. Set appendonly to yes.')
  } else if (profile === 'durable') {
    const setting = await permitted(server.config('GET', 'appendfsync')) as string[] | undefined
    if (setting === undefined) warnings.push('Redis does not let us read its appendfsync: the profile durable needs appendfsync always.')
    else if (setting[1] !== 'always') warnings.push(`Redis has appendfsync ${setting[1]}, but the profile durable needs appendfsync always: up to two seconds can be lost with the machine.`)
  }
  return { warnings }
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
