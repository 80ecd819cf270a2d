import t from 'tap'
import { conforms, newRun, post, refused, testApp } from '../support/app.js'

t.test('POST /conversations creates one, with messages and an id of one\'s own', async (t) => {
  const { app } = await testApp(t)
  const response = await post(app, '/conversations', {
    id: 'my-conversation',
    metadata: { team: 'search' },
    messages: [
      { role: 'system', content: 'Be brief.' },
      { role: 'user', content: [{ type: 'text', text: 'Look.' }, { type: 'image_url', image_url: { url: 'https://a.example/b.png', detail: 'low' } }] },
      { role: 'assistant', tool_calls: [{ id: 'call_x', name: 'http_fetch', arguments: { url: 'https://a.example' } }] },
      { role: 'tool', tool_call_id: 'call_x', content: 'ok' },
      { role: 'assistant', content: 'Done.' }
    ]
  })
  t.equal(response.statusCode, 201)
  conforms(t, app, 'createConversation', response)
  t.equal(response.headers.location, '/conversations/my-conversation')
  const read = await app.inject('/conversations/my-conversation')
  conforms(t, app, 'getConversation', read)
  t.strictSame(read.json(), response.json())
  t.strictSame(refused(t, await post(app, '/conversations', { id: 'my-conversation' }), 409, 'conversation_exists').conversation_id, 'my-conversation')
  t.match((await post(app, '/conversations', {})).headers.location, /^\/conversations\/conv_[0-9A-Z]{26}$/)
})

t.test('A1: a bad message is refused as the role it has, and there is no conversation', async (t) => {
  const { app, fake } = await testApp(t)
  const cases: [object, object[]][] = [
    [{ role: 'robot' }, [{ pointer: '/messages/0/role', detail: 'must be one of "system", "user", "assistant", "tool"' }]],
    [{ content: 'x' }, [{ pointer: '/messages/0/role', detail: 'is required' }]],
    [{ role: 'system', content: [{ type: 'text', text: 'x' }] }, [{ pointer: '/messages/0/content', detail: 'must be a string' }]],
    [{ role: 'tool', content: 'x' }, [{ pointer: '/messages/0/tool_call_id', detail: 'is required' }]],
    [{ role: 'user', content: 'x', name: 'Ann' }, [{ pointer: '/messages/0/name', detail: 'unknown field' }]],
    [{ role: 'assistant', tool_calls: [] }, [{ pointer: '/messages/0/tool_calls', detail: 'must not be empty' }]],
    [{ role: 'assistant', tool_calls: [{ id: 'a', name: 'b', arguments: '{}' }] }, [{ pointer: '/messages/0/tool_calls/0/arguments', detail: 'must be an object' }]]
  ]
  for (const [message, errors] of cases) {
    t.strictSame(refused(t, await post(app, '/conversations', { messages: [message] }), 422, 'validation_failed').errors, errors)
  }
  for (const id of ['a b', '../x', '', 'x'.repeat(65), '{x}', '-x']) {
    t.match(refused(t, await post(app, '/conversations', { id }), 422, 'validation_failed').errors, [{ pointer: '/id' }])
  }
  t.strictSame(fake.calls, [])
})

t.test('GET /conversations/:id/messages reads the ledger page by page', async (t) => {
  const { app } = await testApp(t)
  await post(app, '/conversations', { id: 'long', messages: Array.from({ length: 25 }, (_, n) => ({ role: 'user', content: `message ${n}` })) })
  const first = await app.inject('/conversations/long/messages')
  conforms(t, app, 'listMessages', first)
  const { data, next_cursor: cursor } = first.json<{ data: { content: string }[], next_cursor: string }>()
  t.equal(data.length, 20, 'twenty if not said')
  const rest = (await app.inject(`/conversations/long/messages?cursor=${cursor}`)).json<{ data: { content: string }[], next_cursor: null }>()
  t.strictSame([...data, ...rest.data].map(({ content }) => content), Array.from({ length: 25 }, (_, n) => `message ${n}`))
  t.equal(rest.next_cursor, null)
  await post(app, '/conversations', { id: 'other', messages: [] })
  refused(t, await app.inject(`/conversations/other/messages?cursor=${cursor}`), 422, 'validation_failed')
})

t.test('GET /conversations/:id/state has the version as its ETag, and is 304 while that stands', async (t) => {
  const { app, fake } = await testApp(t)
  const { conversation_id: id } = await newRun(app)
  const get = (ifNoneMatch?: string) => app.inject({ url: `/conversations/${id}/state`, headers: ifNoneMatch === undefined ? {} : { 'if-none-match': ifNoneMatch } })
  const response = await get()
  conforms(t, app, 'getConversationState', response)
  t.equal(response.headers.etag, '"1"')
  t.strictSame(response.json(), { version: 1, epoch: 1, state: { id } })
  for (const header of ['"1"', 'W/"1"', '"0", "1"', '*']) {
    const same = await get(header)
    t.strictSame([same.statusCode, same.body, same.headers.etag], [304, '', '"1"'], header)
  }
  for (const header of ['"0"', '"11"', '1', '']) t.equal((await get(header)).statusCode, 200, header)
  fake.conversation(id).row.version = 2
  const changed = await get('"1"')
  t.strictSame([changed.statusCode, changed.headers.etag], [200, '"2"'])
})

t.test('DELETE /conversations/:id answers 204, and 404 from then on', async (t) => {
  const { app } = await testApp(t)
  const { conversation_id: id } = await newRun(app)
  const response = await app.inject({ method: 'DELETE', url: `/conversations/${id}` })
  t.strictSame([response.statusCode, response.body], [204, ''])
  refused(t, await app.inject(`/conversations/${id}`), 404, 'not_found')
  refused(t, await app.inject({ method: 'DELETE', url: `/conversations/${id}` }), 404, 'not_found')
})
