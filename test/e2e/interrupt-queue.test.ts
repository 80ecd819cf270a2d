import { createClient, problemIn } from '../support/client.js'
import { answer, call, delayed, heldAt, latch, say, status, type Reply } from '../support/model-reply.js'
import { begin, send, tell, told } from '../support/schedule-http.js'
import { story } from '../support/world.js'

interface Waiting { message_id: string, mode: string, content: unknown, due_at: string | null, position: number }

story('I10, I17: a message to an ended run is refused with the conversation to go on with, and there it is an ordinary run', async (t, { model, service }) => {
  const { client } = await service()
  model.script('conv:a', [say('first'), say('second')])
  const { run } = await client.finish({ input: 'conv:a' })
  const late = problemIn(await tell(client, run, { content: 'and then?' }))
  t.match(late, { status: 409, code: 'run_ended', conversation_id: run.conversation_id, retryable: false })
  const { stream } = await client.finish({ input: 'and then?', conversation_id: late.conversation_id })
  t.same(stream.types(), ['run.created', 'run.started', 'turn.started', 'turn.completed', 'run.completed'])
  t.same(told(model.requests()[1]), ['conv:a', 'first', 'and then?'])
})

story('FAULTS F34, I11: queued messages wait for the final answer, then the run goes on with them, in order', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call({ name: 'hold', arguments: { key: 'x', value: 'seen' } }), say('done'), say('really done')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [tool('hold')] })
  await tools.waitFor((attempts) => attempts.length === 1)
  for (let i = 1; i <= 3; i++) {
    t.match(await send(client, run, { content: `queued ${i}`, mode: 'queue' }), { receipt: 'queued', mode: 'queue', position: i, cancelled_call_ids: [] })
  }
  t.match(await client.get<{ data: Waiting[] }>(`/runs/${run.id}/messages`), { data: [1, 2, 3].map((i) => ({ content: `queued ${i}`, position: i })) })
  tools.release('x')
  await stream.ended
  const [, second, third] = model.requests()
  t.same(told(second), ['conv:a', '→ hold', '= seen'], 'the next turn does not have them')
  t.same(told(third), ['conv:a', '→ hold', '= seen', 'done', 'queued 1', 'queued 2', 'queued 3'])
  t.match(await client.run(run.id), { status: 'completed', output: 'really done' })
  t.notOk(stream.types().some((type) => type.endsWith('.cancelled')))
})

story('FAULTS F34, I11: steer waits for the turn boundary and stops nothing', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  const go = latch()
  model.script('conv:a', [delayed(call({ name: 'hold', arguments: { key: 'x', value: 'seen' } }), go), say('done')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [tool('hold')] })
  await model.waitForRequest(() => true)
  t.match(await send(client, run, { content: 'during the call', mode: 'steer' }), { receipt: 'queued', mode: 'steer', position: 1 })
  go.open()
  await tools.waitFor((attempts) => attempts.length === 1)
  t.match(await send(client, run, { content: 'during the batch', mode: 'steer' }), { receipt: 'queued', mode: 'steer', position: 2 })
  t.same((await client.messages(run.conversation_id)).map(({ content }) => content), ['conv:a'])
  tools.release('x')
  await stream.ended
  t.same(told(model.requests()[1]), ['conv:a', '→ hold', '= seen', 'during the call', 'during the batch'])
  t.same(model.requests().map(({ aborted }) => aborted), [false, false])
})

story('I12: ten messages at once: none lost, order kept, one LLM call at a time', async (t, { model, service }) => {
  const { client } = await service()
  model.otherwise(({ body }) => body.messages.length < 11 ? delayed(say('never'), latch()) : say('yes'))
  const { run, stream } = await begin(client, { input: 'conv:a' })
  await model.waitForRequest(() => true)
  await Promise.all(Array.from({ length: 10 }, (_, i) => send(client, run, `message ${i}`)))
  await stream.ended
  const order = stream.events().filter(({ type }) => type === 'message.accepted').map(({ content }) => content)
  t.same([...order].sort(), Array.from({ length: 10 }, (_, i) => `message ${i}`))
  t.same(told(model.requests().at(-1)), ['conv:a', ...order])
  t.equal(model.maxInFlight('conv:a'), 1)
})

for (const queued of ['deliver', 'supersede'] as const) {
  story(`I13: messages that wait when an interrupt comes, with queued: ${queued}`, async (t, { model, service }) => {
    const { client } = await service()
    model.script('conv:a', [delayed(say('never'), latch()), say('yes')])
    const { run, stream } = await begin(client, { input: 'conv:a' })
    await model.waitForRequest(() => true)
    const ids: string[] = []
    for (const mode of ['queue', 'steer', 'queue'] as const) ids.push((await send(client, run, { content: `waiting ${ids.length}`, mode })).message_id)
    const { message_id: newest } = await send(client, run, { content: 'rather this', queued })
    await stream.ended
    t.same(told(model.requests()[1]), ['conv:a', ...queued === 'deliver' ? ['waiting 0', 'waiting 1', 'waiting 2'] : [], 'rather this'])
    const of = (type: string) => stream.events().filter((event) => event.type === type).map((event) => event.message_id)
    t.same(of('message.delivered'), queued === 'deliver' ? [...ids, newest] : [newest])
    t.same(of('message.superseded'), queued === 'deliver' ? [] : ids)
    t.same(stream.events().filter(({ type }) => type === 'message.accepted').length, 4, 'what was superseded stays readable in the log')
  })
}

story('I15: where the batch is complete the message is queued, and comes behind the results', async (t, { model, tools, service, tool }) => {
  const { client } = await service({ roles: { api: true, worker: false } })
  // A worker that stops takes no more turns, but still says what its calls gave: then a run stands between its batch and its next turn.
  const leaving = await service({ roles: { api: false, worker: true }, env: { INTERLOCK_SWEEP_MS: '3600000' } })
  model.script('conv:a', [call({ name: 'hold', arguments: { key: 'x', value: 'seen' } }), say('yes')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [tool('hold')] })
  await tools.waitFor((attempts) => attempts.length === 1)
  const left = leaving.stop()
  await until(async () => (await leaving.instance.services.health.ready()).checks.process === 'stopping' || null)
  tools.release('x')
  await stream.event('batch.completed')
  for (const [i, mode] of (['auto', 'interrupt', 'steer'] as const).entries()) {
    t.match(await send(client, run, { content: mode, mode }), { receipt: 'queued', mode: 'steer', position: i + 1, cancelled_call_ids: [] })
  }
  await left
  t.equal(model.requests().length, 1)
  await service({ roles: { api: false, worker: true } })
  await stream.ended
  t.same(told(model.requests()[1]), ['conv:a', '→ hold', '= seen', 'auto', 'interrupt', 'steer'])
})

story('I16: a message while the final answer is streamed interrupts it, or continues the run behind it', async (t, { model, service }) => {
  const { client } = await service()
  const go = latch()
  model.script('conv:a', [heldAt(say(['the final ', 'answer']), 2, latch()), say('yes')])
  model.script('conv:b', [heldAt(say(['the final ', 'answer']), 2, go), say('yes')])
  const interrupted = await begin(client, { input: 'conv:a' })
  const continued = await begin(client, { input: 'conv:b' })
  await Promise.all([interrupted, continued].map(({ stream }) => stream.until(({ event }) => event === 'turn.delta')))
  t.match(await send(client, interrupted.run, 'and this?'), { receipt: 'interrupted' })
  t.match(await send(client, continued.run, { content: 'and this?', mode: 'queue' }), { receipt: 'queued' })
  go.open()
  await Promise.all([interrupted.stream.ended, continued.stream.ended])
  t.same(told(model.requests('conv:a')[1]), ['conv:a', 'and this?'])
  t.same(told(model.requests('conv:b')[1]), ['conv:b', 'the final answer', 'and this?'])
  t.equal((await client.run(continued.run.id)).output, 'yes')
})

story('I22: delayed messages never interrupt, say when they are due, and come then, in that order', async (t, { model, tools, service, tool }) => {
  const { client } = await service({ env: { INTERLOCK_SWEEP_MS: '50' } })
  model.script('conv:a', [call({ name: 'hold', arguments: { key: 'x', value: 'seen' } }), say('yes'), say('and that')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [tool('hold')] })
  await tools.waitFor((attempts) => attempts.length === 1)
  const before = Date.now()
  for (const [i, seconds] of [0.4, 0.2, 60].entries()) {
    t.match(await send(client, run, { content: `after ${seconds} s`, after_seconds: seconds, mode: 'interrupt' }), { receipt: 'scheduled', mode: 'steer', position: i + 1 })
  }
  const { data } = await client.get<{ data: Waiting[] }>(`/runs/${run.id}/messages`)
  for (const [i, seconds] of [0.4, 0.2].entries()) {
    const due = Date.parse(data[i]?.due_at ?? '')
    // The service goes by the clock of Redis, ours may differ a little.
    t.ok(due >= before + seconds * 1000 - 100 && due <= Date.now() + seconds * 1000 + 100, 'the due time is told')
  }
  t.same(stream.types().filter((type) => type.endsWith('.cancelled')), [])
  // Once both are due they are not scheduled any more.
  const due = await until(async () => {
    const { data: now } = await client.get<{ data: Waiting[] }>(`/runs/${run.id}/messages`)
    return now.filter((message) => message.due_at === null).length === 2 ? now : null
  })
  t.same(due.map(({ content }) => content), ['after 60 s', 'after 0.2 s', 'after 0.4 s'])
  tools.release('x')
  await stream.ended
  t.same(told(model.requests()[1]), ['conv:a', '→ hold', '= seen', 'after 0.2 s', 'after 0.4 s'])
  t.equal((await client.run(run.id)).status, 'completed', 'a message that is not due keeps no run')
})

story('I22: a delayed message that outlives its run enters the ledger when due, for the next run', async (t, { model, service }) => {
  const { client } = await service({ env: { INTERLOCK_SWEEP_MS: '50' } })
  const gate = latch()
  model.script('conv:a', [delayed(say('first'), gate), say('second')])
  const { run, stream } = await begin(client, { input: 'conv:a' })
  await model.waitForRequest(() => true)
  await send(client, run, { content: 'later', after_seconds: 2 })
  gate.open()
  const all = await client.open(`/conversations/${run.conversation_id}/events`)
  await stream.ended
  await all.event('message.delivered')
  all.close()
  t.same((await client.messages(run.conversation_id)).map(({ content }) => content), ['conv:a', 'first', 'later'])
  await client.finish({ input: 'go on', conversation_id: run.conversation_id })
  t.same(told(model.requests()[1]), ['conv:a', 'first', 'later', 'go on'])
})

story('I24: over max_queued_messages: 429, nothing accepted, those before intact', async (t, { model, service }) => {
  const { client } = await service()
  const go = latch()
  model.script('conv:a', [delayed(say('done'), go), say('yes')])
  const { run, stream } = await begin(client, { input: 'conv:a', limits: { max_queued_messages: 3 } })
  await model.waitForRequest(() => true)
  const answers = await Promise.all([1, 2, 3, 4, 5].map((i) => tell(client, run, { content: `message ${i}`, mode: 'queue' })))
  const refused = answers.filter(({ status }) => status === 429)
  t.equal(refused.length, 2)
  for (const answer of refused) {
    t.match(problemIn(answer), { code: 'queue_full', limit: 3, retryable: true })
    t.match(answer.headers, { 'retry-after': '1' })
  }
  go.open()
  await stream.ended
  const accepted = stream.events().filter(({ type }) => type === 'message.accepted').map(({ content }) => content)
  t.equal(accepted.length, 3)
  t.same(told(model.requests()[1]), ['conv:a', 'done', ...accepted])
})

const exits: Record<string, Reply[]> = {
  ended: [say('done')],
  'failed at the provider': [status(401, { message: 'no such key' })],
  'been cut at the token limit': [answer({ text: 'do', finish: 'length' })],
  'been cancelled': [delayed(say('never'), latch())]
}
for (const [how, replies] of Object.entries(exits)) {
  story(`I25, I26: after a run has ${how} nothing is left of it: messages are refused, and the next run takes them`, async (t, { model, service }) => {
    const { client } = await service()
    model.script('conv:a', [...replies, delayed(say('never'), latch()), say('yes')])
    const { run, stream } = await begin(client, { input: 'conv:a' })
    if (how === 'been cancelled') {
      await model.waitForRequest(() => true)
      await client.cancel(run.id)
    }
    await stream.ended
    t.match(problemIn(await tell(client, run, { content: 'late' })), { status: 409, code: 'run_ended', conversation_id: run.conversation_id })
    const next = await begin(client, { input: 'go on', conversation_id: run.conversation_id })
    await model.waitForRequest(({ n }) => n === 2)
    t.match(await send(client, next.run, 'rather this'), { receipt: 'interrupted' })
    await next.stream.ended
    t.same(told(model.requests()[2]).slice(-2), ['go on', 'rather this'])
    t.match(await client.conversation(run.conversation_id), { active_run_id: null, queued_run_ids: [], waiting_for: null })
  })
}

story('I26: messages that wait when the LLM fails are not stranded: the next run has them', async (t, { model, service }) => {
  const { client } = await service()
  const go = latch()
  model.script('conv:a', [delayed(status(401), go), say('yes')])
  const { run, stream } = await begin(client, { input: 'conv:a' })
  await model.waitForRequest(() => true)
  await send(client, run, { content: 'queued', mode: 'queue' })
  await send(client, run, { content: 'steering', mode: 'steer' })
  go.open()
  await stream.ended
  t.same(stream.types().slice(-3), ['message.delivered', 'message.delivered', 'run.failed'])
  await client.finish({ input: 'go on', conversation_id: run.conversation_id })
  t.same(told(model.requests()[1]), ['conv:a', 'queued', 'steering', 'go on'])
})

story('I31: a hundred interrupts, and the run ends once they stop', async (t, { model, service }) => {
  const { client } = await service()
  model.otherwise(({ body }) => body.messages.length <= 100 ? delayed(say('never'), latch()) : say('yes'))
  const { run, stream } = await begin(client, { input: 'conv:a' })
  for (let i = 0; i < 100; i++) await send(client, run, `message ${i}`)
  await stream.ended
  t.match(await client.run(run.id), { status: 'completed', output: 'yes' })
  t.same(told(model.requests().at(-1)), ['conv:a', ...Array.from({ length: 100 }, (_, i) => `message ${i}`)])
  t.equal(model.maxInFlight(), 1)
})

// --- Another run on a busy conversation ----------------------------------------------------------------------------------------------

story('B5: on_active_run queue: the second run waits, and messages find theirs', async (t, { model, service }) => {
  const { client } = await service()
  const go = latch()
  model.script('conv:a', [delayed(say('first'), go), say('second')])
  const one = await begin(client, { input: 'conv:a' })
  await model.waitForRequest(() => true)
  const two = await begin(client, { input: 'go on', conversation_id: one.run.conversation_id })
  t.match(await send(client, two.run, 'for the second'), { receipt: 'queued', mode: 'steer', position: 1 })
  go.open()
  await Promise.all([one.stream.ended, two.stream.ended])
  t.same(told(model.requests()[1]), ['conv:a', 'first', 'go on', 'for the second'])
})

story('B5: on_active_run interrupt: the first ends as cancelled, what it has finished stays, the second starts at once', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [
    call({ name: 'hold', arguments: { key: 'done', value: 'seen' } }, { name: 'hold', arguments: { key: 'open' } }), say('second'), say('third')
  ])
  const one = await begin(client, { input: 'conv:a', tools: [tool('hold')] })
  tools.release('done')
  await one.stream.event('tool.completed')
  await send(client, one.run, { content: 'queued', mode: 'queue' })
  const waiting = await begin(client, { input: 'last', conversation_id: one.run.conversation_id, tools: [tool('hold')] })
  const two = await begin(client, { input: 'go on', conversation_id: one.run.conversation_id, on_active_run: 'interrupt', tools: [tool('hold')] })
  await Promise.all([one, two, waiting].map(({ stream }) => stream.ended))
  t.match(await client.run(one.run.id), { status: 'cancelled' })
  t.match(one.stream.events().at(-1), { type: 'run.cancelled', reason: `interrupted_by ${two.run.id}` })
  t.same(told(model.requests()[1]), ['conv:a', '→ hold', '= seen', 'queued', 'go on'])
  t.same(told(model.requests()[2]).slice(-3), ['go on', 'second', 'last'], 'before those that waited')
  await tools.waitFor((attempts) => attempts.every(({ ended_at: ended }) => ended !== null))
})

story('B5: on_active_run rollback: the first leaves no trace in the ledger, nor do its messages', async (t, { model, tools, service, tool }) => {
  const { url } = await service()
  // Not watched: the judge of all conversations knows no rollback. Every payload is judged all the same.
  const client = createClient(url)
  model.script('conv:a', [say('before'), call({ name: 'echo', arguments: { value: 1 } }), call({ name: 'hold', arguments: { key: 'open' } }), say('after')])
  const { run: { conversation_id: conversation } } = await client.finish({ input: 'conv:a' })
  const one = await begin(client, { input: 'go on', conversation_id: conversation, tools: [tool('echo'), tool('hold')] })
  await tools.waitFor((attempts) => attempts.length === 2)
  const { message_id: waiting } = await send(client, one.run, { content: 'queued', mode: 'queue' })
  const two = await begin(client, { input: 'rather this', conversation_id: conversation, on_active_run: 'rollback' })
  await Promise.all([one.stream.ended, two.stream.ended])
  t.match(one.stream.events().at(-1), { type: 'run.cancelled', reason: 'rolled_back' })
  t.match(one.stream.events().filter(({ type }) => type === 'message.superseded'), [{ message_id: waiting }])
  t.same(told(model.requests()[3]), ['conv:a', 'before', 'rather this'])
  t.same((await client.messages(conversation)).map(({ content }) => content), ['conv:a', 'before', 'rather this', 'after'])
  t.match(await client.calls(one.run.id), [{ status: 'completed' }, { status: 'cancelled' }], 'the calls are remembered')
})

story('B5: on_active_run reject: 409 names what is in the way', async (t, { model, service }) => {
  const { client } = await service()
  const go = latch()
  model.script('conv:a', [delayed(say('first'), go)])
  const { run, stream } = await begin(client, { input: 'conv:a' })
  const refused = problemIn(await client.request('POST', '/runs', { body: { input: 'go on', conversation_id: run.conversation_id, on_active_run: 'reject' } }))
  t.match(refused, { status: 409, code: 'run_active', run_ids: [run.id] })
  go.open()
  await stream.ended
  t.same((await client.messages(run.conversation_id)).length, 2)
})

story('B10: twenty messages while the LLM is slow: all of them reach it', async (t, { model, service }) => {
  const { client } = await service()
  const gate = latch()
  model.otherwise((_, n) => delayed(say(`answer ${n}`), gate))
  const { run, stream } = await begin(client, { input: 'conv:a' })
  const modes = ['queue', 'steer', 'auto', 'queue'] as const
  for (let i = 0; i < 20; i++) await send(client, run, { content: `message ${i}`, mode: modes[i % 4] })
  gate.open()
  await stream.ended
  const last = told(model.requests().at(-1))
  t.same(last.filter((text) => text.startsWith('message ')).sort(), Array.from({ length: 20 }, (_, i) => `message ${i}`).sort())
  t.equal(model.maxInFlight(), 1)
})

/** Looks until there is something to see. */
async function until<T> (look: () => Promise<T | null>): Promise<T> {
  for (;;) {
    const found = await look()
    if (found !== null) return found
  }
}
