import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { Queue, Worker } from 'bullmq'
import tap, { type Test } from 'tap'
import { closeRedis, connectRedis, reconnectWith, whenReady, type Connection, type Log, type Role } from '../../src/redis/connect.js'
import { privateRedis, silent } from '../support/redis.js'

tap.jobs = 4
/** Most of these wait for a timeout, each on a server of its own: side by side they take a quarter of the time. */
const test = (title: string, run: (t: Test) => Promise<void>) => tap.test(title, { buffered: true }, run)

/** A connection that is ready, closed at the end of the test. */
async function open (t: Test, url: string, role: Role, log: Log = silent): Promise<Connection> {
  const connection = connectRedis(url, role, log)
  t.teardown(() => closeRedis(connection))
  await whenReady(connection)
  return connection
}

/** Why a command fails; fails the test when it does not, or not within a second (FAULTS F54). */
async function failsInTime (t: Test, command: Promise<unknown>, title: string): Promise<string> {
  const outcome = await Promise.race([command.then(() => 'an answer', (error: Error) => error), sleep(1000, 'nothing within a second')])
  t.type(outcome, Error, title)
  return (outcome as Error).message
}

const failFast = ['command', 'queue', 'lock'] as const

for (const role of failFast) {
  test(`F54: ${role}: commands fail within a second while Redis is killed, and work again when it is back`, async (t) => {
    const redis = await privateRedis(t)
    const connection = await open(t, redis.url, role)
    await connection.set('kept', 'yes')
    redis.pause()
    const pending = connection.incr('pending')
    const [, reason] = await Promise.all([redis.kill(), failsInTime(t, pending, 'the command that was under way')])
    t.notMatch(reason, /timed out/, 'the end of the connection told it')
    await failsInTime(t, connection.incr('down'), 'a command while Redis is away')
    await failsInTime(t, connection.incr('down'), 'another one')
    await redis.start()
    await whenReady(connection)
    t.equal(await connection.get('kept'), 'yes')
  })

  test(`F66: ${role}: commands fail within a second while Redis is frozen, and work again at once when it goes on`, async (t) => {
    const redis = await privateRedis(t)
    const connection = await open(t, redis.url, role)
    redis.pause()
    await failsInTime(t, connection.incr('frozen'), 'a command to a frozen Redis')
    redis.resume()
    t.equal(await connection.get('frozen'), '1', 'and yet it happened: a timeout says nothing about the outcome')
  })
}

test('R1: command: what was never answered is sent again after a reconnect, even when its caller was told of a timeout: it may run twice', async (t) => {
  const redis = await privateRedis(t, { tcp: true })
  const proxy = await startProxy(t, redis.url)
  const connection = await open(t, proxy.url, 'command')
  redis.pause()
  await failsInTime(t, connection.incr('n'), 'the command')
  const closed = new Promise((resolve) => connection.once('close', resolve))
  proxy.cut()
  await closed
  redis.resume()
  await whenReady(connection)
  t.equal(await connection.get('n'), '2')
})

test('lock: what failed is never sent again, so no lock is taken for somebody who has given up', async (t) => {
  const redis = await privateRedis(t)
  const connection = await open(t, redis.url, 'lock')
  redis.pause()
  await failsInTime(t, connection.incr('n'), 'the command')
  await redis.kill()
  await redis.start()
  await whenReady(connection)
  t.equal(await connection.get('n'), null)
})

test('command: waits out a reconnect instead of failing', async (t) => {
  const redis = await privateRedis(t)
  const connection = await open(t, redis.url, 'command')
  const admin = await open(t, redis.url, 'queue')
  const closed = once(connection, 'close')
  await admin.call('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes')
  await closed
  t.not(connection.status, 'ready')
  t.equal(await connection.incr('n'), 1)
})

for (const role of ['queue', 'lock'] as const) {
  test(`${role}: refuses at once while there is no connection`, async (t) => {
    const redis = await privateRedis(t)
    const connection = await open(t, redis.url, role)
    await redis.kill()
    if (connection.status === 'ready') await once(connection, 'close')
    await t.rejects(connection.incr('n'), /enableOfflineQueue/)
  })
}

test('F66: bulk: what takes longer than a command may is waited for', async (t) => {
  const redis = await privateRedis(t)
  const [bulk, command] = await Promise.all([open(t, redis.url, 'bulk'), open(t, redis.url, 'command')])
  redis.pause()
  const waited = bulk.incr('n')
  await failsInTime(t, command.incr('m'), 'a command')
  redis.resume()
  t.equal(await waited, 1)
})

test('F66: bulk: what is sent for longer than Redis may be silent arrives, once', async (t) => {
  const redis = await privateRedis(t, { tcp: true })
  const proxy = await startProxy(t, redis.url, 2_000)
  const bulk = await open(t, proxy.url, 'bulk')
  const began = performance.now()
  t.equal(await bulk.append('large', 'x'.repeat(16_000_000)), 16_000_000)
  t.ok(performance.now() - began > 6000, 'the line was narrow')
})

test('F63: bulk: leaves a server together with command, which is told that it is no primary any more', async (t) => {
  const redis = await privateRedis(t)
  const [command, bulk] = await Promise.all([open(t, redis.url, 'command'), open(t, redis.url, 'bulk')])
  reconnectWith(command, bulk)
  const idOf = async (connection: Connection) => await connection.client('ID') as unknown as number
  const before = await idOf(bulk)
  const again = once(bulk, 'ready')
  await command.call('REPLICAOF', '127.0.0.1', '1')
  await t.rejects(command.set('k', 'v'), /READONLY/)
  await again
  t.not(await idOf(bulk), before)
})

test('worker: commands wait for Redis without limit', async (t) => {
  const redis = await privateRedis(t)
  const connection = await open(t, redis.url, 'worker')
  redis.pause()
  const pending = connection.incr('pending')
  await redis.kill()
  const down = connection.incr('down')
  for (let tries = 0; tries < 4; tries++) await new Promise((resolve) => connection.once('reconnecting', resolve))
  await redis.start()
  t.equal(await pending, 1)
  t.equal(await down, 1)
})

test('N12: BullMQ on these connections survives a kill of Redis: adding fails fast meanwhile, the worker goes on by itself', async (t) => {
  const redis = await privateRedis(t)
  const producer = await open(t, redis.url, 'queue')
  const consumer = await open(t, redis.url, 'worker')
  const done: string[] = []
  const queue = new Queue('doorbell', { connection: producer })
  const worker = new Worker('doorbell', async (job) => { done.push(job.id!) }, { connection: consumer })
  t.teardown(() => Promise.all([worker.close(), queue.close()]))
  queue.on('error', () => {})
  worker.on('error', () => {})
  const completed = (id: string) => new Promise<void>((resolve) => worker.on('completed', (job) => { if (job.id === id) resolve() }))

  const first = completed('first')
  await queue.add('go', {}, { jobId: 'first' })
  await first
  await redis.kill()
  await failsInTime(t, queue.add('go', {}, { jobId: 'lost' }), 'queue.add')
  await redis.start()
  await whenReady(producer)
  const second = completed('second')
  await queue.add('go', {}, { jobId: 'second' })
  await second
  t.strictSame(done, ['first', 'second'])
})

test('subscriber: is subscribed again after a restart', async (t) => {
  const redis = await privateRedis(t)
  const subscriber = await open(t, redis.url, 'subscriber')
  const publisher = await open(t, redis.url, 'command')
  await subscriber.subscribe('news')
  await redis.kill()
  await redis.start()
  const message = once(subscriber, 'message')
  while (await publisher.publish('news', 'hello') === 0) await new Promise(setImmediate) // until the subscription is back
  t.strictSame(await message, ['news', 'hello'])
})

test('subscriber: may be closed in the moment it subscribes again', async (t) => {
  const redis = await privateRedis(t, { tcp: true })
  const proxy = await startProxy(t, redis.url)
  const subscriber = await open(t, proxy.url, 'subscriber')
  await subscriber.subscribe('news')
  const frozen = new Promise<void>((resolve) => subscriber.once('ready', () => {
    proxy.freeze() // the answer to its subscription is never read
    resolve()
  }))
  proxy.cut()
  await frozen
  await closeRedis(subscriber)
  await new Promise(setImmediate) // a rejection that nobody handles would end the test here
  t.equal(subscriber.status, 'end')
})

test('R4: a half-open socket is replaced: command within 5 s, a subscriber that is owed nothing within 7 s', async (t) => {
  const redis = await privateRedis(t, { tcp: true })
  const proxy = await startProxy(t, redis.url)
  const command = await open(t, proxy.url, 'command')
  const subscriber = await open(t, proxy.url, 'subscriber')
  await subscriber.subscribe('news')
  const again = [command, subscriber].map((connection) => new Promise((resolve) => connection.once('ready', resolve)))
  const inTime = Promise.race([Promise.all(again).then(() => true), sleep(9000, false, { ref: false })])
  proxy.freeze()
  await failsInTime(t, command.incr('n'), 'a command into the void')
  t.equal(await inTime, true, 'both have new sockets')
  t.ok(await command.incr('after'))
})

test('an outage is logged once when it begins and once when it ends, whatever the number of tries', async (t) => {
  const redis = await privateRedis(t)
  const lines: unknown[][] = []
  const write = (...line: unknown[]) => { lines.push(line) }
  const log: Log = { warn: write, info: write }
  const connection = await open(t, redis.url, 'worker', log)
  t.strictSame(lines, [], 'nothing to say about a start that succeeds')
  await redis.kill()
  for (let tries = 0; tries < 5; tries++) await new Promise((resolve) => connection.once('reconnecting', resolve))
  await redis.start()
  await whenReady(connection)
  t.match(lines, [
    [{ role: 'worker', reason: String }, 'Redis is away, trying again'],
    [{ role: 'worker', away_ms: Number }, 'Redis is back']
  ])
  t.equal(lines.length, 2)
})

test('a Redis that is not there yet is waited for', async (t) => {
  const redis = await privateRedis(t)
  await redis.kill()
  const connection = connectRedis(redis.url, 'lock', silent)
  t.teardown(() => closeRedis(connection))
  const ready = whenReady(connection)
  await redis.start()
  await ready
  t.equal(await connection.incr('n'), 1)
})

test('a replica that was a primary makes the connection look for the new primary', async (t) => {
  const redis = await privateRedis(t)
  const connection = await open(t, redis.url, 'command')
  await connection.call('REPLICAOF', '127.0.0.1', '1')
  const again = new Promise((resolve) => connection.once('connecting', resolve))
  await t.rejects(connection.set('a', '1'), /READONLY/)
  await again
  await whenReady(connection)
  await connection.call('REPLICAOF', 'NO', 'ONE')
  t.equal(await connection.set('a', '1'), 'OK')
})

for (const state of ['ready', 'frozen', 'reconnecting', 'never connected'] as const) {
  test(`closing works and settles what waits: ${state}`, async (t) => {
    const redis = await privateRedis(t)
    const connection = connectRedis(redis.url, 'worker', silent)
    if (state !== 'never connected') await whenReady(connection)
    if (state === 'frozen') redis.pause()
    if (state === 'reconnecting') {
      await redis.kill()
      await new Promise((resolve) => connection.once('reconnecting', resolve))
    }
    const waiting = state === 'ready' ? t.resolves(connection.ping()) : t.rejects(connection.ping(), /Connection is closed/)
    if (state === 'ready') await waiting
    await Promise.all([closeRedis(connection), closeRedis(connection)])
    await waiting
    await closeRedis(connection)
    t.equal(connection.status, 'end')
    await t.rejects(whenReady(connection), /closed/)
  })
}

test('a wrong address is refused without repeating it', async (t) => {
  t.throws(() => connectRedis('redis://:canary@', 'command', silent), /must be redis:\/\//)
  t.throws(() => connectRedis('redis://:canary@', 'command', silent), { message: /^(?!.*canary)/ })
})

test('a cluster: commands by hash tag, fast failure while it is away, one log line, and the way back', async (t) => {
  const redis = await privateRedis(t, { cluster: true })
  const lines: unknown[] = []
  const write = (...line: unknown[]) => { lines.push(line[1]) }
  const log: Log = { warn: write, info: write }
  const command = await open(t, redis.url, 'command', log)
  const worker = await open(t, redis.url, 'worker')
  const subscriber = await open(t, redis.url, 'subscriber')
  t.equal(await command.mset('{p1}:a', '1', '{p1}:b', '2'), 'OK')
  await t.rejects(command.mset('{p1}:a', '1', '{p2}:b', '2'), /CROSSSLOT|same slot/)
  await subscriber.subscribe('news')

  redis.pause()
  await failsInTime(t, command.incr('{p1}:n'), 'a command to a frozen node')
  const pending = command.incr('{p1}:n')
  await Promise.all([redis.kill(), failsInTime(t, pending, 'the command under way')])
  await failsInTime(t, command.incr('{p1}:n'), 'a command while the node is away')
  const waiting = worker.incr('{p1}:waited')
  await redis.start()
  await Promise.all([whenReady(command), whenReady(subscriber)])
  t.equal(await waiting, 1)
  t.equal(await command.get('{p1}:b'), '2')
  const message = once(subscriber, 'message')
  while (await command.publish('news', 'hello') === 0) await new Promise(setImmediate)
  t.strictSame(await message, ['news', 'hello'])
  t.strictSame(lines, ['Redis is away, trying again', 'Redis is back'])
})

test('closing a cluster works in any state', async (t) => {
  const redis = await privateRedis(t, { cluster: true })
  const ready = connectRedis(redis.url, 'command', silent)
  await whenReady(ready)
  await closeRedis(ready)
  t.equal(ready.status, 'end')
  const lost = connectRedis(redis.url, 'worker', silent)
  await whenReady(lost)
  await redis.kill()
  await new Promise((resolve) => lost.once('reconnecting', resolve))
  await closeRedis(lost)
  t.equal(lost.status, 'end')
  await closeRedis(connectRedis(redis.url, 'lock', silent))
  const nowhere = connectRedis('redis+cluster://interlock.invalid:7000', 'worker', silent)
  const waiting = t.rejects(nowhere.get('a'))
  await closeRedis(nowhere)
  await waiting
})

/** A TCP proxy whose connections can be cut, or made half-open: they stay, and nothing passes any more. New ones work. `bytesPerMs`: how much of what is sent to Redis passes. */
async function startProxy (t: Test, url: string, bytesPerMs = Infinity): Promise<{ url: string, freeze: () => void, cut: () => void }> {
  const sockets: Socket[] = []
  const server = createServer((client) => {
    const upstream = connect({ host: '127.0.0.1', port: Number(new URL(url).port) })
    client.pipe(upstream).pipe(client)
    if (bytesPerMs < Infinity) {
      client.on('data', (chunk: Buffer) => {
        client.pause()
        setTimeout(() => client.resume(), chunk.length / bytesPerMs)
      })
    }
    for (const socket of [client, upstream]) socket.on('error', () => {})
    sockets.push(client, upstream)
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const cut = () => { for (const socket of sockets) socket.destroy() }
  t.teardown(() => {
    cut()
    server.close()
  })
  return {
    url: `redis://127.0.0.1:${(server.address() as AddressInfo).port}`,
    freeze: () => { for (const socket of sockets) socket.unpipe().pause() },
    cut
  }
}
