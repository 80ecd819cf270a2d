import fc from 'fast-check'
import t from 'tap'
import { cut, exceeds, jsonValue, MAX_JSON_DEPTH, parseJson } from '../../../src/engine/tools/json.js'
import { errorForModel, forModel } from '../../../src/engine/tools/output.js'

t.test('E18: strings as they are, everything else as JSON, and a message is never empty', async (t) => {
  const cases: [output: unknown, text: string][] = [
    ['plain', 'plain'], ['{"a":1}', '{"a":1}'], [{ a: [1, null] }, '{"a":[1,null]}'], [[], '[]'], [{}, '{}'], [0, '0'], [false, 'false'],
    [null, '(no output)'], [undefined, '(no output)'], ['', '(no output)'], [' \n\t', '(no output)']
  ]
  for (const [output, text] of cases) t.same(forModel(output, 1_000), { text, truncated: false }, JSON.stringify(output))
})

t.test('E16: a long output is cut, and says by how much', async (t) => {
  t.same(forModel('x'.repeat(100_000), 60_000), { text: `${'x'.repeat(60_000)}\n[cut: 40000 of 100000 characters left out]`, truncated: true })
  t.same(forModel('x'.repeat(60_000), 60_000), { text: 'x'.repeat(60_000), truncated: false }, 'exactly the limit')
  t.same(forModel({ a: 'xxxx' }, 5), { text: '{"a":\n[cut: 7 of 12 characters left out]', truncated: true })
  t.same(forModel('a😀b', 2), { text: 'a\n[cut: 3 of 4 characters left out]', truncated: true }, 'not inside a surrogate pair')
  t.same(forModel('a😀b', 3), { text: 'a😀\n[cut: 1 of 4 characters left out]', truncated: true })
})

t.test('E16: whatever the output and the limit, the text is well-formed, not empty, and cut at the limit', async (t) => {
  fc.assert(fc.property(fc.oneof(fc.string({ unit: 'binary' }), fc.array(fc.integer({ min: 0, max: 0xffff })).map((units) => String.fromCharCode(...units)), fc.jsonValue()), fc.integer({ min: 1, max: 40 }), (output, max) => {
    const { text, truncated } = forModel(output, max)
    const whole = typeof output === 'string' ? output : JSON.stringify(output)
    const wellFormed = encodeURIComponent(text).length > 0
    const kept = truncated ? text.slice(0, text.lastIndexOf('\n[cut: ')) : text
    return wellFormed && truncated === (whole.trim() !== '' && whole.length > max && output !== null) && (truncated ? kept.length <= max && kept.length >= max - 1 : true)
  }))
  t.equal(forModel('a\ud800b', 100).text, 'a\ufffdb', 'a lone surrogate')
})

t.test('F5: the message of a failed call', async (t) => {
  t.equal(errorForModel({ code: 'timeout', message: 'The tool took too long.' }), '{"error":{"code":"timeout","message":"The tool took too long."}}')
  t.equal(errorForModel({ code: 'tool_error', message: 'a\ud800' }), '{"error":{"code":"tool_error","message":"a\ufffd"}}')
})

t.test('cut never leaves half a character', async () => {
  fc.assert(fc.property(fc.string({ unit: 'grapheme' }), fc.nat(20), (text, max) => {
    const part = cut(text, max)
    return text.startsWith(part) && part.length <= max && part.length >= Math.min(text.length, max - 1) && encodeURIComponent(part) !== null
  }))
})

t.test('exceeds stops at the first bound', async (t) => {
  const list = (levels: number): unknown => levels === 0 ? 1 : [list(levels - 1)]
  t.equal(exceeds(list(3), { depth: 3 }), null)
  t.equal(exceeds(list(4), { depth: 3 }), 'depth')
  t.equal(exceeds({ a: { b: 1 } }, { depth: 1 }), 'depth')
  t.equal(exceeds({ a: 'x'.repeat(100) }, { depth: 9, chars: 100 }), 'chars')
  t.equal(exceeds({ a: 'x'.repeat(50) }, { depth: 9, chars: 100 }), null)
  const endless: unknown[] = []
  endless.push(endless)
  t.equal(exceeds(endless, { depth: 50 }), 'depth')
})

t.test('parseJson: what it takes comes out as JSON.parse has it', async (t) => {
  fc.assert(fc.property(fc.json(), (text) => {
    const parsed = JSON.parse(text) as unknown
    try {
      t.strictSame(parseJson(text), parsed)
    } catch (error) {
      return text.includes('__proto__') && error instanceof SyntaxError
    }
    return true
  }))
  t.equal(JSON.stringify(parseJson('['.repeat(MAX_JSON_DEPTH) + ']'.repeat(MAX_JSON_DEPTH))).length, 2 * MAX_JSON_DEPTH)
  t.throws(() => parseJson('['.repeat(MAX_JSON_DEPTH + 1) + ']'.repeat(MAX_JSON_DEPTH + 1)), SyntaxError)
  t.throws(() => parseJson('secret'), { message: /^(?!.*secret)/ })
  t.throws(() => parseJson('{"password": "secret" x}'), { message: /^(?!.*secret)/ })
})

t.test('jsonValue: a JSON value is copied as it is', async (t) => {
  fc.assert(fc.property(fc.jsonValue(), (value) => {
    fc.pre(!JSON.stringify(value).includes('__proto__'))
    const copy = jsonValue(value, 1e6)
    t.strictSame(JSON.stringify(copy), JSON.stringify(value))
    t.ok(value === null || typeof value !== 'object' || copy !== value)
  }))
})
