import t from 'tap'
import { soak } from '../support/soak.js'

t.setTimeout(600_000)

t.test('I20: after three hundred runs on real processes nothing is left in Redis that nobody owns, and nothing is open', async (t) => {
  const { looks, end, left } = await soak(t, { runs: 300, every: 150, lanes: 8, workers: 2, boundMs: 120_000 })
  t.same(left, [])
  t.equal(end.redis.conversations.length, 0)
  t.same(Object.keys(end.redis.counts).sort(), ['idempotency', 'meta', 'queue', 'worker'], 'the rest are keys of the service itself, and keys that expire')
  t.ok(looks.every(({ redis }) => redis.conversations.length <= 8), 'keys are those of the conversations there are')
})
