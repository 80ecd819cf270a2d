import type { Test } from 'tap'
import type { RequiredAction } from '../../src/schemas/action.js'
import { call, say } from '../support/model-reply.js'
import { begin, send, told } from '../support/schedule-http.js'
import { many, results } from '../support/tool-calls.js'
import { story as tell, type World } from '../support/world.js'

/** Calls wait for each other here. */
const story = (title: string, test: (t: Test, world: World) => Promise<void>) => tell(title, test, { except: ['waits'] })

/** Longer than any test takes: a second call waits for good. */
const HOUR = 3_600_000

story('E4: a call that waits for its rate limit has not started, and keeps no place from others, in its run or on its worker', async (t, { model, tools, service, tool }) => {
  const { client } = await service({ env: { INTERLOCK_TOOL_CONCURRENCY: '1' } })
  model.script('conv:a', [call(
    ...many(3, 'slow', (i) => ({ value: i })), { id: 'x', name: 'echo', arguments: { value: 'x' } }, { id: 'y', name: 'echo', arguments: { value: 'y' } }
  ), say('done')])
  model.script('conv:b', [call({ id: 'z', name: 'echo', arguments: { value: 'z' } }), say('done')])
  const slow = tool('slow', { url: `${tools.url}/echo`, rate_limit: { max: 1, per_ms: HOUR } })
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [slow, tool('echo')], limits: { max_tool_concurrency: 1 } })
  await stream.event('tool.completed', ({ output }) => output === 'y')
  t.same(tools.attempts.map(({ args }) => args.value), [0, 'x', 'y'])
  t.match((await client.calls(run.id)).map(({ status, attempt, started_at: at }) => [status, attempt, at !== null]), [
    ['completed', 1, true], ['pending', 0, false], ['pending', 0, false], ['completed', 1, true], ['completed', 1, true]
  ])
  t.equal((await client.finish({ input: 'conv:b', tools: [tool('echo')] })).run.status, 'completed', 'nor from other runs')
  await client.cancel(run.id)
  await stream.ended
  t.same(stream.events().filter(({ type }) => type === 'tool.started').length, 3)
  t.equal(tools.count(), 4)
})

story('what waits for a rate limit never starts once it was cut, also if it would be left to finish', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call(...many(2, 'echo', (i) => ({ value: i }))), call({ id: 'd', name: 'hold', arguments: { key: 'k' } }), say('done')])
  model.script('conv:b', [call(...many(1, 'echo', () => ({ value: 'b' }))), say('done')])
  const body = { tools: [tool('echo', { cancellable: false, rate_limit: { max: 1, per_ms: 600 } }), tool('hold')], tool_policy: { cancelled_calls: 'tombstone_started' as const } }
  const { run, stream } = await begin(client, { input: 'conv:a', ...body })
  await stream.event('tool.completed')
  await send(client, run, 'enough')
  // Another run's call gets the place behind it: by then its own has come and gone.
  const other = await client.finish({ input: 'conv:b', ...body })
  tools.release('k')
  await stream.ended
  t.equal(other.run.status, 'completed')
  t.same(told(model.requests('conv:a')[1]), ['conv:a', '→ echo', '= 0', 'enough'], 'and leaves no tombstone: it had not started')
  t.equal((await client.calls(run.id))[1]?.status, 'cancelled')
  t.equal(stream.events().filter(({ type, name }) => type === 'tool.started' && name === 'echo').length, 1)
  t.equal(tools.attempts.filter(({ args }) => args.value === 1).length, 0)
})

story('E5: without parallel the calls follow each other in request order, also when one in the middle waits for a person or the client', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  const names = ['echo', 'pay', 'echo', 'locate', 'echo', 'pay']
  model.script('conv:a', [call(...names.map((name, i) => ({ id: `c${i}`, name, arguments: { value: i } }))), say('done')])
  const { run, stream } = await begin(client, {
    input: 'conv:a',
    tools: [tool('echo'), tool('pay', { url: `${tools.url}/echo`, approval: 'always' }), { kind: 'client', name: 'locate', parameters: { type: 'object' } }],
    tool_policy: { parallel: false }
  })
  const asked = async (n: number) => {
    await stream.event('run.requires_action', () => stream.types().filter((type) => type === 'run.requires_action').length === n)
    return (await client.run(run.id)).required_action as RequiredAction
  }
  const started = () => stream.events().flatMap((event) => event.type === 'tool.started' ? (event.arguments as { value: number }).value : [])
  const first = await asked(1)
  t.same(started(), [0])
  t.same(first.calls.map(({ kind }) => kind), ['approval', 'approval'], 'consent is asked for together')
  await client.request('POST', `/runs/${run.id}/decisions`, {
    body: { suspension_id: first.suspension_id, decisions: first.calls.toReversed().map(({ call_id: id }) => ({ call_id: id, decision: 'approve' })) }
  })
  const second = await asked(2)
  t.same(started(), [0, 1, 2, 3])
  t.same(tools.attempts.map(({ args }) => args.value), [0, 1, 2])
  await client.request('POST', `/runs/${run.id}/tool_outputs`, { body: { outputs: [{ call_id: second.calls[0]?.call_id, output: 'here' }] } })
  await stream.ended
  t.same(started(), [0, 1, 2, 3, 4, 5])
  t.equal(tools.maxOverlap(), 1)
  t.same(results(model.requests()[1]), ['0', '1', '2', 'here', '4', '5'])
})

story('S7: names that every object has are names like any others', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  const odd = ['__proto__', 'constructor', 'toString']
  const odds = odd.map((name) => tool(name, { url: `${tools.url}/echo`, max_calls: 1, max_concurrency: 1, resources: ['x/{constructor}'] }))
  for (const name of odd) {
    model.script(`conv:none-${name}`, [call({ id: 'a', name, arguments: {} }), say('done')])
    const none = await client.finish({ input: `conv:none-${name}`, tools: [tool('echo')] })
    t.match((await client.calls(none.run.id))[0], { name, status: 'failed', error: { code: 'unknown_tool' } })
    model.script(`conv:${name}`, [call(
      { id: 'a', name, arguments: { value: { constructor: name, toString: 1 } } },
      { id: 'b', name: 'echo', arguments: { value: `{{stepOutputs.${name}.constructor}}` } },
      { id: 'c', name, arguments: { value: 'one too many' } },
      { id: 'd', name: 'echo', arguments: { value: '{{stepOutputs.1.toString}} {{stepOutputs.1.valueOf}}' } },
      { id: 'e', name: 'echo', arguments: '{"value": 1, "__proto__": {"value": 2}}' }
    ), call({ id: 'f', name, arguments: { value: 'again' } }), say('done')])
    const { run } = await client.finish({ input: `conv:${name}`, tools: [...odds, tool('echo')] })
    t.equal(run.status, 'completed')
    t.strictSame((await client.calls(run.id)).map(({ output, error }) => error?.code ?? output), [
      { constructor: name, toString: 1 }, 'invalid_arguments', 'max_calls', 'invalid_arguments', 'invalid_arguments', 'max_calls'
    ])
    model.script(`conv:one-${name}`, [call({ id: 'a', name, arguments: { value: { constructor: name } } }, { id: 'b', name: 'echo', arguments: { value: `{{stepOutputs.${name}.constructor}}` } }), say('done')])
    const one = await client.finish({ input: `conv:one-${name}`, tools: [...odds, tool('echo')] })
    t.same((await client.calls(one.run.id)).map(({ output }) => output), [{ constructor: name }, name])
  }
})

story('a worker comes back for what waits at its time, without a sweep', async (t, { model, tools, service, tool }) => {
  const { client } = await service({ env: { INTERLOCK_SWEEP_MS: '600000' } })
  model.script('conv:a', [call(...many(4, 'echo', (i) => ({ value: i }))), say('done')])
  const { run } = await client.finish({ input: 'conv:a', tools: [tool('echo', { rate_limit: { max: 1, per_ms: 200 } })] })
  t.equal(run.status, 'completed')
  t.same(tools.attempts.map(({ args }) => args.value), [0, 1, 2, 3])
})
