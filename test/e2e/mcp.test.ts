import { problemIn } from '../support/client.js'
import { everythingByStdio, startEverything } from '../support/mcp-everything.js'
import { call, say } from '../support/model-reply.js'
import { begin, send } from '../support/schedule-http.js'
import { results } from '../support/tool-calls.js'
import { story } from '../support/world.js'

const env = { INTERLOCK_MCP_SERVERS: JSON.stringify({ mcpServers: { everything: everythingByStdio } }) }

story('MCP: tools of a configured server are listed, offered, called and filtered', async (t, { model, service, tool }) => {
  const { client } = await service({ env })
  const { data } = await client.get<{ data: { kind: string, name: string, server?: string }[] }>('/tools')
  t.match(data.find(({ name }) => name === 'get-sum'), { kind: 'mcp', server: 'everything', parameters: { type: 'object' } })
  model.script('conv:a', [call({ id: 'a', name: 'get-sum', arguments: { a: 2, b: 40 } }, { id: 'b', name: 'everything_echo', arguments: { message: 'hello' } }, { id: 'c', name: 'echo', arguments: { value: 'own' } }), say('done')])
  const { run } = await client.finish({ input: 'conv:a', tools: [tool('echo'), { kind: 'mcp', name: 'everything', server: 'everything', allowed: ['get-sum', 'echo'] }] })
  t.equal(run.status, 'completed')
  t.same(model.requests()[0]?.body.tools?.map((one) => one.type === 'function' ? one.function.name : '').sort(), ['echo', 'everything_echo', 'get-sum'])
  const [sum, echoed, own] = results(model.requests()[1])
  t.match(sum, /42/)
  t.match(echoed, /hello/)
  t.equal(own, 'own')
})

story('MCP: a server named by URL, its progress, and an interrupt that reaches it', async (t, { model, service }) => {
  const server = await startEverything()
  t.teardown(() => server.kill())
  const { client } = await service()
  model.script('conv:a', [call({ id: 'a', name: 'trigger-long-running-operation', arguments: { duration: 30, steps: 300 } }), say('stopped')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [{ kind: 'mcp', name: 'm', server_url: server.url, allowed: ['trigger-long-running-operation'] }] })
  const { data } = await stream.event('tool.progress')
  t.match(data, { total: 300 })
  await send(client, run, 'stop that')
  await stream.ended
  t.match(await client.run(run.id), { status: 'completed', output: 'stopped' })
})

story('MCP: readOnlyHint, approval by tool, structured content', async (t, { model, service }) => {
  const { client } = await service({ env })
  model.script('conv:a', [call({ id: 'a', name: 'get-structured-content', arguments: { location: 'New York' } }, { id: 'b', name: 'echo', arguments: { message: 'needs consent' } }), say('done')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [{ kind: 'mcp', name: 'm', server: 'everything', approval: { echo: 'always' } }] })
  await stream.event('run.requires_action')
  const { required_action: action } = await client.run(run.id)
  t.same(action?.calls.map(({ name }) => name), ['echo'])
  await client.request('POST', `/runs/${run.id}/decisions`, { body: { suspension_id: action?.suspension_id, decisions: [{ call_id: action?.calls[0]?.call_id, decision: 'approve' }] } })
  await stream.ended
  const [structured] = await client.calls(run.id)
  t.match(structured?.output, { temperature: Number })
  // Of one resource those that only read run together, and what writes behind them: which is which the server has said.
  model.script('conv:b', [call(
    { id: 'a', name: 'echo', arguments: { message: 'a' } }, { id: 'b', name: 'get-sum', arguments: { a: 1, b: 2 } }, { id: 'c', name: 'toggle-simulated-logging', arguments: {} }
  ), say('done')])
  const read = await client.finish({ input: 'conv:b', tools: [{ kind: 'mcp', name: 'm', server: 'everything', resources: ['one'] }] })
  t.same(read.stream.types().filter((type) => type.startsWith('tool.')), ['started', 'started', 'completed', 'completed', 'started', 'completed'].map((what) => `tool.${what}`))
}, { except: ['waits'] })

story('MCP: what is wrong with a server is said before there is a run', async (t, { service }) => {
  const { client } = await service({ env: { ...env, INTERLOCK_ALLOWED_TOOL_HOSTS: '127.0.0.1' } })
  const mcp = { kind: 'mcp', name: 'm' }
  const wrong: [object, string, string?][] = [
    [mcp, '/tools/0/server'], [{ ...mcp, server: 'everything', server_url: 'https://example.com' }, '/tools/0/server'], [{ ...mcp, server: 'nobody' }, '/tools/0/server'],
    [{ ...mcp, server_url: 'http://10.0.0.1/mcp' }, '/tools/0/server_url', 'blocked_url'], [{ ...mcp, server_url: 'http://127.0.0.1:1/mcp' }, '/tools/0/server_url'],
    [{ ...mcp, server: 'everything', allowed: ['echo', 'nope'] }, '/tools/0/allowed/1'], [{ ...mcp, server: 'everything', headers: { a: 'b' } }, '/tools/0/headers'],
    [{ ...mcp, server_url: 'https://example.com', headers: { a: '{{secret.NONE}}' } }, '/tools/0/headers/a']
  ]
  for (const [definition, pointer, code = 'validation_failed'] of wrong) {
    t.match(problemIn(await client.request('POST', '/runs', { body: { input: 'x', tools: [definition] } })), { status: 422, code, errors: [{ pointer }] }, JSON.stringify(definition))
  }
  t.same((await client.get<{ data: unknown[] }>('/runs')).data, [])
})
