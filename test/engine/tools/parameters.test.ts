import fc from 'fast-check'
import t from 'tap'
import type { HttpTool } from '../../../src/core/tool.js'
import { DeadlineExceeded, within } from '../../../src/engine/tools/deadline.js'
import { NO_ARGUMENTS, openParameters, schemaFaults } from '../../../src/engine/tools/parameters.js'
import { openTools } from '../../../src/engine/tools/tools.js'

type Schema = Record<string, unknown>
const object = (properties: Schema, more: Schema = {}): Schema => ({ type: 'object', properties, ...more })
const { parse } = openParameters()

/** Milliseconds of blocking: the best of three, and of processor and wall time, because the machine is shared. */
function blocking (work: () => void): number {
  return Math.min(...[1, 2, 3].flatMap(() => {
    const start = performance.now()
    const cpu = process.cpuUsage()
    work()
    const { user, system } = process.cpuUsage(cpu)
    return [performance.now() - start, (user + system) / 1000]
  }))
}

t.before(() => {
  // The meta-schemas are compiled at their first use.
  schemaFaults(object({}))
  schemaFaults({ type: 'object', $schema: 'http://json-schema.org/draft-07/schema#' })
})

t.test('ordinary schemas are accepted', async (t) => {
  const cases: Record<string, Schema> = {
    'no arguments': NO_ARGUMENTS,
    plain: object({ id: { type: 'integer', minimum: 1 }, tags: { type: 'array', items: { type: 'string' }, uniqueItems: true } }, { required: ['id'], additionalProperties: false }),
    'draft 2020-12': { $schema: 'https://json-schema.org/draft/2020-12/schema', ...object({ point: { type: 'array', prefixItems: [{ type: 'number' }], items: false } }) },
    'draft-07': { $schema: 'http://json-schema.org/draft-07/schema#', ...object({ point: { type: 'array', items: [{ type: 'number' }], additionalItems: false } }, { definitions: { a: true } }) },
    'local references': object({ a: { $ref: '#/$defs/a' }, b: { $ref: '#named' } }, { $defs: { a: { type: 'string' }, b: { $anchor: 'named', type: 'number' } } }),
    'an id of its own': { $id: 'https://example.com/args', ...object({ a: { $ref: '#/$defs/a' } }, { $defs: { a: { type: 'string' } } }) },
    recursive: object({ children: { type: 'array', items: { $ref: '#' } } }),
    'boolean schemas': object({ anything: true, nothing: false }),
    combinations: object({ x: { anyOf: [{ type: 'null' }, { oneOf: [{ const: 1 }, { enum: ['a', 'b'] }] }] } }, { allOf: [{ required: ['x'] }], if: { required: ['y'] }, then: { required: ['z'] } }),
    'names like keywords': object({ $ref: { type: 'string' }, pattern: { type: 'string' }, default: { type: 'object', properties: { enum: { type: 'string' } } }, constructor: { type: 'string' } }),
    'data like keywords': object({ a: { default: { $ref: 'http://elsewhere', pattern: '(' }, examples: [{ $async: true }], enum: [{ pattern: '(a+)+' }] } }),
    'unknown keywords and formats': object({ a: { type: 'string', format: 'klingon', 'x-order': 1 }, b: { format: '__proto__' }, c: { format: 'constructor' } }),
    'ordinary patterns': object(Object.fromEntries([
      '^[a-z0-9-]+$', '^\\d{4}-\\d{2}-\\d{2}$', '^(GET|POST)$', '^https?://', '^#[0-9a-fA-F]{6}$', '^[a-z0-9]+(-[a-z0-9]+)*$', '^[\\w.+-]+@[\\w-]+\\.[\\w.]+$', '^\\p{L}+$',
      '^(\\d+)\\.(\\d+)\\.(\\d+)(?:-((?:0|[1-9]\\d*|\\d*[a-zA-Z-][0-9a-zA-Z-]*)(?:\\.(?:0|[1-9]\\d*|\\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?$', '^(\\/[^/]+)+$',
      '^(?:(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9][0-9]|[0-9])\\.){3}(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9][0-9]|[0-9])$',
      '^(?!\\.)(?!.*\\.\\.)([A-Za-z0-9_\'+\\-\\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\\-]*\\.)+[A-Za-z]{2,}$'
    ].map((pattern, index) => [`p${index}`, { type: 'string', pattern }])), { patternProperties: { '^x-': { type: 'string' } } })
  }
  for (const [title, schema] of Object.entries(cases)) t.same(schemaFaults(schema), [], title)
})

t.test('S9: hostile or broken schemas are refused, with less than 200 ms of blocking', async (t) => {
  const deep = (levels: number): Schema => levels === 0 ? {} : { type: 'object', properties: { a: deep(levels - 1) } }
  const wide = object(Object.fromEntries(Array.from({ length: 100_000 }, (_, i) => [`property${i}`, { type: 'string', description: 'x'.repeat(20) }])))
  t.ok(JSON.stringify(wide).length > 5_000_000)
  const cases: [title: string, schema: unknown, pointer: string, detail: RegExp][] = [
    ['not an object', [], '', /must be a JSON Schema object/],
    ['null', null, '', /must be a JSON Schema object/],
    ['boolean', true, '', /must be a JSON Schema object/],
    ['no type', {}, '/type', /must be "object"/],
    ['a string schema', { type: 'string' }, '/type', /must be "object"/],
    ['several types', { type: ['object', 'null'] }, '/type', /must be "object"/],
    ['5 MB', wide, '', /longer than 32768/],
    ['5 MB of text', object({ a: { description: 'x'.repeat(5_000_000) } }), '', /longer than 32768/],
    ['20,000 keywords', object({ a: { anyOf: Array.from({ length: 20_000 }, () => ({})) } }), '', /longer than 32768/],
    ['deep', deep(1_000), '', /deeper than 32/],
    ['draft-04', { $schema: 'http://json-schema.org/draft-04/schema#', type: 'object' }, '/$schema', /2020-12 or draft-07/],
    ['a schema of its own', { $schema: 'https://evil.test/meta', type: 'object' }, '/$schema', /2020-12 or draft-07/],
    ['remote reference', object({ a: { $ref: 'http://169.254.169.254/latest' } }), '/properties/a/$ref', /part of this schema/],
    ['file reference', object({ a: { $ref: 'file:///etc/passwd' } }), '/properties/a/$ref', /part of this schema/],
    ['relative reference', object({ a: { $ref: 'other.json#/a' } }), '/properties/a/$ref', /part of this schema/],
    ['remote dynamic reference', object({ a: { $dynamicRef: 'http://evil.test' } }), '/properties/a/$dynamicRef', /part of this schema/],
    ['dangling reference', object({ a: { $ref: '#/$defs/gone' } }), '', /refers to something that is not in it/],
    ['below a property named default', object({ default: { properties: { a: { $ref: 'http://evil.test' } } } }), '/properties/default/properties/a/$ref', /part of this schema/],
    ['a reference into data', { ...object({ a: { $ref: '#/default/x' } }), default: { x: { $ref: 'http://evil.test' } } }, '/properties/a/$ref', /not into the data/],
    ['a reference to a default', { ...object({ a: { $ref: '#/default' } }), default: { type: 'string', pattern: '^(a+)+$' } }, '/properties/a/$ref', /not into the data/],
    ['a reference into an enum, escaped', object({ b: { enum: [{ pattern: '^(a+)+$' }] }, a: { $ref: '#/properties/b/%65num/0' } }), '/properties/a/$ref', /not into the data/],
    ['answers with a promise', { ...object({}), $async: true }, '/$async', /not accepted/],
    ['answers with a promise inside', object({ a: { $async: true } }), '/properties/a/$async', /not accepted/],
    ['prototype', JSON.parse('{"type": "object", "properties": {"__proto__": {"type": "string"}}}'), '/properties/__proto__', /not accepted/],
    ['unknown type', object({ a: { type: 'strin' } }), '/properties/a/type', /./],
    ['wrong keyword value', object({ a: { minLength: 'x' } }), '/properties/a/minLength', /must be integer/],
    ['draft-07 tuple in 2020-12', object({ a: { items: [{}] } }), '/properties/a/items', /./],
    ['not a regular expression', object({ a: { pattern: '(' } }), '/properties/a/pattern', /not an ECMAScript regular expression/],
    ['not a regular expression as a name', { type: 'object', patternProperties: { '[': {} } }, '/patternProperties/[', /not an ECMAScript regular expression/],
    ['python pattern', object({ a: { pattern: '(?P<year>\\d+)' } }), '/properties/a/pattern', /not an ECMAScript regular expression/],
    ['many patterns', object({}, { patternProperties: Object.fromEntries(Array.from({ length: 101 }, (_, i) => [`^a${i}`, {}])) }), '', /more than 100 patterns/],
    ['long pattern', object({ a: { pattern: 'a'.repeat(1_001) } }), '/properties/a/pattern', /more than 1000/]
  ]
  for (const pattern of ['^(a+)+$', '^(a*)*$', '^(a|a)*$', '^(a|aa)+$', '^([a-zA-Z]+)*$', '(\\d+)+$', '^(\\w+\\s?)*$', '^(.*)*$x', '(x+x+)+y', '^(([a-z])+.)+[A-Z]([a-z])+$', '^(\\s|\\s\\s)*$', '^(?:ab|abab)+$', '^((?:foo|bar)+)+$']) {
    cases.push([`pattern ${pattern}`, object({ fine: { pattern: '^a+$' }, a: { type: 'string', pattern } }), '/properties/a/pattern', /take for ever/])
    cases.push([`property name ${pattern}`, { type: 'object', patternProperties: { [pattern]: {} } }, `/patternProperties/${pattern.replaceAll('/', '~1')}`, /take for ever/])
  }
  for (const [title, schema, pointer, detail] of cases) {
    let faults: unknown
    const ms = blocking(() => { faults = schemaFaults(schema) })
    t.match(faults, [{ pointer, detail }], title)
    t.ok(ms < 200, `${title}: ${ms.toFixed(1)} ms`)
  }
})

t.test('the largest schema that is accepted is compiled in bounded time', async (t) => {
  const large = object(Object.fromEntries(Array.from({ length: 700 }, (_, i) => [`p${i}`, { type: 'string', minLength: 1 }])))
  t.ok(JSON.stringify(large).length > 27_000)
  t.same(schemaFaults(large), [])
  t.ok(blocking(() => schemaFaults(large)) < 200)
})

t.test('check names the place in the tool', async (t) => {
  const tools = await openTools()
  t.teardown(() => tools.close())
  const tool: HttpTool = { kind: 'http', name: 'x', url: 'https://example.com', parameters: object({ 'a/b~c': { pattern: '(' } }) }
  t.match(await tools.check(tool), [{ pointer: '/parameters/properties/a~1b~0c/pattern' }])
  t.match(await tools.check({ ...tool, parameters: {} }), [{ pointer: '/parameters/type' }])
  t.match(await tools.check({ ...tool, url: 'http://10.0.0.1', headers: { Host: 'x' } }), [{ pointer: '/url' }, { pointer: '/headers/Host' }, { pointer: '/parameters/properties/a~1b~0c/pattern' }])
})

t.test('E9: arguments that do not parse fail the call with a text that says what to mend', async (t) => {
  const schema = object({ city: { type: 'string' } })
  const cases: [raw: string, message: RegExp][] = [
    ['{"city": "Par', /^The arguments are not valid JSON: Unterminated string in JSON at position 13/],
    ['{"city": "Paris"', /not valid JSON: Expected ',' or '}' after property value in JSON at position 16/],
    ['{city: "Paris"}', /not valid JSON: Expected property name/],
    ['{"city": "Paris"} {}', /not valid JSON: Unexpected non-whitespace/],
    ['Paris, the secret one', /^The arguments are not valid JSON: Unexpected token 'P'\.$/],
    ['[]', /must be a JSON object, not an array/],
    ['null', /must be a JSON object, not null/],
    ['"Paris"', /must be a JSON object, not a string/],
    ['1', /must be a JSON object, not a number/],
    ['{"__proto__": {"polluted": true}}', /the key __proto__ is not accepted/],
    ['{"a": [{"\\u005f_proto__": 1}]}', /the key __proto__ is not accepted/],
    [`{"a": ${'['.repeat(200)}${']'.repeat(200)}}`, /nested deeper than 100 levels/],
    ['['.repeat(500_000), /not valid JSON/],
    [`{"a": "${'x'.repeat(1_000_000)}"}`, /longer than 1000000 characters/]
  ]
  for (const [raw, message] of cases) {
    t.throws(() => parse(schema, raw), { name: 'ToolError', code: 'invalid_arguments', message }, raw.slice(0, 40))
  }
  t.equal(({} as { polluted?: boolean }).polluted, undefined)
})

t.test('E9: arguments that do not fit the schema: place and reason of the first five problems, no value repeated', async (t) => {
  const schema = object({
    id: { type: 'integer', minimum: 1 },
    unit: { enum: ['C', 'F'] },
    kind: { const: 'weather' },
    at: { type: 'string', format: 'date-time' },
    places: { type: 'array', items: object({ name: { type: 'string', maxLength: 3 } }, { required: ['name'] }) }
  }, { required: ['id'], additionalProperties: false })
  const fails = (args: unknown, message: RegExp): void => {
    t.throws(() => parse(schema, JSON.stringify(args)), { name: 'ToolError', code: 'invalid_arguments', message }, String(message))
  }
  fails({}, /the arguments must have required property 'id'/)
  fails({ id: '1' }, /\/id must be integer/)
  fails({ id: 0 }, /\/id must be >= 1/)
  fails({ id: 1, town: 'secret' }, /the arguments must not have the property "town"\.$/)
  fails({ id: 1, unit: 'K' }, /\/unit must be one of \["C","F"\]/)
  fails({ id: 1, kind: 'secret' }, /\/kind must be "weather"/)
  fails({ id: 1, at: 'yesterday' }, /\/at must match format "date-time"/)
  fails({ id: 1, places: [{ name: 'ok' }, { name: 'secret' }, {}] }, /\/places\/1\/name must NOT have more than 3 characters; \/places\/2 must have required property 'name'/)
  fails({ id: 1, places: Array.from({ length: 9 }, () => ({})) }, /\/places\/4 must have required property 'name'; and 4 more\.$/)

  const long = { id: 1, ['k'.repeat(100_000)]: 1, places: [{ name: '😀'.repeat(100_000) }] }
  const message = (() => { try { parse(schema, JSON.stringify(long)); return '' } catch (error) { return (error as Error).message } })() // eslint-disable-line @stylistic/max-statements-per-line
  t.ok(message.length > 0 && message.length < 1_200, `${message.length} characters`)
  for (const args of [{ id: 1, kind: 'secret' }, { id: 1, places: [{ name: 'secret' }] }]) {
    t.throws(() => parse(schema, JSON.stringify(args)), { message: /^(?!.*secret)/ })
  }
})

t.test('arguments are never repaired: no coercion, no defaults, nothing left out', async (t) => {
  const schema = object({ n: { type: 'number', default: 5 }, list: { type: 'array' } })
  t.throws(() => parse(schema, '{"n": "5"}'), { code: 'invalid_arguments' })
  t.throws(() => parse(schema, '{"list": 1}'), { code: 'invalid_arguments' })
  t.same(parse(schema, '{"other": null}'), { other: null })
  t.same(parse(schema, ' {"n": 1e3, "toString": 1} '), { n: 1000, toString: 1 })
})

t.test('no text at all is a call without arguments', async (t) => {
  t.same(parse(NO_ARGUMENTS, ''), {})
  t.same(parse(NO_ARGUMENTS, ' \n'), {})
  t.same(parse(NO_ARGUMENTS, '{}'), {})
  t.throws(() => parse(object({ a: {} }, { required: ['a'] }), ''), { message: /required property 'a'/ })
  t.throws(() => parse(NO_ARGUMENTS, '{"a": 1}'), { message: /must not have the property "a"/ })
})

t.test('a required property is not found in the prototype', async (t) => {
  for (const name of ['toString', 'constructor', 'hasOwnProperty']) {
    t.throws(() => parse({ type: 'object', required: [name] }, '{}'), { code: 'invalid_arguments' }, name)
  }
})

t.test('a format nobody knows is no format, also when it is named like a part of every object', async (t) => {
  for (const format of ['klingon', '__proto__', 'constructor', 'toString', 'hasOwnProperty']) {
    t.same(parse(object({ a: { type: 'string', format } }), '{"a": ""}'), { a: '' }, format)
  }
})

t.test('both drafts mean what they say', async (t) => {
  const tuple = (draft: string, keyword: string): Schema => ({ $schema: draft, ...object({ a: { [keyword]: [{ type: 'number' }] } }) })
  for (const schema of [tuple('https://json-schema.org/draft/2020-12/schema', 'prefixItems'), tuple('http://json-schema.org/draft-07/schema', 'items')]) {
    t.same(parse(schema, '{"a": [1]}'), { a: [1] })
    t.throws(() => parse(schema, '{"a": ["x"]}'), { message: /\/a\/0 must be number/ })
  }
})

t.test('two clients\' schemas with the same $id do not meet', async (t) => {
  const mine = { $id: 'https://example.com/args', ...object({ a: { type: 'string' } }) }
  const theirs = { $id: 'https://example.com/args', ...object({ a: { type: 'number' } }) }
  t.same(parse(mine, '{"a": "x"}'), { a: 'x' })
  t.same(parse(theirs, '{"a": 1}'), { a: 1 })
  t.throws(() => parse(mine, '{"a": 1}'), { message: /must be string/ })
})

t.test('a schema that was never checked is checked when it is used', async (t) => {
  t.throws(() => parse(object({ a: { $ref: 'http://evil.test' } }), '{}'), { code: 'invalid_arguments', message: /part of this schema/ })
})

t.test('S9: checking that runs away is stopped, fails its call, and is not tried again for a while', async (t) => {
  const doubling = Object.fromEntries(Array.from({ length: 30 }, (_, i) => [`d${i}`, { allOf: [{ $ref: `#/$defs/d${i + 1}` }, { $ref: `#/$defs/d${i + 1}` }] }]))
  const cases: Record<string, [schema: Schema, args: unknown]> = {
    'references that double': [object({ a: { $ref: '#/$defs/d0' } }, { $defs: { ...doubling, d30: { type: 'string' } } }), { a: 'x' }],
    'a pattern no trial finds': [object({ a: { type: 'string', pattern: '^((?:foo\\d|bar-)+)+$' } }), { a: `${'foo1bar-'.repeat(20)}!` }],
    'a polynomial pattern': [object({ a: { type: 'string', pattern: 'a*a*a*b' } }), { a: 'a'.repeat(50_000) }],
    'unique items': [object({ a: { type: 'array', uniqueItems: true } }), { a: Array.from({ length: 30_000 }, (_, i) => ({ x: { y: i } })) }]
  }
  for (const [title, [schema, args]] of Object.entries(cases)) {
    t.same(schemaFaults(schema), [], `${title}: nothing to be seen in the schema`)
    const raw = JSON.stringify(args)
    const start = performance.now()
    t.throws(() => parse(schema, raw), { code: 'invalid_arguments', message: /takes too long/ }, title)
    t.ok(performance.now() - start < 1_000, `${title}: stopped`)
    const again = performance.now()
    t.throws(() => parse(schema, '{}'), { message: /takes too long/ }, `${title}: and held off`)
    t.ok(performance.now() - again < 50)
  }
  t.same(parse(object({ a: {} }), '{"a": 1}'), { a: 1 }, 'others are not affected')
})

t.test('within: a deadline for synchronous work', async (t) => {
  t.equal(within(1_000, () => 7), 7)
  t.throws(() => within(1_000, () => { throw new RangeError('its own') }), { name: 'RangeError', message: 'its own' })
  t.throws(() => within(10, () => { for (;;); }), DeadlineExceeded)
  t.throws(() => within(10, () => /^(a+)+$/.test(`${'a'.repeat(50)}!`)), DeadlineExceeded, 'inside a regular expression')
  t.equal(within(1_000, () => 'still working'), 'still working')
})

t.test('any JSON object passes an open schema unchanged', async (t) => {
  fc.assert(fc.property(fc.dictionary(fc.string().filter((key) => key !== '__proto__'), fc.jsonValue({ noUnicodeString: false })), (args) => {
    const raw = JSON.stringify(args)
    if (raw.includes('"__proto__"')) return
    t.strictSame(JSON.stringify(parse({ type: 'object' }, raw)), raw)
  }))
})

t.test('more schemas than are kept: all work', async (t) => {
  const bounded = openParameters()
  const schema = (i: number): Schema => object({ a: { const: i } })
  for (let i = 0; i < 520; i++) bounded.parse(schema(i), `{"a": ${i}}`)
  t.same(bounded.parse(schema(0), '{"a": 0}'), { a: 0 })
  t.throws(() => bounded.parse(schema(519), '{"a": 0}'), { message: /must be 519/ })
})
