import { Redis } from 'ioredis'
import { answer, delayed, heldAt, latch, say } from '../support/model-reply.js'
import { createClient, problemIn } from '../support/client.js'
import { story } from '../support/world.js'

const UNKNOWN_RUN = `run_${'0'.repeat(28)}`
const UNKNOWN_CALL = `call_${'0'.repeat(26)}`

story('A1: a bad body is refused with what is wrong, and leaves nothing behind', async (t, { model, service, keys, tool }) => {
  const { client } = await service()
  const before = await keys()
  const bodies: [what: string, body: unknown, pointer: string][] = [
    ['nothing', {}, '/input'],
    ['an empty text', { input: '' }, '/input'],
    ['no message', { input: [] }, '/input'],
    ['no message of a user', { input: [{ role: 'assistant', content: 'hello' }] }, '/input'],
    ['an empty message', { input: [{ role: 'user', content: '' }] }, '/input'],
    ['a number for a text', { input: 5 }, '/input'],
    ['both names for the input', { input: 'conv:a', messages: [{ role: 'user', content: 'conv:a' }] }, '/messages'],
    ['a number as text', { input: 'conv:a', limits: { max_turns: '3' } }, '/limits/max_turns'],
    ['an unknown field, deep inside', { input: 'conv:a', tool_policy: { on_eror: 'continue' } }, '/tool_policy/on_eror'],
    ['two tools of one name', { input: 'conv:a', tools: [tool('echo'), tool('echo')] }, '/tools/1/name'],
    ['a tool that is a private address', { input: 'conv:a', tools: [tool('echo', { url: 'http://10.0.0.1/' })] }, '/tools/0/url'],
    ['tool_choice without tools', { input: 'conv:a', model_options: { tool_choice: 'auto' } }, '/model_options/tool_choice'],
    ['a conversation id that is none', { input: 'conv:a', conversation_id: '../etc' }, '/conversation_id']
  ]
  for (const [what, body, pointer] of bodies) {
    const problem = problemIn(await client.request('POST', '/runs', { body }))
    t.equal(problem.status, 422, what)
    t.ok(problem.errors?.some((error) => error.pointer.startsWith(pointer)), `${what}: names ${pointer}`, problem)
  }
  t.match(problemIn(await client.request('POST', '/runs', { body: '{"input": ' })), { status: 400, code: 'malformed_json' })
  t.match(problemIn(await client.request('POST', '/runs', { body: 'input', headers: { 'content-type': 'text/plain' } })), { status: 415 })
  t.same(await client.get('/runs'), { data: [], next_cursor: null })
  t.same((await keys()).filter((key) => key.includes(':conv:')), before.filter((key) => key.includes(':conv:')))
  t.equal(model.requests().length, 0)
})

story('options of later versions are refused, not accepted and ignored', async (t, { service, tool }) => {
  const { client } = await service()
  const bodies: Record<string, unknown>[] = [
    { plan: { mode: 'auto' } }, { samples: { n: 2 } }, { webhook: { url: 'https://example.com', events: ['run.completed'] } },
    { tools: [{ kind: 'mcp', name: 'm', server_url: 'https://example.com' }] },
    { tools: [{ kind: 'client', name: 'c', url: 'https://example.com' }] }, { tools: [{ ...tool('echo'), approval: 'sometimes' }] }
  ]
  for (const body of bodies) t.match(problemIn(await client.request('POST', '/runs', { body: { input: 'conv:a', ...body } })), { status: 422, code: 'validation_failed' }, JSON.stringify(body))
})

story('A2: POST /runs answers with its ids before the model has', async (t, { model, service }) => {
  const { client } = await service()
  const gate = latch()
  model.script('conv:a', [delayed(say('at last'), gate)])
  const posted = await client.request('POST', '/runs', { body: { input: 'conv:a', metadata: { team: 'a' } } })
  const run = JSON.parse(posted.text) as { id: string }
  t.match(run, { id: /^run_/, conversation_id: /^conv_/, status: /^(queued|running)$/, output: null, metadata: { team: 'a' } })
  t.equal(posted.headers.location, `/runs/${run.id}`)
  await model.waitForRequest(({ conversation }) => conversation === 'conv:a')
  t.match(await client.run(run.id), { status: 'running', current: { phase: 'llm', turn: 1 } })
  gate.open()
  t.match(await client.ended(run.id), { status: 'completed', output: 'at last' })
})

story('A3: what there is not is 404 on every route', async (t, { model, service }) => {
  const { client, app } = await service()
  model.otherwise(() => say('hello'))
  const { run } = await client.finish({ input: 'conv:a' })
  const { paths = {} } = app.swagger() as { paths?: Record<string, Record<string, unknown>> }
  let asked = 0
  for (const [path, methods] of Object.entries(paths)) {
    if (!/\{(run|conversation)_id\}/.test(path)) continue
    for (const method of Object.keys(methods)) {
      const address = path.replace('{run_id}', UNKNOWN_RUN).replace('{conversation_id}', 'conv_unknown').replace(/\{call_id\}/, UNKNOWN_CALL).replace(/\{message_id\}/, `msg_${'0'.repeat(26)}`)
      // A body that is right in every other respect.
      const body = !/^(post|patch)$/.test(method) ? undefined
        : path.includes('/messages') ? { content: 'hello' }
          : path.endsWith('/repair') ? { action: 'explain' } : path.endsWith('/decisions') ? { suspension_id: `susp_${'0'.repeat(26)}1`, decisions: [{ call_id: UNKNOWN_CALL, decision: 'approve' }] }
            : path.endsWith('/tool_outputs') ? { outputs: [{ call_id: UNKNOWN_CALL, output: 1 }] } : undefined
      t.match(problemIn(await client.request(method.toUpperCase(), address, { body })), { status: 404, code: 'not_found' }, `${method} ${path}`)
      asked++
    }
  }
  t.ok(asked >= 9, 'the document names the routes')
  t.match(problemIn(await client.request('POST', '/runs', { body: { input: 'conv:a', conversation_id: 'conv_unknown' } })), { status: 404 })
  t.match(problemIn(await client.request('GET', `/runs/${run.id}/calls/${UNKNOWN_CALL}`)), { status: 404 })
  t.match(problemIn(await client.request('GET', '/nowhere')), { status: 404, code: 'not_found' })
  for (const id of ['..%2f..%2fetc', '%00', 'a%0d%0aSet-Cookie:x', '%2e%2e', 'run_1']) {
    const { status } = problemIn(await client.request('GET', `/runs/${id}`))
    t.ok(status === 404 || status === 422, `${id}: ${status}`)
  }
})

story('A4: the event list of a text-only run is exactly run.created run.started turn.started turn.completed run.completed', async (t, { model, service }) => {
  const { client } = await service()
  model.script('conv:a', [say(['Hello', ' there'])])
  const { run, stream } = await client.finish({ input: 'conv:a hello' })
  t.same(stream.types(), ['run.created', 'run.started', 'turn.started', 'turn.completed', 'run.completed'])
  t.match(run, { status: 'completed', output: 'Hello there', turn: 1, error: null, stop_reason: null, current: null, usage: { llm_calls: 1, tool_calls: 0, total_tokens: 15 } })
  t.equal(model.requests().length, 1)
})

story('A5: the system prompt is there once and first; a conversation keeps its own', async (t, { model, service, tool }) => {
  const { client } = await service()
  const systems = (n: number) => model.requests()[n]?.body.messages.map(({ role, content }, i) => role === 'system' ? `${i}: ${String(content)}` : '').filter(Boolean)
  model.script('conv:with', [answer({ calls: [{ name: 'echo', arguments: { value: 1 } }] }), say('one'), say('two'), say('three')])
  const { run } = await client.finish({ input: 'conv:with', instructions: 'Be brief.', tools: [tool('echo')] })
  await client.finish({ input: 'more', conversation_id: run.conversation_id, instructions: 'Be long.' })
  await client.finish({ input: 'more', conversation_id: run.conversation_id })
  t.same([0, 1, 2, 3].map(systems), [['0: Be brief.'], ['0: Be brief.'], ['0: Be long.'], []], 'it belongs to the run')
  t.notOk((await client.messages(run.conversation_id)).some(({ role }) => role === 'system'), 'and not to the ledger')

  model.script('conv:own', [say('yes')])
  const made = await client.request('POST', '/conversations', { body: { messages: [{ role: 'system', content: 'You are a librarian.' }] } })
  const { id } = JSON.parse(made.text) as { id: string }
  t.match(problemIn(await client.request('POST', '/runs', { body: { input: 'conv:own', conversation_id: id, instructions: 'Be a pirate.' } })), { status: 422, errors: [{ pointer: '/instructions' }] })
  await client.finish({ input: 'conv:own', conversation_id: id })
  t.same(systems(4), ['0: You are a librarian.'])
})

story('A6: the state of a run can be read while it works', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [answer({ text: 'I look.', calls: ['x', 'y', 'z'].map((key) => ({ name: 'hold', arguments: { key, value: key } })) }), say('done')])
  const run = await client.start({ input: 'conv:a', tools: [tool('hold')] })
  await tools.waitFor((attempts) => attempts.length === 3)
  const during = await client.run(run.id)
  t.match(during, { status: 'running', turn: 1, output: null, ended_at: null, current: { phase: 'tools', turn: 1, calls: Array(3).fill({ name: 'hold', status: 'running', attempt: 1 }) } })
  t.match(await client.conversation(run.conversation_id), { active_run_id: run.id, turn: 1, waiting_for: { kind: 'tools' }, message_count: 1, version: during.version })
  tools.release('y')
  const stream = await client.follow(run)
  await stream.event('tool.completed')
  const later = await client.run(run.id)
  t.same(later.current?.calls.map(({ status }) => status), ['running', 'completed', 'running'])
  t.ok(later.version > during.version)
  t.match((await client.calls(run.id)).map(({ status, output }) => [status, output]), [['running', null], ['completed', 'y'], ['running', null]])
  tools.release('x')
  tools.release('z')
  t.match(await client.ended(run), { status: 'completed', output: 'done', current: null, usage: { llm_calls: 2, tool_calls: 3 } })
  t.match(await client.conversation(run.conversation_id), { active_run_id: null, waiting_for: null, turn: 2, message_count: 6 })
})

story('M1: the version rises with every commit, names one state only, and can be waited on by ETag', async (t, { model, service, tool }) => {
  const { client } = await service()
  model.otherwise(({ body }) => body.messages.length < 10 ? answer({ calls: [1, 2, 3].map((n) => ({ id: `call_${body.messages.length}_${n}`, name: 'echo', arguments: { value: n } })) }) : say('done'))
  const run = await client.start({ input: 'conv:a', tools: [tool('echo')] })
  const states = new Map<number, string>()
  let newest = 0
  for (let ended = false; !ended;) {
    ended = (await client.run(run.id)).ended_at !== null
    const { headers, text } = await client.request('GET', `/conversations/${run.conversation_id}/state`)
    const { version, state } = JSON.parse(text) as { version: number, state: { seq: number } }
    t.equal(headers.etag, `"${version}"`)
    if (version < newest) t.fail(`the version fell from ${newest} to ${version}`)
    if ((states.get(version) ?? text) !== text) t.fail(`version ${version} names two states`)
    if (version > state.seq) t.fail('every commit here has at least one event, so it cannot be ahead of them')
    states.set(version, text)
    newest = version
  }
  const same = await client.request('GET', `/conversations/${run.conversation_id}/state`, { headers: { 'if-none-match': `"${newest}"` } })
  t.equal(same.status, 304)
  t.equal((await client.run(run.id)).version, newest)
})

story('Prefer: wait answers with the ended run, or with the running one when the time is over', async (t, { model, service }) => {
  const { client } = await service()
  const gate = latch()
  model.script('conv:a', [delayed(say('done'), gate)])
  model.script('conv:b', [say('at once')])
  const early = await client.request('POST', '/runs', { body: { input: 'conv:a' }, headers: { prefer: 'wait=0' } })
  t.match(JSON.parse(early.text), { ended_at: null })
  t.match(early, { status: 202, headers: { 'preference-applied': 'wait=0', location: /^\/runs\/run_/ } })
  gate.open()
  const patient = await client.request('POST', '/runs', { body: { input: 'conv:b' }, headers: { prefer: 'respond-async, wait=30' } })
  t.match(JSON.parse(patient.text), { status: 'completed', output: 'at once' })
  t.match(patient, { status: 200, headers: { 'preference-applied': 'wait=30' } })
})

story('Prefer: wait is answered the moment the run ends', async (t, { model, service }) => {
  const { client } = await service()
  const gate = latch()
  model.script('conv:a', [delayed(say('done'), gate)])
  const waiting = client.request('POST', '/runs', { body: { input: 'conv:a' }, headers: { prefer: 'wait=600' } })
  await model.waitForRequest(() => true)
  gate.open()
  t.match(JSON.parse((await waiting).text), { status: 'completed', output: 'done' })
})

story('Accept: text/event-stream on POST /runs answers with the stream of the run', async (t, { model, service, watch }) => {
  const { client } = await service()
  watch(client)
  model.script('conv:a', [say(['one', ' two'])])
  const stream = await client.open('/runs', { method: 'POST', body: { input: 'conv:a' } })
  t.equal(stream.status, 201)
  t.same(await stream.ended, { clean: true })
  t.same(stream.types(), ['run.created', 'run.started', 'turn.started', 'turn.completed', 'run.completed'])
  t.equal(stream.text(1), 'one two')
  const [created] = stream.events()
  t.equal(stream.headers.location, `/runs/${created?.run_id}`)
  t.match(stream.headers, { 'cache-control': 'no-cache, no-transform', 'x-accel-buffering': 'no' })
  client.seen.conversations.add(created?.conversation_id ?? '')
})

story('B5: the stream that answers POST /runs is that of its run alone, also when the run ends another one', async (t, { model, service }) => {
  const { client } = await service()
  model.script('conv:a', [heldAt(say(['never']), 0, latch()), say('instead')])
  const first = await client.start({ input: 'conv:a' })
  await model.waitForRequest(({ conversation }) => conversation === 'conv:a')
  const stream = await client.open('/runs', { method: 'POST', body: { input: 'rather this', conversation_id: first.conversation_id, on_active_run: 'interrupt' } })
  t.same(await stream.ended, { clean: true })
  t.same(stream.types(), ['run.created', 'run.started', 'turn.started', 'turn.completed', 'run.completed'])
  const [created] = stream.events()
  const log = await client.log({ run: created?.run_id ?? '' })
  t.same(stream.events().map(({ seq, run_seq: own }) => [seq, own]), log.map(({ seq, run_seq: own }) => [seq, own]), 'the same as a reader of its own gets')
  t.equal((await client.run(first.id)).status, 'cancelled')
})

story('after_seconds: a run waits for its time, and others on the conversation do not wait for it', async (t, { model, service }) => {
  const { client } = await service()
  model.script('conv:first', [say('first'), say('late')])
  const { run: first } = await client.finish({ input: 'conv:first' })
  const late = await client.start({ input: 'in time', conversation_id: first.conversation_id, after_seconds: 0.7 })
  t.match(await client.run(late.id), { status: 'queued', current: { phase: 'scheduled' }, started_at: null })
  t.match(await client.conversation(first.conversation_id), { active_run_id: null, queued_run_ids: [late.id], waiting_for: { kind: 'due_time' } })
  model.script('conv:first', [say('-'), say('at once'), say('late')])
  const { run: other } = await client.finish({ input: 'now', conversation_id: first.conversation_id })
  t.equal(other.output, 'at once')
  const stream = await client.follow(late)
  await stream.ended
  t.equal((await client.run(late.id)).output, 'late')
  const [created, started] = stream.events()
  t.equal(started?.type, 'run.started')
  t.ok(Date.parse(started?.time ?? '') - Date.parse(created?.time ?? '') >= 700, 'not before its time')
})

story('on_active_run queue: the second run waits, and sees the answer of the first', async (t, { model, service }) => {
  const { client } = await service()
  const gate = latch()
  model.script('conv:a', [delayed(say('first answer'), gate), say('second answer'), say('third answer')])
  const first = await client.start({ input: 'conv:a' })
  await model.waitForRequest(({ n }) => n === 1)
  const second = await client.start({ input: 'second', conversation_id: first.conversation_id })
  const third = await client.start({ input: 'third', conversation_id: first.conversation_id, on_active_run: 'queue' })
  t.match(await client.conversation(first.conversation_id), { active_run_id: first.id, queued_run_ids: [second.id, third.id] })
  t.match(await client.run(second.id), { status: 'queued', current: { phase: 'waiting' } })
  gate.open()
  t.equal((await client.ended(third)).output, 'third answer')
  t.same(model.requests()[2]?.body.messages.map(({ content }) => content), ['conv:a', 'first answer', 'second', 'second answer', 'third'])
  t.equal(model.maxInFlight(), 1)
})

story('on_active_run reject: 409 names the run in the way, and nothing changes', async (t, { model, service }) => {
  const { client } = await service()
  const gate = latch()
  model.script('conv:a', [delayed(say('done'), gate), say('then')])
  const first = await client.start({ input: 'conv:a' })
  await model.waitForRequest(() => true)
  const before = await client.conversation(first.conversation_id)
  const body = { input: 'second', conversation_id: first.conversation_id, on_active_run: 'reject' as const }
  t.match(problemIn(await client.request('POST', '/runs', { body })), { status: 409, code: 'run_active', run_ids: [first.id], retryable: true })
  t.same(await client.conversation(first.conversation_id), before)
  gate.open()
  await client.ended(first)
  t.equal((await client.finish(body)).run.output, 'then', 'an idle conversation takes it')
})

story('a conversation can begin with messages, tool calls included, under a name of one\'s own', async (t, { model, service }) => {
  const { client } = await service()
  const seed = [
    { role: 'system', content: 'You are a librarian.' },
    { role: 'user', content: 'conv:seeded' },
    { role: 'assistant', content: 'I look.', tool_calls: [{ id: 'c1', name: 'find', arguments: { title: 'Emma' } }, { id: 'c2', name: 'find', arguments: { title: 'Ulysses' } }] },
    { role: 'tool', tool_call_id: 'c1', content: 'shelf 1' },
    { role: 'tool', tool_call_id: 'c2', content: 'shelf 2' },
    { role: 'assistant', content: 'On shelves 1 and 2.' }
  ]
  const made = await client.request('POST', '/conversations', { body: { id: 'books', messages: seed, metadata: { reader: '7' } } })
  t.match({ status: made.status, location: made.headers.location, body: JSON.parse(made.text) }, { status: 201, location: '/conversations/books', body: { id: 'books', message_count: 6, turn: 0, metadata: { reader: '7' } } })
  model.script('conv:seeded', [say('You are welcome.')])
  const { run } = await client.finish({ input: 'Thanks', conversation_id: 'books' })
  t.equal(run.output, 'You are welcome.')
  t.same(model.requests()[0]?.body.messages, [
    ...seed.slice(0, 2),
    {
      role: 'assistant',
      content: 'I look.',
      tool_calls: [
        { id: 'c1', type: 'function', function: { name: 'find', arguments: '{"title":"Emma"}' } },
        { id: 'c2', type: 'function', function: { name: 'find', arguments: '{"title":"Ulysses"}' } }
      ]
    },
    ...seed.slice(3),
    { role: 'user', content: 'Thanks' }
  ])
  t.match(problemIn(await client.request('POST', '/conversations', { body: { id: 'books' } })), { status: 409, code: 'conversation_exists' })
  const broken = [...seed.slice(0, 4), { role: 'user', content: 'never mind' }]
  t.match(problemIn(await client.request('POST', '/conversations', { body: { messages: broken } })), { status: 422, errors: [{ pointer: '/messages/4' }] }, 'an unanswered call')
})

story('DELETE leaves no key, and nobody brings a conversation back', async (t, { model, tools, service, tool, keys, redis }) => {
  const { client } = await service()
  const direct = new Redis(redis.url)
  t.teardown(() => direct.quit())
  model.script('conv:done', [answer({ calls: [{ name: 'echo', arguments: { value: 1 } }] }), say('done')])
  const { run } = await client.finish({ input: 'conv:done', tools: [tool('echo')] })
  const { conversation_id: id } = run
  t.ok((await keys()).some((key) => key.includes(id)))
  t.equal((await client.request('DELETE', `/conversations/${id}`)).status, 204)
  const left = (await keys()).filter((key) => key.includes(id))
  t.same(left.map((key) => key.endsWith(`conv:${id}`)), [true])
  t.same(Object.keys(await direct.hgetall(left[0] ?? '')), ['epoch', 'tokens'], 'but for what keeps event ids from coming twice, should there be another of this name, and this one from coming back')
  t.ok(await direct.ttl(left[0] ?? '') > 0, 'and that only for a while')
  for (const path of [`/conversations/${id}`, `/conversations/${id}/messages`, `/runs/${run.id}`, `/runs/${run.id}/events`]) {
    t.equal((await client.request('GET', path)).status, 404, path)
  }
  t.same(await client.get('/runs'), { data: [], next_cursor: null })

  // While it is in the middle of an LLM call, and of a tool call: the run is stopped, and what still comes is refused.
  const gate = latch()
  model.script('conv:llm', [delayed(say('too late'), gate)])
  model.script('conv:tool', [answer({ calls: [{ name: 'hold', arguments: { key: 'x' } }] }), say('too late')])
  const asked = await client.start({ input: 'conv:llm' })
  const called = await client.start({ input: 'conv:tool', tools: [tool('hold')] })
  const request = await model.waitForRequest(({ conversation }) => conversation === 'conv:llm')
  await tools.waitFor((attempts) => attempts.some(({ route }) => route === 'hold'))
  const streams = await Promise.all([client.follow(asked), client.follow(called)])
  await Promise.all([streams[0]?.event('turn.started'), streams[1]?.event('tool.started')])
  await Promise.all([asked, called].map((one) => client.request('DELETE', `/conversations/${one.conversation_id}`)))
  gate.open()
  tools.release('x')
  t.ok((await request.ended).aborted, 'the LLM call was aborted')
  await tools.waitFor((attempts) => attempts.every(({ ended_at: ended }) => ended !== null))
  t.equal(tools.attempts.at(-1)?.aborted, true, 'and so was the tool call')
  for (const stream of streams) {
    await stream.ended
    t.equal(stream.types().at(-1), 'run.cancelled')
  }
  // Another conversation goes all the way through the same worker meanwhile.
  model.script('conv:after', [say('fine')])
  await client.finish({ input: 'conv:after' })
  for (const one of [asked, called]) t.equal((await client.request('GET', `/conversations/${one.conversation_id}`)).status, 404)
})

story('API keys: a tenant\'s things do not exist for another', async (t, { model, service, tool }) => {
  const [alice, bob] = ['key-of-alice-0123456789', 'key-of-bob-0123456789']
  const { url } = await service({ env: { INTERLOCK_API_KEYS: `alice:${alice},bob:${bob}` } })
  const [a, b, nobody] = [createClient(url, { apiKey: alice }), createClient(url, { apiKey: bob }), createClient(url)]
  model.script('conv:a', [answer({ calls: [{ name: 'echo', arguments: { value: 'secret' } }] }), say('secret')])
  const run = await a.start({ input: 'conv:a', tools: [tool('echo')] }, { 'idempotency-key': 'same' })
  await a.ended(run)
  const [call] = await a.calls(run.id)
  const paths = [
    `/runs/${run.id}`, `/runs/${run.id}/events`, `/runs/${run.id}/calls`, `/runs/${run.id}/calls/${call?.call_id}`,
    `/conversations/${run.conversation_id}`, `/conversations/${run.conversation_id}/messages`, `/conversations/${run.conversation_id}/events`, `/conversations/${run.conversation_id}/state`
  ]
  const words = (problem: object) => ({ ...problem, instance: '' })
  for (const path of paths) {
    t.equal((await a.request('GET', path, { headers: path.includes('/events') ? { accept: 'application/json' } : {} })).status, 200, path)
    const unknown = problemIn(await b.request('GET', path.replace(run.id, UNKNOWN_RUN).replace(run.conversation_id, 'conv_unknown'), { headers: { 'last-event-id': '2' } }))
    t.same(words(problemIn(await b.request('GET', path, { headers: { 'last-event-id': '2' } }))), words(unknown), `${path}: the same words as for what there is not`)
    t.match(problemIn(await nobody.request('GET', path)), { status: 401, code: 'unauthorized' })
  }
  for (const [method, path] of [['POST', `/runs/${run.id}/cancel`], ['DELETE', `/conversations/${run.conversation_id}`]] as const) {
    t.equal((await b.request(method, path)).status, 404, `${method} ${path}`)
  }
  t.equal((await b.request('POST', '/runs', { body: { input: 'conv:b', conversation_id: run.conversation_id } })).status, 404)
  t.same(await b.get('/runs'), { data: [], next_cursor: null })
  model.script('conv:b', [say('mine')])
  const own = await b.start({ input: 'conv:b' }, { 'idempotency-key': 'same' })
  t.not(own.id, run.id, 'an Idempotency-Key is a tenant\'s own')
  await b.ended(own)
  t.same((await a.get<{ data: { id: string }[] }>('/runs')).data.map(({ id }) => id), [run.id])
  t.equal((await a.run(run.id)).status, 'completed')
})

story('GET /runs: newest first, by pages, by status, conversation and metadata', async (t, { model, service }) => {
  const { client } = await service()
  model.otherwise(() => say('done'))
  const ids: string[] = []
  for (let i = 0; i < 5; i++) ids.unshift((await client.finish({ input: `conv:${i}`, metadata: { parity: i % 2 === 0 ? 'even' : 'odd' } })).run.id)
  const list = async (query: string) => (await client.get<{ data: { id: string }[] }>(`/runs?${query}`)).data.map(({ id }) => id)
  t.same(await list(''), ids)
  t.same(await list('metadata.parity=odd'), [ids[1], ids[3]])
  t.same(await list('status=failed,cancelled'), [])
  t.same(await list('status=completed&limit=2'), ids.slice(0, 2))
  t.same(await list(`conversation_id=${(await client.run(ids[2] ?? '')).conversation_id}`), [ids[2]])
  const paged: string[] = []
  for (let cursor = ''; ;) {
    const page = await client.get<{ data: { id: string }[], next_cursor: string | null }>(`/runs?limit=2${cursor}`)
    paged.push(...page.data.map(({ id }) => id))
    if (page.next_cursor === null) break
    cursor = `&cursor=${page.next_cursor}`
  }
  t.same(paged, ids)
})
