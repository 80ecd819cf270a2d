import fc from 'fast-check'
import t from 'tap'
import type { LedgerCall, Message } from '../../src/core/message.js'
import { transcript, type WireMessage } from '../../src/core/transcript.js'
import { checkPayload } from '../support/payload.js'

const common = { turn: 1, run_id: 'r1', created_at: '2030-01-01T00:00:00.000Z' }
const system = (content: string): Message => ({ id: 'm_system', role: 'system', content, ...common })
const user = (content: Message['content'] = 'hi', id = 'm_user'): Message => ({ id, role: 'user', content, ...common })
const said = (content: string, id = 'm_said'): Message => ({ id, role: 'assistant', content, ...common })
const call = (id: string, over: Partial<LedgerCall> = {}): LedgerCall => ({ call_id: `call_${id}`, name: 'look', arguments: { at: id }, provider_id: `p_${id}`, ...over })
const asked = (...calls: LedgerCall[]): Message => ({ ...said(''), id: 'm_asked', tool_calls: calls })
const told = (id: string, content = `output of ${id}`): Message => ({ id: `m_${id}`, role: 'tool', content, tool_call_id: `call_${id}`, name: 'look', ...common })

const wireCall = (id: string) => ({ id: `p_${id}`, type: 'function', function: { name: 'look', arguments: `{"at":"${id}"}` } })
const wireTold = (id: string) => ({ role: 'tool', tool_call_id: `p_${id}`, content: `output of ${id}` })
const wireUser = { role: 'user', content: 'hi' }

t.test('I3, A5: a ledger in order is sent as it is, behind the instructions', async (t) => {
  const ledger = [user(), { ...asked(call('a'), call('b')), content: 'let me look' }, told('a'), told('b'), said('done'), user('and?', 'm_2')]
  t.strictSame(transcript(ledger, 'be brief'), {
    messages: [
      { role: 'system', content: 'be brief' },
      wireUser,
      { role: 'assistant', content: 'let me look', tool_calls: [wireCall('a'), wireCall('b')] },
      wireTold('a'),
      wireTold('b'),
      { role: 'assistant', content: 'done' },
      { role: 'user', content: 'and?' }
    ],
    repairs: []
  })
})

t.test('A5: a conversation\'s own system message is kept, in its place', async (t) => {
  t.strictSame(transcript([system('mine'), user()], null)?.messages, [{ role: 'system', content: 'mine' }, wireUser])
})

t.test('parts of a user message are sent as they are', async (t) => {
  const parts: Message['content'] = [{ type: 'text', text: 'see' }, { type: 'image_url', image_url: { url: 'https://example.test/a.png', detail: 'low' } }]
  t.strictSame(transcript([user(parts)], null), { messages: [{ role: 'user', content: parts }], repairs: [] })
})

t.test('an assistant message that only calls has no content', async (t) => {
  t.strictSame(transcript([user(), asked(call('a')), told('a')], null)?.messages[1], { role: 'assistant', content: null, tool_calls: [wireCall('a')] })
})

t.test('G2: answers keep the order the ledger has them in', async (t) => {
  t.strictSame(transcript([user(), asked(call('a'), call('b')), told('b'), told('a')], null), {
    messages: [wireUser, { role: 'assistant', content: null, tool_calls: [wireCall('a'), wireCall('b')] }, wireTold('b'), wireTold('a')],
    repairs: []
  })
})

t.test('F5: an empty result is sent as something', async (t) => {
  t.strictSame(transcript([user(), asked(call('a')), told('a', '')], null)?.messages[2], { role: 'tool', tool_call_id: 'p_a', content: 'null' })
})

// --- Repairs -------------------------------------------------------------------------------------------------------------------------

const repairs: { what: string, ledger: Message[], sent: unknown[], repairs: RegExp[] }[] = [
  {
    what: 'a call without a result',
    ledger: [user(), asked(call('a'), call('b')), told('a')],
    sent: [wireUser, { role: 'assistant', content: null, tool_calls: [wireCall('a')] }, wireTold('a')],
    repairs: [/call_b has no result/]
  },
  {
    what: 'an assistant message none of whose calls has a result, but with text',
    ledger: [user(), { ...asked(call('a')), content: 'let me look' }, user('go on', 'm_2')],
    sent: [wireUser, { role: 'assistant', content: 'let me look' }, { role: 'user', content: 'go on' }],
    repairs: [/call_a has no result/]
  },
  {
    what: 'an assistant message none of whose calls has a result, without text',
    ledger: [user(), asked(call('a'))],
    sent: [wireUser],
    repairs: [/call_a has no result/, /m_asked says nothing/]
  },
  { what: 'an assistant message that says and calls nothing', ledger: [user(), said(''), user('x')], sent: [wireUser, { role: 'user', content: 'x' }], repairs: [/m_said says nothing/] },
  {
    what: 'an assistant message with an empty list of calls',
    ledger: [user(), { ...said('x'), tool_calls: [] }, user('y')],
    sent: [wireUser, { role: 'assistant', content: 'x' }, { role: 'user', content: 'y' }],
    repairs: []
  },
  {
    what: 'a result given twice',
    ledger: [user(), asked(call('a')), told('a'), { ...told('a', 'second'), id: 'm_second' }],
    sent: [wireUser, { role: 'assistant', content: null, tool_calls: [wireCall('a')] }, wireTold('a')],
    repairs: [/m_second answers no open call/]
  },
  {
    what: 'a result of another turn\'s call',
    ledger: [user(), asked(call('a')), told('a'), asked(call('b')), told('a'), told('b')],
    sent: [
      wireUser, { role: 'assistant', content: null, tool_calls: [wireCall('a')] }, wireTold('a'),
      { role: 'assistant', content: null, tool_calls: [wireCall('b')] }, wireTold('b')
    ],
    repairs: [/m_a answers no open call/]
  },
  { what: 'a result that follows no call', ledger: [told('a'), user()], sent: [wireUser], repairs: [/m_a answers no call/] },
  { what: 'a result without a call id', ledger: [user(), { ...told('a'), tool_call_id: undefined }], sent: [wireUser], repairs: [/m_a answers no call/] },
  {
    what: 'a result that comes after another message',
    ledger: [user(), asked(call('a')), user('x', 'm_2'), told('a')],
    sent: [wireUser, { role: 'user', content: 'x' }],
    repairs: [/call_a has no result/, /m_asked says nothing/, /m_a answers no call/]
  },
  {
    what: 'a call that stands twice in a message',
    ledger: [user(), asked(call('a'), call('a')), told('a')],
    sent: [wireUser, { role: 'assistant', content: null, tool_calls: [wireCall('a')] }, wireTold('a')],
    repairs: [/call_a stands twice/]
  },
  { what: 'a user message without content', ledger: [user('', 'm_1'), user([], 'm_2'), user()], sent: [wireUser], repairs: [/m_1/, /m_2/] },
  { what: 'a finished answer at the end', ledger: [user(), said('done')], sent: [wireUser], repairs: [/asked nothing/] },
  { what: 'two of them', ledger: [user(), said('done'), said('really')], sent: [wireUser], repairs: [/asked nothing/, /asked nothing/] },
  {
    what: 'half a surrogate pair',
    ledger: [user('a\ud83d', 'm_1'), user([{ type: 'text', text: '\ude00b' }], 'm_2'), said('c\ud83d'), asked(call('a')), told('a', '\ud83d\ude00\ud83d'), user()],
    sent: [
      { role: 'user', content: 'a\ufffd' }, { role: 'user', content: [{ type: 'text', text: '\ufffdb' }] }, { role: 'assistant', content: 'c\ufffd' },
      { role: 'assistant', content: null, tool_calls: [wireCall('a')] }, { ...wireTold('a'), content: '\ud83d\ude00\ufffd' }, wireUser
    ],
    repairs: [/m_1/, /m_2/, /m_said/, /m_a/]
  }
]
for (const { what, ledger, sent, repairs: expected } of repairs) {
  t.test(`I3: ${what} does not reach the provider`, async (t) => {
    const made = transcript(ledger, null)
    t.strictSame(made?.messages, sent)
    t.strictSame(checkPayload({ model: 'm', messages: made?.messages }), [])
    t.equal(made?.repairs.length, expected.length, JSON.stringify(made?.repairs))
    for (const [i, repair] of expected.entries()) t.match(made?.repairs[i], repair)
  })
}

t.test('nothing that could be answered: nothing is sent', async (t) => {
  for (const ledger of [[], [system('be brief')], [said('done')], [user('')], [told('a')], [asked(call('a'))]]) t.equal(transcript(ledger, 'be brief'), null)
})

// --- Ids -----------------------------------------------------------------------------------------------------------------------------

const ids: [what: string, provider: (string | undefined)[], sent: string[]][] = [
  ['none', [undefined, undefined], ['call_a', 'call_b']],
  ['empty', ['', ''], ['call_a', 'call_b']],
  ['its own', ['x1', 'x2'], ['x1', 'x2']],
  ['one for two calls', ['x', 'x'], ['x', 'call_b']],
  ['the longest one there may be', ['x'.repeat(40), 'y'], ['x'.repeat(40), 'y']],
  ['a longer one', ['x'.repeat(41), 'y'], ['call_a', 'y']],
  ['one that is no Unicode', ['x\ud800', 'y'], ['call_a', 'y']],
  ['what is our id of another call', ['call_b', undefined], ['call_b', 'call_b_']],
  ['our own id', ['call_a', 'call_a'], ['call_a', 'call_b']]
]
for (const [what, provider, expected] of ids) {
  t.test(`D13: a provider that gives calls ${what} is sent back ids that are used once`, async (t) => {
    const made = transcript([user(), asked(call('a', { provider_id: provider[0] }), call('b', { provider_id: provider[1] })), told('a'), told('b')], null)
    const { tool_calls: calls } = made?.messages[1] as Extract<WireMessage, { role: 'assistant' }>
    t.strictSame(calls?.map(({ id }) => id), expected)
    t.match(made?.messages.slice(2), [{ tool_call_id: expected[0], content: 'output of a' }, { tool_call_id: expected[1], content: 'output of b' }])
    t.strictSame(made?.repairs, [], 'that is no fault of the ledger')
  })
}

t.test('D13: a provider that counts its ids from the start in every turn is sent back ids that are used once', async (t) => {
  const turns = ['a', 'b', 'c'].flatMap((id) => [asked(call(id, { provider_id: 'call_0' })), told(id)])
  const made = transcript([user(), ...turns], null)
  t.strictSame(made?.messages.flatMap((message) => message.role === 'tool' ? [message.tool_call_id] : []), ['call_0', 'call_b', 'call_c'])
  t.strictSame(checkPayload({ model: 'm', messages: made?.messages }), [])
})

// --- Whatever the ledger holds -------------------------------------------------------------------------------------------------------

const anyText = fc.constantFrom('', 'x', 'y z', '\ud800', '"\\\n')
const anyCall = fc.record({
  call_id: fc.constantFrom('call_1', 'call_2', 'call_3'),
  name: fc.constant('look'),
  arguments: fc.constantFrom({}, { at: 1 }, { at: { deep: ['\udc00'] } }),
  provider_id: fc.constantFrom(undefined, '', 'p', 'q', 'call_1', 'call_2_', 'x'.repeat(41), '\ud800')
})
const anyMessage: fc.Arbitrary<Message> = fc.oneof(
  { weight: 1, arbitrary: fc.record({ role: fc.constant('system' as const), content: anyText }) },
  { weight: 3, arbitrary: fc.record({ role: fc.constant('user' as const), content: fc.oneof(anyText, fc.array(fc.record({ type: fc.constant('text' as const), text: anyText }), { maxLength: 2 })) }) },
  { weight: 4, arbitrary: fc.record({ role: fc.constant('assistant' as const), content: anyText, tool_calls: fc.option(fc.array(anyCall, { maxLength: 3 }), { nil: undefined }) }) },
  { weight: 6, arbitrary: fc.record({ role: fc.constant('tool' as const), content: anyText, tool_call_id: fc.constantFrom('call_1', 'call_2', 'call_3') }) }
).map((message) => ({ id: 'm', ...common, ...message }))

t.test('I3: whatever a ledger holds, what is sent is valid, or nothing is sent', async () => {
  fc.assert(fc.property(fc.array(anyMessage, { maxLength: 12 }), fc.constantFrom(null, 'be brief'), (ledger, instructions) => {
    const made = transcript(ledger, instructions)
    if (made === null) return
    const faults = checkPayload({ model: 'm', messages: made.messages })
    if (faults.length > 0) throw new Error(JSON.stringify(faults))
  }), { numRuns: 3000 })
})

const wholeTurn = fc.tuple(fc.uniqueArray(fc.integer({ min: 0, max: 5 }), { minLength: 1, maxLength: 4 }), fc.constantFrom('', 'text'), fc.boolean())
t.test('I3: a ledger in order needs no repair, and loses nothing', async () => {
  fc.assert(fc.property(fc.array(wholeTurn, { maxLength: 4 }), (turns) => {
    const ledger = [user(), ...turns.flatMap(([calls, text, reversed], turn): Message[] => {
      const names = calls.map((n) => `${turn}${n}`)
      const answers = names.map((name) => told(name))
      return [{ ...asked(...names.map((name) => call(name))), content: text }, ...reversed ? answers.reverse() : answers]
    })]
    const made = transcript(ledger, null)
    if (made === null || made.repairs.length > 0 || made.messages.length !== ledger.length) throw new Error(JSON.stringify(made))
    const faults = checkPayload({ model: 'm', messages: made.messages })
    if (faults.length > 0) throw new Error(JSON.stringify(faults))
  }), { numRuns: 500 })
})
