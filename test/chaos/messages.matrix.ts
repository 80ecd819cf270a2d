/*
 * The fault matrix (docs/fault-matrix.md), F30 to F41: messages, interrupts, cancels and decisions against whatever else happens at that moment.
 */
import root from 'tap'
import type { RequiredAction } from '../../src/schemas/action.js'
import type { Run } from '../../src/schemas/run.js'
import { problemIn, type Answer, type Client, type EventStream } from '../support/client.js'
import { API, repeats, SHORT, WORKER } from '../support/death.js'
import { call, delayed, heldAt, latch, say, type Latch } from '../support/model-reply.js'
import { redisProxy } from '../support/redis-proxy.js'
import { all, begin, insist, send, told } from '../support/schedule-http.js'
import { many, results } from '../support/tool-calls.js'
import { story } from '../support/world.js'

root.setTimeout(600_000)

const range = (n: number) => Array.from({ length: n }, (_, i) => i)

const decide = (client: Client, run: Run, suspension: string, decisions: object[]): Promise<Answer> =>
  client.request('POST', `/runs/${run.id}/decisions`, { body: { suspension_id: suspension, decisions } })

async function asked (client: Client, run: Run, stream: EventStream): Promise<RequiredAction> {
  await stream.event('run.requires_action')
  return (await client.run(run.id)).required_action as RequiredAction
}

const approve = (id: string) => ({ call_id: id, decision: 'approve' })
const reject = (id: string) => ({ call_id: id, decision: 'reject' })

for (const mode of ['queue', 'steer', 'interrupt'] as const) {
  story(`F30: a message (${mode}) between the look for messages and the end of the run: it is answered without any further input`, async (t, { model, service, process, redis }) => {
    const proxy = await redisProxy(t, redis.url)
    const [{ client }] = await Promise.all([service(API), process('worker', { REDIS_URL: proxy.url })])
    model.script('conv:a', [say('first'), say('second')])
    // The worker has seen no message, and its word that the run is over is on its way.
    const over = proxy.on({ match: { script: 'commit', text: 'run.completed' }, act: 'unsent' })
    const { run, stream } = await begin(client, { input: 'conv:a' })
    await over.fired
    await send(client, run, { content: 'one more thing', mode })
    over.release()
    await stream.ended
    t.match(await client.run(run.id), { status: 'completed', output: 'second' })
    t.same(told(model.requests()[1]), mode === 'interrupt' ? ['conv:a', 'one more thing'] : ['conv:a', 'first', 'one more thing'])
    t.equal(model.requests().length, 2)
  }, { env: SHORT })
}

story('F31: an interrupt against the last tool\'s result: it is in the ledger, or it is an orphan, never both or neither', async (t, { model, tools, service, tool }) => {
  const [one, two] = await Promise.all([service(), service()])
  const pay = tool('hold', { name: 'pay', cancellable: false })
  const seen = { ledger: 0, orphan: 0 }
  model.otherwise(({ conversation }, n) => n === 1 ? call({ id: 'c', name: 'pay', arguments: { key: conversation, value: `paid ${conversation}` } }) : say('done'))
  await all(range(repeats(150)), 20, async (i) => {
    const [here, there] = i % 2 === 0 ? [one.client, two.client] : [two.client, one.client]
    const name = `conv:${i}`
    const { run, stream } = await begin(here, { input: name, tools: [pay] })
    const conversation = await here.open(`/conversations/${run.conversation_id}/events`)
    await tools.waitFor((attempts) => attempts.some(({ args }) => args.key === name))
    const release = async () => {
      for (let turns = i % 7; turns > 0; turns--) await new Promise((resolve) => setImmediate(resolve))
      tools.release(name)
    }
    const [answer] = await Promise.all([insist(there, run, { content: 'rather this', mode: 'interrupt' }), release()])
    await stream.ended
    // It may have come when all was over.
    if (answer.status !== 202) t.match(problemIn(answer), { status: 409, code: 'run_ended' })
    const cut = stream.types().includes('tool.cancelled')
    if (cut) await conversation.event('tool.orphaned')
    conversation.close()
    const ledger = (await here.messages(run.conversation_id)).filter(({ role }) => role === 'tool').length
    const { data: orphans } = await here.get<{ data: object[] }>(`/runs/${run.id}/orphans`)
    const told = stream.types().filter((type) => type === 'batch.completed').length
    if (ledger !== (cut ? 0 : 1) || orphans.length !== (cut ? 1 : 0) || told !== ledger) t.fail(`${name}: ${answer.text}, ${ledger} in the ledger, ${orphans.length} orphans`)
    seen[cut ? 'orphan' : 'ledger']++
  })
  t.comment(`${seen.ledger} times the result was first, ${seen.orphan} times the message`)
  t.equal(tools.count(), repeats(150), 'each was carried out once')
})

story('F32: two interrupts at once, by two processes: both are accepted and delivered in that order, and the batch is cancelled once', async (t, { model, tools, service, tool }) => {
  const [one, two] = await Promise.all([service(), service()])
  // Whoever is the later one must not find that the run has ended.
  const gates = new Map<string, Latch>()
  model.otherwise(({ conversation }, n) => n === 1 ? call(...many(2, 'hold', () => ({ key: 'never', value: conversation }))) : delayed(say('done'), gates.get(conversation) as Latch))
  await all(range(repeats(25)), 5, async (i) => {
    const name = `conv:${i}`
    gates.set(name, latch())
    const { run, stream } = await begin(one.client, { input: name, tools: [tool('hold')] })
    await tools.waitFor((attempts) => attempts.filter(({ args }) => args.value === name).length === 2)
    const receipts = await Promise.all([one, two].map(({ client }, k) => send(client, run, { content: `message ${k}`, mode: 'interrupt' })))
    gates.get(name)?.open()
    await stream.ended
    const accepted = stream.events().filter(({ type }) => type === 'message.accepted')
    const ledger = (await one.client.messages(run.conversation_id)).filter(({ role }) => role === 'user').map(({ content }) => content)
    t.same(ledger, [name, ...accepted.map(({ content }) => content)])
    t.equal(accepted.length, 2)
    t.equal(receipts.filter(({ cancelled_call_ids: ids }) => ids.length === 2).length, 1)
    t.equal(stream.types().filter((type) => type === 'tool.cancelled').length, 2)
  })
})

story('F36: a cancel while the worker is frozen with the lock: the client has it at once, and what the worker says when it wakes changes nothing', async (t, { model, service, process }) => {
  const [frozen, { client }] = await Promise.all([process('worker'), service(API)])
  model.script('conv:a', ({ n }) => n === 1 ? heldAt(say(['never ', 'kept']), 2, latch()) : say('and again'))
  const { run, stream } = await begin(client, { input: 'conv:a' })
  await stream.until(({ event }) => event === 'turn.delta')
  frozen.signal('SIGSTOP')
  t.equal((await client.cancel(run.id)).status, 'cancelled')
  await stream.ended
  await service(WORKER)
  const next = await client.finish({ input: 'go on', conversation_id: run.conversation_id })
  t.equal(next.run.output, 'and again', 'nobody waits for it')
  const before = [await client.log({ conversation: run.conversation_id }), await client.messages(run.conversation_id)]
  frozen.signal('SIGCONT')
  t.equal((await model.requests()[0]!.ended).aborted, true, 'closed by us')
  // It is at work again, and what it had to say of the past was said before.
  await frozen.client.request('GET', '/health/live')
  t.same([await client.log({ conversation: run.conversation_id }), await client.messages(run.conversation_id)], before)
  t.same(before[1]?.map(({ content }) => content), ['conv:a', 'go on', 'and again'])
}, { env: SHORT, except: ['overlap'] })

story('F37: a decision against its own deadline: one of the two counts, whoever is late is told so, and the tool runs only if it was approved', async (t, { model, tools, service, tool }) => {
  const [one, two] = await Promise.all([service(), service()])
  const outcomes = { approved: 0, expired: 0 }
  model.otherwise(({ conversation }, n) => n === 1 ? call({ id: 'c', name: 'pay', arguments: { value: conversation } }) : say('done'))
  await all(range(repeats(120)), 40, async (i) => {
    const name = `conv:${i}`
    const { run, stream } = await begin(one.client, { input: name, tools: [tool('pay', { url: `${tools.url}/echo`, approval: 'always', approval_expires_seconds: 1 })] })
    const { suspension_id: suspension, calls, expires_at: expires } = await stream.event('suspension.created') as unknown as RequiredAction
    // From a little before to a little behind the deadline.
    await new Promise((resolve) => setTimeout(resolve, Date.parse(expires ?? '') - Date.now() - 60 + 80 * (i % 20) / 20))
    const answer = await decide(i % 2 === 0 ? one.client : two.client, run, suspension, [approve(calls[0]?.call_id as string)])
    await stream.ended
    const [made] = await one.client.calls(run.id)
    const ran = tools.attempts.filter(({ args }) => args.value === name).length
    const approved = answer.status === 200
    if (!approved) t.match(problemIn(answer), { status: 409, code: /suspension_resolved|call_settled/, detail: /: expired, |the time to decide is over/ })
    const resolved = stream.events().filter(({ type }) => type === 'suspension.resolved').map(({ outcome }) => outcome)
    if (ran !== (approved ? 1 : 0) || resolved.join() !== (approved ? 'decided' : 'expired') || (made?.status === 'completed') !== approved) {
      t.fail(`${name}: answered ${answer.status}, resolved ${resolved.join()}, ran ${ran} times, ${made?.status} ${made?.error?.message}`)
    }
    outcomes[approved ? 'approved' : 'expired']++
  })
  t.comment(`${outcomes.approved} times approved, ${outcomes.expired} times expired`)
}, { except: ['waits'] })

story('F39: every process killed between two decisions of a group: the first is kept, nothing runs before the last, and nobody is asked twice', async (t, { model, tools, process, tool }) => {
  const first = await process('all')
  model.script('conv:a', [call(...many(3, 'pay', (i) => ({ value: i }))), say('done')])
  const { run, stream } = await begin(first.client, { input: 'conv:a', tools: [tool('pay', { url: `${tools.url}/echo`, approval: 'always' })] })
  const { suspension_id: suspension, calls } = await asked(first.client, run, stream)
  const [a, b, c] = calls.map(({ call_id: id }) => id) as [string, string, string]
  // `suspension: grouped` runs what has been approved when all of the group is decided.
  t.equal((await decide(first.client, run, suspension, [approve(b)])).status, 200)
  await first.kill()
  const { client } = await process('all')
  const action = (await client.run(run.id)).required_action as RequiredAction
  t.same([action.suspension_id, action.calls.map(({ call_id: id }) => id)], [suspension, [a, c]])
  t.equal(tools.count(), 0)
  const again = await client.follow(run)
  t.equal((await decide(client, run, suspension, [reject(a), approve(c)])).status, 200)
  await again.ended
  t.same(tools.attempts.map(({ args }) => args.value).sort(), [1, 2])
  t.match((await client.calls(run.id)).map(({ status, error }) => error?.code ?? status), ['rejected', 'completed', 'completed'])
  t.equal(again.types().filter((type) => type === 'suspension.created').length, 1)
}, { env: SHORT, except: ['waits'] })

story('F40: a decision after a cancel, and after an interrupt, is refused, and the tool is not run', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.otherwise((_, n) => n === 1 ? call({ id: 'c', name: 'pay', arguments: { value: 1 } }) : say('done'))
  for (const how of ['cancel', 'interrupt'] as const) {
    const { run, stream } = await begin(client, { input: `conv:${how}`, tools: [tool('pay', { url: `${tools.url}/echo`, approval: 'always' })] })
    const { suspension_id: suspension, calls: [waits] } = await asked(client, run, stream)
    if (how === 'cancel') await client.cancel(run.id)
    else await send(client, run, { content: 'rather this', mode: 'interrupt' })
    t.match(problemIn(await decide(client, run, suspension, [approve(waits?.call_id as string)])), { status: 409 }, how)
    await stream.ended
  }
  t.equal(tools.count(), 0)
}, { except: ['waits'] })

story('F41: a consent is for the arguments that were shown: the same call with others is another call, and old consent is none for it', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  // A hostile provider gives both calls the same id.
  model.script('conv:a', [call({ id: 'same', name: 'pay', arguments: { value: 1 } }), call({ id: 'same', name: 'pay', arguments: { value: 1_000_000 } }), say('done')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [tool('pay', { url: `${tools.url}/echo`, approval: 'always' })] })
  const shown = await asked(client, run, stream)
  const yes = [approve(shown.calls[0]?.call_id as string)]
  t.equal((await decide(client, run, shown.suspension_id, yes)).status, 200)
  await stream.event('run.requires_action', () => stream.types().filter((type) => type === 'run.requires_action').length === 2)
  const then = (await client.run(run.id)).required_action as RequiredAction
  t.match([shown.calls[0]?.arguments, then.calls[0]?.arguments], [{ value: 1 }, { value: 1_000_000 }])
  t.match(problemIn(await decide(client, run, then.suspension_id, yes)), { status: 404 }, 'a consent names its call')
  t.match(problemIn(await decide(client, run, shown.suspension_id, yes)), { status: 409, code: 'suspension_resolved' }, 'and its suspension')
  t.equal((await decide(client, run, then.suspension_id, [reject(then.calls[0]?.call_id as string)])).status, 200)
  await stream.ended
  t.same(tools.attempts.map(({ args }) => args.value), [1])
  t.match(results(model.requests()[2]), ['1', /rejected/])
  t.equal(told(model.requests()[2]).length, 5)
}, { except: ['waits'] })
