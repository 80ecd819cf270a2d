import type { RedisOptions } from 'ioredis'

/** Where a Redis is: one server, or the nodes to learn a cluster from. */
export type RedisTarget =
  | { kind: 'single', options: RedisOptions }
  | { kind: 'cluster', nodes: { host: string, port: number }[], options: RedisOptions }

/** The addresses `parseRedisUrl` accepts, in words, for error messages. */
export const acceptedRedisUrls =
  'redis://[user:password@]host[:port][/db], rediss:// for TLS, redis+cluster://host:port,host:port (rediss+cluster:// for TLS), ' +
  'or the absolute path of a unix socket'

/**
 * Reads a Redis address. ioredis has a reader of its own, but takes anything for a host name and any query
 * parameter for an option, so a typing error surfaces as a connection that never comes up.
 *
 * @returns undefined when it is none of `acceptedRedisUrls`. The caller words the error: an address can hold a password.
 */
export function parseRedisUrl (url: string): RedisTarget | undefined {
  const socket = /^(?:(?:redis\+)?unix:\/\/)?(\/[^/?][^?]*)(\?.*)?$/.exec(url)
  if (socket) return parseSocket(socket[1]!, new URLSearchParams(socket[2]))
  const cluster = /^redis(s?)\+cluster:\/\/(?:([^@]*)@)?([^@/?#]+)\/?$/.exec(url)
  if (cluster) return parseCluster(cluster[3]!.split(','), cluster[2], cluster[1] === 's')
  if (!/^rediss?:\/\//.test(url) || !URL.canParse(url)) return undefined
  const parsed = new URL(url)
  const db = /^\/?(\d{1,5})?$/.exec(parsed.pathname)
  const credentials = readCredentials(parsed.username, parsed.password)
  if (!parsed.hostname || !db || !credentials || parsed.search || parsed.hash) return undefined
  return {
    kind: 'single',
    options: {
      host: parsed.hostname.replace(/^\[|\]$/g, ''),
      port: Number(parsed.port || 6379),
      db: Number(db[1] ?? 0),
      ...credentials,
      ...(parsed.protocol === 'rediss:' ? { tls: {} } : {})
    }
  }
}

function parseSocket (path: string, query: URLSearchParams): RedisTarget | undefined {
  const { db = '0', username, password, ...unknown } = Object.fromEntries(query)
  if (!/^\d{1,5}$/.test(db) || Object.keys(unknown).length > 0) return undefined
  return { kind: 'single', options: { path, db: Number(db), ...(username && { username }), ...(password && { password }) } }
}

function parseCluster (hosts: string[], userInfo: string | undefined, secure: boolean): RedisTarget | undefined {
  const [username = '', ...password] = (userInfo ?? '').split(':')
  const credentials = readCredentials(username, password.join(':'))
  const nodes = hosts.map((host) => URL.canParse(`redis://${host}`) ? new URL(`redis://${host}`) : undefined)
  if (!credentials || !nodes.every((node) => node?.hostname)) return undefined
  return {
    kind: 'cluster',
    nodes: nodes.map((node) => ({ host: node!.hostname.replace(/^\[|\]$/g, ''), port: Number(node!.port || 6379) })),
    options: { ...credentials, ...(secure ? { tls: {} } : {}) }
  }
}

/** Empty parts are left out: an empty user name would be sent to the server as a name. */
function readCredentials (username: string, password: string): { username?: string, password?: string } | undefined {
  try {
    return {
      ...(username && { username: decodeURIComponent(username) }),
      ...(password && { password: decodeURIComponent(password) })
    }
  } catch {
    return undefined // a stray %
  }
}
