import { Redis } from 'ioredis'
import { createClient, problemIn } from '../support/client.js'
import { call, delayed, latch, say, status } from '../support/model-reply.js'
import { many } from '../support/tool-calls.js'
import { maxOverlap } from '../support/tool-server.js'
import { story } from '../support/world.js'

const range = (n: number) => Array.from({ length: n }, (_, i) => i)

story('M2: a hundred results in one instant, on two workers: none is lost', async (t, { model, tools, service, tool }) => {
  const [{ client }] = await Promise.all([service(), service()])
  model.script('conv:a', [call(...many(100, 'barrier', (i) => ({ n: 100, value: i }))), say('done')])
  const { run, stream } = await client.finish({ input: 'conv:a', tools: [tool('barrier')], limits: { max_tool_concurrency: 128 } })
  t.match(run, { status: 'completed', usage: { tool_calls: 100 } })
  t.same((await client.calls(run.id)).map(({ output }) => output), range(100))
  t.match(stream.events().find(({ type }) => type === 'batch.completed'), { counts: { completed: 100 } })
  t.equal(tools.count(), 100)
  t.equal(model.requests().length, 2)
})

story('M3: writers that meet decide again on what stands then: every run is accepted once and done in order, one at a time', async (t, { model, service, watch }) => {
  const services = await Promise.all([service(), service(), service({ roles: { api: true, worker: false } })])
  // Whoever loses too often is told to come again, and so is who waits for a starved machine.
  const clients = services.map(({ url }) => watch(createClient(url, { patient: true })))
  model.script('conv:a', ({ n }) => say(`answer ${n}`))
  const [first] = clients as [typeof clients[0]]
  const begun = await first.start({ input: 'conv:a' })
  const runs = await Promise.all(range(30).map((i) => (clients[i % 3] ?? first).start({ input: `input ${i}`, conversation_id: begun.conversation_id })))
  for (const run of runs) t.equal((await first.ended(run)).status, 'completed')
  const log = await first.log({ conversation: begun.conversation_id })
  const of = (type: string) => log.filter((event) => event.type === type).map((event) => event.run_id)
  t.same(of('run.started'), of('run.created'), 'first come, first served')
  t.same(of('run.created').sort(), [begun, ...runs].map(({ id }) => id).sort(), 'all of them, once')
  t.equal(model.requests().length, 31)
  const roles = (await first.messages(begun.conversation_id)).map(({ role }) => role)
  t.same(roles, roles.map((_, i) => i % 2 === 0 ? 'user' : 'assistant'))
})

story('M3: a request that loses again and again is told so, and has changed nothing', async (t, { model, service, redis, keys }) => {
  const { client } = await service({ roles: { api: true, worker: false } })
  const made = await client.request('POST', '/conversations', { body: { messages: [{ role: 'user', content: 'conv:a' }] } })
  const { id } = JSON.parse(made.text) as { id: string }
  const before = await client.conversation(id)
  const row = (await keys()).find((key) => key.endsWith(`:conv:${id}`)) ?? ''
  // A token that is no text, so that it comes back as another: whoever commits finds that somebody else was first, every time.
  const rival = new Redis(redis.url)
  const tokens = await rival.hget(row, 'tokens') ?? ''
  await rival.hset(row, 'tokens', Buffer.concat([Buffer.from([0xff]), Buffer.from(` ${tokens}`)]))
  const refused = await client.request('POST', '/runs', { body: { input: 'again', conversation_id: id } })
  // Whoever loses too often is told so; on a starved machine the second a request may take can be over first.
  t.match(problemIn(refused), { retryable: true })
  t.ok([409, 503].includes(refused.status), `refused with ${refused.status}`)
  t.equal(refused.headers['retry-after'], '1')
  t.same(await client.conversation(id), before)
  await rival.hset(row, 'tokens', tokens)
  await rival.quit()
  t.equal((await client.request('POST', '/runs', { body: { input: 'again', conversation_id: id } })).status, 201)
  await client.request('DELETE', `/conversations/${id}`)
  t.equal(model.requests().length, 0)
})

story('M4, M6: row, ledger and log change together or not at all, whenever one looks', async (t, { model, service, tool, redis, keys }) => {
  const [{ client }] = await Promise.all([service(), service()])
  model.script('conv:a', (_, n) => n > 8 ? say('done') : call(...many(5, 'echo', (i) => ({ value: `${n}.${i}` }), `${n}c`)))
  const run = await client.start({ input: 'conv:a', tools: [tool('echo', { placement: 'spread' })] })
  const row = (await keys()).find((key) => key.endsWith(`:conv:${run.conversation_id}`)) ?? ''
  const reader = new Redis(redis.url)
  let looks = 0
  const versions = new Map<string, string>()
  for (let ended = false; !ended; looks++) {
    const found = await reader.multi().hmget(row, 'version', 'state').llen(`${row}:messages`).xlen(`${row}:events`).xrevrange(`${row}:events`, '+', '-', 'COUNT', 1).exec()
    const values = (found ?? []).map(([, value]) => value) as [[string, string], number, number, [[string, string[]]]]
    const [[version, json], messages, events, [[newest, fields]]] = values
    const state = JSON.parse(json) as { seq: number, messages: number, run: unknown }
    if (state.seq !== events || newest !== `${events}-0` || state.messages !== messages) t.fail('a half', { version, state, messages, events, newest })
    if ((versions.get(version) ?? json) !== json) t.fail(`version ${version} names two states`)
    versions.set(version, json)
    ended = state.run === null
    if (ended) t.match(fields, ['t', 'run.completed'])
  }
  await reader.quit()
  t.ok(versions.size > 10, `${versions.size} states seen in ${looks} looks`)
})

story('N1: switched off, by environment or by run, parallel calls run one by one with the same result', async (t, { model, tools, service, tool }) => {
  const off = { FEATURE_PARALLEL_TOOLS: 'false' }
  const [parallel, switched] = await Promise.all([service(), service({ env: off })])
  const ends = []
  for (const [name, { client }, body] of [['on', parallel, {}], ['by-env', switched, {}], ['by-run', parallel, { tool_policy: { parallel: false } }]] as const) {
    model.script(`conv:${name}`, [call(...many(4, 'sleep', (i) => ({ ms: 40 - 10 * i, value: i }))), say('done')])
    const { run } = await client.finish({ input: `conv:${name}`, tools: [tool('sleep')], ...body })
    const ledger = (await client.messages(run.conversation_id)).slice(1).map(({ role, content, name: named }) => ({ role, content, named }))
    ends.push({ status: run.status, output: run.output, usage: run.usage, ledger })
    t.equal(maxOverlap(tools.attempts.filter(({ headers }) => headers['interlock-run-id'] === run.id)) > 1, name === 'on', name)
    t.equal(model.requests(`conv:${name}`)[0]?.body.parallel_tool_calls, name === 'on', 'the model is told')
  }
  t.same(ends[1], ends[0])
  t.same(ends[2], ends[0])
})

story('N4: LLM calls are capped, and conversations take turns', async (t, { model, service, tool }) => {
  const { client } = await service({ env: { INTERLOCK_MODEL_CONCURRENCY: '3' } })
  const gate = latch()
  model.otherwise(({ n }) => delayed(n < 3 ? call({ id: `c${n}`, name: 'echo', arguments: { value: n } }) : say('done'), n === 1 ? gate : 10))
  const streams = await Promise.all(range(10).map(async (i) => client.follow(await client.start({ input: `conv:${i}`, tools: [tool('echo')] }))))
  await Promise.all(streams.map((stream) => stream.event('turn.started')))
  t.ok(model.requests().length <= 3, 'the others wait')
  gate.open()
  await Promise.all(streams.map((stream) => stream.ended))
  t.equal(model.stats().maxInFlight, 3)
  const order = model.requests()
  t.equal(order.length, 30)
  const firsts = Math.max(...range(10).map((i) => order.findIndex(({ conversation, n }) => conversation === `conv:${i}` && n === 1)))
  const third = order.findIndex(({ n }) => n === 3)
  t.ok(firsts < third, 'nobody has a third turn before everybody had a first')
})

story('N5: sixty conversations at once do not hear each other', async (t, { model, service, tool }) => {
  const { client } = await service()
  model.otherwise(({ conversation, n }) => n === 1 ? call({ id: 'c1', name: 'echo', arguments: { value: `secret-of-${conversation}` } }) : say(`answer-to-${conversation}`))
  const ends = await Promise.all(range(60).map((i) => client.finish({ input: `conv:n${i}x`, tools: [tool('echo')] })))
  for (const [i, { run, stream }] of ends.entries()) {
    const own = `conv:n${i}x`
    if (run.output !== `answer-to-${own}`) t.fail(`${own} got ${String(run.output)}`)
    const heard = [stream.raw(), ...model.requests(own).map(({ body }) => JSON.stringify(body))].join()
    const foreign = (heard.match(/conv:n\d+x/g) ?? []).filter((name) => name !== own)
    if (foreign.length > 0) t.fail(`${own} heard ${foreign.join()}`)
  }
  t.equal(model.stats().requests, 120)
  t.equal(model.maxInFlight(), 1)
})

story('N6: a hundred and twenty calls at once', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.otherwise(({ conversation, n }) => n === 1 ? call(...many(12, 'barrier', (i) => ({ n: 12, key: conversation, value: i }))) : say('done'))
  const ends = await Promise.all(range(10).map((i) => client.finish({ input: `conv:${i}`, tools: [tool('barrier')] })))
  for (const { run } of ends) t.match(run, { status: 'completed', usage: { tool_calls: 12 } })
  t.equal(tools.count(), 120)
})

story('FAULTS I22, I23: with one place for LLM calls, conversations take turns, and one that goes wrong keeps nobody waiting', async (t, { model, service, tool }) => {
  const { client } = await service({ env: { INTERLOCK_TURN_CONCURRENCY: '1' } })
  const [conversations, turns] = [6, 5]
  const gate = latch()
  // One whose calls hang and one whose provider fails, again and again, besides those that just want their turns.
  model.script('conv:hangs', [call({ id: 'h', name: 'hang', arguments: {} })])
  model.script('conv:fails', () => status(500))
  for (const i of range(conversations)) {
    model.script(`conv:${i}`, ({ n }) => n < turns ? call({ id: `c${n}`, name: 'echo', arguments: { value: n } }) : say('done'))
  }
  model.script('conv:first', [delayed(say('done'), gate)])
  const first = await client.start({ input: 'conv:first' })
  const hangs = await client.start({ input: 'conv:hangs', tools: [tool('hang', { timeout_ms: 600_000 })] })
  const fails = await client.start({ input: 'conv:fails' })
  await model.waitForRequest(({ conversation }) => conversation === 'conv:first')
  const runs = []
  for (const i of range(conversations)) runs.push(await client.start({ input: `conv:${i}`, tools: [tool('echo')] }))
  gate.open()
  for (const run of [first, ...runs]) t.equal((await client.ended(run)).output, 'done')
  t.not((await client.run(hangs.id)).status, 'completed')
  const asked = model.requests().map(({ conversation }) => conversation)
  for (const i of range(conversations)) {
    const own = asked.flatMap((one, at) => one === `conv:${i}` ? [at] : [])
    t.equal(own.length, turns)
    own.slice(1).forEach((at, k) => {
      const between = at - (own[k] ?? 0) - 1
      t.ok(between <= conversations + 4, `turn ${k + 2} of conv:${i} came behind ${between} of others`)
    })
    t.ok((own[0] ?? 0) <= conversations + 6, `the first turn of conv:${i} came as number ${own[0]}`)
  }
  for (const { id } of [hangs, fails]) await client.cancel(id, '?wait=1')
})

story('FAULTS S16: a conversation takes so many runs that wait, and one more is refused: all that were taken are there', async (t, { service }) => {
  const { client } = await service({ roles: { api: true, worker: false } })
  const { conversation_id: id } = await client.start({ input: 'conv:a' })
  for (let i = 0; i < 10; i++) await Promise.all(range(25).map((n) => client.start({ input: `${i} ${n}`, conversation_id: id })))
  const refused = await client.request('POST', '/runs', { body: { input: 'one more', conversation_id: id } })
  t.match(problemIn(refused), { status: 429, code: 'queue_full', limit: 250, retryable: true })
  t.equal((await client.request('POST', '/runs', { body: { input: 'at once', conversation_id: id, on_active_run: 'interrupt' } })).status, 201)
  await client.request('DELETE', `/conversations/${id}`)
})
