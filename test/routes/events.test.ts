import { connect, type Socket } from 'node:net'
import { once } from 'node:events'
import t from 'tap'
import { unavailable } from '../../src/errors.js'
import type { LiveItem } from '../../src/services/services.js'
import type { FakeServices } from '../support/fake-services.js'
import { conforms, KEY_A, KEY_B, listening, newRun, post, problemOf, raw, read, refused, testApp, twoTenants, until } from '../support/app.js'

const types = (frames: { event: string | undefined }[]) => frames.map(({ event }) => event)
const ids = (frames: { id: string | undefined }[]) => frames.map(({ id }) => id)

t.test('C1: frames have id = seq, from 1, without a gap, and the stream of a run ends after its terminal event (C4)', async (t) => {
  const { app, fake } = await testApp(t)
  const { origin } = await listening(app)
  const { id } = await newRun(app)
  const reader = await read(`${origin}/runs/${id}/events`)
  t.strictSame(await reader.take(1).then(types), ['run.created'])
  fake.emit(id, 'run.started')
  fake.emit(id, 'turn.started', { turn: 1, lane: 'main', attempt: 1, model: 'scripted', message_count: 1 })
  fake.end(id)
  const rest = await reader.rest()
  t.strictSame(types(rest), ['run.started', 'turn.started', 'run.completed'])
  t.strictSame(ids(rest), ['2', '3', '4'])
  t.strictSame(rest.map(({ data }) => data.seq), [2, 3, 4])
  await until(() => app.openStreams() === 0)
  t.equal(fake.readers(), 0)
})

t.test('C1: the bytes of a stream: headers for proxies (E1), retry first, one line of data, a blank line behind each frame', async (t) => {
  const { app, fake } = await testApp(t)
  const { port } = await listening(app)
  const { id, conversation_id: conversation } = await newRun(app)
  fake.end(id, 'completed', 'line\u2028break')
  const { headers, text } = await raw(port, `GET /runs/${id}/events HTTP/1.0\r\nHost: localhost\r\n\r\n`)
  t.match(headers, /^HTTP\/1.1 200 OK/)
  t.match(headers, /^content-type: text\/event-stream; charset=utf-8\r$/m)
  t.match(headers, /^cache-control: no-cache, no-transform\r$/m)
  t.match(headers, /^x-accel-buffering: no\r$/m)
  t.match(headers, /^x-content-type-options: nosniff\r$/m)
  const [first, second] = fake.conversation(conversation).events.map(({ json }) => json)
  t.equal(text, `retry: 1000\n\nid: 1\nevent: run.created\ndata: ${first}\n\nid: 2\nevent: run.completed\ndata: ${second}\n\n`)
})

t.test('C1: headers and the first line are there before the first event', async (t) => {
  const { app } = await testApp(t)
  const { port } = await listening(app)
  const { id } = await newRun(app)
  const socket = connect(port, '127.0.0.1', () => socket.write(`GET /runs/${id}/events?after=1 HTTP/1.1\r\nHost: localhost\r\n\r\n`))
  const [bytes] = await once(socket, 'data') as [Buffer]
  t.match(bytes.toString(), /^HTTP\/1.1 200 OK\r\n/)
  socket.destroy()
})

t.test('C2: Last-Event-ID and ?after= give exactly the rest, from any cut, also while events come', async (t) => {
  const { app, fake } = await testApp(t)
  const { origin } = await listening(app)
  const { id } = await newRun(app)
  const seen: (string | undefined)[] = []
  let produced = 1
  const produce = setInterval(() => fake.emit(id, 'tool.progress', { n: ++produced }), 1)
  t.teardown(() => clearInterval(produce))
  for (let round = 0; round < 20; round++) {
    const after = seen.at(-1) ?? '0'
    const reader = round % 2 === 0
      ? await read(`${origin}/runs/${id}/events?after=${after}`)
      : await read(`${origin}/runs/${id}/events?after=0`, { headers: { 'last-event-id': after } })
    seen.push(...ids(await reader.take(5)))
    await reader.leave()
  }
  t.strictSame(seen, Array.from({ length: 100 }, (_, index) => String(index + 1)))
  await until(() => fake.readers() === 0)
})

t.test('C3: two readers and a late one see the same bytes', async (t) => {
  const { app, fake } = await testApp(t)
  const { origin, port } = await listening(app)
  const { id } = await newRun(app)
  const [one, two] = await Promise.all([read(`${origin}/runs/${id}/events`), read(`${origin}/runs/${id}/events`)])
  fake.emit(id, 'run.started')
  fake.end(id)
  const [a, b] = await Promise.all([one.rest(), two.rest()])
  t.equal(a.length, 3)
  t.strictSame(a, b)
  const get = `GET /runs/${id}/events HTTP/1.0\r\nHost: localhost\r\n\r\n`
  t.equal((await raw(port, get)).text, (await raw(port, get)).text)
})

t.test('E11: who has the terminal event already is answered 204, which stops a browser from reconnecting', async (t) => {
  const { app, fake } = await testApp(t)
  const { id, conversation_id: conversation } = await newRun(app)
  fake.end(id)
  await newRun(app, { conversation_id: conversation })
  for (const after of [2, 3]) {
    const response = await app.inject({ url: `/runs/${id}/events`, headers: { accept: 'text/event-stream', 'last-event-id': String(after) } })
    t.equal(response.statusCode, 204)
    t.equal(response.body, '')
  }
  const response = await app.inject({ url: `/runs/${id}/events?after=1`, headers: { accept: 'text/event-stream' } })
  t.equal(response.statusCode, 200)
  t.match(response.body, /event: run.completed/)
})

t.test('F82: a cursor that is none is 422, not a hang', async (t) => {
  const { app } = await testApp(t)
  const { id, conversation_id: conversation } = await newRun(app)
  for (const url of [`/runs/${id}/events`, `/conversations/${conversation}/events`]) {
    for (const cursor of ['-1', 'x', '1.', '1.0', '1.1', '1.02', '.5', '01', '1.2.3', '1e3', '0x1', ' ', '9007199254740993', '1.9007199254740993', '99999999999999999999', '%00', '1,2']) {
      t.match(refused(t, await app.inject(`${url}?after=${cursor}`), 422, 'validation_failed').errors, [{ in: 'query', pointer: '/after' }], cursor)
    }
    for (const cursor of ['-1', 'x', '1.', '1.1', '', '1, 2']) {
      const response = await app.inject({ url, headers: { 'last-event-id': cursor } })
      t.match(refused(t, response, 422, 'validation_failed').errors, [{ in: 'header', pointer: '/last-event-id' }], cursor)
    }
  }
})

t.test('F82: a cursor ahead of the log: the stream says so, the page refuses it', async (t) => {
  const { app } = await testApp(t)
  const { origin } = await listening(app)
  const { conversation_id: conversation } = await newRun(app)
  const url = `${origin}/conversations/${conversation}/events?after=7`
  const reader = await read(url)
  const [frame] = await reader.take(1)
  t.match(frame, { id: undefined, event: 'stream.reset', data: { reason: 'cursor_ahead', last_seq: 1 } })
  await reader.leave()
  refused(t, await app.inject({ url: `/conversations/${conversation}/events?after=7`, headers: { accept: 'application/json' } }), 422, 'validation_failed')
})

t.test('I4b: from the second epoch on an id names it, and a number that is another event\'s by now is no cursor any more', async (t) => {
  const { app, fake } = await testApp(t)
  const { origin } = await listening(app)
  const { id, conversation_id: conversation } = await newRun(app)
  fake.conversation(conversation).row.epoch = 1_800_000_000_000
  fake.emit(id, 'run.started')
  const page = (query: string) => app.inject({ url: `/conversations/${conversation}/events${query}`, headers: { accept: 'application/json' } })
  const first = (await page('?limit=1')).json<{ next_cursor: string, epoch: number }>()
  t.strictSame([first.next_cursor, first.epoch], ['1', 1_800_000_000_000])
  const second = await page('?limit=1&after=1')
  conforms(t, app, 'streamConversationEvents', second)
  t.strictSame((await page('?after=2.1800000000000')).json(), { data: [], next_cursor: null, epoch: 1_800_000_000_000 })
  t.strictSame((await page('?after=1.1800000000000')).json<{ data: { seq: number }[] }>().data.map(({ seq }) => seq), [2], 'what was read of an idle conversation is good as well')
  t.match(refused(t, await page('?after=2'), 422, 'validation_failed').errors, [{ in: 'query', pointer: '/after', detail: /lost/ }])

  const reader = await read(`${origin}/runs/${id}/events`, { headers: { 'last-event-id': '1' } })
  t.match(await reader.take(1), [{ id: '2.1800000000000', event: 'run.started', data: { seq: 2 } }])
  await reader.leave()
  const stale = await read(`${origin}/runs/${id}/events?after=2`)
  t.match(await stale.take(1), [{ id: undefined, event: 'stream.reset', data: { reason: 'events_lost', epoch: 1_800_000_000_000, last_seq: 2 } }])
  await stale.leave()

  fake.end(id)
  const get = (after: string) => app.inject({ url: `/runs/${id}/events?after=${after}`, headers: { accept: 'text/event-stream' } })
  t.equal((await get('3.1800000000000')).statusCode, 204)
  const ended = await read(`${origin}/runs/${id}/events?after=3`)
  t.equal(ended.response.status, 200, 'not 204: whoever has another end is told so')
  t.match(await ended.take(1), [{ event: 'stream.reset' }])
  await ended.leave()

  const state = await app.inject(`/conversations/${conversation}/state`)
  t.equal(state.headers.etag, '"1.1800000000000"')
  const same = { 'if-none-match': '"1"' }
  t.equal((await app.inject({ url: `/conversations/${conversation}/state`, headers: same })).statusCode, 200, 'a version says nothing beyond its epoch')
})

t.test('one stream over all runs of a conversation, which does not end with a run', async (t) => {
  const { app, fake } = await testApp(t)
  const { origin } = await listening(app)
  const first = await newRun(app)
  const reader = await read(`${origin}/conversations/${first.conversation_id}/events`)
  fake.end(first.id)
  const second = await newRun(app, { conversation_id: first.conversation_id })
  fake.end(second.id)
  const frames = await reader.take(4)
  t.strictSame(types(frames), ['run.created', 'run.completed', 'run.created', 'run.completed'])
  t.strictSame(ids(frames), ['1', '2', '3', '4'])
  const only = await read(`${origin}/runs/${second.id}/events`)
  t.strictSame(ids(await only.rest()), ['3', '4'])
  await reader.leave()
})

t.test('deltas are frames without an id, to every reader of the run', async (t) => {
  const { app, fake } = await testApp(t)
  const { origin } = await listening(app)
  const { id } = await newRun(app)
  const readers = await Promise.all([read(`${origin}/runs/${id}/events`), read(`${origin}/runs/${id}/events`)])
  for (const reader of readers) await reader.take(1)
  fake.say(id, 0, 'Hel')
  fake.say(id, 3, 'lo')
  fake.say(id, 0, 'Hel')
  for (const reader of readers) {
    const frames = await reader.take(3)
    t.strictSame(frames.map(({ event, data }) => [event, data.offset, data.text]), [['turn.delta', 0, 'Hel'], ['turn.delta', 3, 'lo'], ['turn.delta', 0, 'Hel']])
    t.strictSame(ids(frames), [undefined, undefined, undefined])
    await reader.leave()
  }
})

t.test('S6: nothing in an event can end its frame', async (t) => {
  const { app, fake } = await testApp(t)
  const { port } = await listening(app)
  const { id, conversation_id: conversation } = await newRun(app)
  const nasty = ['a\n\nevent: fake\ndata: {}\n\n', 'a\r\rid: 9\r\r', '\r\n\r\n', '\u2028\u2029\u0085', 'a\u0000b', ': comment', 'data: x']
  for (const output of nasty) fake.emit(id, 'tool.progress', { data: output })
  // Line ends between tokens, as a service that stores pretty JSON would have them.
  fake.conversation(conversation).events.push({ seq: 9, epoch: 1, type: 'tool.progress', run_id: id, json: '{\r\n"seq":\n9}' })
  fake.end(id)
  const { text } = await raw(port, `GET /runs/${id}/events HTTP/1.0\r\nHost: localhost\r\n\r\n`)
  const frames = text.split('\n\n').slice(1, -1)
  t.equal(frames.length, nasty.length + 3)
  t.notMatch(text, /\r/)
  for (const [index, frame] of frames.entries()) t.match(frame, new RegExp(`^id: ${index + 1}\\nevent: [a-z_.]+\\ndata: [^\\n]+$`))
  const outputs = frames.slice(1, 1 + nasty.length).map((frame) => (JSON.parse(frame.split('data: ').slice(1).join('data: ')) as { data: string }).data)
  t.strictSame(outputs, nasty)
})

t.test('a page of events has the stored bytes, and goes on from its cursor', async (t) => {
  const { app, fake } = await testApp(t)
  const { id, conversation_id: conversation } = await newRun(app)
  fake.emit(id, 'run.started')
  fake.end(id)
  const get = (query: string) => app.inject({ url: `/conversations/${conversation}/events${query}`, headers: { accept: 'application/json' } })
  const all = await get('')
  conforms(t, app, 'streamConversationEvents', all)
  t.equal(all.body, `{"data":[${fake.conversation(conversation).events.map(({ json }) => json).join(',')}],"next_cursor":null,"epoch":1}`)
  const first = (await get('?limit=2')).json<{ data: { seq: number }[], next_cursor: string }>()
  t.strictSame([first.data.map(({ seq }) => seq), first.next_cursor], [[1, 2], '2'])
  const second = (await get(`?limit=2&after=${first.next_cursor}`)).json<{ data: { seq: number }[], next_cursor: string | null }>()
  t.strictSame([second.data.map(({ seq }) => seq), second.next_cursor], [[3], null])
  t.strictSame((await get('?after=3')).json(), { data: [], next_cursor: null, epoch: 1 })
  const ofRun = await app.inject({ url: `/runs/${id}/events?limit=3`, headers: { accept: 'application/json' } })
  conforms(t, app, 'streamRunEvents', ofRun)
  t.strictSame(ofRun.json(), all.json())
})

t.test('Accept decides between the stream and a page; anything else is 406', async (t) => {
  const { app, fake } = await testApp(t)
  const { id } = await newRun(app)
  fake.end(id)
  const typeFor = async (accept: string) => (await app.inject({ url: `/runs/${id}/events`, headers: accept === '' ? {} : { accept } })).headers['content-type'] as string
  for (const accept of ['', '*/*', 'text/event-stream', 'text/*', 'text/html, */*', 'application/json;q=0.5, text/event-stream']) t.match(await typeFor(accept), /event-stream/, accept)
  for (const accept of ['application/json', 'application/json, */*', 'application/*', 'text/event-stream;q=0, */*']) t.match(await typeFor(accept), /json/, accept)
  for (const accept of ['text/html', 'image/png', 'text/event-stream;q=0']) {
    refused(t, await app.inject({ url: `/runs/${id}/events`, headers: { accept } }), 406, 'not_acceptable')
  }
  refused(t, await app.inject(`/runs/${id}/events?limit=5`), 422, 'validation_failed')
})

t.test('HEAD opens no stream', async (t) => {
  const { app, fake } = await testApp(t)
  const { id, conversation_id: conversation } = await newRun(app)
  for (const url of [`/runs/${id}/events`, `/conversations/${conversation}/events`]) {
    const response = await app.inject({ method: 'HEAD', url })
    t.equal(response.statusCode, 405)
    t.equal(response.headers.allow, 'GET')
  }
  t.notOk(fake.calls.includes('events.live'))
})

t.test('S2: another tenant\'s stream does not exist', async (t) => {
  const { app } = await testApp(t, twoTenants)
  const { id, conversation_id: conversation } = await newRun(app, {}, { authorization: `Bearer ${KEY_A}` })
  for (const url of [`/runs/${id}/events?after=0`, `/conversations/${conversation}/events`]) {
    const theirs = refused(t, await app.inject({ url, headers: { authorization: `Bearer ${KEY_B}` } }), 404, 'not_found')
    const unknown = refused(t, await app.inject({ url: url.replace(/0H(?=\/)/, '0J').replace('conv_0', 'conv_1'), headers: { authorization: `Bearer ${KEY_B}` } }), 404, 'not_found')
    t.strictSame({ ...theirs, instance: '' }, { ...unknown, instance: '' }, 'in the same words as what never was')
  }
})

t.test('POST /runs with Accept: text/event-stream answers with the stream of the run', async (t) => {
  const { app, fake } = await testApp(t)
  const { origin } = await listening(app)
  const reader = await read(`${origin}/runs`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"input":"x"}' })
  t.equal(reader.response.status, 201)
  t.match(reader.response.headers.get('content-type'), /^text\/event-stream/)
  const id = reader.response.headers.get('location')?.slice('/runs/'.length) as string
  t.strictSame(types(await reader.take(1)), ['run.created'])
  fake.end(id)
  t.strictSame(types(await reader.rest()), ['run.completed'])
  const wrong = await post(app, '/runs', {}, { accept: 'text/event-stream' })
  refused(t, wrong, 422, 'validation_failed')
})

t.test('C14: a heartbeat comes when nothing else does, and has no id', async (t) => {
  const { app, fake } = await testApp(t, { heartbeatMs: 30 })
  const { port } = await listening(app)
  const { id } = await newRun(app)
  const socket = connect(port, '127.0.0.1', () => socket.write(`GET /runs/${id}/events HTTP/1.0\r\nHost: localhost\r\n\r\n`))
  let text = ''
  for await (const bytes of socket) {
    text += String(bytes)
    if (text.split('\n:\n').length > 3) fake.end(id)
  }
  t.match(text, /\n\n:\n\n:\n\n/)
  t.match(text, /event: run.completed\n.*\n\n$/)
})

t.test('a reader that leaves ends the handler and the subscription', async (t) => {
  const { app, fake, logs } = await testApp(t)
  const { origin } = await listening(app)
  const { id } = await newRun(app)
  const readers = await Promise.all(Array.from({ length: 10 }, () => read(`${origin}/runs/${id}/events`)))
  for (const reader of readers) await reader.take(1)
  t.strictSame([app.openStreams(), fake.readers()], [10, 10])
  for (const reader of readers) await reader.leave()
  await until(() => app.openStreams() === 0 && fake.readers() === 0)
  t.equal(logs.filter(({ msg, run_id: run }) => msg === 'stream cut off' && run === id).length, 10)
})

/** Holds up the next `runs.get`; resolves `asked` once it is asked for. */
function holdUp ({ services }: FakeServices) {
  const { get } = services.runs
  let go = () => {}
  const held = new Promise<void>((resolve) => { go = resolve })
  const asked = new Promise<void>((resolve) => {
    services.runs.get = async (caller, id) => {
      resolve()
      await held
      services.runs.get = get
      return get(caller, id)
    }
  })
  return { asked, go: () => go() }
}

t.test('a reader that leaves before its stream begins leaves nothing behind', async (t) => {
  const { app, fake } = await testApp(t)
  const { port } = await listening(app)
  const { id } = await newRun(app)
  const { asked, go } = holdUp(fake)
  const connection = once(app.server, 'connection') as Promise<[Socket]>
  const socket = connect(port, '127.0.0.1', () => socket.write(`GET /runs/${id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n`))
  const [serverSide] = await connection
  await asked
  const gone = once(serverSide, 'close')
  socket.destroy()
  await gone
  go()
  // The held request goes on at once; what it does, it does before this one is answered.
  t.equal((await app.inject(`/runs/${id}`)).statusCode, 200)
  t.strictSame([app.openStreams(), fake.readers()], [0, 0])
})

t.test('F53: a stream that was about to begin when the app closed does not begin', async (t) => {
  const { app, fake } = await testApp(t)
  const { port } = await listening(app)
  const { id } = await newRun(app)
  const { asked, go } = holdUp(fake)
  const answer = raw(port, `GET /runs/${id}/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n`)
  await asked
  const closed = app.close()
  await once(app.closing, 'abort')
  go()
  problemOf(t, await answer, 503, 'unavailable')
  await closed
})

/** An endless, fast source that counts what is taken from it. */
function flood (bytes: number) {
  const taken = { items: 0, ended: false }
  const text = 'x'.repeat(bytes)
  async function* items (signal: AbortSignal): AsyncGenerator<LiveItem> {
    try {
      while (!signal.aborted) {
        const seq = ++taken.items
        yield { kind: 'event', event: { seq, epoch: 1, type: 'tool.progress', run_id: null, json: `{"seq":${seq},"text":"${text}"}` } }
      }
    } finally {
      taken.ended = true
    }
  }
  return { taken, items }
}

/** Until nothing more is taken while the event loop goes round and round: every buffer on the way is full. */
async function standstill (taken: { items: number }): Promise<void> {
  for (let before = -1, turns = 0; turns < 100; turns = taken.items === before ? turns + 1 : 0) {
    before = taken.items
    await new Promise((resolve) => setImmediate(resolve))
  }
}

t.test('C14: a reader that stops reading costs a bounded amount, and is cut off', async (t) => {
  const { app, fake } = await testApp(t, { heartbeatMs: 100, stallMs: 300 })
  const { port } = await listening(app)
  const { id } = await newRun(app)
  const { taken, items } = flood(50_000)
  fake.services.events.live = (_caller, _where, { signal }) => items(signal)
  const socket = connect(port, '127.0.0.1', () => socket.write(`GET /runs/${id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n`))
  socket.pause()
  const [serverSide] = await once(app.server, 'connection') as [Socket]
  await once(serverSide, 'close')
  t.ok(taken.items * 50_000 < 30_000_000, `${taken.items} events were taken: what the kernel holds, and no more`)
  await until(() => taken.ended && app.openStreams() === 0)
  socket.destroy()
})

t.test('C14: what waits for a slow reader is one event and no more', async (t) => {
  const { app, fake } = await testApp(t)
  const { port } = await listening(app)
  const { id } = await newRun(app)
  const { taken, items } = flood(50_000)
  fake.services.events.live = (_caller, _where, { signal }) => items(signal)
  const connection = once(app.server, 'connection') as Promise<[Socket]>
  const socket = connect(port, '127.0.0.1', () => socket.write(`GET /runs/${id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n`))
  socket.pause()
  const [serverSide] = await connection
  await standstill(taken)
  t.ok(serverSide.writableLength > 0, 'the reader is behind')
  t.ok(serverSide.writableLength < 2 * 50_100 + 16_384, `${serverSide.writableLength} bytes wait in our memory`)
  socket.destroy()
  await until(() => taken.ended)
})

t.test('E5: a slow reader that does read is not cut off, however long one event takes', async (t) => {
  const { app, fake } = await testApp(t, { heartbeatMs: 50, stallMs: 400 })
  const { port } = await listening(app)
  const { id } = await newRun(app)
  const size = 12_000_000
  fake.emit(id, 'tool.progress', { data: 'x'.repeat(size) })
  fake.end(id)
  const socket = connect(port, '127.0.0.1', () => socket.write(`GET /runs/${id}/events HTTP/1.0\r\nHost: localhost\r\n\r\n`))
  let read = 0
  let tail = ''
  const started = Date.now()
  for await (const bytes of socket) {
    read += (bytes as Buffer).length
    tail = (tail + String(bytes)).slice(-1000)
    // A slow reader is one that takes its time: about 1.5 s for all of it, several times what a standstill may last.
    const late = started + read / size * 1500 - Date.now()
    if (late > 5) await new Promise((resolve) => setTimeout(resolve, late))
  }
  t.ok(read > size)
  t.ok(Date.now() - started > 1000, 'took longer than a standstill may')
  t.match(tail, /event: run.completed/)
})

t.test('C14: others are served while one does not read', async (t) => {
  const { app, fake } = await testApp(t)
  const { origin, port } = await listening(app)
  const { id } = await newRun(app)
  const socket = connect(port, '127.0.0.1', () => socket.write(`GET /runs/${id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n`))
  socket.pause()
  await until(() => app.openStreams() === 1)
  const reader = await read(`${origin}/runs/${id}/events`)
  for (let n = 0; n < 300; n++) fake.emit(id, 'tool.progress', { data: 'x'.repeat(50_000) })
  t.equal((await reader.take(301)).length, 301)
  await reader.leave()
  socket.destroy()
})

t.test('too_many_streams: one more than allowed is refused, and nothing is created for nobody to read', async (t) => {
  const { app, fake } = await testApp(t, { maxStreams: 2 })
  const { origin } = await listening(app)
  const { id } = await newRun(app)
  const readers = [await read(`${origin}/runs/${id}/events`), await read(`${origin}/runs/${id}/events`)]
  const response = await app.inject(`/runs/${id}/events`)
  refused(t, response, 429, 'too_many_streams')
  t.equal(response.headers['retry-after'], '10')
  const { runs } = fake.count()
  refused(t, await post(app, '/runs', { input: 'x' }, { accept: 'text/event-stream' }), 429, 'too_many_streams')
  t.equal(fake.count().runs, runs)
  await readers[0]?.leave()
  await until(() => app.openStreams() === 1)
  const again = await read(`${origin}/runs/${id}/events`)
  t.equal(again.response.status, 200)
  await again.leave()
  await readers[1]?.leave()
})

t.test('F53: when the app closes, every stream ends at once and cleanly, with a time to come back', async (t) => {
  const { app, fake } = await testApp(t)
  const { port } = await listening(app)
  const { id } = await newRun(app)
  const texts = Array.from({ length: 20 }, () => raw(port, `GET /runs/${id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n`))
  await until(() => app.openStreams() === 20)
  const started = performance.now()
  await app.close()
  t.ok(performance.now() - started < 2000, 'in no time')
  const answers = await Promise.all(texts)
  const delays = answers.map(({ text }) => Number(/retry: (\d+)\n\n\r\n0\r\n\r\n$/.exec(text)?.[1]))
  for (const delay of delays) t.ok(delay >= 1000 && delay <= 5000, `retry: ${delay}`)
  t.ok(new Set(delays).size > 1, 'not all at the same time')
  t.equal(fake.readers(), 0)
})

t.test('F53: a reader that does not read does not keep the app open', async (t) => {
  const { app, fake } = await testApp(t)
  const { port } = await listening(app)
  const { id } = await newRun(app)
  const { taken, items } = flood(50_000)
  fake.services.events.live = (_caller, _where, { signal }) => items(signal)
  const socket = connect(port, '127.0.0.1', () => socket.write(`GET /runs/${id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n`))
  socket.on('error', () => {})
  socket.pause()
  await until(() => taken.items > 0)
  await standstill(taken)
  const started = performance.now()
  await app.close()
  t.ok(performance.now() - started < 2000)
  await until(() => taken.ended)
  socket.destroy()
})

t.test('a stream whose source fails ends, and the reader goes on from where it was', async (t) => {
  const { app, fake, logs } = await testApp(t)
  const { origin } = await listening(app)
  const { id } = await newRun(app)
  const live = fake.services.events.live
  fake.services.events.live = async function* () {
    yield* [{ kind: 'event' as const, event: fake.conversation(fake.run(id).run.conversation_id).events[0] as never }]
    throw unavailable({ cause: new Error('Connection is closed.') })
  }
  const reader = await read(`${origin}/runs/${id}/events`)
  t.strictSame(ids(await reader.rest()), ['1'])
  t.match(logs.find(({ msg }) => msg === 'stream failed'), {
    level: 40, route: '/runs/:run_id/events', run_id: id, error: { type: 'ProblemError', code: 'unavailable', cause: { message: 'Connection is closed.' } }
  })
  fake.services.events.live = live
  fake.end(id)
  const again = await read(`${origin}/runs/${id}/events?after=1`)
  t.strictSame(types(await again.rest()), ['run.completed'])
})

t.test('a service that is away before the stream begins is 503, not a broken stream', async (t) => {
  const { app, fake } = await testApp(t)
  const { id, conversation_id: conversation } = await newRun(app)
  fake.fail('runs.get', unavailable())
  fake.fail('conversations.get', unavailable())
  for (const url of [`/runs/${id}/events`, `/conversations/${conversation}/events`]) {
    const response = await app.inject({ url, headers: { accept: 'text/event-stream' } })
    refused(t, response, 503, 'unavailable')
    t.equal(response.headers['retry-after'], '1')
  }
})

t.test('nothing is written into a stream from the side: garbage on its connection only ends it', async (t) => {
  const { app } = await testApp(t)
  const { port } = await listening(app)
  const { id } = await newRun(app)
  const answer = raw(port, `GET /runs/${id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n\x00garbage\r\n\r\n`)
  const { headers, text } = await answer
  t.match(headers, /200 OK|400 Bad Request/)
  t.notMatch(text, /HTTP\/1.1 \d/)
  problemOf(t, await raw(port, '\x00garbage\r\n\r\n'), 400, 'bad_request')
})
