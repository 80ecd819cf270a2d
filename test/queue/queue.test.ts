import { once } from 'node:events'
import { createServer, type AddressInfo, type Socket } from 'node:net'
import t from 'tap'
import { createHintQueue } from '../../src/queue/queue.js'
import { closeRedis, connectRedis } from '../../src/redis/connect.js'
import { silent } from '../support/redis.js'

t.test('a queue whose connection was never ready is away within a second, however long that lasts: sweep and watchdog go on', async (t) => {
  const sockets = new Set<Socket>()
  const mute = createServer((socket) => { sockets.add(socket.on('error', () => {})) }).listen(0, '127.0.0.1')
  await once(mute, 'listening')
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    mute.close()
  })
  const url = `redis://127.0.0.1:${(mute.address() as AddressInfo).port}`
  const queue = createHintQueue(() => {
    const connection = connectRedis(url, 'queue', silent)
    return { connection, close: () => closeRedis(connection) }
  }, '{il-queue}', silent as never)
  t.teardown(() => queue.close())
  const began = performance.now()
  await Promise.all([
    t.rejects(queue.add('c', [{ id: 'j' }]), /does not answer/),
    t.rejects(queue.head(), /does not answer/),
    t.rejects(queue.counts(), /does not answer/)
  ])
  t.ok(performance.now() - began < 3000, 'a second, with room for a busy machine')
})
