import type { Test } from 'tap'
import { problemIn } from '../support/client.js'
import { answer, call, say } from '../support/model-reply.js'
import { begin, send, told } from '../support/schedule-http.js'
import { many, results } from '../support/tool-calls.js'
import { maxOverlap } from '../support/tool-server.js'
import { story as tell, type World } from '../support/world.js'

/** Calls wait for each other here. */
const story = (title: string, test: (t: Test, world: World) => Promise<void>) => tell(title, test, { except: ['waits'] })

const order = (attempts: { args: Record<string, unknown> }[]) => attempts.map(({ args }) => args.key ?? args.value)

story('E10: a call that refers to another waits for it and gets its value, of its own type', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call(
    { id: 'call_2', name: 'echo', arguments: { value: { whole: '{{stepOutputs.call_1.list[1]}}', part: 'n = {{ stepOutputs.call_1.n }}, all {{stepOutputs.call_1.list}}' } } },
    { id: 'call_1', name: 'hold', arguments: { key: 'k', value: { n: 7, list: [1, { deep: true }] } } },
    { id: 'call_3', name: 'echo', arguments: { value: '{{stepOutputs.hold}}' } },
    { id: 'call_4', name: 'echo', arguments: { value: '{{stepOutputs.2.n}}' } }
  ), say('done')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [tool('echo'), tool('hold')] })
  await stream.event('tool.started')
  t.equal(stream.types().filter((type) => type === 'tool.started').length, 1, 'the others wait')
  tools.release('k')
  await stream.ended
  const outputs = (await client.calls(run.id)).map(({ output }) => output)
  t.strictSame(outputs, [
    { whole: { deep: true }, part: 'n = 7, all [1,{"deep":true}]' }, { n: 7, list: [1, { deep: true }] }, { n: 7, list: [1, { deep: true }] }, 7
  ])
  const started = stream.events().filter(({ type }) => type === 'tool.started').map((event) => event.arguments)
  t.match(started[1], { value: { whole: { deep: true } } }, 'what is told is what it is run with')
})

story('E11: what refers to a failed call is not run, and the model is told why', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call(
    { id: 'a', name: 'fail', arguments: {} }, { id: 'b', name: 'echo', arguments: { value: '{{stepOutputs.a}}' } },
    { id: 'c', name: 'echo', arguments: { value: '{{stepOutputs.b}}' } }, { id: 'd', name: 'echo', arguments: { value: 1 } }
  ), say('done')])
  const { run } = await client.finish({ input: 'conv:a', tools: [tool('fail'), tool('echo')] })
  t.match((await client.calls(run.id)).map(({ status, error }) => error?.code ?? status), ['http_error', 'dependency_failed', 'dependency_failed', 'completed'])
  t.equal(tools.count('echo'), 1)
  t.match(results(model.requests()[1])[1], /refer to the call of fail that gave no output/)
})

story('E12, E13: unknown references, circles and paths that lead nowhere fail their call, and the batch closes; ids are matched exactly', async (t, { model, service, tool }) => {
  const { client } = await service()
  const echo = (id: string, value: unknown) => ({ id, name: 'echo', arguments: { value } })
  model.script('conv:a', [call(
    echo('call_1', 'one'), echo('call_10', 'ten'), echo('x', '{{stepOutputs.call_10}}'), echo('y', '{{stepOutputs.call_1}}'), echo('z', '{{stepOutputs.call_}}'),
    echo('p', '{{stepOutputs.q}}'), echo('q', '{{stepOutputs.p}}'), echo('r', '{{stepOutputs.q}}'), echo('s', '{{stepOutputs.s}}'),
    echo('m', '{{stepOutputs.call_1.nope}}'), echo('u', '{{stepOutputs.echo}}'), echo('v', '{{stepOutputs.99}}'),
    echo('functions.echo:0', { a: 'dots' }), echo('functions.echo:0.a', 'more dots'), echo('d', '{{stepOutputs.functions.echo:0.a}} and {{stepOutputs.functions.echo:0}}'),
    echo('e', '{{stepOutputs.functions.echo:1.a}}')
  ), say('done')])
  const { run } = await client.finish({ input: 'conv:a', tools: [tool('echo')] })
  t.same(run.status, 'completed')
  t.strictSame((await client.calls(run.id)).map(({ output, error }) => error?.code ?? output), [
    'one', 'ten', 'ten', 'one', 'invalid_arguments', 'invalid_arguments', 'invalid_arguments', 'dependency_failed', 'invalid_arguments',
    'invalid_arguments', 'invalid_arguments', 'invalid_arguments', { a: 'dots' }, 'more dots', 'more dots and {"a":"dots"}', 'invalid_arguments'
  ])
  const told = results(model.requests()[1])
  t.match(told[4], /refers to no call of this batch/)
  t.match(told[5], /in a circle/)
  t.match(told[9], /leads nowhere/)
  t.match(told[10], /could be 16 calls/)
})

story('E9: arguments are checked once they are complete', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call({ id: 'a', name: 'echo', arguments: { value: 'text' } }, { id: 'b', name: 'sleep', arguments: { ms: '{{stepOutputs.a}}' } }), say('done')])
  const { run } = await client.finish({ input: 'conv:a', tools: [tool('echo'), tool('sleep', { parameters: { type: 'object', properties: { ms: { type: 'integer' } } } })] })
  t.match((await client.calls(run.id))[1]?.error, { code: 'invalid_arguments', message: /ms/ })
  t.equal(tools.count('sleep'), 0)
})

story('D12: writers of a resource go one by one in request order, its readers together, and what is unrelated waits for nobody', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  const held = (key: string, of: string) => ({ id: key, name: key.startsWith('r') ? 'read' : 'write', arguments: { key, of } })
  model.script('conv:a', [call(held('w1', 'x'), held('r1', 'x'), held('r2', 'x'), held('w2', 'x'), held('w3', 'y'), held('r3', 'y/../x')), say('done')])
  const url = `${tools.url}/hold`
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [
    tool('read', { url, effects: 'read', resources: ['orders/{of}'] }), tool('write', { url, effects: 'write', resources: ['orders/{of}'] })
  ] })
  const next = async (count: number) => {
    await tools.waitFor((attempts) => attempts.length === count)
    return order(tools.attempts).slice(0, count)
  }
  t.same((await next(3)).sort(), ['r3', 'w1', 'w3'], 'one writer of x; y and the third name are others')
  tools.release('w1')
  t.same((await next(5)).slice(3).sort(), ['r1', 'r2'], 'its readers together')
  tools.release('r2')
  await stream.event('tool.completed', ({ caused_by: [cause] }) => stream.events().some((event) => event.seq === cause && (event.arguments as { key: string }).key === 'r2'))
  t.equal(tools.attempts.length, 5, 'the second writer waits for both')
  for (const key of ['r1', 'w3', 'r3']) tools.release(key)
  t.same((await next(6))[5], 'w2')
  tools.release('w2')
  await stream.ended
  t.equal((await client.run(run.id)).status, 'completed')
})

story('D12: an exclusive call runs alone, in its place', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call(...['a', 'b', 'alone', 'c', 'd'].map((key) => ({ id: key, name: key === 'alone' ? 'deploy' : 'hold', arguments: { key } }))), say('done')])
  const { stream } = await begin(client, { input: 'conv:a', tools: [tool('hold'), tool('deploy', { url: `${tools.url}/hold`, exclusive: true })] })
  await tools.waitFor((attempts) => attempts.length === 2)
  tools.release('a')
  tools.release('b')
  await tools.waitFor((attempts) => attempts.length === 3)
  tools.release('alone')
  await tools.waitFor((attempts) => attempts.length === 5)
  t.same([order(tools.attempts).slice(0, 2).sort(), order(tools.attempts)[2], order(tools.attempts).slice(3).sort()], [['a', 'b'], 'alone', ['c', 'd']])
  tools.release('c')
  tools.release('d')
  await stream.ended
})

story('E14: a tool\'s own cap is kept beside that of the run', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call(...many(4, 'slow', (i) => ({ ms: 20, value: i })), ...many(4, 'sleep', (i) => ({ ms: 20, value: i }), 'd')), say('done')])
  const { run } = await client.finish({ input: 'conv:a', tools: [tool('slow', { url: `${tools.url}/sleep`, max_concurrency: 1, parameters: { type: 'object' } }), tool('sleep')] })
  const calls = await client.calls(run.id)
  t.ok(calls.every(({ status }) => status === 'completed'))
  const ids = new Set(calls.filter(({ name }) => name === 'slow').map(({ call_id: id }) => id))
  const own = tools.attempts.filter(({ headers }) => ids.has(String(headers['interlock-call-id'])))
  t.equal(maxOverlap(own), 1)
  t.same(own.map(({ args }) => args.value), [0, 1, 2, 3])
  t.ok(maxOverlap(tools.attempts) > 1)
})

story('E15: max_calls is exact, within a batch and over the turns of a run', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [
    call(...many(5, 'echo', (i) => ({ value: i }))), call(...many(1, 'echo', (i) => ({ value: i }), 'd')), say('done'), call(...many(1, 'echo', (i) => ({ value: i }), 'e')), say('done')
  ])
  const body = { tools: [tool('echo', { max_calls: 2 })] }
  const { run } = await client.finish({ input: 'conv:a', ...body })
  t.same((await client.calls(run.id)).map(({ status, error }) => error?.code ?? status), ['completed', 'completed', 'max_calls', 'max_calls', 'max_calls', 'max_calls'])
  t.equal(tools.count(), 2)
  await client.finish({ input: 'again', conversation_id: run.conversation_id, ...body })
  t.equal(tools.count(), 3, 'the next run counts anew')
})

story('retry: a failed call of an idempotent tool is tried again under the same key, with a growing delay', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call({ id: 'a', name: 'fail', arguments: { status: 503 } }, { id: 'b', name: 'echo', arguments: { value: 1 } }), say('done')])
  const { run, stream } = await client.finish({ input: 'conv:a', tools: [tool('fail', { idempotent: true, retry: { attempts: 3, backoff_ms: 20 } }), tool('echo')] })
  t.match(await client.calls(run.id), [{ status: 'failed', attempt: 3, error: { code: 'http_error' } }, { status: 'completed', attempt: 1 }])
  const tries = tools.attempts.filter(({ route }) => route === 'fail')
  t.equal(tries.length, 3)
  t.equal(new Set(tries.map(({ headers }) => headers['idempotency-key'])).size, 1)
  const gaps = tries.slice(1).map(({ arrived_at: at }, i) => at - (tries[i]?.ended_at ?? Infinity))
  t.ok((gaps[0] ?? 0) >= 19 && (gaps[1] ?? 0) >= 39, `waited ${gaps.map(Math.round).join(' and ')} ms`)
  t.equal(stream.types().filter((type) => type === 'tool.failed').length, 1)
  const refused = await client.request('POST', '/runs', { body: { input: 'x', tools: [tool('fail', { retry: { attempts: 2, backoff_ms: 1 } })] } })
  t.match(problemIn(refused), { code: 'validation_failed', errors: [{ pointer: '/tools/0/retry' }] })
})

story('H2: with on_final_answer cancel the others are cancelled, and the run ends at once', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [answer({ text: 'So:', calls: [{ id: 'h', name: 'hold', arguments: { key: 'never' } }, { id: 'f', name: 'final_answer', arguments: { answer: 42 } }] })])
  const { run, stream } = await client.finish({ input: 'conv:a', tools: [tool('hold')], tool_policy: { final_answer_tool: 'final_answer', on_final_answer: 'cancel' } })
  t.match(run, { status: 'completed', output: 42 })
  t.match(stream.events().find(({ type }) => type === 'tool.cancelled'), { reason: 'final_answer' })
  t.same(stream.types().slice(-3), ['tool.cancelled', 'batch.completed', 'run.completed'])
  await tools.waitFor((attempts) => attempts.every(({ aborted }) => aborted))
  t.equal(model.requests().length, 1)
})

story('rate_limit holds over processes: never more calls begin within the time than may, and none is dropped', async (t, { model, tools, service, tool }) => {
  const [one, two] = await Promise.all([service(), service()])
  model.otherwise(({ body }) => body.messages.at(-1)?.role === 'tool' ? say('done') : call(...many(4, 'echo', (i) => ({ value: i }))))
  const body = { tools: [tool('echo', { rate_limit: { max: 3, per_ms: 400 } })] }
  const ends = await Promise.all([one.client.finish({ input: 'conv:a', ...body }), two.client.finish({ input: 'conv:b', ...body })])
  for (const { run } of ends) t.equal(run.status, 'completed')
  const times = tools.attempts.map(({ arrived_at: at }) => at).sort((a, b) => a - b)
  t.equal(times.length, 8)
  // What begins on time may arrive late: by that much, four can be nearer to each other.
  for (const [i, at] of times.slice(3).entries()) t.ok(at - (times[i] ?? 0) > 250, `${Math.round(at - (times[i] ?? 0))} ms for three`)
})

story('secrets are put into headers when a call is made, and stand nowhere else', async (t, { model, tools, service, tool, keys }) => {
  const secret = 'swordfish-0123456789'
  const { client, logs } = await service({ env: { INTERLOCK_SECRETS: JSON.stringify({ TOKEN: { value: secret, hosts: [`http://127.0.0.1:${tools.port}`] } }) } })
  model.script('conv:a', [call({ name: 'raw', arguments: { text: `you said ${secret}` } }, { id: 'f', name: 'fail', arguments: { message: `not ${secret}` } }), say('done')])
  const headers = { authorization: 'Bearer {{secret.TOKEN}}' }
  const { run, stream } = await client.finish({ input: 'conv:a', tools: [tool('raw', { headers }), tool('fail', { headers })] })
  t.equal(tools.attempts[0]?.headers.authorization, `Bearer ${secret}`)
  t.match((await client.calls(run.id))[0]?.output, /you said \[secret TOKEN\]/)
  // The model wrote it into the arguments itself; what the tool says of it is another matter.
  const said = stream.events().filter(({ type }) => type === 'tool.completed' || type === 'tool.failed')
  t.notOk(JSON.stringify(said).includes(secret))
  t.notOk(logs.join('').includes(secret))
  t.ok((await keys()).length > 0)
  const wrong = await client.request('POST', '/runs', { body: { input: 'x', tools: [tool('raw', { headers: { a: '{{secret.NONE}}' } }), { ...tool('echo', { headers }), url: 'https://example.com/' }] } })
  t.match(problemIn(wrong), { status: 422, errors: [{ pointer: '/tools/0/headers/a' }, { pointer: '/tools/1/headers/authorization' }] })
  t.notOk(wrong.text.includes(secret))
})

story('H6: a message that comes while a final answer waits for its siblings is not lost', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  for (const mode of ['queue', 'steer', 'interrupt'] as const) {
    model.script(`conv:${mode}`, [call({ id: 'h', name: 'hold', arguments: { key: mode } }, { id: 'f', name: 'final_answer', arguments: { answer: 'early' } }), say('answered')])
    const { run, stream } = await begin(client, { input: `conv:${mode}`, tools: [tool('hold')], tool_policy: { final_answer_tool: 'final_answer' } })
    await stream.event('tool.completed', ({ output }) => output === 'early')
    await send(client, run, { content: 'one more thing', mode })
    tools.release(mode)
    await stream.ended
    t.match(await client.run(run.id), { status: 'completed', output: 'answered' }, mode)
    t.equal(told(model.requests(`conv:${mode}`)[1]).at(-1), 'one more thing')
  }
})
