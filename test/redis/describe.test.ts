import { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { closeRedis, connectRedis, whenReady, type Connection } from '../../src/redis/connect.js'
import { describeRedis } from '../../src/redis/describe.js'
import { privateRedis, silent } from '../support/redis.js'

async function open (t: Test, url: string): Promise<Connection> {
  const connection = connectRedis(url, 'command', silent)
  t.teardown(() => closeRedis(connection))
  await whenReady(connection)
  return connection
}

t.test('a server with noeviction and an append-only file is fine as it is', async (t) => {
  const redis = await privateRedis(t)
  t.strictSame(await describeRedis(await open(t, redis.url)), { warnings: [] })
})

t.test('F69: any other eviction policy is refused, and the setting is named', async (t) => {
  const redis = await privateRedis(t, { args: ['--maxmemory-policy', 'volatile-lru'] })
  t.strictSame(await describeRedis(await open(t, redis.url)), {
    refusal: 'Redis has maxmemory-policy volatile-lru, under which it may drop runs and locks: set maxmemory-policy to noeviction.', warnings: []
  })
})

t.test('a server without append-only file is a warning', async (t) => {
  const redis = await privateRedis(t, { args: ['--appendonly', 'no'] })
  const { refusal, warnings } = await describeRedis(await open(t, redis.url), 'durable')
  t.equal(refusal, undefined)
  t.match(warnings, [/appendonly off/])
  t.equal(warnings.length, 1)
})

t.test('the profile durable asks for appendfsync always', async (t) => {
  const redis = await privateRedis(t)
  const connection = await open(t, redis.url)
  t.match((await describeRedis(connection, 'durable')).warnings, [/appendfsync everysec.*needs appendfsync always/])
  await connection.config('SET', 'appendfsync', 'always')
  t.strictSame(await describeRedis(connection, 'durable'), { warnings: [] })
})

t.test('what a managed service forbids to look at is a warning', async (t) => {
  const redis = await privateRedis(t)
  const admin = await open(t, redis.url)
  await admin.call('ACL', 'SETUSER', 'app', 'on', '>secret', '~*', '&*', '+@all', '-config')
  const app = await open(t, `${redis.url}?username=app&password=secret`)
  t.strictSame(await describeRedis(app), { warnings: [] })
  t.match((await describeRedis(app, 'durable')).warnings, [/does not let us read its appendfsync/])
  await admin.call('ACL', 'SETUSER', 'app', '-info')
  t.match(await describeRedis(app), { refusal: undefined, warnings: [/does not let us read INFO/] })
})

t.test('a version before 6.2 is refused', async (t) => {
  const says = async (version: string) => {
    const connection = new Redis({ lazyConnect: true })
    connection.info = async () => `# Server\r\nredis_version:${version}\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\n`
    return (await describeRedis(connection)).refusal
  }
  t.equal(await says('5.0.14'), 'Redis is 5.0.14, but Interlock needs 6.2 or newer.')
  t.match(await says('6.0.16'), /6.2 or newer/)
  for (const version of ['6.2.0', '7.0.15', '10.1.0']) t.equal(await says(version), undefined)
})

t.test('a cluster is judged by its primaries; its nodes may not be used singly', async (t) => {
  const redis = await privateRedis(t, { cluster: true, args: ['--maxmemory-policy', 'allkeys-lfu'] })
  t.match((await describeRedis(await open(t, redis.url))).refusal, /maxmemory-policy allkeys-lfu/)
  const node = await open(t, redis.url.replace('+cluster', ''))
  await node.config('SET', 'maxmemory-policy', 'noeviction')
  t.strictSame(await describeRedis(await open(t, redis.url)), { warnings: [] })
  t.match((await describeRedis(node)).refusal, /redis\+cluster:/)
})

t.test('a Redis that does not answer is an error, not a verdict', async (t) => {
  const redis = await privateRedis(t)
  const connection = await open(t, redis.url)
  await redis.kill()
  await t.rejects(describeRedis(connection))
})
