import fc from 'fast-check'
import { checkLedger, checkState } from '../../src/core/check.js'
import { createLedgerCache } from '../../src/engine/ledger.js'
import { redisBench } from '../support/redis-bench.js'
import { turnsScript } from '../support/turns-script.js'
import { story } from '../support/world.js'

const range = (n: number) => Array.from({ length: n }, (_, i) => i)

story('F62: the append-only file is cut at 20 random places: Redis starts, every conversation is at a commit, and goes on from there', async (t, { model, server, service, redis, tool }) => {
  model.otherwise(turnsScript('3x3'))
  const first = await service()
  const runs = await Promise.all(range(5).map((i) => first.client.start({ input: `conv:${i}`, tools: [tool('sleep', { effects: 'read' })] })))
  for (const run of runs) await first.client.ended(run)
  await first.stop()
  const whole = server?.tail() ?? 0
  await server?.kill()
  const image = server?.image() ?? ''
  // Seeded: a failure comes again.
  const cuts = fc.sample(fc.noBias(fc.integer({ min: Math.floor(whole / 10), max: whole - 1 })), { numRuns: 20, seed: 20_261_126 }).sort((a, b) => b - a)
  for (const [n, cut] of cuts.entries()) {
    server?.restore(image)
    server?.truncate(cut)
    await server?.start()
    await t.test(`${cut} of ${whole} bytes`, async (t) => {
      const { store } = await redisBench(t, redis.url, redis.prefix, [])
      for (const { conversation_id: id } of runs) {
        const row = await store.load(id)
        if (row === null) continue
        t.ok(row.epoch > 1)
        t.same([...checkState(row.state), ...checkLedger(row.state, await createLedgerCache(store, Date).read(id, row))], [])
        t.same((await store.log(id, 0, 10_000)).map(({ seq }) => seq), range(row.state.seq).map((i) => i + 1))
      }
    })
    if (n % 4 === 0) {
      const { client, stop } = await service()
      // What was in the middle of things goes on; where the run was lost, there is nothing to go on with.
      for (const { id } of runs) {
        const answer = await client.request('GET', `/runs/${id}`)
        if (answer.status === 200) t.match(await client.ended(id), { status: 'completed', output: 'All done.' })
        else t.equal(answer.status, 404)
      }
      await stop()
    }
    await server?.kill()
  }
  server?.restore(image)
  await server?.start()
}, { ownRedis: true, env: { INTERLOCK_LOCK_TTL_MS: '1000', INTERLOCK_SWEEP_MS: '200', INTERLOCK_STALLED_MS: '1000' }, except: ['deltas', 'rollback'] })
