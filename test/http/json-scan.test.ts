import fc from 'fast-check'
import t from 'tap'
import { jsonFault, MAX_DEPTH } from '../../src/http/json-scan.js'

const depthOf = (value: unknown): number =>
  typeof value !== 'object' || value === null ? 0 : 1 + Math.max(0, ...Object.values(value).map(depthOf))

t.test('all JSON that comes back as it was passes, whatever is in its text', async () => {
  fc.assert(fc.property(fc.jsonValue({ maxDepth: 8 }), (value) => {
    const text = JSON.stringify(value)
    // The one thing JSON.stringify writes that is refused: integers as large as that.
    const rounded = /(?<![\d.e"])-?\d{16,}(?![\d.e])/.test(text.replace(/"(?:[^"\\]|\\.)*"/g, '""'))
    return rounded || jsonFault(Buffer.from(text)) === null
  }), { numRuns: 3000 })
  fc.assert(fc.property(fc.string({ unit: 'grapheme' }), (text) => jsonFault(Buffer.from(JSON.stringify(text))) === null))
})

t.test('a text with a lone surrogate never passes', async () => {
  fc.assert(fc.property(fc.string({ unit: fc.oneof(fc.constantFrom('\ud83d', '\ude00', 'a', '"', '\\', '\n'), fc.string({ unit: 'grapheme', minLength: 1, maxLength: 1 })) }), (text) => {
    // JSON.stringify escapes lone surrogates, and only those.
    return (jsonFault(Buffer.from(JSON.stringify(text))) === null) === (Buffer.from(text).toString() === text)
  }), { numRuns: 5000 })
})

t.test('depth is counted as it is', async () => {
  fc.assert(fc.property(fc.integer({ min: 1, max: 130 }), fc.array(fc.boolean(), { minLength: 130, maxLength: 130 }), (depth, kinds) => {
    let value: unknown = 'x[{'
    for (let level = 0; level < depth; level++) value = kinds[level] ? [value] : { '[{': value }
    return (jsonFault(Buffer.from(JSON.stringify(value))) === null) === (depthOf(value) <= MAX_DEPTH)
  }))
})

t.test('it never throws, and looks at a large body quickly', async (t) => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => { jsonFault(Buffer.from(bytes)) }))
  for (const text of ['"', '"\\', '"\\u', '"\\u12', '-', '{"a":-', '[1e', '"\\ud83d\\u']) jsonFault(Buffer.from(text))
  const large = Buffer.from(JSON.stringify({ input: 'x"\\ \u{1F600}'.repeat(800_000) }))
  const started = performance.now()
  t.equal(jsonFault(large), null)
  t.ok(performance.now() - started < 2000, `${large.length} bytes`)
})
