import type { Test } from 'tap'
import type { Decisions, RequiredAction } from '../../src/schemas/action.js'
import type { Run } from '../../src/schemas/run.js'
import { problemIn, type Answer, type Client, type EventStream } from '../support/client.js'
import { call, say } from '../support/model-reply.js'
import { begin, send, told } from '../support/schedule-http.js'
import { many, results } from '../support/tool-calls.js'
import { story as tell, type World } from '../support/world.js'

/** Calls wait for people here. */
const story = (title: string, test: (t: Test, world: World) => Promise<void>) => tell(title, test, { except: ['waits'] })

type Given = Decisions['decisions'][number]

const decide = (client: Client, run: Run, suspension: string, decisions: Given[]): Promise<Answer> =>
  client.request('POST', `/runs/${run.id}/decisions`, { body: { suspension_id: suspension, decisions } })

/** Waits until the run asks, and gives what it asks for. */
async function asked (client: Client, run: Run, stream: EventStream): Promise<RequiredAction> {
  await stream.event('run.requires_action')
  return (await client.run(run.id)).required_action as RequiredAction
}

const idsOf = (action: RequiredAction) => action.calls.map(({ call_id: id }) => id)
const outcomes = async (client: Client, run: Run) => (await client.calls(run.id)).map(({ status, error }) => error?.code ?? status)

story('J1, J2, J4: what needs consent waits until its siblings are done, is asked for as one, and its results go to the model in request order', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call(
    { id: 'a', name: 'pay', arguments: { value: 'a' } }, { id: 'b', name: 'echo', arguments: { value: 'b' } }, { id: 'c', name: 'pay', arguments: { value: 'c' } }
  ), say('done')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [tool('echo'), tool('pay', { url: `${tools.url}/echo`, approval: 'always' })] })
  const action = await asked(client, run, stream)
  t.match(action, { kind: 'approval', calls: [{ name: 'pay', arguments: { value: 'a' }, kind: 'approval' }, { name: 'pay', arguments: { value: 'c' } }], expires_at: null })
  const events = stream.events()
  t.same(stream.types().slice(-4), ['tool.started', 'tool.completed', 'suspension.created', 'run.requires_action'])
  t.match(events.at(-2), { suspension_id: action.suspension_id, kind: 'approval', calls: action.calls })
  t.match(await client.run(run.id), { status: 'requires_action', current: { phase: 'action' } })
  t.match(await client.conversation(run.conversation_id), { waiting_for: { kind: 'action' } })
  t.same([tools.count(), model.requests().length], [1, 1])
  const answer = await decide(client, run, action.suspension_id, idsOf(action).map((id) => ({ call_id: id, decision: 'approve' })))
  t.equal(answer.status, 200)
  await stream.ended
  t.same(results(model.requests()[1]), ['a', 'b', 'c'])
  t.equal(tools.count(), 3, 'the sibling was not run again')
  t.same(stream.types().slice(events.length, events.length + 4), ['suspension.resolved', 'run.resumed', 'tool.started', 'tool.started'])
  t.equal(stream.events().find(({ type }) => type === 'suspension.resolved')?.outcome, 'decided')
})

story('J3, J5, J6, J7: five calls, decided in parts and in every way; each part is kept, and the last one resumes', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call(...many(5, 'pay', (i) => ({ value: i }))), say('done')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [tool('pay', {
    url: `${tools.url}/echo`, approval: 'always', parameters: { type: 'object', properties: { value: { type: 'integer' } }, required: ['value'] }
  })] })
  const { suspension_id: suspension, calls } = await asked(client, run, stream)
  const [a, b, c, d, e] = calls.map(({ call_id: id }) => id) as [string, string, string, string, string]
  t.equal((await decide(client, run, suspension, [{ call_id: b, decision: 'reject', reason: 'too dear' }, { call_id: a, decision: 'approve' }])).status, 200)
  t.same(idsOf((await client.run(run.id)).required_action as RequiredAction), [c, d, e])
  t.equal(tools.count(), 0, 'a consent waits for the others')
  const { version } = await client.conversation(run.conversation_id)
  for (const [id, word] of [[a, 'approve'], [b, 'reject']] as const) {
    for (const decisions of [[{ call_id: id, decision: 'answer', output: 1 }], [{ call_id: c, decision: 'approve' }, { call_id: id, decision: 'approve' }]] as Given[][]) {
      t.match(problemIn(await decide(client, run, suspension, decisions)), { status: 409, code: 'call_settled', call_ids: [id], detail: new RegExp(`already decided \\(${id}: ${word}`) }, 'who was first is told')
    }
  }
  t.equal((await client.conversation(run.conversation_id)).version, version, 'and nothing of it is taken')
  t.equal((await decide(client, run, suspension, [{ call_id: c, decision: 'edit', arguments: { value: 30 } }])).status, 200)
  t.equal((await decide(client, run, suspension, [{ call_id: d, decision: 'answer', output: { paid: 'in cash' } }, { call_id: e, decision: 'reject' }])).status, 200)
  await stream.ended
  const [first, second, third, fourth, fifth] = results(model.requests()[1])
  t.same([first, third, fourth], ['0', '30', '{"paid":"in cash"}'])
  t.match(JSON.parse(second ?? ''), { error: { code: 'rejected', message: /person has rejected.*too dear/ } })
  t.match(JSON.parse(fifth ?? ''), { error: { code: 'rejected' } })
  t.equal(tools.count(), 2)
  t.match(stream.events().find(({ type, call_id: id }) => type === 'tool.started' && id === c), { arguments: { value: 30 } }, 'and so is what is told')
  const { tool_calls: sent } = model.requests()[1]?.body.messages[1] as { tool_calls: { id: string, function: { arguments: string } }[] }
  t.equal(sent[2]?.function.arguments, '{"value":30}', 'the ledger has what was run')
  t.same(sent.map(({ id: own }) => own), many(5, 'pay', () => ({})).map(({ id: own }) => own), 'under the ids that the model gave, also of what was edited')
})

story('J8: wrong decisions are refused with what is wrong, and change nothing', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call({ id: 'a', name: 'pay', arguments: { value: 1 } }, { id: 'b', name: 'echo', arguments: {} }), say('done')])
  model.script('conv:b', [call({ id: 'a', name: 'pay', arguments: { value: 1 } }), say('done')])
  const body = { tools: [tool('echo'), tool('pay', { url: `${tools.url}/echo`, approval: 'always' as const, parameters: { type: 'object', properties: { value: { type: 'integer' } } } })] }
  const { run, stream } = await begin(client, { input: 'conv:a', ...body })
  const other = await begin(client, { input: 'conv:b', ...body })
  const { suspension_id: suspension, calls: [asking] } = await asked(client, run, stream)
  const foreign = await asked(client, other.run, other.stream)
  const id = asking?.call_id as string
  const sibling = (await client.calls(run.id))[1]?.call_id as string
  const before = await client.conversation(run.conversation_id)
  const refused: [string, Given[], number, object][] = [
    ['susp_01ARZ3NDEKTSV4RRFFQ69G5FAV1', [{ call_id: id, decision: 'approve' }], 404, { code: 'not_found' }],
    [foreign.suspension_id, [{ call_id: id, decision: 'approve' }], 404, { code: 'not_found' }],
    [suspension, [{ call_id: 'call_01ARZ3NDEKTSV4RRFFQ69G5FAV', decision: 'approve' }], 404, { code: 'not_found' }],
    [suspension, [{ call_id: sibling, decision: 'approve' }], 404, { code: 'not_found' }],
    [suspension, [{ call_id: idsOf(foreign)[0] as string, decision: 'approve' }], 404, { code: 'not_found' }],
    [suspension, [{ call_id: id, decision: 'approve', reason: 'x' }], 422, { errors: [{ pointer: '/decisions/0/reason' }] }],
    [suspension, [{ call_id: id, decision: 'edit' }], 422, { errors: [{ pointer: '/decisions/0/arguments' }] }],
    [suspension, [{ call_id: id, decision: 'edit', arguments: { value: 'x' } }], 422, { errors: [{ pointer: '/decisions/0/arguments' }] }],
    [suspension, [{ call_id: id, decision: 'answer' }], 422, { errors: [{ pointer: '/decisions/0/output' }] }],
    [suspension, [{ call_id: id, decision: 'approve' }, { call_id: id, decision: 'reject' }], 422, { errors: [{ pointer: '/decisions/1/call_id' }] }],
    [suspension, [{ call_id: id, decision: 'maybe' as 'approve' }], 422, { code: 'validation_failed' }],
    [suspension, [], 422, { code: 'validation_failed' }]
  ]
  for (const [of, decisions, status, problem] of refused) {
    const answer = await decide(client, run, of, decisions)
    t.equal(answer.status, status, answer.text)
    t.match(problemIn(answer), problem)
  }
  t.equal((await client.conversation(run.conversation_id)).version, before.version)
  for (const [of, to] of [[run, suspension], [other.run, foreign.suspension_id]] as const) {
    const [waits] = ((await client.run(of.id)).required_action as RequiredAction).calls
    await decide(client, of, to, [{ call_id: waits?.call_id as string, decision: 'approve' }])
  }
  await Promise.all([stream.ended, other.stream.ended])
  const late = problemIn(await decide(client, run, suspension, [{ call_id: id, decision: 'reject' }]))
  t.match(late, { code: 'suspension_resolved', suspension_id: suspension, call_ids: [id], detail: new RegExp(`${id}: approve`) })
})

story('F38, J9: of two decisions at once, on two API processes, one wins, and the other is told who', async (t, { model, tools, service, tool }) => {
  const [one, two] = await Promise.all([service(), service()])
  model.otherwise(({ body }) => body.messages.at(-1)?.role === 'tool' ? say('done') : call({ id: 'a', name: 'pay', arguments: { value: 1 } }))
  for (let i = 0; i < 50; i++) {
    const { run, stream } = await begin(one.client, { input: `conv:${i}`, tools: [tool('pay', { url: `${tools.url}/echo`, approval: 'always' })] })
    const { suspension_id: suspension, calls: [asking] } = await asked(one.client, run, stream)
    const id = asking?.call_id as string
    const answers = await Promise.all([
      decide(one.client, run, suspension, [{ call_id: id, decision: 'approve' }]), decide(two.client, run, suspension, [{ call_id: id, decision: 'reject' }])
    ])
    t.same(answers.map(({ status }) => status).sort(), [200, 409])
    const won = answers[0].status === 200 ? 'approve' : 'reject'
    t.match(problemIn(answers[won === 'approve' ? 1 : 0]), { code: 'suspension_resolved', detail: new RegExp(`${id}: ${won}`) })
    await stream.ended
    t.same(await outcomes(one.client, run), [won === 'approve' ? 'completed' : 'rejected'])
  }
})

tell('J10, J11: a suspension outlives every process and Redis, holds no worker, and others go on meanwhile', async (t, { model, tools, server, process, tool }) => {
  const env = { INTERLOCK_TURN_CONCURRENCY: '1', INTERLOCK_TOOL_CONCURRENCY: '1' }
  const first = await process('all', env)
  model.script('conv:a', [call({ id: 'a', name: 'pay', arguments: { value: 'paid' } }), say('done')])
  model.script('conv:b', [say('hello')])
  const { run, stream } = await begin(first.client, { input: 'conv:a', tools: [tool('pay', { url: `${tools.url}/echo`, approval: 'always' })] })
  const action = await asked(first.client, run, stream)
  t.equal((await first.client.finish({ input: 'conv:b' })).run.output, 'hello')
  await first.kill()
  await server?.kill()
  await server?.start()
  const { client } = await process('all', env)
  t.same((await client.run(run.id)).required_action, action)
  const again = await client.follow(run)
  await decide(client, run, action.suspension_id, [{ call_id: idsOf(action)[0] as string, decision: 'approve' }])
  await again.ended
  t.match(await client.run(run.id), { status: 'completed', output: 'done' })
  t.equal(tools.count(), 1)
}, { ownRedis: true, except: ['waits'] })

story('J12: the same call again after a no is asked about again, in a suspension of its own', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [...['a', 'b', 'c'].map((id) => call({ id, name: 'pay', arguments: { value: 1 } })), say('I give up')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [tool('pay', { url: `${tools.url}/echo`, approval: 'always' })] })
  for (let n = 1; n <= 3; n++) {
    await stream.event('run.requires_action', () => stream.types().filter((type) => type === 'run.requires_action').length === n)
    const { suspension_id: suspension, calls: [asking] } = (await client.run(run.id)).required_action as RequiredAction
    await decide(client, run, suspension, [{ call_id: asking?.call_id as string, decision: 'reject' }])
  }
  await stream.ended
  t.equal(new Set(stream.events().flatMap((event) => event.type === 'suspension.created' ? event.suspension_id : [])).size, 3)
  t.equal(tools.count(), 0)
  t.equal((await client.run(run.id)).output, 'I give up')
})

for (const [suspension, groups] of [['grouped', [2]], ['sequential', [1, 1]], ['barrier', [1, 1]]] as const) {
  story(`J13: suspension ${suspension}`, async (t, { model, tools, service, tool }) => {
    const { client } = await service()
    const pay = (id: string) => ({ id, name: 'pay', arguments: { value: id } })
    const echo = (id: string) => ({ id, name: 'echo', arguments: { value: id } })
    model.script('conv:a', [call(echo('a'), pay('b'), echo('c'), pay('d'), echo('e')), say('done')])
    const { run, stream } = await begin(client, {
      input: 'conv:a', tools: [tool('echo'), tool('pay', { url: `${tools.url}/echo`, approval: 'always' })], tool_policy: { suspension }
    })
    const before: string[][] = []
    for (const [i, size] of groups.entries()) {
      await stream.event('run.requires_action', () => stream.types().filter((type) => type === 'run.requires_action').length === i + 1)
      before.push(tools.attempts.map(({ args }) => String(args.value)).sort())
      const { suspension_id: of, calls } = (await client.run(run.id)).required_action as RequiredAction
      t.equal(calls.length, size)
      await decide(client, run, of, calls.map(({ call_id: id }) => ({ call_id: id, decision: 'approve' })))
    }
    await stream.ended
    t.same(results(model.requests()[1]), ['a', 'b', 'c', 'd', 'e'])
    t.same(before, suspension === 'grouped' ? [['a', 'c', 'e']] : suspension === 'sequential' ? [['a', 'c', 'e'], ['a', 'b', 'c', 'e']] : [['a'], ['a', 'b', 'c']])
  })
}

story('J14: when nobody decides in time the call is not run, and that is not called a person\'s no', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call({ id: 'a', name: 'pay', arguments: { value: 1 } }, { id: 'b', name: 'pay', arguments: { value: 2 } }), say('done')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [tool('pay', { url: `${tools.url}/echo`, approval: 'always', approval_expires_seconds: 1 })] })
  const { suspension_id: suspension, calls: [first], expires_at: expires } = await asked(client, run, stream)
  t.match(expires, /^2/)
  await decide(client, run, suspension, [{ call_id: first?.call_id as string, decision: 'approve' }])
  await stream.ended
  t.equal(stream.events().find(({ type }) => type === 'suspension.resolved')?.outcome, 'expired')
  const [one, two] = results(model.requests()[1])
  t.equal(one, '1', 'what was decided stands')
  t.match(JSON.parse(two ?? ''), { error: { code: 'rejected', message: /^nobody decided/ } })
})

story('C29, I32: an interrupt ends a suspension as superseded: settled siblings stay, undecided calls leave, late decisions are refused', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call({ id: 'a', name: 'echo', arguments: { value: 'kept' } }, { id: 'b', name: 'pay', arguments: { value: 1 } }), say('yes')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [tool('echo'), tool('pay', { url: `${tools.url}/echo`, approval: 'always' })] })
  const { suspension_id: suspension, calls } = await asked(client, run, stream)
  const receipt = await send(client, run, 'rather this')
  t.match(receipt, { receipt: 'interrupted', cancelled_call_ids: calls.map(({ call_id: id }) => id) })
  await stream.ended
  t.same(told(model.requests()[1]), ['conv:a', '→ echo', '= kept', 'rather this'])
  t.equal(stream.events().find(({ type }) => type === 'suspension.resolved')?.outcome, 'superseded')
  t.match(problemIn(await decide(client, run, suspension, calls.map(({ call_id: id }) => ({ call_id: id, decision: 'approve' as const })))), { code: 'suspension_resolved', detail: /superseded/ })
  t.equal(tools.count(), 1)
})

story('I32: steer and queue wait for a suspension, a cancel ends it', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  const body = { tools: [tool('pay', { url: `${tools.url}/echo`, approval: 'always' as const })] }
  model.script('conv:a', [call({ id: 'a', name: 'pay', arguments: { value: 1 } }), say('first'), say('second')])
  const { run, stream } = await begin(client, { input: 'conv:a', ...body })
  const { suspension_id: suspension, calls } = await asked(client, run, stream)
  await send(client, run, { content: 'at the end', mode: 'queue' })
  await send(client, run, { content: 'at once', mode: 'steer' })
  await decide(client, run, suspension, calls.map(({ call_id: id }) => ({ call_id: id, decision: 'approve' })))
  await stream.ended
  t.same(told(model.requests()[1]), ['conv:a', '→ pay', '= 1', 'at once'])
  t.same(told(model.requests()[2]), ['conv:a', '→ pay', '= 1', 'at once', 'first', 'at the end'])
  model.script('conv:b', [call({ id: 'a', name: 'pay', arguments: { value: 1 } })])
  const other = await begin(client, { input: 'conv:b', ...body })
  await asked(client, other.run, other.stream)
  t.match(await client.cancel(other.run.id), { status: 'cancelled', required_action: null })
  t.same(other.stream.types().slice(-4, -2).length, 2)
  await other.stream.ended
})
