import { once } from 'node:events'
import t from 'tap'
import { runActive } from '../../src/errors.js'
import { conforms, listening, newRun, post, refused, testApp } from '../support/app.js'

const UNKNOWN_RUN = 'run_01KAG6XN3Q8V5T2M7R4C9B1DZH0H'
const UNKNOWN_CALL = 'call_01KAG6XN3Q8V5T2M7R4C9B1DZH'

t.test('A2: POST /runs answers 201 with the run and its Location, before any work is done', async (t) => {
  const { app, fake } = await testApp(t)
  const response = await post(app, '/runs', { input: 'hello', metadata: { team: 'search' } })
  t.equal(response.statusCode, 201)
  conforms(t, app, 'createRun', response)
  const run = response.json<{ id: string, status: string }>()
  t.equal(run.status, 'queued')
  t.equal(response.headers.location, `/runs/${run.id}`)
  t.strictSame(fake.calls, ['runs.create'], 'nothing else is asked')
  const read = await app.inject(`/runs/${run.id}`)
  conforms(t, app, 'getRun', read)
  t.strictSame(read.json(), run)
})

t.test('A2: what a run is named after is the request, and what it is asked is passed on as it came', async (t) => {
  const { app, fake } = await testApp(t)
  const input = [{ role: 'user', content: [{ type: 'text', text: 'a\u0000b \u{1F600} \u2028' }] }]
  const response = await post(app, '/runs', { input })
  t.equal(response.json<{ id: string }>().id, `run_${response.headers['x-request-id'] as string}0H`)
  const [created] = fake.conversation(response.json<{ conversation_id: string }>().conversation_id).events
  t.strictSame((JSON.parse(created?.json ?? '') as { input: unknown }).input, input, 'NUL, emoji and U+2028 survive')
})

const wrong: [string, unknown, { pointer: string, detail: string }[]][] = [
  ['no input', {}, [{ pointer: '/input', detail: 'is required' }]],
  ['input of the wrong type', { input: 5 }, [{ pointer: '/input', detail: 'must be a string or an array' }]],
  ['empty input', { input: '' }, [{ pointer: '/input', detail: 'must not be empty' }]],
  ['no messages', { input: [] }, [{ pointer: '/input', detail: 'must not be empty' }]],
  ['a message that is not the user\'s', { input: [{ role: 'assistant', content: 'x' }] }, [{ pointer: '/input/0/role', detail: 'must be "user"' }]],
  ['a part of no known type', { input: [{ role: 'user', content: [{ type: 'audio' }] }] }, [{ pointer: '/input/0/content/0/type', detail: 'must be one of "text", "image_url"' }]],
  ['a misspelt field', { input: 'x', modle: 'gpt' }, [{ pointer: '/modle', detail: 'unknown field' }]],
  ['an option of a later version', { input: 'x', plan: { mode: 'auto' } }, [{ pointer: '/plan', detail: 'unknown field' }]],
  ['a word that is not one of the choices', { input: 'x', tool_policy: { on_error: 'retry' } }, [{ pointer: '/tool_policy/on_error', detail: 'must be one of "continue", "fail_run"' }]],
  ['a limit below one (E6)', { input: 'x', limits: { max_tool_concurrency: 0 } }, [{ pointer: '/limits/max_tool_concurrency', detail: 'must be 1 or more' }]],
  ['an unknown limit', { input: 'x', limits: { max_fun: 5 } }, [{ pointer: '/limits/max_fun', detail: 'unknown field' }]],
  ['an unknown policy', { input: 'x', tool_policy: { mood: 'good' } }, [{ pointer: '/tool_policy/mood', detail: 'unknown field' }]],
  ['a tool of no known kind', { input: 'x', tools: [{ kind: 'pigeon', name: 'a' }] }, [{ pointer: '/tools/0/kind', detail: 'must be one of "http", "builtin", "module", "client", "mcp"' }]],
  ['a tool without a kind', { input: 'x', tools: [{ name: 'a' }] }, [{ pointer: '/tools/0/kind', detail: 'is required' }]],
  ['errors of the kind of tool that is meant', { input: 'x', tools: [{ kind: 'http', name: 'a b', retries: 1 }] }, [
    { pointer: '/tools/0/url', detail: 'is required' },
    { pointer: '/tools/0/retries', detail: 'unknown field' },
    { pointer: '/tools/0/name', detail: 'must match ^[a-zA-Z0-9_-]{1,64}$' }
  ]],
  ['a header that would end the line (S5)', { input: 'x', tools: [{ kind: 'http', name: 'a', url: 'http://a.example', headers: { 'x-a': 'b\r\nx-c: d' } }] }, [
    { pointer: '/tools/0/headers/x-a', detail: 'must match ^[\\t\\x20-\\x7e]*$' }
  ]],
  ['a header name that is none (S5)', { input: 'x', tools: [{ kind: 'http', name: 'a', url: 'http://a.example', headers: { 'x a': 'b' } }] }, [
    { pointer: '/tools/0/headers/x a', detail: 'this name is not allowed here: it must match ^[A-Za-z0-9!#$%&\'*+.^_`|~-]{1,128}$' }
  ]],
  ['a metadata name that is none', { input: 'x', metadata: { 'a/b~': 'c' } }, [
    { pointer: '/metadata/a~1b~0', detail: 'this name is not allowed here: it must match ^[a-zA-Z0-9_.-]{1,64}$' }
  ]],
  ['a number for text', { input: 'x', model: 5 }, [{ pointer: '/model', detail: 'must be a string' }]],
  ['text for a number', { input: 'x', after_seconds: '5' }, [{ pointer: '/after_seconds', detail: 'must be a number' }]],
  ['no object', [], [{ pointer: '', detail: 'must be an object' }]],
  ['several things at once', { input: 'x', model: '', tool_policy: { parallel: 'yes' } }, [
    { pointer: '/model', detail: 'must not be empty' },
    { pointer: '/tool_policy/parallel', detail: 'must be true or false' }
  ]]
]

t.test('A1: a bad body is refused with the place and the reason, and there is no run', async (t) => {
  const { app, fake } = await testApp(t)
  for (const [name, body, errors] of wrong) {
    await t.test(name, async (t) => {
      const response = await post(app, '/runs', body)
      t.strictSame(refused(t, response, 422, 'validation_failed').errors, errors)
      conforms(t, app, 'createRun', response)
    })
  }
  t.strictSame(fake.calls, [])
})

t.test('A1: a large wrong body costs one error, not one per value', async (t) => {
  const { app } = await testApp(t)
  const response = await post(app, '/runs', { input: Array(200_000).fill(0) })
  t.equal(refused(t, response, 422, 'validation_failed').errors?.length, 1)
})

t.test('A1: of many errors the first twenty are listed', async (t) => {
  const { app } = await testApp(t)
  const response = await post(app, '/runs', { input: 'x', tools: Array(100).fill({}) })
  t.equal(refused(t, response, 422, 'validation_failed').errors?.length, 20)
})

const DECISIONS = { suspension_id: 'susp_01KAG6XN3Q8V5T2M7R4C9B1DZH1', decisions: [{ call_id: UNKNOWN_CALL, decision: 'approve' }] }
const OUTPUTS = { outputs: [{ call_id: UNKNOWN_CALL, output: null }] }

t.test('A3: what does not exist is 404 on every route', async (t) => {
  const { app } = await testApp(t)
  const routes = Object.entries((app.swagger() as { paths: Record<string, Record<string, unknown>> }).paths)
    .filter(([path]) => path.includes('{'))
    .flatMap(([path, item]) => Object.entries(item).map(([method, operation]) => ({ method: method.toUpperCase() as 'GET', path, takesBody: 'requestBody' in (operation as object) })))
  t.ok(routes.length >= 10)
  const ids = { run_id: UNKNOWN_RUN, call_id: UNKNOWN_CALL, message_id: 'msg_01KAG6XN3Q8V5T2M7R4C9B1DZH', conversation_id: 'conv_01KAG6XN3Q8V5T2M7R4C9B1DZH' }
  for (const { method, path, takesBody } of routes) {
    const url = path.replace(/{(\w+)}/g, (_, name: keyof typeof ids) => ids[name])
    const payload = path.endsWith('/repair') ? { action: 'explain' } : path.endsWith('/decisions') ? DECISIONS : path.endsWith('/tool_outputs') ? OUTPUTS : { content: 'hello' }
    refused(t, await app.inject({ method, url, ...(takesBody && { payload }) }), 404, 'not_found')
  }
  refused(t, await post(app, '/runs', { input: 'x', conversation_id: 'nobody' }), 404, 'not_found')
  const { id } = await newRun(app)
  refused(t, await app.inject(`/runs/${id}/calls/${UNKNOWN_CALL}`), 404, 'not_found')
})

t.test('A6: what a service refuses is answered as it says, with the blocking ids', async (t) => {
  const { app, fake } = await testApp(t)
  fake.fail('runs.create', runActive([UNKNOWN_RUN]))
  const response = await post(app, '/runs', { input: 'x', on_active_run: 'reject' })
  t.strictSame(refused(t, response, 409, 'run_active').run_ids, [UNKNOWN_RUN])
})

t.test('GET /runs filters, and goes on from a cursor', async (t) => {
  const { app, fake } = await testApp(t)
  const a = await newRun(app, { metadata: { team: 'a', area: 'x.y' } })
  const b = await newRun(app, { metadata: { team: 'b' } })
  const c = await newRun(app, { conversation_id: a.conversation_id, metadata: { team: 'a' } })
  fake.end(b.id)
  fake.end(c.id, 'failed')
  const list = async (query: string) => (await app.inject(`/runs?${query}`)).json<{ data: { id: string }[], next_cursor: string | null }>()
  const ids = async (query: string) => (await list(query)).data.map(({ id }) => id)

  const everything = await app.inject('/runs')
  conforms(t, app, 'listRuns', everything)
  t.strictSame(everything.json<{ data: { id: string }[] }>().data.map(({ id }) => id), [c.id, b.id, a.id])
  t.strictSame(await ids('status=completed'), [b.id])
  t.strictSame(await ids('status=completed,failed'), [c.id, b.id])
  t.strictSame(await ids('status=completed&status=queued'), [b.id, a.id])
  t.strictSame(await ids(`conversation_id=${a.conversation_id}`), [c.id, a.id])
  t.strictSame(await ids('metadata.team=a'), [c.id, a.id])
  t.strictSame(await ids('metadata.team=a&metadata.area=x.y'), [a.id])

  const first = await list('limit=2')
  t.strictSame(first.data.map(({ id }) => id), [c.id, b.id])
  const second = await list(`limit=2&cursor=${first.next_cursor}`)
  t.strictSame(second, { data: [(await app.inject(`/runs/${a.id}`)).json()], next_cursor: null })
})

t.test('a query that is not understood is refused, not ignored', async (t) => {
  const { app } = await testApp(t)
  const { id } = await newRun(app)
  await newRun(app)
  const { next_cursor: cursor } = (await app.inject('/runs?limit=1')).json<{ next_cursor: string }>()
  const queries = [
    ['/runs?limit=0', '/limit'], ['/runs?limit=101', '/limit'], ['/runs?limit=1e1', '/limit'], ['/runs?limit=0x10', '/limit'], ['/runs?limit=', '/limit'],
    ['/runs?limit=1&limit=2', '/limit'], ['/runs?status=done', '/status/0'], ['/runs?colour=red', '/colour'], ['/runs?metadata.=x', '/metadata.'],
    ['/runs?conversation_id=..', '/conversation_id'], ['/runs?cursor=', '/cursor'], ['/runs?cursor=zzz', '/cursor'], ['/runs?cursor=%00', '/cursor'],
    [`/runs?status=queued&cursor=${cursor}`, '/cursor'], [`/runs/${id}/calls?cursor=${cursor}`, '/cursor'], [`/runs/${id}/calls?limit=-1`, '/limit']
  ] as const
  for (const [url, pointer] of queries) {
    t.match(refused(t, await app.inject(url), 422, 'validation_failed').errors, [{ in: 'query', pointer }], url)
  }
})

t.test('GET /runs/:id/calls lists calls, and one is read with its whole output', async (t) => {
  const { app, fake } = await testApp(t)
  const { id } = await newRun(app)
  const call = (letter: string) => ({
    call_id: UNKNOWN_CALL.slice(0, -1) + letter, run_id: id, turn: 1, batch_id: 'batch_1', name: 'http_fetch', arguments: { url: 'http://a.example' },
    status: 'completed' as const, attempt: 1, started_at: '2026-11-20T10:00:00.000Z', ended_at: '2026-11-20T10:00:01.000Z', duration_ms: 1000,
    output: 'x'.repeat(200_000), error: null, reason: null
  })
  fake.run(id).calls.push(call('A'), call('B'), call('C'))
  const page = await app.inject(`/runs/${id}/calls?limit=2`)
  conforms(t, app, 'listCalls', page)
  const { data, next_cursor: cursor } = page.json<{ data: unknown[], next_cursor: string }>()
  t.strictSame(data, [call('A'), call('B')])
  t.strictSame((await app.inject(`/runs/${id}/calls?limit=2&cursor=${cursor}`)).json(), { data: [call('C')], next_cursor: null })
  const one = await app.inject(`/runs/${id}/calls/${call('B').call_id}`)
  conforms(t, app, 'getCall', one)
  t.strictSame(one.json(), call('B'))
})

t.test('I19: cancel stops a run, and again answers it as it is', async (t) => {
  const { app, fake } = await testApp(t)
  const { id } = await newRun(app)
  for (const url of [`/runs/${id}/cancel`, `/runs/${id}/cancel?wait=1`, `/runs/${id}/cancel?wait=false`]) {
    const response = await app.inject({ method: 'POST', url })
    t.equal(response.statusCode, 200)
    conforms(t, app, 'cancelRun', response)
    t.equal(response.json<{ status: string }>().status, 'cancelled')
  }
  t.equal(fake.conversation(fake.run(id).run.conversation_id).events.length, 2)
  refused(t, await app.inject({ method: 'POST', url: `/runs/${id}/cancel?wait=yes` }), 422, 'validation_failed')
})

t.test('Prefer: wait answers 200 with the run once it has ended', async (t) => {
  const { app, fake } = await testApp(t)
  const answer = post(app, '/runs', { input: 'x' }, { prefer: 'respond-async, wait=100' })
  const wait = fake.services.runs.wait
  const waiting = new Promise<string>((resolve) => {
    fake.services.runs.wait = (caller, id, ms) => {
      t.equal(ms, 100_000)
      resolve(id)
      return wait(caller, id, ms)
    }
  })
  fake.end(await waiting, 'completed', 'the answer')
  const response = await answer
  t.equal(response.statusCode, 200)
  conforms(t, app, 'createRun', response)
  t.equal(response.json<{ output: string }>().output, 'the answer')
  t.equal(response.headers['preference-applied'], 'wait=100')
  t.match(response.headers.location, /^\/runs\/run_/)
})

t.test('Prefer: wait answers 202 when the time is over first', async (t) => {
  const { app } = await testApp(t)
  const response = await post(app, '/runs', { input: 'x' }, { prefer: 'wait=0' })
  t.equal(response.statusCode, 202)
  conforms(t, app, 'createRun', response)
  t.equal(response.headers['preference-applied'], 'wait=0')
  t.equal(response.json<{ status: string }>().status, 'queued')
})

t.test('Prefer: what is not understood is ignored (RFC 7240), and no wait is longer than ten minutes', async (t) => {
  const { app, fake } = await testApp(t)
  for (const prefer of ['respond-async', 'wait=soon', 'waiting=5', 'wait']) {
    const response = await post(app, '/runs', { input: 'x' }, { prefer })
    t.equal(response.statusCode, 201, prefer)
    t.notOk(response.headers['preference-applied'])
  }
  fake.services.runs.wait = async (_caller, id, ms) => {
    t.equal(ms, 600_000)
    return fake.run(id).run
  }
  t.equal((await post(app, '/runs', { input: 'x' }, { prefer: 'wait=999999' })).headers['preference-applied'], 'wait=600')
})

t.test('a client that waits is answered at once when the app closes', async (t) => {
  const { app, fake } = await testApp(t)
  const { origin } = await listening(app)
  const wait = fake.services.runs.wait
  const waiting = new Promise<void>((resolve) => {
    fake.services.runs.wait = (caller, id, ms) => {
      resolve()
      return wait(caller, id, ms)
    }
  })
  const answer = fetch(`${origin}/runs`, { method: 'POST', headers: { 'content-type': 'application/json', prefer: 'wait=600' }, body: '{"input":"x"}' })
  await waiting
  await app.close()
  const response = await answer
  t.equal(response.status, 202)
  const run = await response.json() as { id: string, status: string }
  t.equal(run.status, 'queued')
  fake.end(run.id)
})

t.test('a client that leaves is not waited for', async (t) => {
  const { app, fake } = await testApp(t)
  const { origin } = await listening(app)
  const wait = fake.services.runs.wait
  const ids: string[] = []
  const waiting = new Promise<void>((resolve) => {
    fake.services.runs.wait = (caller, id, ms) => {
      ids.push(id)
      resolve()
      return wait(caller, id, ms)
    }
  })
  const leaving = new AbortController()
  const answer = fetch(`${origin}/runs`, {
    method: 'POST', headers: { 'content-type': 'application/json', prefer: 'wait=600' }, body: '{"input":"x"}', signal: leaving.signal
  })
  await waiting
  leaving.abort()
  await t.rejects(answer)
  await app.close()
  t.equal(fake.run(ids[0] as string).run.status, 'queued', 'the run itself goes on')
  fake.end(ids[0] as string)
})

t.test('a wait is not cut off by a quiet connection', async (t) => {
  const { app, fake } = await testApp(t)
  app.server.setTimeout(50)
  const { origin } = await listening(app)
  const quiet = new Promise<void>((resolve) => {
    app.server.once('connection', (socket) => { void once(socket, 'timeout').then(() => resolve()) })
  })
  const ids: string[] = []
  const wait = fake.services.runs.wait
  fake.services.runs.wait = (caller, id, ms) => {
    ids.push(id)
    return wait(caller, id, ms)
  }
  const answer = fetch(`${origin}/runs`, { method: 'POST', headers: { 'content-type': 'application/json', prefer: 'wait=600' }, body: '{"input":"x"}' })
  await quiet
  fake.end(ids[0] as string)
  t.equal((await answer).status, 200)
})

t.test('POST /runs answers in a media type that is accepted, or 406 and no run', async (t) => {
  const { app, fake } = await testApp(t)
  for (const accept of ['application/json', '*/*', 'application/*', 'text/html, */*;q=0.1', 'text/event-stream;q=0.5, application/json']) {
    const response = await post(app, '/runs', { input: 'x' }, { accept })
    t.match(response.headers['content-type'], /^application\/json/, accept)
  }
  const { runs } = fake.count()
  for (const accept of ['text/html', 'application/json;q=0', 'image/*']) refused(t, await post(app, '/runs', { input: 'x' }, { accept }), 406, 'not_acceptable')
  t.equal(fake.count().runs, runs)
})
