import { Redis } from 'ioredis'
import { createKeys } from '../../src/store/keys.js'
import { problemIn, within } from '../support/client.js'
import { lastId, oneContentPerId, resetOf, watchConversation } from '../support/epochs.js'
import { call, heldAt, latch, say } from '../support/model-reply.js'
import { many } from '../support/tool-calls.js'
import { story } from '../support/world.js'
import type { Call } from '../../src/schemas/run.js'
import type { PrivateRedis } from '../support/redis.js'

/** Short times, so that what was lost is missed soon. */
const env = { INTERLOCK_LOCK_TTL_MS: '1000', INTERLOCK_SWEEP_MS: '200', INTERLOCK_STALLED_MS: '1000' }
const options = { ownRedis: true, env, except: ['rollback' as const, 'deltas' as const] }

/** The machine loses power: its Redis comes back with what stood on disk at the time of the image. */
async function rollBack (server: PrivateRedis | null, image: string): Promise<void> {
  await server?.kill()
  server?.restore(image)
  await server?.start()
}

const pageOf = (after: string) => ({ path: `?after=${after}`, options: { headers: { accept: 'application/json' } } })

story('F61, I15: Redis loses acknowledged runs: the next epoch begins, readers that stayed and readers that come back are reset, all goes on', async (t, { model, service, server }) => {
  const { client } = await service()
  model.otherwise(({ n }) => say(`answer ${n}`))
  const { run: kept } = await client.finish({ input: 'conv:kept' })
  const id = kept.conversation_id
  const stayed = await client.open(`/conversations/${id}/events`)
  await stayed.event('run.completed')
  const { run: idle } = await client.finish({ input: 'conv:idle' })
  const untouched = await client.open(`/conversations/${idle.conversation_id}/events`)
  await untouched.event('run.completed')
  const watched = watchConversation(t, client, id)
  const image = server?.image() ?? ''

  const { run: lost } = await client.finish({ input: 'never was', conversation_id: id })
  await stayed.event('run.completed', ({ run_id: run }) => run === lost.id)
  const { run: gone } = await client.finish({ input: 'conv:gone' })
  const seen = lastId(stayed)
  const before = await client.conversation(id)
  t.equal(before.epoch, 1)
  await rollBack(server, image)

  const reset = await resetOf(stayed)
  t.match(reset, { reason: 'cursor_ahead', last_seq: 5, snapshot: { id, last_seq: 5 } })
  t.ok(reset.epoch > 1)
  const now = await client.conversation(id)
  t.match(now, { epoch: reset.epoch, last_seq: 5 }, 'before anything is written')
  t.ok(now.version < before.version)
  const back = await client.open(`/conversations/${id}/events`, { lastEventId: seen })
  t.match(await resetOf(back), { reason: 'cursor_ahead', epoch: reset.epoch, last_seq: 5 })
  const { path, options } = pageOf(seen)
  t.match(problemIn(await client.request('GET', `/conversations/${id}/events${path}`, options)), { status: 422, code: 'validation_failed', errors: [{ pointer: '/after', detail: /lost/ }] })
  for (const run of [lost, gone]) t.match(problemIn(await client.request('GET', `/runs/${run.id}`)), { status: 404 })
  t.match(problemIn(await client.request('GET', `/conversations/${gone.conversation_id}`)), { status: 404 })
  t.match(problemIn(await client.request('GET', `/runs/${lost.id}/events`, { headers: { 'last-event-id': seen } })), { status: 404 })

  const { run: next } = await client.finish({ input: 'and now?', conversation_id: id })
  t.equal(next.status, 'completed')
  for (const stream of [stayed, back]) {
    const end = await stream.event('run.completed', ({ run_id: run }) => run === next.id)
    t.equal(end.seq, 10, 'the numbers of what was lost are given again')
    t.equal(lastId(stream), `10.${reset.epoch}`)
  }
  t.same((await client.messages(id)).map(({ content }) => content), ['conv:kept', 'answer 1', 'and now?', 'answer 3'])
  const late = await client.open(`/conversations/${id}/events`, { lastEventId: seen })
  t.match(await resetOf(late), { reason: 'events_lost', last_seq: 10 }, 'also when the log has grown over its number')
  const again = pageOf(seen)
  t.match(problemIn(await client.request('GET', `/conversations/${id}/events${again.path}`, again.options)), { errors: [{ pointer: '/after' }] })

  const { run: more } = await client.finish({ input: 'go on', conversation_id: idle.conversation_id })
  await untouched.event('run.completed', ({ run_id: run }) => run === more.id)
  t.notOk(untouched.frames.some(({ event }) => event === 'stream.reset'), 'who has lost nothing is not disturbed')
  t.same(untouched.events().map(({ seq }) => seq), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
  const resumed = await client.open(`/conversations/${idle.conversation_id}/events`, { lastEventId: '5' })
  await resumed.count(5)
  t.same(resumed.events().map(({ seq }) => seq), [6, 7, 8, 9, 10])
  t.same(await watched.stop(), [1, reset.epoch])
}, options)

story('I4b: the same image comes back again and again, also with a conversation that is made again under its name: no id ever names two contents', async (t, { model, service, server }) => {
  const { client } = await service()
  model.otherwise(({ n }) => say(`answer ${n}`))
  const start = async (conversation: string) => {
    const made = await client.request('POST', '/conversations', { body: { id: conversation } })
    t.ok(made.status === 201 || made.status === 409)
    const run = await client.start({ input: `conv:${conversation}`, conversation_id: conversation })
    return await client.ended(run)
  }
  await start('kept')
  const image = server?.image() ?? ''
  const epochs: number[] = []
  const streams = [await client.open('/conversations/kept/events')]
  for (let round = 0; round < 3; round++) {
    for (const conversation of ['kept', 'anew']) {
      await start(conversation)
      const stream = await client.open(`/conversations/${conversation}/events`)
      await stream.event('run.completed', ({ run_seq: n, seq = 0 }) => n === 5 && (conversation === 'anew' || seq > 5))
      streams.push(stream)
    }
    epochs.push((await client.conversation('kept')).epoch)
    await rollBack(server, image)
    // Whose conversation is gone is told nothing more, so nobody can tell from these streams that what they show is lost.
    client.seen.streams = client.seen.streams.filter(({ path }) => !path.includes('anew'))
  }
  await start('kept')
  await start('anew')
  for (const conversation of ['kept', 'anew']) {
    const whole = await client.open(`/conversations/${conversation}/events`)
    await whole.count((await client.conversation(conversation)).last_seq)
    streams.push(whole)
  }
  oneContentPerId(t, streams)
  t.same(epochs, [...new Set(epochs)].sort((a, b) => a - b), 'every time another epoch, and a later one')
  const [stayed] = streams
  t.equal(stayed?.frames.filter(({ event }) => event === 'stream.reset').length, 3, 'who stayed was told every time')
}, options)

story('F61: Redis goes back while turns and calls are at work: late words change nothing, every payload is valid, everything ends', async (t, { model, tools, service, server, tool }) => {
  const { client } = await service()
  const all = Array.from({ length: 6 }, (_, i) => i)
  model.otherwise(({ body: { messages }, conversation }) => {
    const turn = messages.filter(({ role }) => role === 'assistant').length
    return turn > 3 ? say(['all ', `done ${conversation}`]) : call(...many(3, 'sleep', (i) => ({ ms: 15 * i, value: i }), `${turn}c`))
  })
  const runs = await Promise.all(all.map((i) => client.start({ input: `conv:${i}`, tools: [tool('sleep', { effects: 'read' })] })))
  const streams = await Promise.all(runs.map((run) => client.open(`/conversations/${run.conversation_id}/events`)))
  const watched = runs.map((run) => watchConversation(t, client, run.conversation_id))
  for (const least of [12, 30, 50]) {
    // Somewhere in the middle of things, then some more that will be lost.
    await tools.waitFor((attempts) => attempts.length >= least)
    const image = server?.image() ?? ''
    await tools.waitFor((attempts) => attempts.length >= least + 10)
    await rollBack(server, image)
  }
  for (const run of runs) t.match(await client.ended(run), { status: 'completed', output: /all done/ })
  for (const run of runs) {
    const { data } = await client.get<{ data: Call[] }>(`/runs/${run.id}/calls?limit=100`)
    t.equal(data.filter(({ status }) => status === 'completed').length, 12)
    const { run: next } = await client.finish({ input: 'more', conversation_id: run.conversation_id, tools: [tool('sleep', { effects: 'read' })] })
    t.equal(next.status, 'completed')
  }
  for (const each of watched) await each.stop()
  oneContentPerId(t, streams)
}, options)

story('F61: an LLM call and a tool call of a time that is lost: their results come late and are refused', async (t, { model, tools, service, server, tool }) => {
  const { client } = await service()
  const gate = latch()
  let late = true
  model.script('conv:a', async ({ body: { messages } }) => {
    const last = messages.at(-1)
    if (last?.role === 'tool') return say('done')
    return late ? heldAt(say(['of a time ', 'that never was']), 2, gate) : call({ id: 'c', name: 'hold', arguments: { key: 'h', value: 'x' } })
  })
  const made = await client.request('POST', '/conversations', { body: { id: 'a' } })
  t.equal(made.status, 201)
  const image = server?.image() ?? ''
  const lost = await client.start({ input: 'conv:a', conversation_id: 'a' })
  const stream = await client.follow(lost)
  await stream.until(({ event }) => event === 'turn.delta')
  late = false
  await rollBack(server, image)
  await stream.ended
  t.match(JSON.parse(stream.frames.findLast(({ event }) => event === 'stream.reset')?.data ?? '{}'), { snapshot: null }, 'a run that is lost altogether: its reader is told, and not kept')
  const run = await client.start({ input: 'conv:a', conversation_id: 'a', tools: [tool('hold', { effects: 'write' })] })
  await tools.waitFor((attempts) => attempts.length === 1)
  gate.open()
  const { log, messages } = { log: await client.log({ conversation: 'a' }), messages: await client.messages('a') }
  t.notMatch(JSON.stringify([log, messages]), /never was/)
  const second = server?.image() ?? ''
  tools.release('h')
  t.match(await client.ended(run), { status: 'completed' })
  await rollBack(server, second)
  // Nobody works on the call any more, although its worker lives: the sweep finds out, and nobody knows whether it took effect.
  const end = await client.ended(run)
  t.match(end, { status: 'completed', output: 'done' })
  t.match(await client.calls(run.id), [{ name: 'hold', status: 'failed', error: { code: 'outcome_unknown' } }])
  t.equal(tools.attempts.length, 1, 'and a call that writes is not made twice')
}, options)

story('F71: FLUSHALL: everything is 404, late workers bring nothing back, and what is made again is of another epoch', async (t, { model, tools, service, server, tool, redis, keys }) => {
  const { client, logs } = await service()
  const gate = latch()
  model.otherwise(({ conversation, body: { messages } }) => {
    if (conversation === 'conv:llm') return heldAt(say(['late ', 'answer']), 2, gate)
    return messages.at(-1)?.role === 'tool' || conversation === 'conv:named' ? say('done') : call({ id: 'c', name: 'hold', arguments: { key: 'h', value: 'x' } })
  })
  await client.request('POST', '/conversations', { body: { id: 'named' } })
  const named = await client.start({ input: 'conv:named', conversation_id: 'named' })
  await client.ended(named)
  const runs = [await client.start({ input: 'conv:llm' }), await client.start({ input: 'conv:tool', tools: [tool('hold')] })]
  const streams = await Promise.all(runs.map((run) => client.follow(run)))
  await tools.waitFor((attempts) => attempts.length === 1)
  await streams[0]?.until(({ event }) => event === 'turn.delta')
  const admin = new Redis(server?.url ?? '')
  t.teardown(() => admin.quit())
  await admin.flushall()
  for (const run of [named, ...runs]) {
    for (const path of [`/runs/${run.id}`, `/runs/${run.id}/events`, `/runs/${run.id}/calls`, `/conversations/${run.conversation_id}`, `/conversations/${run.conversation_id}/events`]) {
      t.match(problemIn(await client.request('GET', path, { headers: { 'last-event-id': '3' } })), { status: 404 }, path)
    }
    t.match(problemIn(await client.request('POST', `/runs/${run.id}/messages`, { body: { content: 'hello?' } })), { status: 404 })
  }
  gate.open()
  tools.release('h')
  await within((async () => {
    while (logs.filter((line) => line.includes('word was refused')).length < 2) await new Promise((resolve) => setTimeout(resolve, 20))
  })(), () => `both late words are refused: ${logs.join('\n')}`)
  const held = (await keys()).filter((key) => /:(conv|due|runs|lock)\b/.test(key))
  t.same(held, [], 'nothing of it came back')
  for (const stream of streams) {
    // What wakes a reader that nobody tells is a look of its own, 15 s later; the next event of its channel does as well.
    await admin.publish(createKeys(redis.prefix, 16).live(stream.events()[0]?.conversation_id ?? ''), 'g')
    await stream.ended
  }
  await client.request('POST', '/conversations', { body: { id: 'named' } })
  const { epoch } = await client.conversation('named')
  t.ok(epoch > 1, 'a conversation of the same name has ids of its own')
  const again = await client.start({ input: 'conv:named', conversation_id: 'named' })
  t.equal((await client.ended(again)).status, 'completed')
  const reader = await client.open('/conversations/named/events', { lastEventId: '5' })
  t.match(await resetOf(reader), { reason: 'events_lost', epoch, last_seq: 5 })
}, options)

story('I4b: a conversation made under the name of a deleted one: a reader of the old one is told, and no event id comes twice', async (t, { model, service }) => {
  const { client } = await service()
  model.otherwise(() => say('done'))
  const lives: string[][] = []
  for (let life = 0; life < 2; life++) {
    await client.request('POST', '/conversations', { body: { id: 'mine' } })
    await client.ended(await client.start({ input: `life ${life}`, conversation_id: 'mine' }))
    await client.ended(await client.start({ input: 'once more', conversation_id: 'mine' }))
    const reader = await client.open('/conversations/mine/events', life === 0 ? {} : { lastEventId: '3' })
    if (life > 0) {
      const { epoch, last_seq } = await client.conversation('mine')
      t.ok(epoch > 1)
      t.match(await resetOf(reader), { reason: 'events_lost', epoch, last_seq, snapshot: { id: 'mine' } })
    }
    const whole = await client.open('/conversations/mine/events')
    await whole.until(({ data }) => (JSON.parse(data) as { seq?: number }).seq === 10)
    lives.push(whole.frames.flatMap(({ id }) => id === null ? [] : [id]))
    t.match(await client.request('DELETE', '/conversations/mine'), { status: 204 })
    await whole.ended
  }
  const [first, second] = lives as [string[], string[]]
  t.same(first, Array.from({ length: 10 }, (_, i) => `${i + 1}`))
  t.equal(second.length, 10)
  t.same(first.filter((id) => second.includes(id)), [])
})
