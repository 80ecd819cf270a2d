import type { Conversation } from '../../src/schemas/conversation.js'
import type { RepairReport } from '../../src/schemas/repair.js'
import type { Run } from '../../src/schemas/run.js'
import { problemIn, type Answer, type Client } from '../support/client.js'
import { call, delayed, latch, say, status } from '../support/model-reply.js'
import { story, type World } from '../support/world.js'

const repair = (client: Client, conversation: string, body: object, headers: Record<string, string> = {}): Promise<Answer> =>
  client.request('POST', `/conversations/${conversation}/repair`, { body, headers })
const report = async (client: Client, conversation: string, body: object): Promise<RepairReport> => {
  const answer = await repair(client, conversation, body)
  if (answer.status !== 200) throw new Error(`${answer.status} ${answer.text}`)
  return JSON.parse(answer.text) as RepairReport
}
const state = (client: Client, run: Run) => client.get<{ version: number }>(`/conversations/${run.conversation_id}/state`)

/** Where a run can stand still, each brought about by servers that hold. */
const phases = {
  async llm ({ model }: World, client: Client) {
    const gate = latch()
    model.script('conv:llm', [delayed(say('late'), gate), say('done')])
    const run = await client.start({ input: 'conv:llm' })
    await model.waitForRequest(({ conversation }) => conversation === 'conv:llm')
    return run
  },
  async retry ({ model }: World, client: Client) {
    model.script('conv:retry', [status(429, { retryAfter: 500 }), say('done')])
    const run = await client.start({ input: 'conv:retry' })
    await (await client.follow(run)).event('turn.retrying')
    return run
  },
  async tools ({ model, tools, tool }: World, client: Client) {
    model.script('conv:tools', [call({ id: 'c1', name: 'hold', arguments: { key: 'tools', value: 1 } }, { id: 'c2', name: 'after', arguments: { key: 'tools', value: 2 } }), say('done')])
    const run = await client.start({ input: 'conv:tools', tools: [tool('hold', { resources: ['x'] }), tool('hold', { name: 'after', resources: ['x'] })] })
    await tools.waitFor((attempts) => attempts.some(({ args }) => args.key === 'tools'))
    return run
  },
  async action ({ model, tool }: World, client: Client) {
    model.script('conv:action', [call({ id: 'c1', name: 'echo', arguments: { value: 1 } }), say('done')])
    const run = await client.start({ input: 'conv:action', tools: [tool('echo', { approval: 'always' })] })
    await (await client.follow(run)).event('run.requires_action')
    return run
  },
  async scheduled ({ model }: World, client: Client) {
    model.script('conv:scheduled', [say('done')])
    return await client.start({ input: 'conv:scheduled', after_seconds: 3600 })
  },
  async ended ({ model }: World, client: Client) {
    model.script('conv:ended', [say('done')])
    return (await client.finish({ input: 'conv:ended' })).run
  }
}
type Phase = keyof typeof phases

const kinds: Record<Phase, string | null> = { llm: 'model', retry: 'retry', tools: 'tools', action: 'action', scheduled: 'due_time', ended: null }

story('repair explains every phase and changes nothing by that: what it waits for, who has it, the lock, when somebody looks again', async (t, world) => {
  const { client } = await world.service()
  for (const [phase, begin] of Object.entries(phases) as [Phase, typeof phases[Phase]][]) {
    const run = await begin(world, client)
    const before = await state(client, run)
    const told = await report(client, run.conversation_id, { action: 'explain' })
    t.same((await state(client, run)).version, before.version, phase)
    t.match(told, { action: 'explain', changed: false, detail: null, jobs: [], findings: [] })
    t.equal(told.conversation.waiting_for?.kind ?? null, kinds[phase], phase)
    t.same(told.claims.map(({ alive, turn, attempt, call_id: id }) => [alive, turn, attempt, id === null]), phase === 'llm' ? [[true, 1, 1, true]] : phase === 'tools' ? [[true, 1, 1, false]] : [], phase)
    t.equal(told.lock !== null, phase === 'llm', `the lock: ${phase}`)
    t.equal(told.due_at === null, phase === 'ended' || phase === 'action', `due: ${phase}`)
    const waiting = (await client.get<Conversation>(`/conversations/${run.conversation_id}`)).waiting_for
    t.equal(waiting === null, phase === 'ended')
    if (phase === 'llm') t.match(waiting, { worker: told.claims[0]?.worker, run_id: run.id, since: String, due_at: String })
    if (phase === 'tools') t.match(waiting?.calls, [{ name: 'hold', waits_for: 'result' }, { name: 'after', waits_for: 'resource', behind: [told.claims[0]?.call_id] }])
    if (phase === 'action') t.match(waiting, { due_at: null, calls: [{ waits_for: 'approval' }] })
    if (run.ended_at === null) await client.cancel(run.id, '?wait=1')
    t.equal((await client.get<Conversation>(`/conversations/${run.conversation_id}`)).waiting_for, null, `${phase}, cancelled`)
  }
})

/** What each action is answered with in each phase. */
const answers: Record<'retry_turn' | 'fail_call' | 'release', Record<Phase, number>> = {
  retry_turn: { llm: 200, retry: 200, tools: 409, action: 409, scheduled: 409, ended: 409 },
  fail_call: { llm: 404, retry: 404, tools: 200, action: 200, scheduled: 404, ended: 404 },
  release: { llm: 200, retry: 200, tools: 200, action: 200, scheduled: 200, ended: 409 }
}
for (const action of ['retry_turn', 'fail_call', 'release'] as const) {
  story(`repair: "${action}" in every phase: what fits is done and told, what does not is refused and changes nothing, and every run ends`, async (t, world) => {
    const { client } = await world.service()
    const fail = async (run: Run) => {
      const calls = (await client.calls(run.id)).filter(({ ended_at: ended }) => ended === null)
      return { action: 'fail_call', call_id: calls[0]?.call_id ?? 'call_01M7WNB2JRND3S37P2QRWZV709', reason: 'it takes too long' }
    }
    for (const [phase, begin] of Object.entries(phases) as [Phase, typeof phases[Phase]][]) {
      const run = await begin(world, client)
      const { version } = await state(client, run)
      const answer = await repair(client, run.conversation_id, action === 'fail_call' ? await fail(run) : { action })
      t.equal(answer.status, answers[action][phase], `${action} in ${phase}: ${answer.text}`)
      if (answer.status === 200) {
        const told = JSON.parse(answer.text) as RepairReport
        t.match(told, { action, changed: true, detail: new RegExp(`^${action}: `), findings: [] })
        const recovered = (await client.log({ conversation: run.conversation_id })).filter(({ type }) => type === 'conversation.recovered')
        t.match(recovered, [{ detail: told.detail }])
      } else {
        t.match(problemIn(answer), answer.status === 404 ? { code: 'not_found' } : { code: 'not_repairable', detail: /fail_call|Post a run/ })
        t.equal((await state(client, run)).version, version, `${action} in ${phase} changes nothing`)
      }
      // From here on everybody does their part, and what waits for nobody is failed.
      if (phase === 'tools') world.tools.release('tools')
      if (phase === 'scheduled' || (phase === 'retry' && answer.status !== 200) || (phase === 'retry' && action === 'release') || (phase === 'llm' && answer.status !== 200)) {
        await client.cancel(run.id)
      } else if (phase === 'action' && answer.status !== 200) {
        await report(client, run.conversation_id, await fail(run))
      } else if (phase === 'action' && action === 'release') {
        await report(client, run.conversation_id, await fail(run))
      }
      const ended = await client.ended(run)
      t.ok(['completed', 'cancelled'].includes(ended.status), `${phase}: ${ended.status}`)
      if (ended.status === 'completed') t.equal(ended.output, 'done')
      t.equal((await client.conversation(run.conversation_id)).waiting_for, null)
    }
    if (action === 'retry_turn') t.equal(world.model.requests('conv:llm')[0]?.aborted, true, 'the call that was taken away is stopped')
    if (action === 'fail_call') t.match(world.model.requests('conv:tools')[1]?.body.messages, [{}, {}, { role: 'tool', content: /"repaired".*it takes too long/ }, { role: 'tool', content: '2' }])
  })
}

story('repair is done once per Idempotency-Key, is strict about its body, and knows no other tenant\'s conversations', async (t, world) => {
  const keys = { a: 'key-of-tenant-a-0123456789', b: 'key-of-tenant-b-0123456789' }
  const { url } = await world.service({ env: { INTERLOCK_API_KEYS: `a:${keys.a},b:${keys.b}` } })
  const { createClient } = await import('../support/client.js')
  const [client, other] = [createClient(url, { apiKey: keys.a }), createClient(url, { apiKey: keys.b })]
  const run = await phases.llm(world, client)
  const id = run.conversation_id
  t.match(problemIn(await repair(other, id, { action: 'retry_turn' })), { status: 404, code: 'not_found' })
  for (const [body, errors] of [
    [{}, [{ pointer: '/action' }]],
    [{ action: 'reboot' }, [{ pointer: '/action' }]],
    [{ action: 'fail_call' }, [{ pointer: '/call_id' }]],
    [{ action: 'explain', reason: 'x' }, [{ pointer: '/reason' }]],
    [{ action: 'release', call_id: 'call_01M7WNB2JRND3S37P2QRWZV709' }, [{ pointer: '/call_id' }]],
    [{ action: 'retry_turn', reason: '' }, [{ pointer: '/reason' }]]
  ] as const) t.match(problemIn(await repair(client, id, body)), { status: 422, code: 'validation_failed', errors }, JSON.stringify(body))
  const first = await repair(client, id, { action: 'retry_turn', reason: 'it hangs' }, { 'idempotency-key': 'once' })
  const again = await repair(client, id, { action: 'retry_turn', reason: 'it hangs' }, { 'idempotency-key': 'once' })
  t.equal(again.headers['idempotency-replayed'], 'true')
  t.equal(again.text, first.text)
  t.equal((await client.ended(run)).output, 'done')
  t.equal(world.model.requests('conv:llm').length, 2)
  t.equal((await client.log({ run: run.id })).filter(({ type }) => type === 'turn.retrying').length, 1)
})

story('repair: what nobody has taken is woken under an id that no queue remembers', async (t, world) => {
  const { client } = await world.service({ roles: { api: true, worker: false } })
  world.model.script('conv:a', [say('done')])
  const run = await client.start({ input: 'conv:a' })
  const told = await report(client, run.conversation_id, { action: 'explain' })
  t.match(told, { conversation: { waiting_for: { kind: 'worker' } }, claims: [], lock: null })
  t.same(told.jobs, [`${run.id}-t1-a1`])
  const released = await report(client, run.conversation_id, { action: 'release' })
  t.ok(Date.parse(released.due_at ?? '') <= Date.now(), 'due now')
  t.ok((await world.keys()).some((key) => key.includes(`${run.id}-t1-a1-r`)), 'a job of its own')
  await world.service({ roles: { api: false, worker: true } })
  t.equal((await client.ended(run)).output, 'done')
})

story('I29: a row and a ledger that disagree are found by explain and mended by release, and no message is lost', async (t, world) => {
  const { client } = await world.service({ roles: { api: true, worker: false } })
  world.model.script('conv:a', [say('done')])
  const run = await client.start({ input: 'conv:a' })
  const { Redis } = await import('ioredis')
  const redis = new Redis(world.redis.url)
  t.teardown(() => redis.quit())
  const [key] = (await world.keys()).filter((one) => one.endsWith(`:conv:${run.conversation_id}`))
  const row = JSON.parse(await redis.hget(key!, 'state') ?? '') as { messages: number }
  await redis.hset(key!, 'state', JSON.stringify({ ...row, messages: 5 }))
  const fresh = await world.service({ roles: { api: true, worker: false } })
  t.same((await report(fresh.client, run.conversation_id, { action: 'explain' })).findings, ['the ledger has 1 messages, the row says 5'])
  const mended = await report(fresh.client, run.conversation_id, { action: 'release' })
  t.same(mended.findings, [])
  t.match(mended.detail, /the row says 5/)
  await world.service({ roles: { api: false, worker: true } })
  t.equal((await client.ended(run)).output, 'done')
  t.same((await client.messages(run.conversation_id)).map(({ content }) => content), ['conv:a', 'done'])
})
