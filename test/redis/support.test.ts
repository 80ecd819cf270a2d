import { Redis } from 'ioredis'
import t from 'tap'
import { testRedis } from '../support/redis.js'

t.test('a test finds a Redis and leaves no key in it', async (t) => {
  const { url, prefix: kept } = await testRedis(t)
  const redis = new Redis(url)
  t.teardown(() => redis.quit())
  await redis.set(`${kept}:key`, 'other test')
  let used = ''
  await t.test('the test', async (t) => {
    const { prefix } = await testRedis(t)
    used = prefix
    await redis.mset(`${prefix}:{p1}:key`, '1', `{${prefix}-queue}:key`, '1')
  })
  t.match(used, /^[a-z0-9-]{1,32}$/, 'it can be INTERLOCK_KEY_PREFIX')
  t.not(used, kept)
  t.strictSame(await redis.keys(`*${used}*`), [])
  t.equal(await redis.get(`${kept}:key`), 'other test')
})
