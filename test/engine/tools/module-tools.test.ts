import { join } from 'node:path'
import { Type } from 'typebox'
import t from 'tap'
import { defineTool, loadModuleTools, serverTool, type ToolSource } from '../../../src/engine/tools/module-tools.js'
import type { ToolContext, Tools } from '../../../src/engine/tools/tool.js'
import { openTools } from '../../../src/engine/tools/tools.js'
import { toolContext } from '../../support/tool-context.js'

const dir = join(import.meta.dirname, '../../support/tools')

async function run (tools: Tools, name: string, args: Record<string, unknown>, context: Partial<ToolContext> = {}): Promise<unknown> {
  const tool = { kind: 'module', name } as const
  return tools.run(tool, tools.parse(tool, JSON.stringify(args)), toolContext(context))
}

t.test('a tools folder: .js and .ts files, one tool or several in each, defaults filled in', async (t) => {
  const loaded = await loadModuleTools(dir)
  t.same(loaded.map(({ name }) => name), ['echo', 'fail', 'sleep', 'deaf_sleep', 'hang'], 'in the order of the files')
  const facts = (name: string): unknown => {
    const { effects, idempotent, timeout_ms, placement } = loaded.find((tool) => tool.name === name) ?? {}
    return { effects, idempotent, timeout_ms, placement }
  }
  t.same(facts('fail'), { effects: 'write', idempotent: false, timeout_ms: null, placement: 'local' })
  t.same(facts('hang'), { effects: 'write', idempotent: true, timeout_ms: 60_000, placement: 'spread' })
  t.same(facts('echo'), { effects: 'read', idempotent: false, timeout_ms: null, placement: 'local' })
})

t.test('arguments are typed by their schema', async (t) => {
  const tool = defineTool({
    name: 'typed',
    parameters: Type.Object({ n: Type.Number(), name: Type.Optional(Type.String()) }),
    // What does not fit the schema does not compile here.
    run: ({ n, name }) => n.toFixed(1) + (name?.toUpperCase() ?? '')
  })
  t.equal(tool.run({ n: 1, name: 'x' }, toolContext()), '1.0X')
  defineTool({ name: 'plain', parameters: { type: 'object' }, run: (args) => Object.keys(args) })
})

t.test('run may use this', async (t) => {
  const source: ToolSource = { name: 'self', run () { return this.name } }
  t.equal(serverTool(source).run({}, toolContext()), 'self')
})

t.test('F6, F7: whatever a tool does wrong fails that call alone, with a bounded message and no stack', async (t) => {
  const tools = await openTools({ dir, maxResponseBytes: 10_000_000 })
  t.teardown(() => tools.close())
  const unhandled: unknown[] = []
  const note = (error: unknown): void => { unhandled.push(error) }
  process.on('unhandledRejection', note)
  t.teardown(() => process.off('unhandledRejection', note))

  const failures: Record<string, string | RegExp> = {
    throws: 'the stock exchange is closed on Sundays',
    rejects: 'the stock exchange is closed on Sundays',
    rejects_text: 'just a text',
    rejects_nothing: 'the tool failed without a message',
    rejects_object: 'an object with a message',
    rejects_trap: 'the tool failed without a message',
    long_message: /^x{4000}$/,
    type_error: /^Cannot read properties of undefined/,
    evil_thenable: 'no then here',
    bigint: 'the tool returned a bigint, which is not JSON',
    cycle: 'the tool returned a value that contains itself, which is not JSON',
    function: 'the tool returned a function, which is not JSON',
    symbol: 'the tool returned a symbol, which is not JSON',
    buffer: 'the tool returned bytes, which is not JSON',
    map: 'the tool returned a Map, which is not JSON',
    promise: 'the tool returned a Promise, which is not JSON',
    getter: 'the getter threw',
    deep: 'the tool returned more than 100 levels, which is not JSON',
    huge: 'the tool returned more than 10000000 characters',
    holes: 'the tool returned more than 10000000 characters'
  }
  const outputs: Record<string, unknown> = {
    undefined: null,
    nan: null,
    date: { at: '1970-01-01T00:00:00.000Z' },
    class_instance: { x: 1, y: 2 },
    proto: { a: 1 }
  }
  const sibling = run(tools, 'sleep', { ms: 20, value: 'sibling' })
  for (const [way, message] of Object.entries(failures)) {
    const error = await run(tools, 'fail', { way }).catch((error: unknown) => error)
    t.match(error, { name: 'ToolError', code: 'tool_error', message }, way)
  }
  for (const [way, output] of Object.entries(outputs)) t.strictSame(await run(tools, 'fail', { way }), output, way)
  t.equal(await sibling, 'sibling')
  const { listings } = tools
  t.same((await listings()).find(({ name }) => name === 'fail')?.parameters.properties, { way: { enum: [...Object.keys(failures).slice(0, 9), 'undefined', 'nan', 'date', 'bigint', 'cycle', 'function', 'symbol', 'buffer', 'map', 'promise', 'class_instance', 'proto', 'getter', 'deep', 'huge', 'holes'] } }, 'every way was tried')
  t.same(unhandled, [])
})

t.test('D4: an abort ends the call at once, also when the tool does not listen', async (t) => {
  const tools = await openTools({ dir })
  t.teardown(() => tools.close())
  for (const [name, args] of [['hang', {}], ['sleep', { ms: 60_000 }], ['deaf_sleep', { ms: 1_000 }]] as const) {
    const controller = new AbortController()
    const call = run(tools, name, args, { signal: controller.signal })
    controller.abort(new Error(`stop ${name}`))
    const start = performance.now()
    await t.rejects(call, { name: 'Error', message: `stop ${name}` })
    t.ok(performance.now() - start < 500, 'at once')
  }
})

t.test('a tool gets its context, and tells of its progress until the call is over', async (t) => {
  const seen: unknown[] = []
  let late = (): void => {}
  const folder = t.testdir({
    'progress.js': `
      export default {
        name: 'progress',
        parameters: { type: 'object' },
        async run (args, context) {
          context.progress({ percent: 50, at: new Date(0) })
          args.list.push('changed by the tool')
          args.late(() => context.progress('late'))
          return [context.conversation_id, context.run_id, context.call_id, context.turn, context.attempt, context.signal.aborted]
        }
      }`,
    'bad-progress.js': 'export default { name: "bad_progress", run (_, { progress }) { progress(1n) } }'
  })
  const [bad, tool] = await loadModuleTools(folder)
  t.equal(bad?.name, 'bad_progress')

  const tools = await openTools({ dir: folder })
  t.teardown(() => tools.close())
  const context = toolContext({ conversation_id: 'conv_2', run_id: 'run_2', call_id: 'call_2', turn: 4, attempt: 3, progress: (data) => { seen.push(data) } })
  await t.rejects(tools.run({ kind: 'module', name: 'bad_progress' }, {}, context), { code: 'tool_error', message: /bigint, which is not JSON/ })

  const list = ['kept']
  t.same(await tool?.run({ list: [], late: (work: () => void) => { late = work } }, context), ['conv_2', 'run_2', 'call_2', 4, 3, false])
  await t.rejects(tools.run({ kind: 'module', name: 'progress' }, { list }, context), { code: 'tool_error' }, 'no such argument: late')
  t.same(list, ['kept'], 'the tool has a copy of its arguments')
  t.same(seen, [{ percent: 50, at: new Date(0) }, { percent: 50, at: '1970-01-01T00:00:00.000Z' }])
  late()
})

t.test('progress after the end of the call reaches nobody', async (t) => {
  const tools = await openTools({ dir: t.testdir({ 'keep.js': 'export const kept = []\nexport default { name: "keep", run (_, { progress }) { kept.push(progress); progress("in time") } }' }) })
  t.teardown(() => tools.close())
  const { kept } = await import(join(t.testdirName, 'keep.js')) as { kept: ((data: unknown) => void)[] }
  const seen: unknown[] = []
  await tools.run({ kind: 'module', name: 'keep' }, {}, toolContext({ progress: (data) => { seen.push(data) } }))
  kept[0]?.('too late')
  t.same(seen, ['in time'])
})

t.test('a broken tool file stops the start with one sentence that names it', async (t) => {
  const cases: [files: Record<string, string>, message: RegExp][] = [
    [{ 'a.js': 'export default {' }, /^the tool file a\.js cannot be used: Unexpected end of input$/],
    [{ 'a.js': 'throw new Error("no key\\n    at secret stack")' }, /^the tool file a\.js cannot be used: no key$/],
    [{ 'a.js': 'throw 1' }, /^the tool file a\.js cannot be used: it threw something that is not an error$/],
    [{ 'a.js': 'import "./missing.js"' }, /^the tool file a\.js cannot be used: Cannot find module/],
    [{ 'a.mjs': 'export const tool = {}' }, /^the tool file a\.mjs cannot be used: its default export must be a tool or an array of tools$/],
    [{ 'a.js': 'export default [1]' }, /its default export must be a tool or an array of tools/],
    [{ 'a.js': 'export default { name: "a" }' }, /run must be a function/],
    [{ 'a.js': 'export default { name: "a b", run () {} }' }, /name must match pattern/],
    [{ 'a.js': 'export default { run () {} }' }, /must have required properties name/],
    [{ 'a.js': 'export default { name: "a", description: 1, run () {} }' }, /description must be text/],
    [{ 'a.js': 'export default { name: "a", effects: "none", run () {} }' }, /effects must/],
    [{ 'a.js': 'export default { name: "a", idempotent: 1, run () {} }' }, /idempotent must be boolean/],
    [{ 'a.js': 'export default { name: "a", timeout_ms: 0, run () {} }' }, /timeout_ms must be >= 1/],
    [{ 'a.js': 'export default { name: "a", placement: "moon", run () {} }' }, /placement must/],
    [{ 'a.js': 'export default { name: "a", retries: 3, run () {} }' }, /retries is nothing a tool can have/],
    [{ 'a.js': 'export default { name: "a", parameters: { type: "string" }, run () {} }' }, /parameters\/type must be "object"/],
    [{ 'a.js': 'export default { name: "a", parameters: { type: "object", properties: { x: { pattern: "(" } } }, run () {} }' }, /parameters\/properties\/x\/pattern is not an ECMAScript/],
    [{ 'a.js': 'export default { name: "same", run () {} }', 'b.js': 'export default { name: "same", run () {} }' }, /^the tools folder has two tools named same: in a\.js and in b\.js$/],
    [{ 'a.js': 'export default { name: "http_fetch", run () {} }' }, /^the tools folder has a tool named http_fetch, which is the name of a builtin tool$/]
  ]
  const root = t.testdir(Object.fromEntries(cases.map(([files], index) => [`case${index}`, files])))
  for (const [index, [, message]] of cases.entries()) {
    await t.rejects(openTools({ dir: join(root, `case${index}`) }), { message }, String(message))
  }
  await t.rejects(openTools({ dir: join(dir, 'no-such-folder') }), { message: /^the tools folder .* cannot be read \(ENOENT\)$/ })
})

t.test('what is no tool file is left alone', async (t) => {
  const folder = t.testdir({ 'README.md': '#', 'data.json': '{}', 'types.d.ts': 'export {}', sub: { 'broken.js': 'export default {' }, 'a.js': 'export default []' })
  t.same(await loadModuleTools(folder), [])
})
