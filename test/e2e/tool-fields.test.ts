import { join } from 'node:path'
import { BuiltinTool, ClientTool, HttpTool, McpTool, ModuleTool } from '../../src/core/tool.js'
import { problemIn } from '../support/client.js'
import { everythingByStdio } from '../support/mcp-everything.js'
import { all } from '../support/schedule-http.js'
import { story } from '../support/world.js'

/** What is wrong for a field, whatever the kind of tool, and what makes only this wrong. */
const WRONG: Record<string, [value: unknown, beside?: object][]> = {
  kind: [['carrier_pigeon'], [null]],
  name: [['two words'], [''], [5], ['x'.repeat(65)]],
  description: [[5], ['x'.repeat(4097)]],
  parameters: [['x'], [{ type: 'string' }], [{ type: 'object', properties: { a: { type: 'nope' } } }], [{ type: 'object', properties: { a: { $ref: 'https://example.com/x' } } }]],
  timeout_ms: [[0], [1.5], ['1'], [86_400_001]],
  effects: [['none'], [1]],
  idempotent: [['yes']],
  placement: [['moon']],
  retry: [
    [{ attempts: 0, backoff_ms: 1 }, { idempotent: true }], [{ attempts: 2 }, { idempotent: true }],
    [{ attempts: 2, backoff_ms: 1, more: 1 }, { idempotent: true }], [{ attempts: 2, backoff_ms: 1 }, { idempotent: false }]
  ],
  resources: [['x'], [['']], [['a/{b']], [Array.from({ length: 17 }, () => 'x')]],
  exclusive: [[1]],
  cancellable: [['no']],
  approval: [[true], ['sometimes']],
  approval_expires_seconds: [[0, { approval: 'always' }], [1.5, { approval: 'always' }], [5], [5, { approval: 'never' }]],
  max_concurrency: [[0], ['1']],
  max_calls: [[0], [1.5]],
  rate_limit: [[{ max: 1 }], [{ max: 0, per_ms: 5 }], [{ max: 1, per_ms: 0 }], [{ max: 1, per_ms: 5, burst: 2 }], [7]],
  url: [['ftp://x'], ['http://169.254.169.254/'], ['/path'], [5]],
  method: [['BREW'], ['post']],
  headers: [[{ 'bad name': 'x' }], [{ ok: 'a\nb' }], [{ ok: 5 }]],
  server: [[''], [5], ['nobody']],
  server_url: [['ftp://x', { server: undefined }], [5, { server: undefined }]],
  allowed: [['echo'], [[]], [['']], [['nope']]]
}
/** Fields of other kinds, that this one has nothing to do with. */
const NONE = ['surprise', '__proto__x', ...Object.keys(WRONG)]

story('every field of every kind of tool, wrong in turn or not its own, is 422 with its pointer, and there is no run', async (t, { service, tool, tools }) => {
  const { client } = await service({ env: {
    INTERLOCK_TOOLS_DIR: join(import.meta.dirname, '../support/tools'), INTERLOCK_MCP_SERVERS: JSON.stringify({ everything: everythingByStdio })
  } })
  const kinds: [schema: { properties: object }, good: Record<string, unknown>][] = [
    [HttpTool, { ...tool('echo') }], [BuiltinTool, { kind: 'builtin', name: 'http_fetch' }], [ModuleTool, { kind: 'module', name: 'echo' }],
    [ClientTool, { kind: 'client', name: 'locate' }], [McpTool, { kind: 'mcp', name: 'm', server: 'everything' }]
  ]
  const refused = async (definition: object, field: string, what: string) => {
    const answer = await client.request('POST', '/runs', { body: { input: 'x', tools: [{ kind: 'client', name: 'fine' }, definition] } })
    const [first] = (problemIn(answer).errors ?? []) as { pointer: string }[]
    const found = `${answer.status} ${first?.pointer}`
    if (!new RegExp(`^422 /tools/1/${field}(/|$)`).test(found)) t.fail(`${what}: ${found}`)
  }
  const wrong: [definition: object, field: string, what: string][] = []
  for (const [{ properties }, good] of kinds) {
    const kind = String(good.kind)
    for (const field of Object.keys(properties)) {
      const values = WRONG[field]
      if (values === undefined) {
        t.fail(`nothing here is wrong for ${kind} ${field}`)
        continue
      }
      for (const [value, beside = {}] of values) {
        wrong.push([{ ...good, ...beside, [field]: value }, field, `${kind} ${JSON.stringify({ [field]: value, ...beside })}`])
      }
    }
    for (const field of NONE.filter((one) => !(one in properties))) wrong.push([{ ...good, [field]: 'x' }, field, `${kind} has no ${field}`])
  }
  await all(wrong, 8, async (one) => await refused(...one))
  t.ok(wrong.length > 200, `${wrong.length} definitions were refused`)
  t.same((await client.get<{ data: unknown[] }>('/runs')).data, [])
  t.equal(tools.count(), 0)
})
