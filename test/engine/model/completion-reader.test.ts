import fc from 'fast-check'
import t from 'tap'
import { completionReader } from '../../../src/engine/model/completion-reader.js'
import { ModelError } from '../../../src/engine/model/model.js'
import { answer, events, stream, type Reply } from '../../support/model-reply.js'

const bytesOf = (reply: Reply) => reply.whole!

function read (...pieces: Buffer[]) {
  const heard: string[] = []
  const reader = completionReader((text) => heard.push(text))
  for (const piece of pieces) reader.write(piece)
  return { reader, heard, answer: () => reader.answer() }
}

function failure (run: () => unknown): ModelError {
  try {
    run()
  } catch (error) {
    if (error instanceof ModelError) return error
    throw error
  }
  throw new Error('it did not fail')
}

const calls = [{ id: 'a', name: 'get_a', arguments: { x: 'ü😀' } }, { id: 'b', name: 'get_b', arguments: { y: [1, 2, 3] } }]
const full = answer({ text: ['Hel', 'lo 😀 ', 'there\n\nüber'], calls, fragment: 3, usage: [7, 4] })
const merged = {
  text: 'Hello 😀 there\n\nüber',
  refusal: null,
  finish_reason: 'tool_calls',
  tool_calls: calls.map((call) => ({ ...call, arguments: JSON.stringify(call.arguments) })),
  usage: { input_tokens: 7, output_tokens: 4, total_tokens: 11 }
}

t.test('a streamed answer is merged: text, interleaved parallel calls, usage', async (t) => {
  const { answer, heard } = read(bytesOf(full))
  t.strictSame(answer(), merged)
  t.strictSame(heard, ['Hel', 'lo 😀 ', 'there\n\nüber'], 'each piece of text was handed on as it was')
})

t.test('F13: it does not matter where the bytes are divided, nor how lines end', async () => {
  fc.assert(fc.property(fc.array(fc.nat(bytesOf(full).length), { maxLength: 30 }), fc.boolean(), (cuts, carriageReturns) => {
    const bytes = carriageReturns ? Buffer.from(bytesOf(full).toString().replaceAll('\n', '\r\n')) : bytesOf(full)
    const at = [0, ...cuts.sort((a, b) => a - b), bytes.length]
    const { answer } = read(...at.slice(1).map((end, i) => bytes.subarray(at[i], end)))
    t.strictSame(answer(), merged)
  }))
})

t.test('FAULTS M5: an answer cut at any byte before its finish_reason is truncated, after it complete', async (t) => {
  const bytes = bytesOf(full)
  const finished = bytes.indexOf('\n\n', bytes.indexOf('"finish_reason":"tool_calls"'))
  for (let end = 0; end < bytes.length; end++) {
    const { answer, reader } = read(bytes.subarray(0, end))
    if (reader.isFinished()) {
      if (end <= finished) t.fail(`finished after ${end} bytes`)
      t.strictSame(answer().tool_calls, merged.tool_calls)
    } else {
      const error = failure(answer)
      if (error.code !== 'provider_truncated' || !error.retryable) t.fail(`${error.code} after ${end} bytes`)
      if (end > finished + 1) t.fail(`not finished after ${end} bytes`)
    }
  }
})

const delta = (part: object) => ({ tool_calls: [part] })
const part = ({ index, id, name, args }: { index?: number, id?: string, name?: string, args?: string }) =>
  delta({ index, id, function: { name, arguments: args } }) // what is undefined is not sent

const oddServers: [what: string, deltas: object[], expected: [id: string, name: string, args: string][]][] = [
  ['one whole call in each chunk', [part({ index: 0, id: 'a', name: 'f', args: '{"n":1}' }), part({ index: 1, id: 'b', name: 'g', args: '{"n":2}' })],
    [['a', 'f', '{"n":1}'], ['b', 'g', '{"n":2}']]],
  ['all calls in one chunk', [{ tool_calls: [{ index: 0, id: 'a', function: { name: 'f', arguments: '{}' } }, { index: 1, id: 'b', function: { name: 'f', arguments: '{}' } }] }],
    [['a', 'f', '{}'], ['b', 'f', '{}']]],
  ['no index', [part({ id: 'a', name: 'f', args: '{"n"' }), part({ args: ':1}' }), part({ id: 'b', name: 'f', args: '{"n":2}' })],
    [['a', 'f', '{"n":1}'], ['b', 'f', '{"n":2}']]],
  ['no index, arguments in turns by id', [part({ id: 'a', name: 'f', args: '{"n"' }), part({ id: 'b', name: 'g', args: '{"m"' }), part({ id: 'a', args: ':1}' }), part({ id: 'b', args: ':2}' })],
    [['a', 'f', '{"n":1}'], ['b', 'g', '{"m":2}']]],
  ['index 0 for every call', [part({ index: 0, id: 'a', name: 'f', args: '{"n":1}' }), part({ index: 0, id: 'b', name: 'f', args: '{"n":2}' })],
    [['a', 'f', '{"n":1}'], ['b', 'f', '{"n":2}']]],
  ['index 0 for every call and arguments in pieces', [part({ index: 0, id: 'a', name: 'f', args: '{}' }), part({ index: 0, id: 'b', name: 'f', args: '{"n"' }), part({ index: 0, args: ':2}' })],
    [['a', 'f', '{}'], ['b', 'f', '{"n":2}']]],
  ['index 0 for every call and no arguments', [part({ index: 0, id: 'a', name: 'f', args: '' }), part({ index: 0, id: 'b', name: 'g', args: '{}' })],
    [['a', 'f', ''], ['b', 'g', '{}']]],
  ['the same id for parallel calls', [part({ index: 0, id: 'a', name: 'f', args: '{"n":1}' }), part({ index: 1, id: 'a', name: 'f', args: '{"n":2}' })],
    [['a', 'f', '{"n":1}'], ['a', 'f', '{"n":2}']]],
  ['the same id and no index', [part({ id: 'a', name: 'f', args: '{"n":1}' }), part({ id: 'a', name: 'f', args: '{"n":2}' })],
    [['a', 'f', '{"n":1}'], ['a', 'f', '{"n":2}']]],
  ['empty ids', [part({ index: 0, id: '', name: 'f', args: '{"n":1}' }), part({ index: 1, id: '', name: 'f', args: '{"n":2}' })],
    [['', 'f', '{"n":1}'], ['', 'f', '{"n":2}']]],
  ['neither ids nor an index', [part({ name: 'f', args: '{"n":1}' }), part({ name: 'f', args: '{"n":2}' })],
    [['', 'f', '{"n":1}'], ['', 'f', '{"n":2}']]],
  ['id and name repeated in every chunk', [part({ index: 0, id: 'a', name: 'f', args: '' }), part({ index: 0, id: 'a', name: 'f', args: '{"n"' }), part({ index: 0, id: 'a', name: 'f', args: ':1}' }), part({ index: 0, id: 'a', name: 'f', args: '' })],
    [['a', 'f', '{"n":1}']]],
  ['a new id in every chunk', [part({ index: 0, id: 'a', name: 'f', args: '{"n"' }), part({ index: 0, id: 'b', args: ':1}' })],
    [['a', 'f', '{"n":1}']]],
  ['the second call first', [part({ index: 1, id: 'b', name: 'g', args: '{}' }), part({ index: 0, id: 'a', name: 'f', args: '{}' })],
    [['a', 'f', '{}'], ['b', 'g', '{}']]],
  ['no arguments at all', [delta({ index: 0, id: 'a', function: { name: 'f' } })],
    [['a', 'f', '']]]
]

for (const [what, deltas, expected] of oddServers) {
  t.test(`FAULTS M9: tool calls are told apart with ${what}`, async (t) => {
    const { tool_calls: merged } = read(bytesOf(stream(deltas, { finish: 'tool_calls' }))).answer()
    t.strictSame(merged.map((call) => [call.id, call.name, call.arguments]), expected)
  })
}

t.test('FAULTS M3, M4: cut arguments come out as they are, whatever finish_reason says', async (t) => {
  for (const finish of ['length', 'tool_calls', 'stop']) {
    const { tool_calls: calls, finish_reason: reason } = read(bytesOf(stream([part({ index: 0, id: 'a', name: 'pay', args: '{"amount": 10' })], { finish }))).answer()
    t.equal(calls[0]?.arguments, '{"amount": 10')
    t.equal(reason, finish)
  }
})

t.test('FAULTS M11: a refusal is an answer', async (t) => {
  const { text, refusal, finish_reason: reason } = read(bytesOf(answer({ refusal: 'I cannot.' }))).answer()
  t.strictSame({ text, refusal, reason }, { text: '', refusal: 'I cannot.', reason: 'stop' })
})

t.test('FAULTS M11, F18: finish_reason content_filter is a failure that keeps its usage and is not retried', async (t) => {
  const error = failure(read(bytesOf(answer({ text: 'half', finish: 'content_filter' }))).answer)
  t.match(error, { code: 'content_filter', retryable: false, usage: { total_tokens: 15 } })
})

t.test('F14: finish_reason length is an answer, even before the first word', async (t) => {
  t.match(read(bytesOf(answer({ text: 'half', finish: 'length' }))).answer(), { text: 'half', finish_reason: 'length' })
  t.match(read(bytesOf(answer({ finish: 'length' }))).answer(), { text: '', finish_reason: 'length' })
})

const malformed: [what: string, reply: Reply][] = [
  ['neither text nor calls', answer({})],
  ['empty text', answer({ text: '' })],
  ['tool_calls as its reason and no calls', answer({ finish: 'tool_calls' })],
  ['a call without a name', stream([part({ index: 0, id: 'a', args: '{}' })], { finish: 'tool_calls' })],
  ['arguments that are no text', stream([delta({ index: 0, id: 'a', function: { name: 'f', arguments: {} } })], { finish: 'tool_calls' })],
  ['a call that is null', stream([{ tool_calls: [null] }], { finish: 'tool_calls' })]
]
for (const [what, reply] of malformed) {
  t.test(`F11: an answer with ${what} is malformed, and may be retried`, async (t) => {
    t.match(failure(() => read(bytesOf(reply)).answer()), { code: 'provider_malformed', retryable: true })
  })
}

t.test('I26: a malformed or truncated answer keeps the usage that was sent', async (t) => {
  const usage = { input_tokens: 7, output_tokens: 4, total_tokens: 11 }
  t.strictSame(failure(read(bytesOf(answer({ usage: [7, 4] }))).answer).usage, usage)
  t.strictSame(failure(read(bytesOf(answer({ text: 'half', finish: null, usage: [7, 4] }))).answer).usage, usage)
})

t.test('F11: a chunk that is not a JSON object is malformed', async (t) => {
  for (const data of ['{"choices": [', '[1', 'null', '7']) {
    t.match(failure(() => read(bytesOf(events(data)))), { code: 'provider_malformed', retryable: true })
  }
})

t.test('F11: chunks without choices, without a delta or with unknown fields are passed over', async (t) => {
  const odd = [{}, { choices: null }, { choices: [] }, { choices: [null] }, { choices: [{ index: 0 }] }, { choices: [{ index: 0, delta: null }] },
    { choices: [{ index: 0, delta: { content: 7, tool_calls: null, reasoning_content: 'hm' } }] }, { choices: [{ index: 1, delta: { content: 'second' }, finish_reason: 'stop' }] }]
  const { heard, reader, answer: result } = read(bytesOf(events(...odd)))
  t.strictSame(heard, [])
  t.notOk(reader.isFinished())
  t.equal(failure(result).code, 'provider_truncated')
})

t.test('comments, other fields and events of several lines are read as the format says', async (t) => {
  const raw = ': keep-alive\n\nevent: message\nid: 7\ndata: {"choices":[{"index":0,\ndata: "delta":{"content":"hi"},"finish_reason":"stop"}]}\n\ndata:[DONE]\n\n'
  t.match(read(Buffer.from(raw)).answer(), { text: 'hi', finish_reason: 'stop', usage: null })
})

t.test('nothing after [DONE] is read', async (t) => {
  const { answer, heard } = read(bytesOf(events({ choices: [{ index: 0, delta: { content: 'x' }, finish_reason: 'stop' }] }, '[DONE]', { error: 'late' }, 'no JSON')))
  t.equal(answer().text, 'x')
  t.strictSame(heard, ['x'])
})

t.test('usage: the last of several counts, and one that is no count is left out', async (t) => {
  const finish = { choices: [{ index: 0, delta: { content: 'x' }, finish_reason: 'stop' }] }
  const usageOf = (...usages: unknown[]) => read(bytesOf(events(finish, ...usages.map((usage) => ({ choices: [], usage }))))).answer().usage
  t.strictSame(usageOf({ prompt_tokens: 1, completion_tokens: 1, total_tokens: 2 }, { prompt_tokens: 1, completion_tokens: 9, total_tokens: 10 }),
    { input_tokens: 1, output_tokens: 9, total_tokens: 10 })
  t.strictSame(usageOf({ prompt_tokens: 1, completion_tokens: 2 }), { input_tokens: 1, output_tokens: 2, total_tokens: 3 })
  t.equal(usageOf({ prompt_tokens: -1, completion_tokens: 2 }), null)
  t.equal(usageOf('many'), null)
})

t.test('F9: an error inside the stream may be retried, unless it names a reason that will not pass', async (t) => {
  const at = (error: unknown) => failure(() => read(bytesOf(events({ error }))))
  t.match(at({ message: 'overloaded', type: 'server_error' }), { code: 'provider_unavailable', retryable: true, status: null })
  t.match(at({ message: 'slow down', code: 'rate_limit_exceeded' }), { code: 'provider_rate_limited', retryable: true })
  t.match(at({ message: 'bad gateway', code: 502 }), { code: 'provider_unavailable', retryable: true, status: 502 })
  t.match(at({ message: 'no', code: 400 }), { code: 'provider_bad_request', retryable: false, status: 400 })
  t.match(at({ message: 'This model\'s maximum context length is 4096 tokens' }), { code: 'context_length_exceeded', retryable: false })
  t.match(failure(() => read(bytesOf(events({ object: 'error', message: 'x', code: 500 })))), { code: 'provider_unavailable', retryable: true })
  t.match(failure(read(bytesOf(answer({ text: 'x', finish: 'error' }))).answer), { code: 'provider_unavailable', retryable: true })
})

t.test('S24: more than 512 calls, 16 MB of answer, an endless line or endless comments are refused and not asked for again', async (t) => {
  const flood = { code: 'provider_malformed', retryable: false }
  const many = Array.from({ length: 513 }, (_, index) => part({ index, id: `c${index}`, name: 'f', args: '{}' }))
  t.match(failure(() => read(bytesOf(stream(many)))), flood)
  t.equal(read(bytesOf(stream(many.slice(1)))).answer().tool_calls.length, 512)

  const megabyte = 'x'.repeat(1024 * 1024)
  const text = bytesOf(events({ choices: [{ index: 0, delta: { content: megabyte } }] }))
  t.match(failure(() => read(...Array<Buffer>(17).fill(text))), flood)
  t.match(failure(() => read(...Array<Buffer>(17).fill(Buffer.from(megabyte)))), flood)
  t.match(failure(() => read(...Array<Buffer>(257).fill(Buffer.from(`:${megabyte.slice(1)}\n`)))), flood)
})

t.test('S24: an argument or a field named __proto__ pollutes nothing', async (t) => {
  const raw = 'data: {"__proto__": {"polluted": 1}, "choices":[{"index":0,"delta":{"content":"x","__proto__":{"polluted":1}},"finish_reason":"stop"}]}\n\n'
  t.equal(read(Buffer.from(raw)).answer().text, 'x')
  t.equal(({} as { polluted?: number }).polluted, undefined)
})
