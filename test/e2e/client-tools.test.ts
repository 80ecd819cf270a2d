import type { Test } from 'tap'
import type { RequiredAction, ToolOutputs } from '../../src/schemas/action.js'
import type { Run } from '../../src/schemas/run.js'
import { problemIn, type Answer, type Client, type EventStream } from '../support/client.js'
import { call, say } from '../support/model-reply.js'
import { begin } from '../support/schedule-http.js'
import { many, results } from '../support/tool-calls.js'
import { story as tell, type World } from '../support/world.js'

/** Calls wait for the client here. */
const story = (title: string, test: (t: Test, world: World) => Promise<void>) => tell(title, test, { except: ['waits'] })

const submit = (client: Client, run: Run, outputs: ToolOutputs['outputs']): Promise<Answer> => client.request('POST', `/runs/${run.id}/tool_outputs`, { body: { outputs } })
const locate = { kind: 'client' as const, name: 'locate', description: 'Where the user is.', parameters: { type: 'object', properties: { i: { type: 'integer' } } } }

async function asked (client: Client, run: Run, stream: EventStream): Promise<RequiredAction> {
  await stream.event('run.requires_action')
  return (await client.run(run.id)).required_action as RequiredAction
}

story('client tools: the run waits for the outputs, in parts or together, errors among them, and goes on with all of them', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call(...many(3, 'locate', (i) => ({ i })), { id: 'e', name: 'echo', arguments: { value: 'own' } }), say('done')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [locate, tool('echo')] })
  const action = await asked(client, run, stream)
  t.match(action, { kind: 'client_tools', calls: [{ name: 'locate', arguments: { i: 0 }, kind: 'client_tool' }, { arguments: { i: 1 } }, { arguments: { i: 2 } }], expires_at: null })
  const [a, b, c] = action.calls.map(({ call_id: id }) => id) as [string, string, string]
  t.equal((await submit(client, run, [{ call_id: b, output: { city: 'Bree' } }])).status, 200)
  await stream.event('tool.completed', ({ call_id: id }) => id === b)
  t.equal((await client.run(run.id)).required_action?.calls.length, 2)
  t.equal((await submit(client, run, [{ call_id: c, output: 'no signal', is_error: true }, { call_id: a, output: 'Bag End' }])).status, 200)
  await stream.ended
  t.same(results(model.requests()[1]), ['Bag End', '{"city":"Bree"}', '{"error":{"code":"tool_error","message":"no signal"}}', 'own'])
  t.equal(tools.count(), 1)
  t.match((await client.calls(run.id)).map(({ status, attempt }) => [status, attempt]), [['completed', 1], ['completed', 1], ['failed', 1], ['completed', 1]])
})

story('D7, D8: an output for a call that does not wait is refused; a second one is kept as an orphan, and the first counts', async (t, { model, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call({ id: 'a', name: 'locate', arguments: {} }, { id: 'b', name: 'echo', arguments: { value: 1 } }), say('done')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [locate, tool('echo')] })
  const { calls: [waiting] } = await asked(client, run, stream)
  const id = waiting?.call_id as string
  const before = (await client.conversation(run.conversation_id)).version
  t.match(problemIn(await submit(client, run, [{ call_id: 'call_01ARZ3NDEKTSV4RRFFQ69G5FAV', output: 1 }])), { status: 404, code: 'not_found' })
  t.match(problemIn(await submit(client, run, [{ call_id: id, output: 1 }, { call_id: id, output: 2 }])), { status: 422, errors: [{ pointer: '/outputs/1/call_id' }] })
  t.match(problemIn(await submit(client, run, [])), { status: 422 })
  t.equal((await client.conversation(run.conversation_id)).version, before)
  await submit(client, run, [{ call_id: id, output: 'first' }])
  await stream.ended
  const late = problemIn(await submit(client, run, [{ call_id: id, output: { second: 'thoughts' } }]))
  t.match(late, { status: 409, code: 'call_settled', call_ids: [id] })
  const { data } = await client.get<{ data: object[] }>(`/runs/${run.id}/orphans`)
  t.match(data, [{ call_id: id, name: 'locate', reason: 'duplicate', output: { second: 'thoughts' } }])
  t.match(problemIn(await submit(client, run, [{ call_id: id, output: 'no thoughts after all', is_error: true }])), { status: 409, code: 'call_settled', call_ids: [id] })
  t.match((await client.get<{ data: object[] }>(`/runs/${run.id}/orphans`)).data, [{ call_id: id, reason: 'duplicate', output: { error: { code: 'tool_error', message: 'no thoughts after all' } } }])
  t.notMatch(JSON.stringify(model.requests().map(({ body }) => body)), /thoughts/)
})

story('client tools and approvals in one suspension', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call({ id: 'a', name: 'locate', arguments: {} }, { id: 'b', name: 'echo', arguments: { value: 'paid' } }), say('done')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [locate, tool('echo', { approval: 'always' })] })
  const { kind, suspension_id: suspension, calls } = await asked(client, run, stream)
  t.same([kind, calls.map((one) => one.kind)], ['mixed', ['client_tool', 'approval']])
  const body = { suspension_id: suspension, decisions: [{ call_id: calls[1]?.call_id, decision: 'approve' }] }
  const { version } = await client.conversation(run.conversation_id)
  const decisions = [...body.decisions, { call_id: calls[0]?.call_id, decision: 'reject' }]
  t.match(problemIn(await client.request('POST', `/runs/${run.id}/decisions`, { body: { ...body, decisions } })), { status: 404, code: 'not_found', detail: /waits for a decision/ }, 'what the client runs is nobody\'s to decide')
  t.equal((await client.conversation(run.conversation_id)).version, version)
  t.equal((await client.request('POST', `/runs/${run.id}/decisions`, { body })).status, 200)
  t.equal(tools.count(), 0, 'the consent waits for the output')
  await submit(client, run, [{ call_id: calls[0]?.call_id as string, output: 'here' }])
  await stream.ended
  t.same(results(model.requests()[1]), ['here', 'paid'])
})

story('a client tool with a time of its own fails with timeout when no output comes', async (t, { model, service }) => {
  const { client } = await service()
  model.script('conv:a', [call({ id: 'a', name: 'locate', arguments: {} }), say('done')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [{ ...locate, timeout_ms: 300 }] })
  const { calls: [waiting] } = await asked(client, run, stream)
  await stream.ended
  t.match((await client.calls(run.id))[0], { status: 'failed', error: { code: 'timeout' } })
  t.equal((await submit(client, run, [{ call_id: waiting?.call_id as string, output: 'late' }])).status, 409)
  t.match((await client.get<{ data: object[] }>(`/runs/${run.id}/orphans`)).data, [{ reason: 'timeout', output: 'late' }])
})

story('D8: outputs of which one is for no call of the client\'s change nothing: not one is taken, and not one is kept as an orphan', async (t, { model, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [
    call({ id: 'a', name: 'locate', arguments: {} }, { id: 'b', name: 'echo', arguments: { value: 1 } }),
    call({ id: 'c', name: 'locate', arguments: {} }, { id: 'd', name: 'locate', arguments: {} }, { id: 'p', name: 'pay', arguments: {} }), say('done')
  ])
  model.script('conv:b', [call({ id: 'a', name: 'locate', arguments: {} })])
  const pay = tool('echo', { name: 'pay', approval: 'always' })
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [locate, tool('echo'), pay] })
  const other = await begin(client, { input: 'conv:b', tools: [locate] })
  const { calls: [foreign] } = await asked(client, other.run, other.stream)
  const { calls: [first] } = await asked(client, run, stream)
  await submit(client, run, [{ call_id: first?.call_id as string, output: 'first' }])
  await stream.event('run.requires_action', () => stream.types().filter((type) => type === 'run.requires_action').length === 2)
  const { calls: waiting } = (await client.run(run.id)).required_action as RequiredAction
  const [, echoed] = await client.calls(run.id)
  const late = { call_id: first?.call_id as string, output: 'second thoughts' }
  const open = { call_id: waiting[0]?.call_id as string, output: 'here' }
  const { version } = await client.conversation(run.conversation_id)
  const forged: [string, string | undefined][] = [
    ['unknown', 'call_01ARZ3NDEKTSV4RRFFQ69G5FAV'], ['of another run', foreign?.call_id], ['of another tool', echoed?.call_id], ['a person\'s', waiting[2]?.call_id]
  ]
  for (const [what, id] of forged) {
    const wrong = { call_id: id as string, output: 'forged' }
    for (const outputs of [[wrong], [late, wrong], [wrong, late], [open, wrong, late]]) {
      t.match(problemIn(await submit(client, run, outputs)), { status: 404, code: 'not_found' }, `${what}, beside ${outputs.length - 1} others`)
    }
  }
  t.equal((await client.conversation(run.conversation_id)).version, version)
  t.match(problemIn(await submit(client, run, [late, open])), { status: 409, code: 'call_settled', call_ids: [late.call_id] })
  t.equal((await client.run(run.id)).required_action?.calls.length, 3, 'what is open stays open')
  t.match((await client.get<{ data: object[] }>(`/runs/${run.id}/orphans`)).data, [{ call_id: late.call_id, output: 'second thoughts' }])
  await Promise.all([client.cancel(run.id), client.cancel(other.run.id)])
  await Promise.all([stream.ended, other.stream.ended])
})

story('D5: an output that comes after its time, before anybody has looked, is an orphan like any other', async (t, { model, service }) => {
  const { client } = await service({ env: { INTERLOCK_SWEEP_MS: '60000' } })
  model.script('conv:a', [call({ id: 'a', name: 'locate', arguments: {} }), say('done')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [{ ...locate, timeout_ms: 1 }] })
  const [waiting] = (await client.calls(run.id)).length > 0 ? await client.calls(run.id) : []
  const id = waiting?.call_id ?? (await stream.event('tool.started')).call_id as string
  await stream.event('run.requires_action')
  t.match(problemIn(await submit(client, run, [{ call_id: id, output: 'late' }])), { status: 409, call_ids: [id] })
  await stream.ended
  t.match((await client.get<{ data: object[] }>(`/runs/${run.id}/orphans`)).data, [{ reason: 'timeout', output: 'late' }])
})

story('E15: what a client tool may be told works for it: max_calls, max_concurrency, resources, exclusive, approval', async (t, { model, service }) => {
  const { client } = await service()
  const walk = async (over: Partial<typeof locate>, n: number): Promise<string[][]> => {
    const input = `conv:${Object.keys(over).join('-')}`
    model.script(input, [call(...many(n, 'locate', (i) => ({ i }))), say('done')])
    const { run, stream } = await begin(client, { input, tools: [{ ...locate, ...over }] })
    const groups: string[][] = []
    while (await Promise.race([stream.ended.then(() => false), stream.event('run.requires_action', () => stream.types().filter((type) => type === 'run.requires_action').length > groups.length)])) {
      const action = (await client.run(run.id)).required_action as RequiredAction
      groups.push(action.calls.map(({ kind, arguments: args }) => `${kind} ${String((args as { i: number }).i)}`))
      const ids = action.calls.map(({ call_id: id }) => id)
      if (action.kind === 'approval') await client.request('POST', `/runs/${run.id}/decisions`, { body: { suspension_id: action.suspension_id, decisions: ids.map((id) => ({ call_id: id, decision: 'approve' })) } })
      else await submit(client, run, ids.map((id) => ({ call_id: id, output: 'here' })))
    }
    return [...groups, (await client.calls(run.id)).map(({ status, error }) => error?.code ?? status)]
  }
  t.same(await walk({ max_calls: 2 } as object, 3), [['client_tool 0', 'client_tool 1'], ['completed', 'completed', 'max_calls']])
  t.same(await walk({ max_concurrency: 2 } as object, 3), [['client_tool 0', 'client_tool 1'], ['client_tool 2'], ['completed', 'completed', 'completed']])
  t.same(await walk({ exclusive: true } as object, 2), [['client_tool 0'], ['client_tool 1'], ['completed', 'completed']])
  t.same(await walk({ resources: ['one'] } as object, 2), [['client_tool 0'], ['client_tool 1'], ['completed', 'completed']])
  t.same(await walk({ resources: ['one'], effects: 'read' } as object, 2), [['client_tool 0', 'client_tool 1'], ['completed', 'completed']])
  t.same(await walk({ approval: 'always' } as object, 2), [['approval 0', 'approval 1'], ['client_tool 0', 'client_tool 1'], ['completed', 'completed']])
})
