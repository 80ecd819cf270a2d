import { call, delayed, heldAt, latch, say } from '../support/model-reply.js'
import type { Attempt } from '../support/tool-server.js'
import { story } from '../support/world.js'

/** Short times, so that a lost worker is missed soon. */
const env = { INTERLOCK_LOCK_TTL_MS: '1000', INTERLOCK_SWEEP_MS: '200', INTERLOCK_STALLED_MS: '1000' }
const api = { roles: { api: true, worker: false } }
const worker = { roles: { api: false, worker: true } }

/** Executions by call, in order. */
const executions = (attempts: Attempt[], key: string) => attempts.filter(({ args }) => args.key === key)

story('FAULTS F2, B7: a worker killed in an LLM call: another takes over, the late first reply is nothing, one final answer', async (t, { model, service, process }) => {
  const [doomed, { client }] = await Promise.all([process('worker'), service(api)])
  const gates = [latch(), latch()]
  model.script('conv:a', ({ n }) => heldAt(say(['The answer ', `of ${n}`]), 2, gates[n - 1] ?? 0))
  const run = await client.start({ input: 'conv:a' })
  const stream = await client.follow(run)
  await stream.until(({ event }) => event === 'turn.delta')
  await service(worker)
  await doomed.kill()
  await model.waitForRequest(({ n }) => n === 2)
  for (const gate of gates) gate.open()
  await stream.ended
  t.same(stream.types(), ['run.created', 'run.started', 'turn.started', 'turn.retrying', 'turn.completed', 'run.completed'])
  t.match(stream.events().find(({ type }) => type === 'turn.retrying'), { attempt: 2, reason: 'worker_lost', delay_ms: 0 })
  t.match(await client.run(run.id), { status: 'completed', output: 'The answer of 2' })
  t.equal(stream.text(1), 'The answer of 2', 'the text of the lost try is replaced')
  t.same((await client.messages(run.conversation_id)).map(({ content }) => content), ['conv:a', 'The answer of 2'])
  t.equal(model.requests().length, 2)
}, { env })

story('FAULTS F20, D11: a worker killed in a batch: what is done stays done, read and idempotent calls run again under the same key, a write is outcome_unknown', async (t, { model, tools, service, process, tool }) => {
  const [doomed, { client }] = await Promise.all([process('worker'), service(api)])
  const keys = ['done', 'read', 'idempotent', 'write']
  model.script('conv:a', [call(...keys.map((key) => ({ id: key, name: key, arguments: { key, value: key } }))), say('over')])
  const run = await client.start({
    input: 'conv:a',
    tools: [tool('hold', { name: 'done' }), tool('hold', { name: 'read', effects: 'read' }), tool('hold', { name: 'idempotent', idempotent: true }), tool('hold', { name: 'write' })]
  })
  const stream = await client.follow(run)
  await tools.waitFor((attempts) => attempts.length === 4)
  tools.release('done')
  await stream.event('tool.completed')
  await service(worker)
  await doomed.kill()
  await tools.waitFor((attempts) => attempts.length === 6)
  tools.release('read')
  tools.release('idempotent')
  await stream.ended
  t.match(await client.run(run.id), { status: 'completed', output: 'over' })
  t.match(await client.calls(run.id), [
    { name: 'done', status: 'completed', attempt: 1 }, { name: 'read', status: 'completed', attempt: 2 }, { name: 'idempotent', status: 'completed', attempt: 2 },
    { name: 'write', status: 'failed', attempt: 1, error: { code: 'outcome_unknown', message: /nobody knows/ } }
  ])
  for (const key of ['read', 'idempotent']) {
    const [first, second] = executions(tools.attempts, key)
    t.equal(first?.headers['idempotency-key'], second?.headers['idempotency-key'])
    t.same([first, second].map((attempt) => attempt?.headers['interlock-attempt']), ['1', '2'])
    t.equal(first?.aborted, true)
  }
  for (const key of ['done', 'write']) t.equal(executions(tools.attempts, key).length, 1)
  t.match(model.requests()[1]?.body.messages.at(-1), { role: 'tool', content: /outcome_unknown/ })
  t.equal(model.requests().length, 2)
}, { env })

story('FAULTS F8, B7, M6: a worker frozen past its lock has lost it: what it says when it wakes changes nothing', async (t, { model, tools, service, process, tool }) => {
  const [frozen, { client }] = await Promise.all([process('worker'), service(api)])
  const gates = [latch(), latch()]
  model.script('conv:llm', ({ n }) => delayed(say(`answer ${n}`), gates[n - 1] ?? 0))
  model.script('conv:tool', [call({ id: 'c1', name: 'hold', arguments: { key: 'x', value: 'x' } }), say('done')])
  const asked = await client.start({ input: 'conv:llm' })
  const called = await client.start({ input: 'conv:tool', tools: [tool('hold', { effects: 'read' })] })
  await model.waitForRequest(({ conversation }) => conversation === 'conv:llm')
  await tools.waitFor((attempts) => attempts.length === 1)
  await service(worker)
  frozen.signal('SIGSTOP')
  await model.waitForRequest(({ conversation, n }) => conversation === 'conv:llm' && n === 2)
  await tools.waitFor((attempts) => attempts.length === 2)
  // Both have the whole answer of the lost tries before them when they wake.
  gates[0]?.open()
  tools.release('x')
  t.match(await client.ended(called), { status: 'completed', output: 'done' })
  frozen.signal('SIGCONT')
  const [first] = model.requests('conv:llm')
  await first?.ended
  // It is alive again, and takes part: its own words come after whatever it had to say of the past.
  await frozen.client.request('GET', '/health/live')
  gates[1]?.open()
  t.match(await client.ended(asked), { status: 'completed', output: 'answer 2' })
  const log = await client.log({ run: asked.id })
  t.same(log.map(({ type }) => type), ['run.created', 'run.started', 'turn.started', 'turn.retrying', 'turn.completed', 'run.completed'])
  t.match(await client.calls(called.id), [{ status: 'completed', attempt: 2 }])
}, { env, except: ['overlap'] })

story('FAULTS F28: all workers dead while the API lives: nothing is lost, and all of it is done when one starts', async (t, { model, tools, service, process, tool }) => {
  const [doomed, { client }] = await Promise.all([process('worker'), service(api)])
  model.otherwise(({ conversation, n }) => n === 1 ? call({ id: 'c1', name: 'hold', arguments: { key: 'x', value: conversation } }) : say('done'))
  const hold = tool('hold', { effects: 'read' })
  const early = await Promise.all([1, 2, 3].map((i) => client.start({ input: `conv:early-${i}`, tools: [hold] })))
  await tools.waitFor((attempts) => attempts.length === 3)
  await doomed.kill()
  const late = await Promise.all([1, 2, 3].map((i) => client.start({ input: `conv:late-${i}`, tools: [hold] })))
  const behind = await client.start({ input: 'go on', conversation_id: early[0]?.conversation_id ?? '' })
  tools.release('x')
  await service(worker)
  for (const run of [...early, ...late, behind]) t.equal((await client.ended(run)).status, 'completed')
  t.equal(tools.count(), 9, 'the three that were lost ran again')
}, { env })
