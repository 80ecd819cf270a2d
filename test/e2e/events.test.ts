import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Event } from '../../src/core/event.js'
import { problemIn, type Client, type EventStream } from '../support/client.js'
import { answer, call, delayed, heldAt, latch, say, status, type Latch } from '../support/model-reply.js'
import type { Script } from '../support/model-server.js'
import { many } from '../support/tool-calls.js'
import { story } from '../support/world.js'

/** `turns` turns of `width` calls each, then text: ten events for each turn of three. */
const turnsOf = (turns: number, width: number): Script => (_, n) => n > turns ? say('done') : call(...many(width, 'echo', (i) => ({ value: `${n}.${i}` }), `t${n}c`))

const ids = (stream: EventStream): number[] => stream.events().map(({ seq }) => seq)
const upTo = (n: number, from = 1): number[] => Array.from({ length: n - from + 1 }, (_, i) => i + from)

story('C1: frames have id = seq, from 1, without a gap', async (t, { model, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', turnsOf(3, 3))
  const { stream } = await client.finish({ input: 'conv:a', tools: [tool('echo')] })
  t.same(ids(stream), upTo(35))
  t.same(stream.events().map((event) => event.run_seq), upTo(35))
  t.match(stream.raw(), /^retry: 1000\n\nid: 1\nevent: run\.created\ndata: \{"seq":1,.*\}\n\n/)
  t.same(stream.retries, [1000])
})

story('C2: a reader that is cut every few events, while they are produced, misses none and sees none twice', async (t, { model, service, tool }) => {
  const { client } = await service()
  const seen = new Map<number, Latch>()
  const gate = (turn: number): Latch => {
    const found = seen.get(turn) ?? latch()
    seen.set(turn, found)
    return found
  }
  // Each turn goes on when the reader has seen it begin, so that there always is something to miss.
  const turns = turnsOf(12, 3)
  model.script('conv:a', async (request, n) => {
    await gate(n).opened
    return await turns(request, n)
  })
  const run = await client.start({ input: 'conv:a', tools: [tool('echo')] })
  const frames: string[] = []
  let cuts = 0
  for (let lastEventId = '0', over = false; !over;) {
    const stream = await client.open(`/runs/${run.id}/events`, { lastEventId })
    let read = 0
    for (; read < 5 && !over; read++) {
      await stream.count(read + 1)
      const event = stream.events()[read] as Event
      if (event.type === 'turn.started') gate(event.turn ?? 0).open()
      over = event.type === 'run.completed'
    }
    // What came beyond is thrown away, as a reader does that is cut off in the middle of a chunk.
    frames.push(...stream.frames.filter((frame) => frame.id !== null).slice(0, read).map(({ data }) => data))
    lastEventId = String((JSON.parse(frames.at(-1) ?? '{}') as Event).seq)
    stream.close()
    await stream.ended
    cuts++
  }
  t.ok(cuts > 20)
  t.same(frames, (await client.log({ run: run.id })).map((event) => JSON.stringify(event)))
  t.equal(frames.length, 125)
})

story('F86, C2: reconnecting at every event id gives exactly the rest, by header and by query, and 204 at the end', async (t, { model, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', turnsOf(2, 3))
  const { run, stream } = await client.finish({ input: 'conv:a', tools: [tool('echo')] })
  const whole = stream.events()
  for (let from = 0; from < whole.length; from++) {
    const byHeader = await client.open(`/runs/${run.id}/events`, { lastEventId: String(from) })
    const byQuery = await client.follow(run, from)
    await Promise.all([byHeader.ended, byQuery.ended])
    t.same(ids(byHeader), upTo(whole.length, from + 1), `after ${from}`)
    t.same(byQuery.frames, byHeader.frames)
  }
  const { status: code } = await client.request('GET', `/runs/${run.id}/events`, { headers: { accept: 'text/event-stream', 'last-event-id': String(whole.length) } })
  t.equal(code, 204, 'nothing more will come')
  t.match(problemIn(await client.request('GET', `/runs/${run.id}/events?after=-1`)), { status: 422 })
  t.match(problemIn(await client.request('GET', `/runs/${run.id}/events`, { headers: { 'last-event-id': 'x' } })), { status: 422 })
})

story('C2: a cursor ahead of the log is answered with stream.reset, not with silence', async (t, { model, service }) => {
  const { client } = await service()
  const gate = latch()
  model.script('conv:a', [delayed(say('done'), gate)])
  const run = await client.start({ input: 'conv:a' })
  await model.waitForRequest(() => true)
  const stream = await client.open(`/runs/${run.id}/events`, { lastEventId: '1000' })
  const reset = await stream.until(({ event }) => event === 'stream.reset')
  t.equal(reset.id, null)
  t.match(JSON.parse(reset.data), { reason: 'cursor_ahead', last_seq: 3, conversation_id: run.conversation_id })
  gate.open()
  await stream.ended
  t.same(ids(stream), [4, 5], 'then what follows')
  client.seen.streams.pop()
})

story('C3: two readers see the same, and so does one that comes when all is over', async (t, { model, service, tool }) => {
  const { client } = await service()
  const gate = latch()
  model.script('conv:a', async (request, n) => {
    await gate.opened
    return await turnsOf(4, 3)(request, n)
  })
  const run = await client.start({ input: 'conv:a', tools: [tool('echo')] })
  const [one, two] = await Promise.all([client.follow(run), client.follow(run)])
  await Promise.all([one, two].map((stream) => stream.event('turn.started')))
  gate.open()
  await Promise.all([one.ended, two.ended])
  const late = await client.follow(run)
  await late.ended
  const stored = (stream: EventStream) => stream.frames.filter(({ id }) => id !== null)
  t.same(stored(one), stored(two))
  t.same(stored(late), stored(one))
  t.equal(stored(one).length, 45)
})

story('C4: whatever becomes of a run, it has one terminal event, which is its last, and closes the stream', async (t, { model, service, tool }) => {
  const { client } = await service()
  const gate = latch()
  model.script('conv:completed', [say('done')])
  model.script('conv:incomplete', [call({ name: 'echo', arguments: { value: 1 } })])
  model.script('conv:failed', [status(400)])
  model.script('conv:cancelled', [delayed(say('never'), gate)])
  const finished = await Promise.all([
    client.finish({ input: 'conv:completed' }),
    client.finish({ input: 'conv:incomplete', tools: [tool('echo')], limits: { max_turns: 1 } }),
    client.finish({ input: 'conv:failed' }),
    (async () => {
      const run = await client.start({ input: 'conv:cancelled' })
      const stream = await client.follow(run)
      await stream.event('turn.started')
      await client.cancel(run.id)
      await stream.ended
      return { run: await client.run(run.id), stream }
    })()
  ])
  for (const [i, end] of ['completed', 'incomplete', 'failed', 'cancelled'].entries()) {
    const { run, stream } = finished[i] as typeof finished[0]
    t.equal(run.status, end)
    t.same(await stream.ended, { clean: true })
    t.same(stream.types().filter((type) => /^run\.(completed|incomplete|failed|cancelled)$/.test(type)), [`run.${end}`])
    t.equal(stream.types().at(-1), `run.${end}`)
  }
})

story('C7, C12: a batch is announced, its calls in request order, in one row of numbers, before any of them ends', async (t, { model, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call({ id: 'c1', name: 'echo', arguments: { value: 1 } }, { id: 'c2', name: 'sleep', arguments: { ms: 30 } }, { id: 'c3', name: 'nothing', arguments: {} }), say('done')])
  const { stream } = await client.finish({ input: 'conv:a', tools: [tool('echo'), tool('sleep')] })
  const events = stream.events()
  const at = events.findIndex(({ type }) => type === 'turn.completed')
  t.match(events.slice(at, at + 5).map(({ seq, type, name }) => [seq, type, name]), [
    [at + 1, 'turn.completed', undefined], [at + 2, 'batch.started', undefined], [at + 3, 'tool.started', 'echo'], [at + 4, 'tool.started', 'sleep'], [at + 5, 'tool.failed', 'nothing']
  ])
  t.match(events[at + 1]?.calls, [{ name: 'echo', arguments: { value: 1 } }, { name: 'sleep' }, { name: 'nothing' }])
})

story('C8, C9: each call\'s end is told at once, in the order they end', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call(...many(3, 'hold', (i) => ({ key: `k${i}`, value: i }))), say('done')])
  const stream = await client.follow(await client.start({ input: 'conv:a', tools: [tool('hold')] }))
  for (const i of [1, 2, 0]) {
    t.notOk(stream.types().includes('batch.completed'))
    tools.release(`k${i}`)
    // Told while the others are still held: this would wait for ever otherwise.
    await stream.event('tool.completed', ({ output }) => output === i)
  }
  await stream.ended
  t.same(stream.events().filter(({ type }) => type === 'tool.completed').map(({ output }) => output), [1, 2, 0])
})

story('C10: batch.completed comes once, before the next turn begins', async (t, { model, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', turnsOf(3, 4))
  const { stream } = await client.finish({ input: 'conv:a', tools: [tool('echo')] })
  t.same(stream.types().filter((type) => /^(turn\.started|batch\.completed)$/.test(type)), [
    'turn.started', 'batch.completed', 'turn.started', 'batch.completed', 'turn.started', 'batch.completed', 'turn.started'
  ])
})

story('C11: every event says where it belongs and what it follows from', async (t, { model, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', turnsOf(2, 2))
  const { run, stream } = await client.finish({ input: 'conv:a', tools: [tool('echo')] })
  const events = stream.events()
  const typeOf = (seq: number | undefined) => events[(seq ?? 0) - 1]?.type
  const cause: Record<string, string> = {
    'run.started': 'run.created', 'turn.started': 'run.started|batch.completed', 'turn.completed': 'turn.started', 'batch.started': 'turn.completed',
    'tool.started': 'batch.started', 'tool.completed': 'tool.started', 'batch.completed': 'tool.completed', 'run.completed': 'turn.completed'
  }
  for (const event of events) {
    t.match(event, { run_id: run.id, conversation_id: run.conversation_id, time: /^\d{4}-\d\d-\d\dT[\d:.]+Z$/ })
    if (event.type.startsWith('turn.') || event.type.startsWith('tool.') || event.type.startsWith('batch.')) t.match(event, { turn: Number, lane: 'main' })
    if (event.type.startsWith('tool.') || event.type.startsWith('batch.')) t.match(event, { batch_id: /^batch_/ })
    if (event.type.startsWith('tool.')) t.match(event, { call_id: /^call_/, name: 'echo' })
    if (event.type === 'run.created') t.same(event.caused_by, [])
    else for (const seq of event.caused_by) t.match(typeOf(seq), new RegExp(`^(${cause[event.type]})$`), `${event.type} follows from ${seq}`)
    if (event.type === 'batch.completed') t.equal(event.caused_by.length, 2, 'from all of its calls')
  }
})

story('F83, C14: a reader that reads nothing holds up nobody, and is cut off', async (t, { model, service, tool }) => {
  const { client, app, url } = await service({ http: { stallMs: 3000, heartbeatMs: 500 } })
  const bytes = 600_000
  // Twenty megabytes of events, more than sockets hold; with the final answer beside them none of it goes to the model.
  const calls = [...many(32, 'bomb', () => ({ bytes })), { id: 'end', name: 'final_answer', arguments: { answer: 'done' } }]
  const gate = latch()
  model.script('conv:a', [delayed(answer({ calls, fragment: 1000 }), gate)])
  const run = await client.start({ input: 'conv:a', tools: [tool('bomb')], tool_policy: { final_answer_tool: 'final_answer' }, limits: { max_result_chars: 1_000_000 } })
  const { port } = new URL(url)
  const dead = connect(Number(port), '127.0.0.1').pause()
  t.teardown(() => dead.destroy())
  dead.on('error', () => { /* it is cut off */ })
  dead.write(`GET /runs/${run.id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n`)
  const alive = await client.follow(run)
  await alive.event('turn.started')
  while (app.openStreams() < 2) await sleep(5)
  gate.open()
  t.same(await alive.ended, { clean: true })
  t.equal(alive.types().filter((type) => type === 'tool.completed').length, 33)
  t.equal((await client.run(run.id)).output, 'done')
  // The server says nothing about it to somebody who does not listen: looking is the only way.
  while (app.openStreams() > 0) await sleep(20)
  let got = 0
  dead.on('data', (chunk: Buffer) => { got += chunk.length })
  const closed = new Promise((resolve) => dead.once('close', resolve))
  dead.resume()
  await closed
  t.ok(got < 32 * bytes, `it had got ${got} bytes`)
})

story('C14: heartbeats are comments, carry no id, and come when nothing else does', async (t, { model, service }) => {
  const { client } = await service({ http: { heartbeatMs: 45 } })
  const gate = latch()
  model.script('conv:a', [delayed(say('done'), gate)])
  const run = await client.start({ input: 'conv:a' })
  const stream = await client.follow(run)
  await stream.event('turn.started')
  while (stream.comments < 3) await sleep(5)
  gate.open()
  await stream.ended
  t.match(stream.raw(), /\}\n\n:\n\n/)
  t.same(ids(stream), upTo(5))
})

story('C15: batch.completed says how its calls ended, and its id stays the same from first to last', async (t, { model, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call({ id: 'c1', name: 'echo', arguments: { value: 1 } }, { id: 'c2', name: 'fail', arguments: {} }), ...[say('done')]])
  const { stream } = await client.finish({ input: 'conv:a', tools: [tool('echo'), tool('fail')] })
  const batch = stream.events().filter(({ batch_id: id }) => id !== undefined)
  t.same(batch.map(({ type }) => type).filter((type) => type.startsWith('batch.')), ['batch.started', 'batch.completed'])
  t.equal(new Set(batch.map(({ batch_id: id }) => id)).size, 1)
  t.match(batch.at(-1), { turn: 1, counts: { completed: 1, failed: 1, cancelled: 0 } })
})

/** A turn that has said `before`, and says `after` when the gate opens. */
async function midTurn (client: Client, script: (replies: ReturnType<typeof say>[]) => void, before: string[], after: string[]): Promise<{ run: Parameters<Client['follow']>[0], first: EventStream, gate: Latch }> {
  const gate = latch()
  // One part for the role, then one for each piece.
  script([heldAt(say([...before, ...after]), 1 + before.length, gate)])
  const run = await client.start({ input: 'conv:a' })
  const first = await client.follow(run)
  await first.until(({ event, data }) => event === 'turn.delta' && data.includes(before.at(-1) ?? ''))
  return { run, first, gate }
}

story('a reader that comes in the middle of a turn first gets all text so far, and rebuilds the rest exactly', async (t, { model, service }) => {
  const { client } = await service()
  const { run, first, gate } = await midTurn(client, (replies) => model.script('conv:a', replies), ['Grüße ', 'aus 🏔', '️ — ', 'mid'], ['way', ' 😀😀', ' \u2028\n', 'end'])
  const second = await client.follow(run)
  const delta = await second.until(({ event }) => event === 'turn.delta')
  t.match(JSON.parse(delta.data), { offset: 0, text: 'Grüße aus 🏔️ — mid', turn: 1, attempt: 1, lane: 'main' })
  t.equal(delta.id, null)
  const noId = await client.follow(run, 3)
  await noId.until(({ event }) => event === 'turn.delta')
  gate.open()
  await Promise.all([first.ended, second.ended, noId.ended])
  for (const stream of [first, second, noId]) t.equal(stream.text(1), 'Grüße aus 🏔️ — midway 😀😀 \u2028\nend')
  const late = await client.follow(run)
  await late.ended
  t.notOk(late.frames.some(({ event }) => event === 'turn.delta'), 'the log holds facts, not pieces')
  t.match(late.events().find(({ type }) => type === 'turn.completed'), { text: 'Grüße aus 🏔️ — midway 😀😀 \u2028\nend' })
})

story('half a character never reaches a reader', async (t, { model, service }) => {
  const { client } = await service()
  const { first, gate } = await midTurn(client, (replies) => model.script('conv:a', replies), ['one \ud83d\ude00 ', 'x'], ['\ud83d', '\ude00', '!'])
  gate.open()
  await first.ended
  t.notMatch(first.raw(), /\ufffd|\\ud8/)
})

story('text of a turn that is tried again replaces the text of the try before', async (t, { model, service }) => {
  const { client } = await service()
  const [gate, cutNow] = [latch(), latch()]
  const half = heldAt(say(['Wrong ', 'text that is long', ' and cut']), 3, cutNow)
  model.script('conv:a', [{ ...half, parts: half.parts.slice(0, -3), ending: 'fin', whole: null }, heldAt(say(['Right', '.']), 2, gate)])
  const run = await client.start({ input: 'conv:a' })
  const stream = await client.follow(run)
  await stream.until(({ event, data }) => event === 'turn.delta' && data.includes('long'))
  t.equal(stream.text(1), 'Wrong text that is long')
  cutNow.open()
  await stream.event('turn.retrying')
  await stream.until(({ event, data }) => event === 'turn.delta' && data.includes('Right'))
  t.equal(stream.text(1), 'Right')
  const late = await client.follow(run)
  await late.until(({ event }) => event === 'turn.delta')
  gate.open()
  await Promise.all([stream.ended, late.ended])
  t.same([stream.text(1), late.text(1)], ['Right.', 'Right.'])
})

story('the stream of a conversation goes on over its runs and ends when it is deleted', async (t, { model, service }) => {
  const { client } = await service()
  model.script('conv:a', [say('one'), say('two')])
  const { run } = await client.finish({ input: 'conv:a' })
  const stream = await client.open(`/conversations/${run.conversation_id}/events`)
  await stream.count(5)
  const second = await client.start({ input: 'more', conversation_id: run.conversation_id })
  await stream.event('run.completed', (event) => event.run_id === second.id)
  t.same(ids(stream), upTo(10))
  t.same(stream.events().map((event) => event.run_seq), [...upTo(5), ...upTo(5)])
  await client.request('DELETE', `/conversations/${run.conversation_id}`)
  t.same(await stream.ended, { clean: true })
})

story('a page of events is the same events, byte for byte', async (t, { model, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', turnsOf(2, 3))
  const { run, stream } = await client.finish({ input: 'conv:a', tools: [tool('echo')] })
  const pages: string[] = []
  for (let after: string | null = '0'; after !== null;) {
    const { text } = await client.request('GET', `/runs/${run.id}/events?limit=7&after=${after}`, { headers: { accept: 'application/json' } })
    const page = JSON.parse(text) as { data: Event[], next_cursor: string | null }
    pages.push(text.slice('{"data":['.length, text.lastIndexOf('],"next_cursor"')))
    after = page.next_cursor
  }
  t.equal(pages.filter(Boolean).join(','), stream.frames.filter(({ id }) => id !== null).map(({ data }) => data).join(','))
  t.ok(pages.length >= 4)
})
