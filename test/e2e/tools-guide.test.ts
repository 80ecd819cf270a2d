import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { ToolDefinition } from '../../src/core/tool.js'
import type { Run } from '../../src/schemas/run.js'
import { call, say } from '../support/model-reply.js'
import { begin } from '../support/schedule-http.js'
import { everythingByStdio } from '../support/mcp-everything.js'
import { story } from '../support/world.js'

const guide = readFileSync(join(import.meta.dirname, '../../docs/tools.md'), 'utf8')
const examples = [...guide.matchAll(/```json example\n(.*?)```/gs)].map(([, json]) => JSON.parse(json ?? '') as ToolDefinition)
const called: Record<string, [name: string, args: object]> = {
  get_order: ['get_order', { value: 'o-1' }],
  echo: ['echo', { value: 'said' }],
  http_fetch: ['http_fetch', {}],
  locate: ['locate', {}],
  everything: ['echo', { message: 'hello' }],
  refund: ['refund', {}]
}

story('docs/tools.md: every example is accepted, called, and answers', async (t, { model, tools, service }) => {
  const { client } = await service({ env: {
    INTERLOCK_TOOLS_DIR: join(import.meta.dirname, '../support/tools'), INTERLOCK_MCP_SERVERS: JSON.stringify({ everything: everythingByStdio })
  } })
  t.same(examples.map((tool) => tool.name).sort(), Object.keys(called).sort())
  t.same([...new Set(examples.map((tool) => tool.kind))].sort(), ['builtin', 'client', 'http', 'mcp', 'module'], 'one of each kind')
  for (const example of examples) {
    const [name, args] = called[example.name] as [string, Record<string, unknown>]
    const tool = JSON.parse(JSON.stringify(example).replace('https://orders.example', tools.url)) as ToolDefinition
    model.script(`conv:${example.name}`, [call({ id: 'a', name, arguments: name === 'http_fetch' ? { url: `${tools.url}/echo?value=1` } : args }), say('done')])
    const { run, stream } = await begin(client, { input: `conv:${example.name}`, tools: [tool] })
    if (example.name === 'locate' || example.name === 'refund') {
      await stream.event('run.requires_action')
      const { required_action: action } = await client.get<Run>(`/runs/${run.id}`)
      const [first] = action?.calls ?? []
      const [path, body] = example.name === 'locate'
        ? ['tool_outputs', { outputs: [{ call_id: first?.call_id, output: 'here' }] }]
        : ['decisions', { suspension_id: action?.suspension_id, decisions: [{ call_id: first?.call_id, decision: 'approve' }] }]
      t.equal((await client.request('POST', `/runs/${run.id}/${path}`, { body })).status, 200)
    }
    await stream.ended
    t.match((await client.calls(run.id))[0], { status: 'completed' }, example.name)
  }
}, { except: ['waits'] })
