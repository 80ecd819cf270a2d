import { setTimeout as sleep } from 'node:timers/promises'
import { createClient } from '../support/client.js'
import { call, delayed, latch, say } from '../support/model-reply.js'
import { many } from '../support/tool-calls.js'
import { story } from '../support/world.js'

const range = (n: number) => Array.from({ length: n }, (_, i) => i)
const api = { roles: { api: true, worker: false } }

story('F53, I24, N10: a rolling restart of three workers under load loses nothing and repeats nothing', async (t, { model, tools, service, process, tool, watch }) => {
  const { url } = await service(api)
  const client = watch(createClient(url, { patient: true }))
  const old = await Promise.all(range(3).map(() => process('worker')))
  model.otherwise(({ n }) => n > 6 ? say('done') : delayed(call(...many(3, n % 2 === 0 ? 'sleep' : 'spread', (i) => ({ ms: 20 * i, value: `${n}.${i}` }), `${n}c`)), 150))
  const running = range(30).map((i) => client.finish({ input: `conv:${i}`, tools: [tool('sleep'), tool('sleep', { name: 'spread', placement: 'spread' })] }))
  await tools.waitFor((attempts) => attempts.length >= 60)
  for (const worker of old) {
    worker.signal('SIGTERM')
    const next = process('worker')
    t.same(await worker.exited, { code: 0, signal: null })
    t.equal(worker.stderr(), '')
    await next
  }
  for (const { run, stream } of await Promise.all(running)) {
    t.match(run, { status: 'completed', output: 'done', usage: { llm_calls: 7, tool_calls: 18 } })
    t.same(stream.events().filter(({ type }) => type === 'turn.retrying' || type === 'tool.failed'), [], 'nothing was cut: everything could be finished in time')
  }
  for (const i of range(30)) if (model.requests(`conv:${i}`).length !== 7) t.fail(`conv:${i} had ${model.requests(`conv:${i}`).length} LLM calls`)
  t.equal(tools.count(), 540, 'every call once')
})

story('N10: a request under way is answered when the process is told to end, and a second signal ends it at once', async (t, { model, process, service }) => {
  const leaving = await process('all', { INTERLOCK_GRACE_MS: '60000' })
  const gate = latch()
  model.script('conv:a', [delayed(say('too late'), gate), say('done')])
  const waiting = leaving.client.request('POST', '/runs', { body: { input: 'conv:a' }, headers: { prefer: 'wait=30' } })
  await model.waitForRequest(() => true)
  leaving.signal('SIGTERM')
  const answer = await waiting
  t.equal(answer.status, 202, 'not when the run has ended, but now')
  leaving.signal('SIGINT')
  t.same(await leaving.exited, { code: 1, signal: null })
  const { client } = await service({ env: { INTERLOCK_LOCK_TTL_MS: '1000' } })
  t.equal((await client.ended(JSON.parse(answer.text).id as string)).output, 'done')
}, { long: true })

for (const [when, order] of [
  ['after Redis has stopped answering', ['pause', 'term']],
  ['just before Redis stops answering', ['term', 'pause']],
  ['after Redis was killed', ['kill', 'term']],
  ['just before Redis is killed', ['term', 'kill']]
] as const) {
  story(`N10: SIGTERM ${when}: the process ends with code 0 a few seconds after its grace time, and says nothing on stderr`, async (t, { model, process, server }) => {
    const leaving = await process('all', { INTERLOCK_GRACE_MS: '500' })
    model.script('conv:a', [delayed(say('late'), latch())])
    await leaving.client.start({ input: 'conv:a' })
    await model.waitForRequest(() => true)
    const stream = await leaving.client.open('/runs/' + (JSON.parse((await leaving.client.request('GET', '/runs')).text) as { data: { id: string }[] }).data[0]!.id + '/events')
    let told = 0
    for (const step of order) {
      if (step === 'term') {
        told = performance.now()
        leaving.signal('SIGTERM')
      } else if (step === 'pause') {
        server?.pause()
        await sleep(50)
      } else {
        await server?.kill()
      }
    }
    t.same(await leaving.exited, { code: 0, signal: null })
    t.ok(performance.now() - told < 10_000, `${Math.round(performance.now() - told)} ms`)
    t.equal(leaving.stderr(), '')
    t.same(await stream.ended, { clean: true })
    t.ok(stream.retries.length >= 2, 'come back')
    if (order.some((step) => step === 'pause')) server?.resume()
    else await server?.start()
  }, { ownRedis: true, except: ['deltas'], long: true })
}
