import { join } from 'node:path'
import { problemIn, type EventStream } from '../support/client.js'
import { answer, call, delayed, say, stream as deltas } from '../support/model-reply.js'
import { many, results } from '../support/tool-calls.js'
import { story } from '../support/world.js'

const TOOLS_DIR = join(import.meta.dirname, '../support/tools')

/** How long the only batch of a stream took, and how long its calls took one by one, in milliseconds. */
function durations (stream: EventStream): { batch: number, calls: number } {
  const of = (type: string) => stream.events().reduce((sum, event) => sum + (event.type === type ? Number(event.duration_ms) : 0), 0)
  return { batch: of('batch.completed'), calls: of('tool.completed') }
}

story('D1: turn and batch numbers rise over all runs of a conversation', async (t, { model, service, tool }) => {
  const { client } = await service()
  let n = 0
  model.otherwise(({ body }) => body.messages.at(-1)?.role === 'tool' ? say('done') : call({ id: `c${++n}`, name: 'echo', arguments: { value: n } }))
  const { run } = await client.finish({ input: 'conv:a', tools: [tool('echo')] })
  for (let i = 0; i < 2; i++) await client.finish({ input: 'again', conversation_id: run.conversation_id, tools: [tool('echo')] })
  const log = await client.log({ conversation: run.conversation_id })
  t.same(log.filter(({ type }) => type === 'turn.started').map(({ turn }) => turn), [1, 2, 3, 4, 5, 6])
  t.same(log.filter(({ type }) => type === 'batch.started').map(({ turn }) => turn), [1, 3, 5])
  t.equal(new Set(log.flatMap(({ batch_id: id }) => id ?? [])).size, 3)
})

story('D2: no LLM request before every call of the batch is settled', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call(...many(3, 'hold', (i) => ({ key: `k${i}`, value: i }))), say('done')])
  const stream = await client.follow(await client.start({ input: 'conv:a', tools: [tool('hold')] }))
  for (const key of ['k1', 'k0']) {
    tools.release(key)
    await stream.event('tool.completed', ({ output }) => output === Number(key[1]))
  }
  t.equal(model.requests().length, 1, 'two of three are in')
  tools.release('k2')
  const next = await model.waitForRequest(({ n }) => n === 2)
  for (const { ended_at: ended } of tools.attempts) t.ok((ended ?? Infinity) <= next.arrivedAt + performance.timeOrigin)
  await stream.ended
})

story('D3: the ledger does not change while a batch is open, then it changes once', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [answer({ text: 'I look.', calls: many(3, 'hold', (i) => ({ key: `k${i}`, value: i })) }), say('done')])
  const run = await client.start({ input: 'conv:a', tools: [tool('hold')] })
  const stream = await client.follow(run)
  const seen = new Set<string>()
  let over = false
  const polling = (async () => {
    while (!over) seen.add((await client.messages(run.conversation_id)).map(({ role }) => role).join(' '))
  })()
  for (let i = 0; i < 3; i++) {
    await tools.waitFor((attempts) => attempts.length === 3)
    t.same((await client.messages(run.conversation_id)).map(({ role }) => role), ['user'])
    tools.release(`k${i}`)
    await stream.event('tool.completed', ({ output }) => output === i)
  }
  await stream.ended
  over = true
  await polling
  const allowed = ['user', 'user assistant tool tool tool', 'user assistant tool tool tool assistant']
  t.same([...seen].filter((roles) => !allowed.includes(roles)), [])
})

story('FAULTS F25, D4: a call that takes too long fails with timeout, is aborted, and the batch closes', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call({ id: 'slow', name: 'hang', arguments: {} }, { id: 'quick', name: 'echo', arguments: { value: 'here' } }), say('done')])
  const { run, stream } = await client.finish({ input: 'conv:a', tools: [tool('hang', { timeout_ms: 150 }), tool('echo')] })
  t.match(run, { status: 'completed', output: 'done' })
  t.match(stream.events().find(({ type }) => type === 'tool.failed'), { name: 'hang', error: { code: 'timeout', message: /150 ms/ } })
  t.match(stream.events().find(({ type }) => type === 'batch.completed'), { counts: { completed: 1, failed: 1, cancelled: 0 } })
  t.match(results(model.requests()[1]), [/"code":"timeout"/, 'here'])
  await tools.waitFor((attempts) => attempts.every(({ ended_at: ended }) => ended !== null))
  t.equal(tools.attempts.find(({ route }) => route === 'hang')?.aborted, true)
})

story('D4: limits.tool_timeout_ms holds for tools that say nothing', async (t, { model, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call({ name: 'hang', arguments: {} }), say('done')])
  const { run } = await client.finish({ input: 'conv:a', tools: [tool('hang')], limits: { tool_timeout_ms: 100 } })
  t.match(await client.calls(run.id), [{ status: 'failed', error: { code: 'timeout' } }])
})

story('D9: a result never crosses turns, though the call ends in the next one and the tool has the same name', async (t, { model, service }) => {
  const { client } = await service({ env: { INTERLOCK_TOOLS_DIR: TOOLS_DIR } })
  // The first call goes on behind its timeout, deaf to the abort, and ends while the third LLM call is under way.
  model.script('conv:a', [
    call({ id: 'c1', name: 'deaf_sleep', arguments: { ms: 700, value: 'late' } }),
    call({ id: 'c2', name: 'deaf_sleep', arguments: { ms: 20, value: 'in time' } }),
    delayed(say('done'), 900)
  ])
  const { run, stream } = await client.finish({ input: 'conv:a', tools: [{ kind: 'module', name: 'deaf_sleep', timeout_ms: 300 }] })
  t.match(await client.calls(run.id), [{ turn: 1, status: 'failed', error: { code: 'timeout' } }, { turn: 2, status: 'completed', output: 'in time' }])
  t.match(results(model.requests()[2]), [/timeout/, 'in time'])
  t.same(stream.events().flatMap(({ type, output }) => output === 'late' ? type : []), ['tool.orphaned'], 'nobody is told of it as a result')
})

story('D10: results are matched by id, whatever the order they come in', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call(...many(5, 'hold', (i) => ({ key: `k${i}`, value: `value ${i}` }))), say('done')])
  const stream = await client.follow(await client.start({ input: 'conv:a', tools: [tool('hold')] }))
  for (const i of [3, 0, 4, 2, 1]) {
    tools.release(`k${i}`)
    await stream.event('tool.completed', ({ output }) => output === `value ${i}`)
  }
  await stream.ended
  t.same(results(model.requests()[1]), [0, 1, 2, 3, 4].map((i) => `value ${i}`))
  for (const { args, headers } of tools.attempts) {
    const { output } = await client.get<{ output: string }>(`/runs/${String(headers['interlock-run-id'])}/calls/${String(headers['interlock-call-id'])}`)
    t.equal(output, args.value)
  }
})

story('D7: of a tool that answers twice the first answer counts, and whoever shares its connection gets an answer of its own', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [
    call({ id: 'c1', name: 'twice', arguments: { value: 'first', again: 'second' } }),
    call({ id: 'c2', name: 'echo', arguments: { value: 'its own' } }, { id: 'c3', name: 'twice', arguments: { value: 'third', again: 'fourth' } }),
    say('done')
  ])
  const { run, stream } = await client.finish({ input: 'conv:a', tools: [tool('twice'), tool('echo')] })
  t.equal(run.status, 'completed')
  t.same((await client.calls(run.id)).map(({ status, output }) => [status, output]), [['completed', 'first'], ['completed', 'its own'], ['completed', 'third']])
  t.same(results(model.requests()[2]), ['first', 'its own', 'third'])
  t.equal(stream.types().filter((type) => type === 'tool.completed').length, 3)
  t.equal(tools.count(), 3)
})

story('FAULTS F17, D13: a call id that comes twice, or not at all, is two calls of our own', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [
    call({ id: 'same', name: 'echo', arguments: { value: 1 } }, { id: 'same', name: 'echo', arguments: { value: 2 } }, { id: '', name: 'echo', arguments: { value: 3 } }),
    call({ id: 'same', name: 'echo', arguments: { value: 4 } }),
    say('done')
  ])
  const { run } = await client.finish({ input: 'conv:a', tools: [tool('echo')] })
  t.equal(run.status, 'completed')
  t.same(results(model.requests()[2]), ['1', '2', '3', '4'])
  t.equal(tools.count('echo'), 4)
  t.equal(new Set((await client.calls(run.id)).map((one) => one.call_id)).size, 4)
})

for (const [title, body, overlap] of [
  ['five calls of 100 ms run at once', {}, 5],
  ['one after the other with parallel: false', { tool_policy: { parallel: false } }, 1]
] as const) {
  story(`E1: ${title}`, async (t, { model, tools, service, tool }) => {
    const { client } = await service()
    model.script('conv:a', [call(...many(5, 'sleep', () => ({ ms: 100 }))), say('done')])
    const { stream } = await client.finish({ input: 'conv:a', tools: [tool('sleep')], ...body })
    const { batch, calls } = durations(stream)
    if (overlap === 1) {
      t.equal(tools.maxOverlap(), 1)
      t.ok(batch >= 500, `the batch took ${batch} ms`)
    } else {
      t.ok(tools.maxOverlap() > 3, 'they overlap')
      t.ok(batch < calls / 2, `the batch took ${batch} ms, its calls ${calls} ms`)
    }
  })
}

story('E2: ten calls of a second take about a second', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call(...many(10, 'sleep', () => ({ ms: 1000 }))), say('done')])
  const { stream } = await client.finish({ input: 'conv:a', tools: [tool('sleep')] })
  t.equal(tools.maxOverlap('sleep'), 10)
  const { batch, calls } = durations(stream)
  t.ok(batch >= 1000 && batch < calls / 5, `the batch took ${batch} ms, its calls ${calls} ms`)
})

story('E3: calls of a batch overlap: each waits for the others to arrive', async (t, { model, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call(...many(12, 'barrier', (i) => ({ n: 12, value: i }))), say('done')])
  t.match((await client.finish({ input: 'conv:a', tools: [tool('barrier')] })).run, { status: 'completed', usage: { tool_calls: 12 } })
})

story('E4: max_tool_concurrency is honoured; the others wait in request order and none is dropped', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call(...many(12, 'hold', (i) => ({ key: `k${i}`, value: i }))), say('done')])
  const run = await client.start({ input: 'conv:a', tools: [tool('hold')], limits: { max_tool_concurrency: 4 } })
  await tools.waitFor((attempts) => attempts.length === 4)
  t.same((await client.run(run.id)).current?.calls.map(({ status }) => status), [...Array(4).fill('running'), ...Array(8).fill('pending')])
  for (let i = 0; i < 12; i++) {
    tools.release(`k${i}`)
    await tools.waitFor((attempts) => attempts.length >= Math.min(12, i + 5))
  }
  t.match(await client.ended(run), { status: 'completed', usage: { tool_calls: 12 } })
  const keys = tools.attempts.map(({ args }) => args.key)
  t.same(keys.slice(0, 4).sort(), ['k0', 'k1', 'k2', 'k3'])
  t.same(keys.slice(4), Array.from({ length: 8 }, (_, i) => `k${i + 4}`))
  t.equal(tools.maxOverlap(), 4)
})

for (const [title, body, env] of [
  ['max_tool_concurrency 1', { limits: { max_tool_concurrency: 1 } }, {}],
  ['parallel: false', { tool_policy: { parallel: false } }, {}],
  ['FEATURE_PARALLEL_TOOLS=false', {}, { FEATURE_PARALLEL_TOOLS: 'false' }]
] as const) {
  story(`E5: with ${title} calls run one at a time in request order`, async (t, { model, tools, service, tool }) => {
    const { client } = await service({ env })
    model.script('conv:a', [call(...many(5, 'sleep', (i) => ({ ms: 20, value: i }))), say('done')])
    const { stream } = await client.finish({ input: 'conv:a', tools: [tool('sleep')], ...body })
    t.same(tools.attempts.map(({ args }) => args.value), [0, 1, 2, 3, 4])
    t.equal(tools.maxOverlap(), 1)
    const batch = stream.types().filter((type) => type.startsWith('tool.'))
    t.same(batch, Array(5).fill(['tool.started', 'tool.completed']).flat(), 'each is started when the one before is settled')
  })
}

story('E6: a concurrency below one is refused', async (t, { service }) => {
  const { client } = await service()
  for (const cap of [0, -1, 1.5]) {
    const answered = await client.request('POST', '/runs', { body: { input: 'conv:a', limits: { max_tool_concurrency: cap } } })
    t.match(problemIn(answered), { status: 422, errors: [{ pointer: '/limits/max_tool_concurrency' }] }, String(cap))
  }
})

story('E7: one call is a batch; an empty list of calls is an answer', async (t, { model, service, tool }) => {
  const { client } = await service()
  model.script('conv:one', [call({ name: 'echo', arguments: { value: 1 } }), say('done')])
  model.script('conv:none', [deltas([{ role: 'assistant', content: 'just text', tool_calls: [] }])])
  const one = await client.finish({ input: 'conv:one', tools: [tool('echo')] })
  t.match(one.stream.events().find(({ type }) => type === 'batch.completed'), { counts: { completed: 1 } })
  const none = await client.finish({ input: 'conv:none', tools: [tool('echo')] })
  t.match(none.run, { status: 'completed', output: 'just text', usage: { tool_calls: 0 } })
  t.notOk(none.stream.types().some((type) => type.startsWith('batch.')))
})

story('E8: sixty calls in one answer', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call(...many(60, 'sleep', (i) => ({ ms: 50, value: i }))), say('done')])
  const { run, stream } = await client.finish({ input: 'conv:a', tools: [tool('sleep')] })
  t.match(stream.events().find(({ type }) => type === 'batch.completed'), { counts: { completed: 60, failed: 0, cancelled: 0 } })
  t.same(results(model.requests()[1]), Array.from({ length: 60 }, (_, i) => String(i)))
  t.ok(tools.maxOverlap() > 1 && tools.maxOverlap() <= 16, 'sixteen at once by default')
  t.equal((await client.calls(run.id)).length, 60)
})

story('E9: unknown and undeclared tools, broken and invalid arguments fail their own call with a clear text', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  const strict = tool('echo', { parameters: { type: 'object', properties: { value: { type: 'integer' } }, required: ['value'], additionalProperties: false } })
  model.script('conv:a', [
    call(
      { id: 'c1', name: 'no_such_tool', arguments: {} },
      { id: 'c2', name: 'http_fetch', arguments: { url: tools.url } },
      { id: 'c3', name: 'echo', arguments: '{"value": 1' },
      { id: 'c4', name: 'echo', arguments: { value: 'one' } },
      { id: 'c5', name: 'echo', arguments: '[1]' },
      { id: 'c6', name: 'echo', arguments: { value: 7 } }
    ),
    say('done')
  ])
  const { run } = await client.finish({ input: 'conv:a', tools: [strict] })
  t.equal(run.status, 'completed')
  t.match(await client.calls(run.id), [
    { status: 'failed', error: { code: 'unknown_tool', message: /no_such_tool.*echo/ }, attempt: 0 },
    { status: 'failed', error: { code: 'unknown_tool', message: /http_fetch/ }, attempt: 0 },
    { status: 'failed', error: { code: 'invalid_arguments', message: /not valid JSON/ }, attempt: 0 },
    { status: 'failed', error: { code: 'invalid_arguments', message: /value.*integer/ }, attempt: 0 },
    { status: 'failed', error: { code: 'invalid_arguments', message: /JSON object/ }, attempt: 0 },
    { status: 'completed', output: 7, attempt: 1 }
  ])
  t.match(results(model.requests()[1]), [/unknown_tool/, /unknown_tool/, /invalid_arguments/, /invalid_arguments/, /invalid_arguments/, '7'])
  t.equal(tools.count(), 1)
})

story('E16: a long result is cut for the model and the events; the call has all of it', async (t, { model, service, tool }) => {
  const { client } = await service()
  const value = 'x'.repeat(99_999) + '!'
  model.script('conv:a', [call({ id: 'c1', name: 'echo', arguments: { value } }, { id: 'c2', name: 'echo', arguments: { value: 'short' } }), say('done')])
  const { run, stream } = await client.finish({ input: 'conv:a', tools: [tool('echo')], limits: { max_result_chars: 1000 } })
  const events = stream.events().filter(({ type }) => type === 'tool.completed').sort((a, b) => String(b.output).length - String(a.output).length)
  t.match(events, [{ truncated: true, output: /^x{900}/ }, { output: 'short' }])
  t.notOk('truncated' in (events[1] ?? {}), 'only where something is missing')
  const [told] = results(model.requests()[1]) ?? []
  t.equal(told, events[0]?.output)
  t.ok(String(told).length < 1100)
  t.match((await client.calls(run.id)).map(({ output }) => output), [value, 'short'])
})

story('E17: the record of a batch has each call\'s outcome and times, and its own duration', async (t, { model, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call({ id: 'c1', name: 'sleep', arguments: { ms: 30, value: 'ok' } }, { id: 'c2', name: 'fail', arguments: { status: 503, message: 'closed today' } }), say('done')])
  const { run, stream } = await client.finish({ input: 'conv:a', tools: [tool('sleep'), tool('fail')] })
  const [good, bad] = await client.calls(run.id)
  t.match(good, { status: 'completed', output: 'ok', error: null, turn: 1, attempt: 1, arguments: { ms: 30, value: 'ok' } })
  t.match(bad, { status: 'failed', output: null, error: { code: 'http_error', message: /503.*closed today/ } })
  for (const one of [good, bad]) {
    t.equal(Date.parse(one?.ended_at ?? '') - Date.parse(one?.started_at ?? ''), one?.duration_ms)
    t.equal(one?.batch_id, good?.batch_id)
  }
  t.ok((good?.duration_ms ?? 0) >= 30)
  const closed = stream.events().find(({ type }) => type === 'batch.completed')
  t.match(closed, { batch_id: good?.batch_id, turn: 1, counts: { completed: 1, failed: 1, cancelled: 0 } })
  t.ok(Number(closed?.duration_ms) >= (good?.duration_ms ?? 0))
})

story('E18: whatever a tool gives becomes one message', async (t, { model, service, tool }) => {
  const { client } = await service()
  const values = [{ a: [1, null] }, [], 0, false, null, '', 'text', '  ', 'ü 😀 \u0000 \u2028']
  model.script('conv:a', [call(...values.map((value, i) => ({ id: `c${i}`, name: 'echo', arguments: { value } }))), say('done')])
  const { run } = await client.finish({ input: 'conv:a', tools: [tool('echo')] })
  t.same((await client.calls(run.id)).map(({ output }) => output), values)
  const nothing = '(no output)'
  t.same(results(model.requests()[1]), ['{"a":[1,null]}', '[]', '0', 'false', nothing, nothing, 'text', nothing, 'ü 😀 \u0000 \u2028'])
})

story('G1: tool messages stand in request order though the calls end in reverse', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call(...many(3, 'hold', (i) => ({ key: `k${i}`, value: i }))), say('done')])
  const stream = await client.follow(await client.start({ input: 'conv:a', tools: [tool('hold')] }))
  for (const i of [2, 1, 0]) {
    tools.release(`k${i}`)
    await stream.event('tool.completed', ({ output }) => output === i)
  }
  await stream.ended
  t.same(results(model.requests()[1]), ['0', '1', '2'])
})

story('G2: with message_order completion they stand in the order they ended', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call(...many(3, 'hold', (i) => ({ key: `k${i}`, value: i }))), say('done')])
  const stream = await client.follow(await client.start({ input: 'conv:a', tools: [tool('hold')], tool_policy: { message_order: 'completion' } }))
  for (const i of [2, 0, 1]) {
    tools.release(`k${i}`)
    await stream.event('tool.completed', ({ output }) => output === i)
  }
  await stream.ended
  t.same(results(model.requests()[1]), ['2', '0', '1'])
})

story('G3: text beside tool calls is kept with them, and is not the answer', async (t, { model, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [answer({ text: 'Let me look.', calls: [{ name: 'echo', arguments: { value: 1 } }] }), say('It is 1.')])
  const { run, stream } = await client.finish({ input: 'conv:a', tools: [tool('echo')] })
  t.equal(run.output, 'It is 1.')
  t.match(model.requests()[1]?.body.messages[1], { role: 'assistant', content: 'Let me look.', tool_calls: [{ function: { name: 'echo' } }] })
  t.match(stream.events().find(({ type }) => type === 'turn.completed'), { text: 'Let me look.', finish_reason: 'tool_calls', tool_calls: [{ name: 'echo', arguments: { value: 1 } }] })
  t.match(await client.messages(run.conversation_id), [{ role: 'user' }, { role: 'assistant', content: 'Let me look.', tool_calls: [{ name: 'echo' }] }, { role: 'tool' }, { role: 'assistant', content: 'It is 1.' }])
})
