import { Ajv } from 'ajv'
import addFormats from 'ajv-formats'
import fc from 'fast-check'
import t from 'tap'
import { closedRecords, explicit } from '../../src/http/union.js'
import { CreateConversation } from '../../src/schemas/conversation.js'
import { CreateRun } from '../../src/schemas/run.js'

const ajv = new Ajv({ strict: false, allErrors: true })
addFormats.default(ajv)

const goodTool = fc.constantFrom(
  { kind: 'http', name: 'a', url: 'http://a.example' }, { kind: 'builtin', name: 'http_fetch', effects: 'read' }, { kind: 'module', name: 'a' }
)
const badTool = fc.record({
  kind: fc.constantFrom('http', 'builtin', 'module', 'other'),
  name: fc.constantFrom('a', 'http_fetch', 'a b'),
  url: fc.constantFrom('http://a.example', 'x'),
  effects: fc.constantFrom('read', 'write', 'none'),
  headers: fc.dictionary(fc.constantFrom('x-a', 'x a'), fc.constantFrom('b', 'b\n')),
  extra: fc.boolean()
}, { requiredKeys: [] })
const part = fc.record({ type: fc.constantFrom('text', 'image_url', 'audio'), text: fc.constantFrom('', 'x'), image_url: fc.record({ url: fc.constantFrom('', 'x') }) }, { requiredKeys: [] })
const content = fc.oneof(fc.constantFrom('', 'x', null, 5), fc.array(part, { maxLength: 2 }))
const message = fc.record({
  role: fc.constantFrom('system', 'user', 'assistant', 'tool', 'robot'), content, tool_call_id: fc.constantFrom('', 'a'), tool_calls: fc.constant([{ id: 'a', name: 'b', arguments: {} }])
}, { requiredKeys: [] })
const fields = {
  input: fc.oneof(fc.constantFrom('', 'x', 5), fc.array(message, { maxLength: 2 })),
  tools: fc.oneof(fc.constant(null), fc.array(goodTool, { maxLength: 3 }), fc.array(fc.oneof(goodTool, badTool), { maxLength: 3 })),
  limits: fc.record({ max_total_tokens: fc.constantFrom(null, 0, 5, 'x'), max_turns: fc.constantFrom(0, 1, 1.5) }, { requiredKeys: [] }),
  tool_policy: fc.record({ final_answer_tool: fc.constantFrom(null, 'final_answer', 'x'), on_error: fc.constantFrom('continue', 'x') }, { requiredKeys: [] }),
  model_options: fc.record({
    stop: fc.oneof(fc.constantFrom('x', 5), fc.array(fc.constantFrom('a', 5), { maxLength: 5 })),
    tool_choice: fc.constantFrom('auto', 'none', 'x', null, {}, { type: 'function', function: { name: 'a' } }, { type: 'function', function: { name: 'a', x: 1 } })
  }, { requiredKeys: [] }),
  metadata: fc.dictionary(fc.constantFrom('a', 'b c'), fc.constantFrom('x', 5))
}
/** A valid run of which up to two fields are anything. */
const run = fc.tuple(fc.record(fields), fc.subarray(Object.keys(fields) as (keyof typeof fields)[], { maxLength: 2 }))
  .map(([all, names]) => ({ input: 'x', ...Object.fromEntries(names.map((name) => [name, all[name]])) }))

for (const [name, schema, body] of [
  ['CreateRun', CreateRun, run],
  ['CreateConversation', CreateConversation, fc.record({ messages: fc.array(message, { maxLength: 3 }) })]
] as const) {
  t.test(`${name}: said explicitly, a schema accepts what it accepted`, async (t) => {
    // Records are closed in both: that is the one thing which may change.
    const before = ajv.compile(closedRecords(schema) as object)
    const after = ajv.compile(explicit(schema) as object)
    let valid = 0
    fc.assert(fc.property(body, (value) => {
      const accepted = before(value)
      if (accepted) valid++
      return accepted === after(value)
    }), { numRuns: 5000 })
    t.ok(valid > 100, `${valid} valid ones among them`)
  })
}

t.test('a union of one type that nothing tells apart stays as it was', async (t) => {
  const schema = { anyOf: [{ type: 'object', properties: { a: { type: 'string' } }, required: ['a'] }, { type: 'object', properties: { b: { type: 'string' } }, required: ['b'] }] }
  const accepts = ajv.compile(explicit(schema) as object)
  t.strictSame([{ a: 'x' }, { b: 'x' }, {}, 'x'].map((value) => accepts(value)), [true, true, false, false])
})

t.test('properties that are called like keywords are properties', async (t) => {
  const schema = { type: 'object', properties: { default: { anyOf: [{ type: 'string' }, { type: 'null' }] }, enum: { type: 'string' } }, additionalProperties: false }
  const accepts = ajv.compile(explicit(schema) as object)
  t.strictSame([{ default: null, enum: 'x' }, { default: 5 }, { enum: 5 }].map((value) => accepts(value)), [true, false, false])
})

t.test('a record lets no other name through', async (t) => {
  const accepts = ajv.compile(closedRecords({ type: 'object', patternProperties: { '^a$': { type: 'string' } } }) as object)
  t.strictSame([{ a: 'x' }, { b: 'x' }, { a: 5 }, {}].map((value) => accepts(value)), [true, false, false, true])
})
