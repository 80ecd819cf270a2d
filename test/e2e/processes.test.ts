import { createClient } from '../support/client.js'
import { call, delayed, heldAt, latch, say } from '../support/model-reply.js'
import { spawnProcess } from '../support/service.js'
import { many } from '../support/tool-calls.js'
import { story } from '../support/world.js'

const range = (n: number) => Array.from({ length: n }, (_, i) => i)

story('B2, C13: 40 conversations of six turns and 50 of a barrier on three worker processes: one LLM call at a time, each call once', async (t, { model, tools, service, process, tool, watch }) => {
  const [{ url }, ...workers] = await Promise.all([service({ roles: { api: true, worker: false } }), process('worker'), process('worker'), process('worker')])
  // On a machine that does other things as well some request may be answered 503: then it is repeated.
  const client = watch(createClient(url, { patient: true }))
  model.otherwise(({ conversation, n }) => {
    if (conversation.startsWith('conv:barrier')) return n > 1 ? say('done') : call(...many(10, 'barrier', (i) => ({ n: 10, key: conversation, value: i })))
    // Five turns of three calls: one that stays with its worker, two that are given away.
    const names = ['echo', 'spread', 'spread']
    return n > 5 ? say('done') : call(...names.map((name, i) => ({ id: `${n}c${i}`, name, arguments: { value: `${conversation} ${n}.${i}` } })))
  })
  const six = await Promise.all(range(40).map((i) => client.finish({ input: `conv:six-${i}`, tools: [tool('echo'), tool('echo', { name: 'spread', placement: 'spread' })] })))
  for (const { run } of six) t.match(run, { status: 'completed', output: 'done', usage: { llm_calls: 6, tool_calls: 15 } })
  const two = await Promise.all(range(50).map((i) => client.finish({ input: `conv:barrier-${i}`, tools: [tool('barrier', { placement: 'spread' })] })))
  for (const { run } of two) t.match(run, { status: 'completed', output: 'done', usage: { llm_calls: 2, tool_calls: 10 } })
  for (const i of range(40)) if (model.requests(`conv:six-${i}`).length !== 6) t.fail(`conv:six-${i} had ${model.requests(`conv:six-${i}`).length} LLM calls`)
  for (const i of range(50)) if (model.requests(`conv:barrier-${i}`).length !== 2) t.fail(`conv:barrier-${i} had ${model.requests(`conv:barrier-${i}`).length} LLM calls`)
  t.equal(model.maxInFlight(), 1, 'never two in flight for one conversation')
  t.equal(tools.count('echo'), 600)
  t.equal(tools.count('barrier'), 500)
  for (const worker of workers) {
    const { text } = await worker.client.request('GET', '/metrics')
    t.match(text, /interlock_events_total\{type="tool\.completed"\} [1-9]/, 'each of the three took part')
  }
})

story('M7: history survives the death of every process, and is what the model gets', async (t, { model, process, tool }) => {
  model.script('conv:a', [call({ id: 'c1', name: 'echo', arguments: { value: 'kept' } }), say('first answer'), say('second answer')])
  const first = await process('all')
  const { run } = await first.client.finish({ input: 'conv:a', tools: [tool('echo')] })
  const before = { run, messages: await first.client.messages(run.conversation_id), log: await first.client.log({ run: run.id }) }
  await first.kill()
  const { client } = await process('all')
  t.same({ run: await client.run(run.id), messages: await client.messages(run.conversation_id), log: await client.log({ run: run.id }) }, before)
  const second = await client.finish({ input: 'and then?', conversation_id: run.conversation_id, tools: [tool('echo')] })
  t.equal(second.run.output, 'second answer')
  t.match(model.requests()[2]?.body.messages, [
    { role: 'user', content: 'conv:a' }, { role: 'assistant', tool_calls: [{ function: { name: 'echo' } }] }, { role: 'tool', content: 'kept' },
    { role: 'assistant', content: 'first answer' }, { role: 'user', content: 'and then?' }
  ])
})

story('F85, C2: a reader goes on at another API process, in the middle of a turn, and when its own is killed', async (t, { model, service, process }) => {
  const [one, two] = await Promise.all([process('api'), process('api'), service({ roles: { api: false, worker: true } })])
  const [middle, end] = [latch(), latch()]
  model.script('conv:a', [heldAt(heldAt(say(['One ', 'two ', 'three ', 'four.']), 4, end), 2, middle)])
  const run = await one.client.start({ input: 'conv:a' })
  const first = await one.client.follow(run)
  await first.until(({ event }) => event === 'turn.delta')
  const second = await two.client.open(`/runs/${run.id}/events`, { lastEventId: String(first.events().at(-1)?.seq) })
  await second.until(({ event }) => event === 'turn.delta')
  t.equal(second.text(1), 'One ')
  middle.open()
  await Promise.all([first, second].map((stream) => stream.until(({ data }) => data.includes('three'))))
  await one.kill()
  t.same(await first.ended, { clean: false })
  const third = await two.client.open(`/runs/${run.id}/events`, { lastEventId: String(first.events().at(-1)?.seq) })
  await third.until(({ event }) => event === 'turn.delta')
  end.open()
  await Promise.all([second.ended, third.ended])
  for (const stream of [second, third]) {
    t.equal(stream.text(1), 'One two three four.')
    t.same(stream.types(), ['turn.completed', 'run.completed'])
  }
  t.same(first.types(), ['run.created', 'run.started', 'turn.started'])
})

story('F53: SIGTERM: the turn under way is finished, streams are closed with retry:, exit code 0, another process goes on', async (t, { model, tools, service, process, tool }) => {
  const leaving = await process('all')
  const gate = latch()
  model.script('conv:a', [delayed(call({ id: 'c1', name: 'echo', arguments: { value: 1 } }), gate), say('done')])
  const run = await leaving.client.start({ input: 'conv:a', tools: [tool('echo')] })
  const stream = await leaving.client.follow(run)
  const request = await model.waitForRequest(({ n }) => n === 1)
  await stream.event('turn.started')
  leaving.signal('SIGTERM')
  t.same(await stream.ended, { clean: true }, 'while the LLM call is still under way')
  t.equal(stream.retries.length, 2)
  t.ok((stream.retries[1] ?? 0) >= 1000, 'come back, but not all at once')
  gate.open()
  t.same(await leaving.exited, { code: 0, signal: null })
  t.equal((await request.ended).aborted, false)
  const { client } = await service()
  const rest = await client.follow(run, stream.events().at(-1)?.seq)
  await rest.ended
  t.match(await client.run(run.id), { status: 'completed', output: 'done' })
  t.notOk(rest.types().includes('turn.retrying'), 'nothing was done twice')
  t.equal(model.requests().length, 2)
  t.equal(tools.count(), 1)
  t.equal(leaving.stderr(), '')
})

story('F53: SIGTERM: what cannot be finished in time is handed over at once, exit code 0', async (t, { model, tools, service, process, tool }) => {
  const leaving = await process('worker', { INTERLOCK_GRACE_MS: '200' })
  const { client } = await service({ roles: { api: true, worker: false } })
  const gate = latch()
  model.script('conv:llm', [delayed(say('too late'), gate), say('from the next')])
  model.script('conv:tool', [call({ id: 'c1', name: 'hold', arguments: { key: 'x', value: 1 } }, { id: 'c2', name: 'hang', arguments: {} }), say('done')])
  const asked = await client.start({ input: 'conv:llm' })
  const called = await client.start({ input: 'conv:tool', tools: [tool('hold', { effects: 'read' }), tool('hang', { timeout_ms: 60_000 })] })
  await model.waitForRequest(({ conversation }) => conversation === 'conv:llm')
  await tools.waitFor((attempts) => attempts.length === 2)
  leaving.signal('SIGTERM')
  t.same(await leaving.exited, { code: 0, signal: null })
  t.ok((await model.requests('conv:llm')[0]?.ended)?.aborted)
  // Nobody has to wait until a sign of life runs out: it is there to be taken. The lock's time here is the usual ten seconds.
  tools.release('x')
  await service({ roles: { api: false, worker: true } })
  t.equal((await client.ended(asked)).output, 'from the next')
  t.equal((await client.ended(called)).output, 'done')
  t.match((await client.log({ run: asked.id })).find(({ type }) => type === 'turn.retrying'), { attempt: 2, reason: 'handed_over' })
  t.match(await client.calls(called.id), [{ status: 'completed', output: 1, attempt: 2 }, { status: 'failed', error: { code: 'outcome_unknown' }, attempt: 1 }])
  t.equal(model.requests('conv:llm').length, 2)
})

story('two processes with different INTERLOCK_PARTITIONS: the second refuses with one sentence', async (t, { service, env }) => {
  await service()
  const second = spawnProcess(t, 'api', env({ INTERLOCK_PARTITIONS: '8' }))
  t.same(await second.exited, { code: 1, signal: null })
  t.match(second.stderr(), /^INTERLOCK_PARTITIONS is 8, but the conversations in this Redis are spread over 16: set it to 16, or use another INTERLOCK_KEY_PREFIX\.\n$/)
})

story('what only an operator can mend is said in one line, and the process ends with code 1', async (t, { env, service: serve }) => {
  const service = await serve()
  const cases: [over: Record<string, string>, says: RegExp][] = [
    [{ HOST: '0.0.0.0' }, /^HOST is "0\.0\.0\.0".*INTERLOCK_API_KEYS.*\n$/],
    [{ INTERLOCK_LOCK_TTL_MS: 'soon' }, /^INTERLOCK_LOCK_TTL_MS is "soon"; it must be a whole number.*\n$/],
    [{ PORT: new URL(service.url).port }, /^PORT is \d+, which another process listens on: end that one, or set another PORT\.\n$/],
    [{ INTERLOCK_ALLOWED_TOOL_HOSTS: '10.0.0.0/99' }, /^[^\n]*10\.0\.0\.0\/99[^\n]*\n$/],
    [{ INTERLOCK_MCP_SERVERS: '{bad' }, /^[^\n]*INTERLOCK_MCP_SERVERS[^\n]*\n$/]
  ]
  await Promise.all(cases.map(async ([over, says]) => {
    const child = spawnProcess(t, 'all', env(over))
    t.same(await child.exited, { code: 1, signal: null })
    t.match(child.stderr(), says)
  }))
})

story('F53: a process that cannot listen has taken no work by then: what waits is done by who comes next', async (t, { model, env, service: serve }) => {
  const { client, url } = await serve({ roles: { api: true, worker: false } })
  model.script('conv:a', [say('done')])
  const run = await client.start({ input: 'conv:a' })
  const second = spawnProcess(t, 'all', env({ PORT: new URL(url).port }))
  t.same(await second.exited, { code: 1, signal: null })
  t.equal(model.requests().length, 0)
  t.match(await client.run(run.id), { status: 'queued' })
  await serve({ roles: { api: false, worker: true } })
  t.equal((await client.ended(run)).output, 'done')
  t.equal(model.requests().length, 1)
})
