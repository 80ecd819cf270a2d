import t from 'tap'
import { closeRedis, connectRedis, whenReady } from '../../src/redis/connect.js'
import { createIdempotencyService } from '../../src/services/idempotency.js'
import { createKeys } from '../../src/store/keys.js'
import { createFakeClock } from '../support/fake-clock.js'
import { silent, testRedis } from '../support/redis.js'

const { url, prefix } = await testRedis(t)
const redis = connectRedis(url, 'command', silent)
t.teardown(() => closeRedis(redis))
await whenReady(redis)

const ANSWER = { code: 201, headers: { location: '/runs/run_1' }, body: '{}' }

/** A request that waits for something for so long that its repeat has taken its place, and what both hold. */
async function overtaken (key: string) {
  const clock = createFakeClock()
  const service = createIdempotencyService(redis, createKeys(prefix, 4), clock)
  const begin = async (operation: string) => await service.begin('me', key, 'f', operation)
  const first = await begin('op_1')
  await clock.pass(3000)
  const second = await begin('op_2')
  t.match([first, second], [{ status: 'fresh', operation: 'op_1' }, { status: 'fresh', operation: 'op_1' }], 'it goes on with what the first one began')
  return { service, begin, held: [first, second].map((one) => (one as { reservation: string }).reservation) as [string, string] }
}

t.test('M5: a request whose place was taken forgets nothing of the one that took it', async (t) => {
  for (const answered of [true, false]) {
    const { service, begin, held: [first, second] } = await overtaken(`overtaken ${answered}`)
    if (answered) await service.finish('me', `overtaken ${answered}`, second, ANSWER)
    await service.abandon('me', `overtaken ${answered}`, first)
    if (!answered) {
      t.same(await begin('op_3'), { status: 'busy' })
      await service.finish('me', `overtaken ${answered}`, second, ANSWER)
    }
    t.same(await begin('op_4'), { status: 'replay', ...ANSWER })
  }
})

t.test('M5: a request that changed nothing frees its key', async (t) => {
  const { service, begin, held: [, second] } = await overtaken('free')
  await service.abandon('me', 'free', second)
  t.match(await begin('op_3'), { status: 'fresh', operation: 'op_3' })
})

t.test('M5: nobody goes on with a key that was given up just when it was looked at, without holding it', async (t) => {
  const service = createIdempotencyService(redis, createKeys(prefix, 4), createFakeClock())
  await service.begin('me', 'given up', 'f', 'op_1')
  let looks = 0
  const get = async (name: string) => {
    if (looks++ === 0) await redis.del(name)
    return await redis.get(name)
  }
  const other = createIdempotencyService(new Proxy(redis, { get: (of, name) => name === 'get' ? get : Reflect.get(of, name) as unknown }), createKeys(prefix, 4), createFakeClock())
  t.match(await other.begin('me', 'given up', 'f', 'op_2'), { status: 'fresh', operation: 'op_2' })
  t.same(await service.begin('me', 'given up', 'f', 'op_3'), { status: 'busy' })
})
