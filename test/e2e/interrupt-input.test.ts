import { createClient, problemIn, type Answer } from '../support/client.js'
import { call, delayed, latch, say } from '../support/model-reply.js'
import { begin, send, tell, told } from '../support/schedule-http.js'
import { story } from '../support/world.js'

const PATIENT = { content: 'x', mode: 'queue' }

const bad: [title: string, body: unknown, expected: { status: number, code: string, pointer?: string }][] = [
  ['no body', undefined, { status: 422, code: 'validation_failed' }],
  ['no JSON', '{"content": ', { status: 400, code: 'malformed_json' }],
  ['no content', {}, { status: 422, code: 'validation_failed', pointer: '/content' }],
  ['empty text', { content: '' }, { status: 422, code: 'validation_failed', pointer: '/content' }],
  ['no parts', { content: [] }, { status: 422, code: 'validation_failed', pointer: '/content' }],
  ['an empty part', { content: [{ type: 'text', text: '' }] }, { status: 422, code: 'validation_failed' }],
  ['a part of an unknown kind', { content: [{ type: 'video', url: 'x' }] }, { status: 422, code: 'validation_failed' }],
  ['a number', { content: 7 }, { status: 422, code: 'validation_failed', pointer: '/content' }],
  ['null', { content: null }, { status: 422, code: 'validation_failed', pointer: '/content' }],
  ['half a character', '{"content": "\\ud800"}', { status: 400, code: 'malformed_json' }],
  ['more than fits', { content: 'x'.repeat(2_000_000) }, { status: 413, code: 'payload_too_large' }],
  ['an unknown mode', { ...PATIENT, mode: 'shout' }, { status: 422, code: 'validation_failed', pointer: '/mode' }],
  ['an unknown way with waiting messages', { ...PATIENT, queued: 'drop' }, { status: 422, code: 'validation_failed', pointer: '/queued' }],
  ['an unknown way with finished calls', { ...PATIENT, completed_calls: 'hide' }, { status: 422, code: 'validation_failed', pointer: '/completed_calls' }],
  ['a time in the past', { ...PATIENT, after_seconds: -1 }, { status: 422, code: 'validation_failed', pointer: '/after_seconds' }],
  ['a time out of reach', { ...PATIENT, after_seconds: 1e9 }, { status: 422, code: 'validation_failed', pointer: '/after_seconds' }],
  ['a role', { ...PATIENT, role: 'system' }, { status: 422, code: 'validation_failed', pointer: '/role' }]
]

story('I33: a message that cannot be is refused with what is wrong, and the run is not disturbed', async (t, { model, service }) => {
  const { client } = await service()
  const go = latch()
  model.script('conv:a', [delayed(say('done'), go)])
  const { run, stream } = await begin(client, { input: 'conv:a' })
  await model.waitForRequest(() => true)
  const { version } = await client.conversation(run.conversation_id)
  for (const [title, body, { status, code, pointer }] of bad) {
    const problem = problemIn(await tell(client, run, body))
    t.match(problem, { status, code }, title)
    if (pointer !== undefined) t.ok(problem.errors?.some((error) => error.pointer.startsWith(pointer)), `${title}: ${JSON.stringify(problem.errors)}`)
    t.notMatch(JSON.stringify(problem), /xxxx/, 'what was sent is not repeated')
  }
  t.match(problemIn(await client.request('POST', `/runs/${run.id}/messages`, { body: '{}', headers: { 'content-type': 'text/plain' } })), { status: 415 })
  t.same([await client.get(`/runs/${run.id}/messages`), (await client.conversation(run.conversation_id)).version], [{ data: [], next_cursor: null }, version], 'nothing changed')
  go.open()
  await stream.ended
  t.same(stream.types(), ['run.created', 'run.started', 'turn.started', 'turn.completed', 'run.completed'])
  t.equal(model.requests()[0]?.aborted, false)
})

story('I33: a run there is not, or another tenant\'s, takes no messages and is not disturbed', async (t, { model, service }) => {
  const keys = { alice: 'alice-key-0123456789', bob: 'bob-key-0123456789' }
  const { url } = await service({ env: { INTERLOCK_API_KEYS: `alice:${keys.alice},bob:${keys.bob}` } })
  const [alice, bob] = [createClient(url, { apiKey: keys.alice }), createClient(url, { apiKey: keys.bob })]
  const go = latch()
  model.script('conv:a', [delayed(say('done'), go), say('yes')])
  const { run, stream } = await begin(alice, { input: 'conv:a' })
  await model.waitForRequest(() => true)
  const { message_id: id } = await send(alice, run, { content: 'hers', mode: 'queue' })
  const path = `/runs/${run.id}/messages`
  const asBob: [string, Promise<Answer>][] = [
    ['post', tell(bob, run, { content: 'hello' })],
    ['list', bob.request('GET', path)],
    ['edit', bob.request('PATCH', `${path}/${id}`, { body: { content: 'his' } })],
    ['withdraw', bob.request('DELETE', `${path}/${id}`)],
    ['cancel', bob.request('POST', `/runs/${run.id}/cancel`)]
  ]
  for (const [what, answer] of asBob) t.match(problemIn(await answer), { status: 404, code: 'not_found' }, what)
  const unknown = `run_${'0'.repeat(26)}00`
  for (const [method, rest] of [['POST', ''], ['GET', ''], ['PATCH', `/${id}`], ['DELETE', `/${id}`]] as const) {
    const body = method === 'POST' || method === 'PATCH' ? { content: 'x' } : undefined
    t.match(problemIn(await alice.request(method, `/runs/${unknown}/messages${rest}`, { body })), { status: 404, code: 'not_found' }, method)
  }
  t.match(problemIn(await createClient(url).request('POST', path, { body: { content: 'x' } })), { status: 401 })
  go.open()
  await stream.ended
  t.same(told(model.requests()[1]), ['conv:a', 'done', 'hers'])
})

story('waiting messages can be listed, changed and taken back, until they do not wait any more', async (t, { model, service }) => {
  const { client } = await service()
  const go = latch()
  model.script('conv:a', [delayed(say('done'), go), say('yes')])
  const { run, stream } = await begin(client, { input: 'conv:a' })
  await model.waitForRequest(() => true)
  const path = `/runs/${run.id}/messages`
  const ids: string[] = []
  for (const content of ['one', 'two', 'three']) ids.push((await send(client, run, { content, mode: 'queue' })).message_id)
  const [one, two, three] = ids as [string, string, string]

  const edited = await client.request('PATCH', `${path}/${two}`, { body: { content: [{ type: 'text', text: 'two, but better' }] } })
  t.equal(edited.status, 200)
  t.match(JSON.parse(edited.text), { message_id: two, content: [{ type: 'text', text: 'two, but better' }], mode: 'queue', position: 2, due_at: null })
  t.equal((await client.request('DELETE', `${path}/${one}`)).status, 204)
  t.match(await client.get(path), { data: [{ message_id: two, position: 1 }, { message_id: three, position: 2 }], next_cursor: null })
  for (const body of [{ content: '' }, {}, { content: 'x', mode: 'steer' }]) {
    t.match(problemIn(await client.request('PATCH', `${path}/${two}`, { body })), { status: 422, code: 'validation_failed' })
  }
  t.match(problemIn(await client.request('DELETE', `${path}/${one}`)), { status: 409, code: 'message_delivered', message_id: one }, 'taken back once')
  for (const method of ['PATCH', 'DELETE']) {
    const body = method === 'PATCH' ? { content: 'x' } : undefined
    t.match(problemIn(await client.request(method, `${path}/msg_${'0'.repeat(26)}`, { body })), { status: 404, code: 'not_found' })
  }

  go.open()
  await stream.ended
  t.same(told(model.requests()[1]), ['conv:a', 'done', '[{"type":"text","text":"two, but better"}]', 'three'])
  for (const method of ['PATCH', 'DELETE']) {
    const body = method === 'PATCH' ? { content: 'x' } : undefined
    t.match(problemIn(await client.request(method, `${path}/${three}`, { body })), { status: 409, code: 'run_ended', conversation_id: run.conversation_id })
  }
  t.same(await client.get(path), { data: [], next_cursor: null })
  t.match(stream.events().filter(({ type }) => type.startsWith('message.')), [
    { type: 'message.accepted', message_id: one }, { type: 'message.accepted', message_id: two }, { type: 'message.accepted', message_id: three },
    { type: 'message.accepted', message_id: two, edited: true }, { type: 'message.withdrawn', message_id: one },
    { type: 'message.delivered', message_id: two }, { type: 'message.delivered', message_id: three }
  ])
})

story('a delivered message of a run that goes on can be neither changed nor taken back', async (t, { model, service }) => {
  const { client } = await service()
  const go = latch()
  model.script('conv:a', [delayed(say('never'), latch()), delayed(say('yes'), go)])
  const { run, stream } = await begin(client, { input: 'conv:a' })
  await model.waitForRequest(() => true)
  const { message_id: id } = await send(client, run, 'rather this')
  await model.waitForRequest(({ n }) => n === 2)
  t.match(problemIn(await client.request('PATCH', `/runs/${run.id}/messages/${id}`, { body: { content: 'or this' } })), { status: 409, code: 'message_delivered', message_id: id })
  t.match(problemIn(await client.request('DELETE', `/runs/${run.id}/messages/${id}`)), { status: 409, code: 'message_delivered', message_id: id })
  go.open()
  await stream.ended
  t.same((await client.messages(run.conversation_id)).map(({ content }) => content), ['conv:a', 'rather this', 'yes'])
})

story('I14: a message sent twice with one Idempotency-Key is one message with one receipt', async (t, { model, service }) => {
  const { client } = await service()
  model.script('conv:a', [delayed(say('never'), latch()), say('yes')])
  const { run, stream } = await begin(client, { input: 'conv:a' })
  await model.waitForRequest(() => true)
  const headers = { 'idempotency-key': 'once' }
  const [one, two] = [await tell(client, run, { content: 'rather this' }, headers), await tell(client, run, { content: 'rather this' }, headers)]
  t.same([one.status, two.status, two.text, two.headers['idempotency-replayed']], [202, 202, one.text, 'true'])
  t.match(problemIn(await tell(client, run, { content: 'or this' }, headers)), { status: 422, code: 'idempotency_mismatch' })
  await stream.ended
  t.equal((await tell(client, run, { content: 'rather this' }, headers)).text, one.text, 'also once the run is over')
  t.same((await client.messages(run.conversation_id)).map(({ content }) => content), ['conv:a', 'rather this', 'yes'])
})

story('parts of a message, images too, reach the model as they are', async (t, { model, service }) => {
  const { client } = await service()
  model.script('conv:a', [delayed(say('never'), latch()), say('yes')])
  const { run, stream } = await begin(client, { input: 'conv:a' })
  await model.waitForRequest(() => true)
  const content = [{ type: 'text' as const, text: 'What is this?' }, { type: 'image_url' as const, image_url: { url: 'data:image/png;base64,AAAA', detail: 'low' as const } }]
  await send(client, run, { content })
  await stream.ended
  t.same(model.requests()[1]?.body.messages.at(-1), { role: 'user', content })
})

for (const times of [2, 3, 4, 5]) {
  story(`I19: cancelling ${times} times: the first acts, the others change nothing`, async (t, { model, tools, service, tool }) => {
    const { client } = await service()
    model.script('conv:a', [call({ name: 'hang', arguments: {} }), say('yes')])
    const { run, stream } = await begin(client, { input: 'conv:a', tools: [tool('hang')] })
    await tools.waitFor((attempts) => attempts.length === 1)
    const answers = await Promise.all(Array.from({ length: times }, (_, i) => client.cancel(run.id, i === 0 ? '?wait=1' : '')))
    for (const answer of answers) t.match(answer, { id: run.id, status: 'cancelled' })
    await tools.waitFor((attempts) => attempts[0]?.aborted === true)
    await stream.ended
    t.same(stream.types().slice(-2), ['tool.cancelled', 'run.cancelled'])
    const { run: next } = await client.finish({ input: 'go on', conversation_id: run.conversation_id })
    t.equal(next.output, 'yes', 'send-after-stop works at once')
  })
}

story('I19: with wait=1 nothing of the run is at work any more when the answer comes', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.otherwise(() => call({ name: 'hang', arguments: {} }, { name: 'hang', arguments: {} }))
  for (let i = 0; i < 10; i++) {
    const { run } = await begin(client, { input: `conv:${i}`, tools: [tool('hang')] })
    await tools.waitFor((attempts) => attempts.length === 2 * (i + 1))
    await client.cancel(run.id, '?wait=1')
    const { text } = await client.request('GET', `/runs/${run.id}`)
    t.match(JSON.parse(text), { status: 'cancelled', current: null })
    // The tool server hears of it over its own connection: a moment later at most.
    await tools.waitFor((attempts) => attempts.every(({ ended_at: ended }) => ended !== null))
  }
})

story('I19: with wait=1 everybody who asks waits for a call that must be left to finish, from any process, and whoever asks later does not', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  const { client: other } = await service({ roles: { api: true, worker: false } })
  model.otherwise(() => call({ name: 'hold', arguments: { key: 'x', value: 1 } }))
  const { run } = await begin(client, { input: 'conv:a', tools: [tool('hold', { cancellable: false })] })
  await tools.waitFor((attempts) => attempts.length === 1)
  const order: string[] = []
  const asked = [client, other, client].map(async (one, i) => {
    const { status } = await one.cancel(run.id, '?wait=1')
    order.push(`${i} ${status}`)
  })
  const stream = await client.follow(run)
  await stream.ended
  t.match(await client.cancel(run.id), { status: 'cancelled' }, 'without it the answer comes at once')
  t.same(order, [])
  order.push('released')
  tools.release('x')
  await Promise.all(asked)
  t.same([...order].sort(), ['0 cancelled', '1 cancelled', '2 cancelled', 'released'])
  t.equal(order[0], 'released')
  t.match(await other.cancel(run.id, '?wait=1'), { status: 'cancelled' })
})
