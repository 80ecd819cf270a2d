import t from 'tap'
import { changedMessage, checkPayload } from '../../support/payload.js'

type Json = Record<string, unknown>

const user = { role: 'user', content: 'hi' }
const toolCall = (id: string, args = '{}', name = 'work') => ({ id, type: 'function', function: { name, arguments: args } })
const calling = (...ids: string[]) => ({ role: 'assistant', content: null, tool_calls: ids.map((id) => toolCall(id)) })
const result = (id: string) => ({ role: 'tool', tool_call_id: id, content: 'ok' })
const tool = (name: string): Json => ({ type: 'function', function: { name, description: 'does it', parameters: { type: 'object' } } })

const valid = {
  model: 'test',
  messages: [
    { role: 'system', content: 'be brief' },
    { role: 'user', content: [{ type: 'text', text: 'hi' }, { type: 'image_url', image_url: { url: 'data:,' } }] },
    calling('a', 'b'), result('b'), result('a'),
    { role: 'assistant', content: 'done' },
    user,
    { role: 'assistant', content: 'one more', refusal: null, tool_calls: [toolCall('c')] }, result('c')
  ],
  tools: [tool('work')],
  tool_choice: 'auto',
  parallel_tool_calls: true,
  temperature: 0,
  stream: true,
  stream_options: { include_usage: true }
}

t.test('I3: a request like the ones we send has no faults', async (t) => {
  t.strictSame(checkPayload(valid), [])
})

const planted: [rule: string, what: string, payload: Json][] = [
  ['P1', 'no tools in the list', { tools: [] }],
  ['P1', '129 tools', { tools: Array.from({ length: 129 }, (_, i) => tool(`t${i}`)) }],
  ['P2', 'two tools of one name', { tools: [tool('work'), tool('work')] }],
  ['P3', 'parallel_tool_calls without tools', { tools: undefined, tool_choice: undefined }],
  ['P3', 'tool_choice without tools', { tools: undefined, parallel_tool_calls: undefined }],
  ['P4', 'a choice of a tool that is not offered', { tool_choice: { type: 'function', function: { name: 'other' } } }],
  ['P5', 'stream_options without stream', { stream: false }],
  ['P6', 'a result nobody asked for', { messages: [user, result('a')] }],
  ['P6', 'a second result for one call', { messages: [user, calling('a'), result('a'), result('a')] }],
  ['P6', 'a result after another message', { messages: [user, calling('a'), result('a'), user, result('a')] }],
  ['P7', 'a call without a result', { messages: [user, calling('a', 'b'), result('a'), user] }],
  ['P7', 'a call without a result at the end', { messages: [user, calling('a')] }],
  ['P8', 'an empty list of calls', { messages: [user, { role: 'assistant', content: 'x', tool_calls: [] }, user] }],
  ['P8', 'an assistant message with nothing in it', { messages: [user, { role: 'assistant', content: null }, user] }],
  ['P9', 'one id twice in a message', { messages: [user, calling('a', 'a'), result('a')] }],
  ['P9', 'the id of an earlier turn', { messages: [user, calling('a'), result('a'), calling('a'), result('a')] }],
  ['P10', 'cut arguments', { messages: [user, { role: 'assistant', tool_calls: [toolCall('a', '{"x": 1')] }, result('a')] }],
  ['P10', 'arguments that are a list', { messages: [user, { role: 'assistant', tool_calls: [toolCall('a', '[]')] }, result('a')] }],
  ['P11', 'a finished answer at the end', { messages: [user, { role: 'assistant', content: 'done' }] }],
  ['P12', 'half a surrogate pair in a text', { messages: [{ role: 'user', content: 'a\ud800' }] }],
  ['P12', 'half a surrogate pair in a key', { metadata: { '\udc00': 'x' } }],
  ['schema', 'no model', { model: undefined }],
  ['schema', 'no messages', { messages: [] }],
  ['schema', 'an unknown option', { plan: {} }],
  ['schema', 'a field of our own in a message', { messages: [{ ...user, turn: 1 }] }],
  ['schema', 'a role of our own', { messages: [{ role: 'orphan', content: 'x' }] }],
  ['schema', 'a user message without content', { messages: [{ role: 'user', content: null }] }],
  ['schema', 'an empty list of parts', { messages: [{ role: 'user', content: [] }] }],
  ['schema', 'an image in a tool message', { messages: [user, calling('a'), { ...result('a'), content: [{ type: 'image_url', image_url: {} }] }] }],
  ['schema', 'a tool message without an id', { messages: [user, calling('a'), { role: 'tool', content: 'x' }] }],
  ['schema', 'an empty call id', { messages: [user, calling(''), result('')] }],
  ['schema', 'a call id of 41 characters', { messages: [user, calling('x'.repeat(41)), result('x'.repeat(41))] }],
  ['schema', 'arguments as an object', { messages: [user, { role: 'assistant', tool_calls: [{ ...toolCall('a'), function: { name: 'work', arguments: {} } }] }, result('a')] }],
  ['schema', 'a tool name with a space', { tools: [tool('do it')] }],
  ['schema', 'parameters as a text', { tools: [{ type: 'function', function: { name: 'work', parameters: '{}' } }] }],
  ['schema', 'a text part that is no text', { messages: [{ role: 'user', content: [{ type: 'text', text: 7 }] }] }],
  ['schema', 'a response format of our own', { response_format: { type: 'plan' } }],
  ['schema', 'a temperature as a text', { temperature: '0' }]
]

for (const [rule, what, change] of planted) {
  t.test(`${rule}: ${what} is a fault`, async (t) => {
    const faults = checkPayload(JSON.parse(JSON.stringify({ ...valid, ...change })))
    t.ok(faults.length > 0, 'there is a fault')
    t.ok(faults.every((fault) => fault.rule === rule || (rule === 'P9' && fault.rule === 'P6')), `and only of ${rule}: ${JSON.stringify(faults)}`)
    t.ok(faults.every((fault) => fault.message !== ''))
  })
}

t.test('what is not an object is one fault', async (t) => {
  for (const payload of [null, 'x', 7, []]) t.equal(checkPayload(payload).length, 1)
})

t.test('I3b: history that was only added to has no changed message', async (t) => {
  const previous = { messages: [user, calling('a'), result('a')] }
  t.equal(changedMessage(previous, { messages: [...previous.messages, user] }), null)
  t.equal(changedMessage(previous, { messages: [user, calling('b'), result('a')] }), 1)
  t.equal(changedMessage(previous, { messages: [user] }), 1)
})
