import { Redis } from 'ioredis'
import type { Test } from 'tap'
import { closeRedis, connectRedis, whenReady, type Connection } from '../../src/redis/connect.js'
import { createFeed } from '../../src/store/feed.js'
import { createKeys } from '../../src/store/keys.js'
import { createPresence } from '../../src/store/presence.js'
import { createRedisStore } from '../../src/store/redis-store.js'
import { silent } from './redis.js'
import type { Bench } from './store-conformance.js'

/** The real store on a Redis or a cluster, as a process has it. `nodes`: addresses whose keys belong to it. */
export async function redisBench (t: Test, url: string, prefix: string, nodes: string[]): Promise<Bench & { command: Connection, nodes: Redis[] }> {
  const keys = createKeys(prefix, 16)
  const [command, bulk, subscriber] = (['command', 'bulk', 'subscriber'] as const).map((role) => connectRedis(url, role, silent)) as [Connection, Connection, Connection]
  const readers = nodes.map((node) => new Redis(node))
  t.teardown(async () => {
    await Promise.all([...[command, bulk, subscriber].map(closeRedis), ...readers.map((reader) => reader.quit())])
  })
  await Promise.all([command, bulk, subscriber].map(whenReady))

  async function leftovers (conversation: string): Promise<string[]> {
    const found: string[] = []
    for (const reader of readers) {
      for await (const some of reader.scanStream({ match: `${prefix}:*`, count: 1000 }) as AsyncIterable<string[]>) {
        for (const key of some) {
          // What expires is not left for ever: the epoch that the name of a deleted conversation keeps for a while.
          if (key.split(':').includes(conversation) && await reader.ttl(key) === -1) found.push(key)
          if (await reader.type(key) !== 'zset') continue
          const members = await reader.zrange(key, '0', '-1')
          found.push(...members.filter((member) => member.split(':').at(-1) === conversation).map((member) => `${key} ${member}`))
        }
      }
    }
    return found
  }
  return {
    store: createRedisStore(command, bulk, keys),
    feed: createFeed(subscriber, command, keys),
    presence: createPresence(command, keys),
    keys,
    leftovers,
    // What a script compares with the id of the server's history, which cannot be changed without stopping others.
    restarted: async () => { for (let i = 0; i < keys.partitions; i++) await command.hset(keys.epoch(i), 'history', 'another') },
    command,
    nodes: readers
  }
}
