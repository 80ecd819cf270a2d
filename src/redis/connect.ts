import { Cluster, Redis, type CommonRedisOptions } from 'ioredis'
import type { BaseLogger } from 'pino'
import { acceptedRedisUrls, parseRedisUrl } from './url.js'

/** One server or a cluster. Both take the same commands, as long as all keys of a command share one hash tag. */
export type Connection = Redis | Cluster

/** What this folder needs of a pino logger. */
export type Log = Pick<BaseLogger, 'info' | 'warn'>

/** Milliseconds until a command that got no answer fails, so that a caller can say 503 within a second. */
const commandTimeout = 700
/** Milliseconds without a byte, while an answer is owed, until a socket is taken for dead. Only this ends a half-open one (FAULTS R4). */
const socketTimeout = 5000
/** What one large thing may take: while it is sent, Redis says nothing. Milliseconds. */
const bulkTimeout = 30_000

/**
 * How each use of Redis behaves while Redis is away (FAULTS 1.3, decisions 2 and 8; every line is shown in connect.test.ts).
 * A command that failed has an unknown outcome in every role: it may have run, and may still run after a SIGSTOP.
 *
 * - `command`: waits out a short reconnect, fails within a second. A command whose answer was lost is sent AGAIN after the
 *   reconnect, even when its caller was already told that it timed out: send only what may run twice.
 * - `bulk`: as `command`, for what may be large, apart from what must be fast: each takes up to 30 s. Connects anew when `command` does (`reconnectWith`),
 *   which notices earlier that a socket is dead.
 * - `queue`: as `command`, but fails at once while there is no connection, as BullMQ advises for producers.
 * - `lock`: fails at once and is never sent again: a lock taken after its owner gave up would block everyone for its TTL.
 * - `worker`: commands wait for Redis without limit, as BullMQ demands. `socketTimeout` must exceed BullMQ's longest blocking read, 10 s.
 * - `subscriber`: waits without limit, and subscribes again after a reconnect. What was published meanwhile is lost (FAULTS P10). Of a cluster it listens at
 *   one node, which hears what is published at all of them: the subscriber that ioredis keeps for a cluster has no timeouts, and changes its node in silence.
 *
 * `autoResendUnfulfilledCommands: false` looks right for some of these; in ioredis 6.0.0 the promise then never settles (FAULTS R2).
 */
const roles = {
  command: { enableOfflineQueue: true, maxRetriesPerRequest: 1, commandTimeout, socketTimeout },
  bulk: { enableOfflineQueue: true, maxRetriesPerRequest: 1, commandTimeout: bulkTimeout, socketTimeout: bulkTimeout },
  queue: { enableOfflineQueue: false, maxRetriesPerRequest: 1, commandTimeout, socketTimeout },
  lock: { enableOfflineQueue: false, maxRetriesPerRequest: 0, commandTimeout, socketTimeout },
  worker: { enableOfflineQueue: true, maxRetriesPerRequest: null, socketTimeout: 15_000 },
  subscriber: { enableOfflineQueue: true, maxRetriesPerRequest: null, socketTimeout }
} satisfies Record<string, CommonRedisOptions>

export type Role = keyof typeof roles

/** Milliseconds between two tries: quick at first, never rarer than four a second, so that a restart of Redis costs little. */
const backoff = (times: number) => Math.min(times * 50, 250)

/**
 * Opens a connection that keeps itself alive until `closeRedis`. It comes back unconnected: `queue` and `lock`, and on a
 * cluster `command` too, refuse commands until `whenReady`.
 *
 * @throws Error when the address is none (the message does not hold it: it may carry a password).
 */
export function connectRedis (url: string, role: Role, log: Log): Connection {
  const target = parseRedisUrl(url)
  if (!target) throw new Error(`The address of Redis must be ${acceptedRedisUrls}.`)
  const options: CommonRedisOptions = {
    ...roles[role],
    connectionName: `interlock-${role}`,
    connectTimeout: 3000,
    keepAlive: 5000,
    maxLoadingRetryTime: 250,
    retryStrategy: backoff,
    // The old primary after a failover: the address may lead to the new one by now (FAULTS R5).
    reconnectOnError: (error) => error.message.includes('READONLY')
  }
  if (target.kind === 'single' || role === 'subscriber') {
    let at = Math.floor(Math.random() * 1000)
    const node = () => target.kind === 'cluster' ? target.nodes[at++ % target.nodes.length] : {}
    const connection = new Redis({ ...target.options, ...options, ...node() })
    // Another node of a cluster at every try.
    connection.on('reconnecting', () => { Object.assign(connection.options, node()) })
    logOutages(connection, role, log)
    if (role === 'subscriber') careForSubscriber(connection)
    return connection
  }
  const patient = roles[role].maxRetriesPerRequest === null
  const connection = new Cluster(target.nodes, {
    // The cluster's own queue knows no timeout: whoever must fail fast must not wait in it.
    enableOfflineQueue: patient,
    clusterRetryStrategy: backoff,
    // How long a command tries to reach a lost node that refuses it: 0.8 s, or 250 s.
    maxRedirections: patient ? 1000 : 16,
    retryDelayOnFailover: patient ? 250 : 50,
    retryDelayOnClusterDown: patient ? 250 : 50,
    slotsRefreshInterval: 5000,
    redisOptions: { ...target.options, ...options }
  })
  logOutages(connection, role, log)
  return connection
}

/**
 * Lets one connection follow another. Whoever mostly reads would not notice that its server is the primary no more, and read what is old for ever; whoever
 * writes is told. The nodes of a cluster tell every client.
 */
export function reconnectWith (leader: Connection, follower: Connection): void {
  if (leader instanceof Redis) leader.on('reconnecting', () => { follower.disconnect(true) })
}

/** Resolves when commands are answered. Waits for Redis without limit; rejects when the connection is closed meanwhile. */
export async function whenReady (connection: Connection): Promise<void> {
  if (connection.status === 'ready') return
  if (connection.status === 'end') throw new Error('The connection to Redis was closed.')
  await new Promise<void>((resolve, reject) => {
    const ended = () => reject(new Error('The connection to Redis was closed.'))
    connection.once('end', ended)
    connection.once('ready', () => {
      connection.off('end', ended)
      resolve()
    })
  })
}

const closings = new WeakMap<Connection, Promise<void>>()

/** Closes for good, in any state, without waiting for answers that are still owed: those commands reject. Closing twice is fine. */
export function closeRedis (connection: Connection): Promise<void> {
  const closing = closings.get(connection) ?? close(connection)
  closings.set(connection, closing)
  return closing
}

async function close (connection: Connection): Promise<void> {
  const event = (...names: string[]) => new Promise<void>((resolve) => { for (const name of names) connection.once(name, () => resolve()) })
  if (connection instanceof Cluster) connection.options.clusterRetryStrategy = null
  else connection.options.retryStrategy = null
  // In two states ioredis would forget to end, and commands that wait would wait for ever: between two tries,
  // and while a cluster resolves the names of its start nodes.
  if (connection.status === 'reconnecting') await event('connecting')
  if (connection instanceof Cluster && connection.nodes().length === 0) await event('+node', 'close')
  if (connection.status === 'end') return
  const ended = event('end')
  connection.disconnect()
  await ended
}

/** One warning when Redis goes away and one line when it is back, however many tries lie between. */
function logOutages (connection: Connection, role: Role, log: Log): void {
  let since: number | undefined
  const away = (cause: NodeJS.ErrnoException | number | undefined) => {
    if (since !== undefined) return
    since = performance.now()
    const reason = cause instanceof Error ? cause.code ?? cause.message : 'closed'
    log.warn({ role, reason }, 'Redis is away, trying again')
  }
  const back = () => {
    if (since === undefined) return
    log.info({ role, away_ms: Math.round(performance.now() - since) }, 'Redis is back')
    since = undefined
  }
  connection.on('error', away)
  connection.on('reconnecting', away) // a server that ends in good order closes without an error
  connection.on('ready', back)
  if (connection instanceof Redis) return
  connection.on('node error', away)
  connection.on('+node', (node: Redis) => node.on('ready', () => { if (connection.status === 'ready') back() }))
}

/** Milliseconds between two questions to a server that may be owed nothing: without them nobody would notice that a socket is half-open. */
const askEvery = 2000

function careForSubscriber (connection: Redis): void {
  const timer = setInterval(() => {
    if (connection.status === 'ready') connection.ping().catch(() => {}) // the socket's timeout is what acts
  }, askEvery)
  connection.once('end', () => clearInterval(timer))

  // After a reconnect ioredis subscribes again by this method and drops the promise: closed at that moment, it would end the process.
  const subscribe = connection.subscribe.bind(connection) as (...channels: string[]) => Promise<unknown>
  connection.subscribe = ((...channels: string[]) => {
    const reply = subscribe(...channels)
    reply.catch(() => {})
    return reply
  }) as Redis['subscribe']
}
