import { Redis } from 'ioredis'
import t from 'tap'
import { privateRedis } from '../support/redis.js'
import { leftBehind, look } from '../support/soak-redis.js'
import { soak } from '../support/soak.js'

t.setTimeout(600_000)

t.test('I20 N8: after three hundred runs on real processes nothing is left in Redis that nobody owns, and nothing is open', async (t) => {
  const { looks, end, left } = await soak(t, { runs: 300, every: 150, lanes: 8, workers: 2, boundMs: 120_000 })
  t.same(left, [])
  t.equal(end.redis.conversations.length, 0)
  t.same(Object.keys(end.redis.counts).sort(), ['epoch', 'idempotency', 'meta', 'name', 'queue', 'worker'], 'the rest are keys of the service itself, and keys that expire')
  t.ok(looks.every(({ redis }) => redis.conversations.length <= 8), 'keys are those of the conversations there are')
})

t.test('I20: whatever belongs to nobody is found', async (t) => {
  const redis = new Redis((await privateRedis(t)).url)
  t.teardown(() => redis.quit())
  await redis.hset('soak:meta', 'partitions', 16)
  await redis.set('soak:{workers}:worker:W', '1', 'PX', 60_000)
  await redis.hset('soak:{p1}:conv:live', 'version', 1)
  await redis.zadd('soak:{p1}:runs:default', 0, 'run_1:live')
  await redis.hset('{soak-queue}:advance:meta', 'version', 1)
  const who = { live: ['live'], posts: 1, workers: 1 }
  t.same(leftBehind(await look(redis, 'soak'), who), [])

  await redis.hset('soak:{p1}:conv:gone:docs', 'run/1', '{}')
  await redis.set('soak:{p1}:conv:live:lock', 'x', 'PX', 60_000)
  await redis.zadd('soak:{p1}:due', 0, 'live')
  await redis.zadd('soak:{p1}:runs:default', 0, 'run_2:gone')
  await redis.set('soak:{p1}:stray', 'x')
  await redis.set('soak:idempotency:default:a', '{}')
  await redis.set('soak:idempotency:default:b', '{}', 'PX', 60_000)
  await redis.hset('{soak-queue}:advance:run_1-t1-a1', 'data', '{}')
  await redis.set('soak:{workers}:worker:V', '1', 'PX', 60_000)
  t.same(leftBehind(await look(redis, 'soak'), who), [
    '1 conversations that were deleted have keys: gone',
    '1 locks are held: soak:{p1}:conv:live:lock',
    '1 idle conversations are due: live',
    '1 runs of deleted conversations are indexed: run_2',
    '1 keys are of no known kind: soak:{p1}:stray',
    '1 kinds of keys should expire and do not: idempotency',
    '1 keys of the queue are jobs, or lists of them: run_1-t1-a1',
    '2 signs of life of 1 workers',
    '2 idempotency keys for 1 POSTs'
  ])
})
