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

t.test('F69: a server without append-only file is a warning with the profile fast, and refused with the profile durable', async (t) => {
  const redis = await privateRedis(t, { args: ['--appendonly', 'no'] })
  const connection = await open(t, redis.url)
  t.match(await describeRedis(connection), { refusal: undefined, warnings: [/appendonly off/] })
  t.strictSame(await describeRedis(connection, 'durable'), {
    refusal: 'Redis has appendonly no, but the profile durable needs appendonly yes and appendfsync always: set both, or INTERLOCK_PROFILE to fast.', warnings: []
  })
})

t.test('F69: the profile durable refuses a server that acknowledges before it is on disk', async (t) => {
  const redis = await privateRedis(t)
  const connection = await open(t, redis.url)
  t.strictSame(await describeRedis(connection, 'durable'), {
    refusal: 'Redis has appendfsync everysec, but the profile durable needs appendonly yes and appendfsync always: set both, or INTERLOCK_PROFILE to fast.', warnings: []
  })
  await connection.config('SET', 'appendfsync', 'always')
  t.strictSame(await describeRedis(connection, 'durable'), { warnings: [] })
  await connection.config('SET', 'no-appendfsync-on-rewrite', 'yes')
  t.match(await describeRedis(connection, 'durable'), { refusal: /^Redis has no-appendfsync-on-rewrite yes, .* set it to no, or INTERLOCK_PROFILE to fast\.$/ })
  t.match(await describeRedis(connection), { refusal: undefined })
})

t.test('S27: a server that everybody on the network may command is a warning', async (t) => {
  const exposed = ['--protected-mode', 'no', '--bind', '0.0.0.0']
  const { url } = await privateRedis(t, { tcp: true, args: exposed })
  const connection = await open(t, url)
  t.match((await describeRedis(connection)).warnings, [/without a password.*requirepass/])
  await connection.config('SET', 'protected-mode', 'yes')
  t.strictSame((await describeRedis(connection)).warnings, [])
  await connection.config('SET', 'protected-mode', 'no')
  await connection.config('SET', 'requirepass', 'secret')
  t.strictSame((await describeRedis(connection)).warnings, [])
  await connection.config('SET', 'requirepass', '')
  await connection.config('SET', 'bind', '127.0.0.1 -::1')
  t.strictSame((await describeRedis(connection)).warnings, [])
  const socket = await privateRedis(t, { args: exposed })
  t.strictSame((await describeRedis(await open(t, socket.url))).warnings, [], 'a unix socket is for this machine')
})

t.test('a server that does not tell whose data it has is a warning: no epoch begins there', async (t) => {
  const connection = new Redis({ lazyConnect: true })
  connection.info = async () => '# Server\r\nredis_version:7.2.0\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\n'
  connection.config = (async () => []) as never
  t.match((await describeRedis(connection)).warnings, [/master_replid/])
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
    connection.info = async () => `# Server\r\nredis_version:${version}\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\nmaster_replid:a\r\n`
    connection.config = (async () => []) as never
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
