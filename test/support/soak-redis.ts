import type { Redis } from 'ioredis'

/** What is in Redis, told so that one sees whose it is. */
export interface Found {
  /** Keys by kind. */
  counts: Record<string, number>
  /** Conversations that have keys, and those keys that are leases. */
  conversations: string[]
  locks: string[]
  /** Conversations that are due, and runs in the index with their conversation. */
  due: string[]
  indexed: { run: string, conversation: string }[]
  /** Keys that have an end: how many of a kind have none. */
  endless: Record<string, number>
  /** Keys of the queue, with how much is in them. */
  queue: Record<string, number>
  /** Keys that are of no kind known here. */
  unknown: string[]
  /** Channels of conversations that somebody listens to. */
  channels: string[]
  clients: number
  memory: number
}

export interface Left extends Found { faults: string[] }

/** Kinds of keys that must expire by themselves. */
const MORTAL = ['worker', 'idempotency', 'limit']

/** What the queue keeps beside its jobs: `events` is a stream that it trims itself. */
const OF_QUEUE = ['meta', 'id', 'events', 'marker', 'stalled-check', 'stalled']

/** Reads everything under a prefix. For a Redis of a test: it looks at every key. */
export async function look (redis: Redis, prefix: string): Promise<Found> {
  const found: Found = {
    counts: {}, conversations: [], locks: [], due: [], indexed: [], endless: {}, queue: {}, unknown: [], channels: [],
    clients: 0, memory: 0
  }
  const keys: string[] = []
  for await (const some of redis.scanStream({ count: 1000 }) as AsyncIterable<string[]>) keys.push(...some)
  const conversations = new Set<string>()
  for (const key of new Set(keys)) {
    const known = kindOf(key, prefix)
    // What the name of a deleted conversation keeps for a while is no row.
    const { kind, conversation } = known.kind === 'row' && await redis.pttl(key) !== -1 ? { kind: 'name', conversation: undefined } : known
    found.counts[kind] = (found.counts[kind] ?? 0) + 1
    if (conversation !== undefined) conversations.add(conversation)
    if (kind === 'lock') found.locks.push(key)
    if (kind === 'unknown') found.unknown.push(key)
    if (kind === 'due') found.due.push(...await redis.zrange(key, '0', '-1'))
    if (kind === 'runs') {
      for (const member of await redis.zrange(key, '0', '-1')) {
        const [run = '', of = ''] = member.split(':')
        found.indexed.push({ run, conversation: of })
      }
    }
    if (kind === 'queue') found.queue[key.slice(key.indexOf(':advance:') + 9)] = await sizeOf(redis, key)
    // -2: gone since.
    if (MORTAL.includes(kind) && await redis.pttl(key) === -1) found.endless[kind] = (found.endless[kind] ?? 0) + 1
  }
  found.conversations = [...conversations]
  found.channels = (await redis.pubsub('CHANNELS', `${prefix}:*:conv:*`) as string[])
  found.clients = (await redis.client('LIST') as string).trim().split('\n').length
  found.memory = Number(/used_memory:(\d+)/.exec(await redis.info('memory'))?.[1])
  return found
}

function kindOf (key: string, prefix: string): { kind: string, conversation?: string } {
  if (key.startsWith(`{${prefix}-queue}:`)) return { kind: 'queue' }
  const [first, tag, what, id, part = 'row'] = key.split(':')
  if (first !== prefix) return { kind: 'unknown' }
  if (tag === 'meta' || tag === 'idempotency') return { kind: tag }
  if (tag?.startsWith('{limit')) return { kind: 'limit' }
  if (what === 'due' || what === 'runs' || what === 'epoch' || what === 'worker') return { kind: what }
  if (what === 'conv' && id !== undefined) return { kind: part, conversation: id }
  return { kind: 'unknown' }
}

async function sizeOf (redis: Redis, key: string): Promise<number> {
  switch (await redis.type(key)) {
    case 'list': return await redis.llen(key)
    case 'zset': return await redis.zcard(key)
    case 'stream': return await redis.xlen(key)
    case 'set': return await redis.scard(key)
    case 'hash': return await redis.hlen(key)
    default: return 1
  }
}

/** What is there and belongs to nobody, when every client rests in one of the conversations `live` and so many POSTs were made. */
export function leftBehind (found: Found, { live, posts, workers }: { live: string[], posts: number, workers: number }): string[] {
  const faults: string[] = []
  const some = (what: string, which: string[]) => { if (which.length > 0) faults.push(`${which.length} ${what}: ${which.slice(0, 3).join(', ')}`) }
  const dead = (id: string) => !live.includes(id)
  some('conversations that were deleted have keys', found.conversations.filter(dead))
  some('locks are held', found.locks)
  some('idle conversations are due', found.due)
  some('runs of deleted conversations are indexed', found.indexed.filter((one) => dead(one.conversation)).map((one) => one.run))
  some('keys are of no known kind', found.unknown)
  some('channels of conversations have a listener', found.channels)
  some('kinds of keys should expire and do not', Object.keys(found.endless))
  some('keys of the queue are jobs, or lists of them', Object.keys(found.queue).filter((name) => !OF_QUEUE.includes(name)))
  if ((found.counts.worker ?? 0) !== workers) faults.push(`${found.counts.worker ?? 0} signs of life of ${workers} workers`)
  if ((found.counts.idempotency ?? 0) > posts) faults.push(`${found.counts.idempotency ?? 0} idempotency keys for ${posts} POSTs`)
  if ((found.queue.events ?? 0) > 20_000) faults.push(`the queue's own stream has ${found.queue.events} entries`)
  return faults
}
