/*
 * The fault matrix (docs/fault-matrix.md), F1 to F18: what can go wrong around one LLM call. Deaths happen at an exact instant between the
 * worker and its Redis, on a proxy; the provider misbehaves by script.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import root from 'tap'
import { API, BOUND_MS, dieAt, inTime, SHORT, WORKER } from '../support/death.js'
import { answer, call, cut, cutBytes, delayed, events, heldAt, latch, say, status, stream as deltas, type Reply } from '../support/model-reply.js'
import { redisProxy } from '../support/redis-proxy.js'
import { many, results } from '../support/tool-calls.js'
import { story } from '../support/world.js'

root.setTimeout(600_000)

story('F1: a worker killed with the lock, before its LLM request: one request in all, and the turn goes on in time', async (t, world) => {
  world.model.script('conv:a', [say('done')])
  const death = await dieAt(t, world, { text: ':lock', at: 'answered' }, { input: 'conv:a' })
  t.same(death.stream.types(), ['run.created', 'run.started', 'turn.started', 'turn.retrying', 'turn.completed', 'run.completed'])
  t.equal(world.model.requests().length, 1)
  inTime(t, death)
}, { env: SHORT })

story('F3: killed with the whole answer, before it is stored: a second request, one answer, and no call of the lost one is run', async (t, world) => {
  const { model, tools, tool } = world
  model.script('conv:a', [
    answer({ text: ['lost ', 'words'], calls: [{ name: 'echo', arguments: { value: 'lost' } }] }),
    answer({ text: ['kept ', 'words'], calls: [{ name: 'echo', arguments: { value: 'kept' } }] }),
    say('done')
  ])
  const death = await dieAt(t, world, { text: 'turn.completed', at: 'unsent' }, { input: 'conv:a', tools: [tool('echo')] })
  t.equal(model.requests().length, 3)
  t.same(tools.attempts.map(({ args }) => args.value), ['kept'])
  t.equal(death.log.filter(({ type }) => type === 'turn.completed').length, 2, 'one for each turn')
  t.same((await death.client.messages(death.run.conversation_id)).map(({ content }) => content), ['conv:a', 'kept words', 'kept', 'done'])
  inTime(t, death)
}, { env: SHORT })

story('F4: killed when the answer is stored, before it knows: no second request; what may run again runs, what may not is outcome_unknown', async (t, world) => {
  const { model, tools, tool } = world
  model.script('conv:a', [call({ id: 'r', name: 'read', arguments: { value: 'r' } }, { id: 'w', name: 'write', arguments: { value: 'w' } }), say('done')])
  const death = await dieAt(t, world, { text: 'turn.completed', at: 'answered' }, {
    input: 'conv:a', tools: [tool('echo', { name: 'read', effects: 'read' }), tool('echo', { name: 'write' })]
  })
  t.equal(model.requests().length, 2, 'one for each turn')
  t.same(tools.attempts.map(({ args, headers }) => [args.value, headers['interlock-attempt']]), [['r', '2']])
  t.match(await death.client.calls(death.run.id), [{ status: 'completed', attempt: 2 }, { status: 'failed', attempt: 1, error: { code: 'outcome_unknown' } }])
  inTime(t, death)
}, { env: SHORT })

story('F6: killed with the answer stored, before its calls are queued: all of them run once, at another worker', async (t, world) => {
  const { model, tools, tool } = world
  model.script('conv:a', [call(...many(3, 'echo', (i) => ({ value: i }))), say('done')])
  // None of the calls stays with the worker that got the answer.
  const death = await dieAt(t, world, { text: '-t1-call_', at: 'unsent' }, { input: 'conv:a', tools: [tool('echo')] }, { INTERLOCK_LOCAL_CALLS: '0' })
  t.equal(model.requests().length, 2)
  t.same(tools.attempts.map(({ args, headers }) => `${String(args.value)} ${String(headers['interlock-attempt'])}`).sort(), ['0 1', '1 1', '2 1'])
  inTime(t, death)
}, { env: SHORT })

// The instants between those above, so that no point of a turn is left out. What is to come after the last one: nothing.
for (const [what, text, at, calls] of [
  ['before the turn is claimed', 'turn.started', 'unsent', 1],
  ['when the turn is claimed', 'turn.started', 'answered', 1],
  ['with streamed text on its way', 'first words', 'unsent', 2],
  ['before the end of the run is stored', 'run.completed', 'unsent', 2]
] as const) {
  story(`a worker killed ${what}: the run goes on within lock TTL, sweep interval and a second`, async (t, world) => {
    world.model.script('conv:a', Array.from({ length: calls }, () => say(['first words', ' and last'])))
    const death = await dieAt(t, world, { text, at }, { input: 'conv:a' })
    t.match(await death.client.run(death.run.id), { status: 'completed', output: 'first words and last' })
    t.equal(world.model.requests().length, calls)
    inTime(t, death)
  }, { env: SHORT })
}

story('a worker killed when the end of the run is stored: nothing of it is done again', async (t, world) => {
  world.model.script('conv:a', [say('done'), say('and again')])
  const { client, run, log, before } = await dieAt(t, world, { text: 'run.completed', at: 'answered' }, { input: 'conv:a' })
  t.same(log, before)
  t.equal((await client.finish({ input: 'go on', conversation_id: run.conversation_id })).run.output, 'and again')
}, { env: SHORT })

story('F7: a worker frozen in an LLM call for twice its lock: when it wakes it closes its own connection at once, and changes nothing', async (t, { model, service, process }) => {
  const [frozen, { client }] = await Promise.all([process('worker'), service(API)])
  const second = latch()
  model.script('conv:a', ({ n }) => n === 1 ? heldAt(say(['never ', 'to end']), 2, latch()) : delayed(say('kept'), second))
  const run = await client.start({ input: 'conv:a' })
  const stream = await client.follow(run)
  await stream.until(({ event }) => event === 'turn.delta')
  await service(WORKER)
  frozen.signal('SIGSTOP')
  await Promise.all([model.waitForRequest(({ n }) => n === 2, 30_000), sleep(2 * Number(SHORT.INTERLOCK_LOCK_TTL_MS))])
  const woke = performance.now()
  frozen.signal('SIGCONT')
  const { aborted, endedAt } = await model.requests()[0]!.ended
  t.equal(aborted, true, 'closed by us, not by the provider')
  t.ok((endedAt ?? Infinity) - woke < BOUND_MS, `${Math.round((endedAt ?? Infinity) - woke)} ms after it woke; a renewal is due every third of a second`)
  second.open()
  await stream.ended
  t.same(stream.types(), ['run.created', 'run.started', 'turn.started', 'turn.retrying', 'turn.completed', 'run.completed'])
  t.match(await client.run(run.id), { output: 'kept' })
  t.equal(model.requests().length, 2)
}, { env: SHORT, except: ['overlap'] })

story('F8: a worker frozen before the answer to its claim of a call: what was given up meanwhile it does not begin when it wakes', async (t, { model, tools, tool, redis, service, process }) => {
  const proxy = await redisProxy(t, redis.url)
  const [frozen, { client }] = await Promise.all([process('worker', { REDIS_URL: proxy.url }), service(API)])
  model.script('conv:a', [call({ id: 'w', name: 'write', arguments: { value: 'w' } }), say('done')])
  const claim = proxy.on({ match: { text: 'turn.completed' }, act: 'unanswered' })
  const run = await client.start({ input: 'conv:a', tools: [tool('echo', { name: 'write' })] })
  const stream = await client.follow(run)
  await claim.fired
  frozen.signal('SIGSTOP')
  claim.release()
  await service(WORKER)
  await stream.ended
  // A few signs of life behind its waking, whatever it still had to do about the call has been done.
  let signs = 0
  const awake = new Promise<void>((resolve) => {
    proxy.watch(({ name, keys: [key = ''] }) => { if (name === 'SET' && key.includes('worker:') && ++signs === 4) resolve() })
  })
  frozen.signal('SIGCONT')
  await awake
  t.same(tools.attempts, [])
  t.same(stream.types().filter((type) => type.startsWith('tool.')), ['tool.started', 'tool.failed'])
  t.equal(model.requests().length, 2)
}, { env: SHORT })

story('F9: a worker whose loop is blocked for three times its lock: its other conversations go on elsewhere, and what it then says changes nothing', async (t, { model, tools, service, process, tool }) => {
  const rough = { INTERLOCK_TOOLS_DIR: `${import.meta.dirname}/../support/rough-tools` }
  const [blocked, { client }] = await Promise.all([process('worker', rough), service({ ...API, env: rough })])
  const [first, second, block] = [latch(), latch(), latch()]
  const blocks = call({ id: 'c', name: 'block', arguments: { ms: 3 * Number(SHORT.INTERLOCK_LOCK_TTL_MS), value: 'unblocked' } })
  model.script('conv:llm', ({ n }) => delayed(say(`answer ${n}`), n === 1 ? first : second))
  model.script('conv:tool', [call({ id: 'c', name: 'hold', arguments: { key: 'x', value: 'held' } }), say('done')])
  model.script('conv:block', [delayed(blocks, block), say('free')])
  const asked = await client.start({ input: 'conv:llm' })
  const called = await client.start({ input: 'conv:tool', tools: [tool('hold', { effects: 'read' })] })
  const blocking = await client.start({ input: 'conv:block', tools: [{ kind: 'module', name: 'block' }] })
  await Promise.all(['conv:llm', 'conv:block'].map((name) => model.waitForRequest(({ conversation }) => conversation === name)))
  await tools.waitFor((attempts) => attempts.length === 1)
  await process('worker', rough)
  // The worker that gets the answer runs its call.
  block.open()
  // The other one finds out while it is blocked; then both first tries have their whole answer before them.
  await Promise.all([model.waitForRequest(({ conversation, n }) => conversation === 'conv:llm' && n === 2, 30_000), tools.waitFor((attempts) => attempts.length === 2)])
  first.open()
  tools.release('x')
  second.open()
  t.match(await client.ended(asked), { status: 'completed', output: 'answer 2' })
  t.match(await client.ended(called), { status: 'completed', output: 'done' })
  t.match(await client.ended(blocking), { status: 'completed', output: 'free' })
  for (const run of [called, blocking]) t.match(await client.calls(run.id), [{ status: 'completed', attempt: 2 }])
  t.equal((await blocked.client.request('GET', '/health/live')).status, 200, 'it lives')
}, { env: SHORT, except: ['overlap'] })

story('F10: Retry-After 120 is kept without a lock, and can be cancelled; one beyond ten minutes fails the run at once', async (t, { model, service, keys }) => {
  const { client } = await service()
  model.script('conv:wait', [status(429, { retryAfter: 120 }), say('after the cancel')])
  model.script('conv:long', [status(429, { retryAfter: 700 })])
  const run = await client.start({ input: 'conv:wait' })
  const stream = await client.follow(run)
  t.match(await stream.event('turn.retrying'), { attempt: 2, reason: 'provider_rate_limited', delay_ms: 120_000 })
  while ((await keys()).some((key) => key.endsWith(':lock'))) await sleep(10)
  t.equal((await client.cancel(run.id, '?wait=1')).status, 'cancelled')
  t.equal((await client.finish({ input: 'go on', conversation_id: run.conversation_id })).run.output, 'after the cancel')
  t.match((await client.finish({ input: 'conv:long' })).run, { status: 'failed', error: { code: 'provider_rate_limited', retryable: true } })
  t.same(['conv:wait', 'conv:long'].map((name) => model.requests(name).length), [2, 1])
})

story('F12: no headers, silence in mid-stream and no server at all end in time, are counted, and are tried again', async (t, { model, service }) => {
  const env = { INTERLOCK_MODEL_TIMEOUT_MS: '300', INTERLOCK_MODEL_IDLE_MS: '300', INTERLOCK_MODEL_ATTEMPTS: '2' }
  const { client, stop } = await service({ env })
  model.script('conv:headers', [delayed(say('never'), latch()), say('in time')])
  model.script('conv:stall', [cut(say(['half', ' an answer']), 2, 'stall'), say('in time')])
  for (const name of ['conv:headers', 'conv:stall']) {
    const { run, stream } = await client.finish({ input: name })
    t.match(run, { status: 'completed', output: 'in time', usage: { llm_calls: 2 } }, name)
    t.match(stream.events().find(({ type }) => type === 'turn.retrying'), { attempt: 2, reason: 'provider_timeout' }, name)
    t.equal(model.requests(name)[0]?.aborted, true, 'the connection was closed')
  }
  await stop()
  const lost = await service({ env: { ...env, OPENAI_BASE_URL: 'http://127.0.0.1:9/v1' } })
  t.match((await lost.client.finish({ input: 'conv:nobody' })).run, { status: 'failed', error: { code: 'provider_connection', retryable: true, message: /2 attempts/ } })
})

story('F13: answers cut by a close, a reset, inside arguments and inside a character: nothing of them is kept or run', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  const half = answer({ text: ['Half', ' an', ' answer'], calls: [{ name: 'echo', arguments: { value: 'never', more: 'x'.repeat(50) } }] })
  const umlaut = say('häääääääää')
  const at = Buffer.concat(umlaut.parts.filter((part) => Buffer.isBuffer(part))).indexOf('ä') + 1
  const replies: [what: string, reply: Reply][] = [
    ['close', cut(half, -3, 'fin')], ['reset', cut(half, -3, 'rst')], ['arguments', cut(half, 6, 'fin')], ['proper end', cut(half, -3, 'end')], ['character', cutBytes(umlaut, at, 'fin')]
  ]
  await Promise.all(replies.map(async ([what, reply]) => {
    const name = `conv:${what.replace(' ', '-')}`
    model.script(name, [reply, say(`whole ${what}`)])
    const { run, stream } = await client.finish({ input: name, tools: [tool('echo')] })
    t.equal(run.output, `whole ${what}`)
    t.match(stream.events().find(({ type }) => type === 'turn.retrying')?.reason, /^provider_(truncated|connection|malformed)$/, what)
    t.same((await client.messages(run.conversation_id)).map(({ content }) => content), [name, `whole ${what}`])
  }))
  t.equal(tools.count(), 0)
})

story('F14: finish_reason length ends the run as incomplete, runs no call, and the conversation goes on', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  const calls = [{ name: 'echo', arguments: '{"value": "whole"}' }, { name: 'echo', arguments: '{"value": "cu' }]
  for (const [name, reply] of [['conv:text', answer({ text: 'and so on and', finish: 'length' })], ['conv:calls', answer({ calls, finish: 'length' })]] as const) {
    model.script(name, [reply, say('shorter')])
    const { run } = await client.finish({ input: name, tools: [tool('echo')] })
    t.match(run, { status: 'incomplete', stop_reason: 'length', error: null }, name)
    t.equal((await client.finish({ input: 'be brief', conversation_id: run.conversation_id, tools: [tool('echo')] })).run.output, 'shorter')
  }
  t.equal(tools.count(), 0)
})

story('F15: arguments that are no JSON, no object, a megabyte or far too deep: the tool is not called, and the model is told why', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  const deep = `{"value": ${'['.repeat(20_000)}${']'.repeat(20_000)}}`
  const all = ['{"value": 1', '[1]', '"text"', 'null', '', `{"value": "${'x'.repeat(1_000_001)}"}`, deep]
  model.script('conv:a', [answer({ calls: all.map((args, i) => ({ id: `c${i}`, name: 'echo', arguments: args })), fragment: 50_000 }), say('done')])
  const { run } = await client.finish({ input: 'conv:a', tools: [tool('echo', { parameters: { type: 'object', required: ['value'] } })] })
  t.match(run, { status: 'completed', output: 'done' })
  t.same((await client.calls(run.id)).map(({ status, error }) => error?.code ?? status), all.map(() => 'invalid_arguments'))
  for (const text of results(model.requests()[1])) t.match(text, /"code":"invalid_arguments","message":"\w/)
  t.equal(tools.count(), 0)
})

story('F16: an unknown or impossible tool name is told to the model; no calls, no choices, no words and too many calls are failures with a name', async (t, { model, tools, service, tool }) => {
  const { client } = await service({ env: { INTERLOCK_MODEL_ATTEMPTS: '2' } })
  model.script('conv:names', [call({ id: 'a', name: 'no_such_tool', arguments: {} }, { id: 'b', name: 'a tool with spaces', arguments: {} }, { id: 'c', name: '__proto__', arguments: {} }), say('done')])
  const { run } = await client.finish({ input: 'conv:names', tools: [tool('echo')] })
  t.match(run, { status: 'completed', output: 'done' })
  t.match(await client.calls(run.id), Array(3).fill({ status: 'failed', error: { code: 'unknown_tool' } }))
  model.script('conv:129', [call(...many(129, 'echo', (i) => ({ value: i }))), say('all of them')])
  t.match((await client.finish({ input: 'conv:129', tools: [tool('echo')] })).run, { output: 'all of them', usage: { tool_calls: 129 } })
  const none: [name: string, reply: Reply, requests: number][] = [
    ['no-calls', deltas([{ role: 'assistant', content: null }], { finish: 'tool_calls' }), 2],
    ['no-choices', events({ id: 'x', object: 'chat.completion.chunk', choices: [] }, '[DONE]'), 2],
    ['no-words', deltas([{ role: 'assistant', content: '' }]), 2],
    ['too-many', call(...many(513, 'echo', (i) => ({ value: i }))), 1]
  ]
  for (const [what, reply, requests] of none) {
    model.script(`conv:${what}`, Array(requests).fill(reply) as Reply[])
    const { run: failed } = await client.finish({ input: `conv:${what}`, tools: [tool('echo')] })
    t.match(failed, { status: 'failed', error: { code: /^provider_/ } }, what)
    t.equal(model.requests(`conv:${what}`).length, requests, what)
  }
  t.equal(tools.count(), 129)
})

story('F5: the reply to a commit is lost with its connection, and it is sent again: done once, and nobody is told of a conflict', async (t, { model, service, process, redis }) => {
  const [toWorker, toApi] = await Promise.all([redisProxy(t, redis.url), redisProxy(t, redis.url)])
  const [worker, { client }] = await Promise.all([process('worker', { REDIS_URL: toWorker.url }), process('api', { REDIS_URL: toApi.url })])
  const other = await service(API)
  const gate = latch()
  model.script('conv:a', [delayed(say('done'), gate)])
  const created = toApi.on({ match: { script: 'commit', text: 'run.created' }, act: 'lost' })
  const run = await client.start({ input: 'conv:a' })
  await created.fired
  await model.waitForRequest(() => true)
  const before = (await other.client.conversation(run.conversation_id)).version
  const completed = toWorker.on({ match: { script: 'commit', text: 'run.completed' }, act: 'lost' })
  gate.open()
  t.equal((await client.ended(run)).output, 'done')
  await completed.fired
  t.equal((await other.client.conversation(run.conversation_id)).version, before + 1, 'once')
  t.equal((await client.get<{ data: object[] }>('/runs')).data.length, 1)
  t.equal(model.requests().length, 1)
  // It has had its answer by the time it does something else.
  model.script('conv:b', [say('next')])
  await client.finish({ input: 'conv:b' })
  t.notMatch(worker.logs.join('\n'), /conflict|refused/)
}, { env: SHORT })
