/*
 * The fault matrix (docs/fault-matrix.md), F20 to F28: what can go wrong around tool calls, and around the barrier that closes their batch.
 */
import root from 'tap'
import { createClient, problemIn } from '../support/client.js'
import { API, dieAt, inTime, repeats, SHORT } from '../support/death.js'
import { call, delayed, latch, say } from '../support/model-reply.js'
import { all, begin } from '../support/schedule-http.js'
import { spawnProcess, type SpawnedProcess } from '../support/service.js'
import { many, results } from '../support/tool-calls.js'
import { story } from '../support/world.js'

root.setTimeout(600_000)

const ROUGH = { INTERLOCK_TOOLS_DIR: `${import.meta.dirname}/../support/rough-tools` }

story('F21: killed with a tool\'s answer, before it is stored: what reads runs again under the same key, a write is outcome_unknown, each has one result', async (t, world) => {
  const { model, tools, tool } = world
  // Both answer at once, so both answers are lost.
  model.script('conv:a', [
    call({ id: 'r', name: 'read', arguments: { n: 2, value: 'r' } }, { id: 'w', name: 'write', arguments: { n: 2, value: 'w' } }), say('done')
  ])
  const dying = dieAt(t, world, { text: 'tool.completed', at: 'unsent' }, {
    input: 'conv:a', tools: [tool('barrier', { name: 'read', effects: 'read', url: `${tools.url}/barrier` }), tool('barrier', { name: 'write', url: `${tools.url}/barrier` })]
  })
  // The second attempt would wait for a partner for ever.
  await tools.waitFor((attempts) => attempts.length === 3)
  await fetch(`${tools.url}/barrier`, { method: 'POST', body: JSON.stringify({ n: 2 }), headers: { 'interlock-call-id': 'partner' } })
  const partner = tools.attempts.findIndex(({ headers }) => headers['interlock-call-id'] === 'partner')
  tools.attempts.splice(partner, 1)
  const death = await dying
  const of = (value: string) => tools.attempts.filter(({ args }) => args.value === value)
  t.equal(of('w').length, 1)
  t.same(of('r').map(({ headers }) => headers['interlock-attempt']), ['1', '2'])
  t.equal(new Set(of('r').map(({ headers }) => headers['idempotency-key'])).size, 1)
  t.match(results(model.requests()[1]), ['r', /outcome_unknown/])
  inTime(t, death)
}, { env: SHORT })

story('F22: killed when the last result is stored, before the next turn begins: one LLM request for that turn, in time', async (t, world) => {
  const { model, tools, tool } = world
  model.script('conv:a', [call(...many(2, 'echo', (i) => ({ value: i }))), say('done')])
  const death = await dieAt(t, world, { text: 'batch.completed', at: 'answered' }, { input: 'conv:a', tools: [tool('echo')] })
  t.same(model.requests().map(({ requestId }) => requestId?.replace(death.run.id, '')), ['.1.1', '.2.2'])
  t.equal(tools.count(), 2)
  t.equal(death.log.filter(({ type }) => type === 'batch.completed').length, 1)
  inTime(t, death)
}, { env: SHORT })

story('F23: the last two results in the same instant, on two workers: the barrier opens once, and one LLM request follows', async (t, { model, tools, process, tool }) => {
  // Each takes one call at most, so the two of a batch are on both.
  const env = { INTERLOCK_LOCAL_CALLS: '0' }
  const [{ client }, ...workers] = await Promise.all([process('api'), process('worker', env), process('worker', env)])
  const times = repeats(150)
  model.otherwise(({ conversation }, n) => n === 1 ? call(...many(2, 'barrier', (i) => ({ n: 2, key: conversation, value: i }))) : say('done'))
  await all(Array.from({ length: times }, (_, i) => i), 20, async (i) => {
    const { run, stream } = await begin(client, { input: `conv:${i}`, tools: [tool('barrier', { placement: 'spread' })] })
    await stream.ended
    const closed = stream.types().filter((type) => type === 'batch.completed').length
    const { status, usage } = await client.run(run.id)
    if (status !== 'completed' || usage.llm_calls !== 2 || closed !== 1) t.fail(`conv:${i}: ${status}, ${usage.llm_calls} LLM calls, closed ${closed} times`)
  })
  t.equal(model.requests().length, 2 * times)
  t.equal(tools.count(), 2 * times)
  t.equal(model.maxInFlight(), 1)
  for (const worker of workers) t.match((await worker.client.request('GET', '/metrics')).text, /interlock_events_total\{type="tool\.completed"\} [1-9]/, 'both took part')
})

story('F26: an output of a client: taken once; a second one, one for an ended run, an unknown call and another tenant\'s call are refused by name', async (t, { model, service }) => {
  const keys = { one: 'key-of-the-first-tenant', two: 'key-of-the-second-tenant' }
  const { url } = await service({ env: { INTERLOCK_API_KEYS: `one:${keys.one},two:${keys.two}` } })
  // Not watched: the judge reads as the tenant that is there without keys.
  const [client, stranger] = [createClient(url, { apiKey: keys.one }), createClient(url, { apiKey: keys.two })]
  const go = latch()
  model.script('conv:a', [call({ id: 'a', name: 'locate', arguments: {} }), delayed(say('done'), go)])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [{ kind: 'client', name: 'locate', parameters: { type: 'object' } }] })
  await stream.event('run.requires_action')
  const id = (await client.run(run.id)).required_action?.calls[0]?.call_id as string
  const submit = (by: typeof client, callId: string, output: unknown) => by.request('POST', `/runs/${run.id}/tool_outputs`, { body: { outputs: [{ call_id: callId, output }] } })
  t.match(problemIn(await submit(stranger, id, 'not yours')), { status: 404, code: 'not_found' })
  t.match(problemIn(await submit(client, 'call_01ARZ3NDEKTSV4RRFFQ69G5FAV', 'nobody asked')), { status: 404, code: 'not_found' })
  t.equal((await submit(client, id, 'Bag End')).status, 200)
  t.match(problemIn(await submit(client, id, 'Bree')), { status: 409, code: 'call_settled', call_ids: [id] })
  go.open()
  await stream.ended
  t.match(problemIn(await submit(client, id, 'Rivendell')), { status: 409, code: 'call_settled', call_ids: [id] })
  t.same(results(model.requests()[1]), ['Bag End'])
}, { except: ['waits'] })

story('F27: one call of fifty kills its worker each time: it fails after a few deaths, the others and another conversation complete', async (t, { model, service, env }) => {
  const settings = { ...SHORT, ...ROUGH }
  const { client } = await service({ ...API, env: settings })
  const gate = latch()
  const calls = many(50, 'good', (i) => ({ value: i }))
  calls[20] = { id: 'poison', name: 'poison', arguments: {} }
  model.script('conv:poison', [call(...calls), say('done')])
  model.script('conv:other', [delayed(say('fine'), gate), say('fine'), say('fine'), say('fine'), say('fine'), say('fine')])
  // Whoever dies is started again, as a supervisor does.
  let deaths = 0
  let over = false
  let child: SpawnedProcess
  const supervise = () => {
    child = spawnProcess(t, 'worker', env(settings))
    void child.exited.then(() => {
      if (over) return
      deaths++
      supervise()
    })
  }
  supervise()
  const other = await begin(client, { input: 'conv:other' })
  const { run, stream } = await begin(client, { input: 'conv:poison', tools: [{ kind: 'module', name: 'good' }, { kind: 'module', name: 'poison' }] })
  gate.open()
  await Promise.all([stream.ended, other.stream.ended])
  over = true
  t.match(await client.run(run.id), { status: 'completed', output: 'done' })
  t.match(await client.run(other.run.id), { status: 'completed', output: 'fine' })
  const ended = await client.calls(run.id)
  t.match(ended.find(({ name }) => name === 'poison'), { status: 'failed', attempt: 5, error: { code: 'outcome_unknown' } })
  t.same(ended.filter(({ name, status }) => name === 'good' && status !== 'completed'), [], 'all others have their result')
  t.equal(deaths, 5)
}, { env: SHORT, long: true })
