import { Queue, QueueEvents } from 'bullmq'
import { Redis } from 'ioredis'
import type { Test } from 'tap'
import { QUEUE } from '../../src/queue/queue.js'
import { problemIn } from '../support/client.js'
import { answer, call, delayed, latch, say } from '../support/model-reply.js'
import { many, results } from '../support/tool-calls.js'
import { story, type World } from '../support/world.js'

/** Jobs as a queue that delivers more than once would bring them. */
async function duplicates (t: Test, { redis }: World): Promise<(conversation: string, n: number) => Promise<void>> {
  const [connection, listening] = [new Redis(redis.url, { maxRetriesPerRequest: null }), new Redis(redis.url, { maxRetriesPerRequest: null })]
  const prefix = `{${redis.prefix}-queue}`
  const queue = new Queue(QUEUE, { connection, prefix })
  const events = new QueueEvents(QUEUE, { connection: listening, prefix })
  t.teardown(async () => {
    await Promise.all([queue.close(), events.close()])
    connection.disconnect()
    listening.disconnect()
  })
  await events.waitUntilReady()
  let count = 0
  return async (conversation, n) => {
    const open = new Set(Array.from({ length: n }, () => `again-${++count}`))
    const done = new Promise<void>((resolve) => {
      events.on('completed', ({ jobId }) => {
        if (open.delete(jobId) && open.size === 0) resolve()
      })
    })
    await queue.addBulk([...open].map((jobId) => ({ name: 'advance', data: { conversation }, opts: { jobId } })))
    await done
  }
}

story('A7: an ended run is inert: jobs, cancels and messages that come late change nothing', async (t, world) => {
  const { model, service, tool } = world
  const { client } = await service()
  const again = await duplicates(t, world)
  model.script('conv:a', [call(...many(3, 'echo', (i) => ({ value: i }))), say('done')])
  const { run } = await client.finish({ input: 'conv:a', tools: [tool('echo')] })
  const before = [await client.run(run.id), await client.conversation(run.conversation_id), await client.log({ run: run.id })]
  await again(run.conversation_id, 10)
  t.equal((await client.cancel(run.id)).status, 'completed')
  t.match(problemIn(await client.request('POST', `/runs/${run.id}/messages`, { body: { content: 'hello?' } })), { status: 409, code: 'run_ended', conversation_id: run.conversation_id })
  // The worker has looked at the conversation ten times by now, and at another one after that.
  model.script('conv:b', [say('other')])
  await client.finish({ input: 'conv:b' })
  t.same([await client.run(run.id), await client.conversation(run.conversation_id), await client.log({ run: run.id })], before)
  t.equal(model.requests('conv:a').length, 2)
})

story('B1: ten calls that end in the same instant, on two workers, lead to exactly one next LLM call', async (t, { model, tools, service, tool }) => {
  const [{ client }] = await Promise.all([service(), service()])
  const runs = await Promise.all(Array.from({ length: 5 }, async (_, i) => {
    model.script(`conv:${i}`, [call(...many(10, 'barrier', (k) => ({ n: 10, key: String(i), value: k }))), say('done')])
    return await client.finish({ input: `conv:${i}`, tools: [tool('barrier', { placement: 'spread' })] })
  }))
  for (const [i, { run }] of runs.entries()) {
    t.match(run, { status: 'completed', usage: { llm_calls: 2, tool_calls: 10 } })
    t.equal(model.requests(`conv:${i}`).length, 2)
  }
  t.equal(model.maxInFlight(), 1)
  t.equal(tools.count(), 50)
})

story('B3: a list, then fetches of what it names, turn after turn: one LLM call for each, with all that came before', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  const widths = [1, 3, 2, 3, 1]
  model.script('conv:a', [...widths.map((width, turn) => call(...many(width, 'echo', (i) => ({ value: `${turn}.${i}` }), `t${turn}c`))), say('All there.')])
  const { run, stream } = await client.finish({ input: 'conv:a', tools: [tool('echo')] })
  t.match(run, { status: 'completed', output: 'All there.', turn: 6, usage: { llm_calls: 6, tool_calls: 10 } })
  t.same(stream.events().filter(({ type }) => type === 'turn.started').map(({ turn, attempt }) => [turn, attempt]), [1, 2, 3, 4, 5, 6].map((turn) => [turn, 1]))
  t.equal(model.requests().length, 6)
  t.equal(tools.count(), 10)
  const expected = widths.map((width, turn) => Array.from({ length: width }, (_, i) => `${turn}.${i}`))
  for (const [n, request] of model.requests().entries()) t.same(results(request), expected.slice(0, n).flat(), `request ${n + 1}`)
})

story('B4: LLM calls of different conversations overlap', async (t, { model, service }) => {
  const { client } = await service()
  const gate = latch()
  model.otherwise(() => delayed(say('done'), gate))
  const runs = await Promise.all([1, 2, 3].map((i) => client.start({ input: `conv:${i}` })))
  // All three are under way at once: none is answered before.
  for (const i of [1, 2, 3]) await model.waitForRequest(({ conversation }) => conversation === `conv:${i}`)
  gate.open()
  for (const run of runs) t.equal((await client.ended(run)).status, 'completed')
  t.equal(model.stats().maxInFlight, 3)
})

story('B6: an LLM call longer than the lock is not made twice, with another worker waiting for it', async (t, { model, service }) => {
  const env = { INTERLOCK_LOCK_TTL_MS: '900' }
  const [{ client }] = await Promise.all([service({ env }), service({ env })])
  model.script('conv:a', [delayed(say('at last'), 2500)])
  const { run, stream } = await client.finish({ input: 'conv:a' })
  t.equal(run.output, 'at last')
  t.same(stream.types(), ['run.created', 'run.started', 'turn.started', 'turn.completed', 'run.completed'])
  t.equal(model.requests().length, 1)
})

for (const [title, steal] of [
  ['deleted', (redis: Redis, key: string) => redis.del(key)],
  ['stolen', (redis: Redis, key: string) => redis.set(key, 'a thief', 'PX', 700)]
] as const) {
  story(`B8, M6: a lock that is ${title} in mid-call aborts the call; nothing of it is kept, stored or told`, async (t, { model, service, redis, keys }) => {
    const env = { INTERLOCK_LOCK_TTL_MS: '600' }
    const [{ client }] = await Promise.all([service({ env }), service({ env })])
    const gate = latch()
    model.script('conv:a', [delayed(say('from the first'), gate), say('from the second')])
    const run = await client.start({ input: 'conv:a' })
    const stream = await client.follow(run)
    const request = await model.waitForRequest(({ n }) => n === 1)
    const key = (await keys()).find((one) => one.endsWith(`:conv:${run.conversation_id}:lock`))
    const thief = new Redis(redis.url)
    await steal(thief, key ?? '')
    await thief.quit()
    t.ok((await request.ended).aborted, 'the call was broken off')
    gate.open()
    await stream.ended
    t.same(stream.types(), ['run.created', 'run.started', 'turn.started', 'turn.retrying', 'turn.completed', 'run.completed'])
    t.match(stream.events().find(({ type }) => type === 'turn.retrying'), { attempt: 2, reason: 'lease_lost' })
    t.match(await client.run(run.id), { output: 'from the second' })
    t.same((await client.messages(run.conversation_id)).map(({ content }) => content), ['conv:a', 'from the second'])
    t.equal(model.requests().length, 2)
  })
}

story('B9: each request holds the results of its own conversation, all of them, once', async (t, { model, service, tool }) => {
  const { client } = await service()
  const names = ['a', 'b', 'c']
  const value = (name: string, turn: number, i: number) => `value-${name}-${turn}-${i}`
  const ends = await Promise.all(names.map((name) => {
    model.script(`conv:${name}`, (_, n) => n > 4 ? say(`answer-${name}`) : call(...many(3, 'echo', (i) => ({ value: value(name, n, i) }), `${n}c`)))
    return client.finish({ input: `conv:${name}`, tools: [tool('echo')] })
  }))
  for (const [k, name] of names.entries()) {
    t.equal(ends[k]?.run.output, `answer-${name}`)
    for (const request of model.requests(`conv:${name}`)) {
      const expected = Array.from({ length: request.n - 1 }, (_, turn) => [0, 1, 2].map((i) => value(name, turn + 1, i))).flat()
      t.same(results(request), expected)
      const foreign = new RegExp(`value-[^${name}]-`)
      t.notMatch(JSON.stringify(request.body), foreign)
    }
  }
})

story('FAULTS F24, B11: jobs that are delivered again and again start no turn and no call twice', async (t, world) => {
  const { model, tools, service, tool } = world
  const [{ client }] = await Promise.all([service(), service()])
  const again = await duplicates(t, world)
  const gate = latch()
  model.script('conv:a', [delayed(answer({ calls: many(3, 'hold', (i) => ({ key: 'x', value: i })) }), gate), say('done')])
  const run = await client.start({ input: 'conv:a', tools: [tool('hold')] })
  await model.waitForRequest(() => true)
  // Whoever works on the conversation keeps such a job until it is done; the other worker finds nothing to do.
  const first = again(run.conversation_id, 20)
  gate.open()
  await tools.waitFor((attempts) => attempts.length === 3)
  const second = again(run.conversation_id, 20)
  tools.release('x')
  t.match(await client.ended(run), { status: 'completed', output: 'done', usage: { llm_calls: 2, tool_calls: 3 } })
  await Promise.all([first, second])
  t.equal(model.requests().length, 2)
  t.equal(tools.count(), 3)
})
