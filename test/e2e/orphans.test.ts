import { join } from 'node:path'
import { problemIn } from '../support/client.js'
import { call, delayed, latch, say } from '../support/model-reply.js'
import { begin, send, told } from '../support/schedule-http.js'
import { story, type World } from '../support/world.js'

const env = { INTERLOCK_TOOLS_DIR: join(import.meta.dirname, '../support/tools') }
const deaf = { kind: 'module' as const, name: 'deaf_sleep' }
interface Page { data: { call_id: string, reason: string, output: unknown }[] }

story('FAULTS F25, D5: a result that comes after the timeout is kept with its reason, told, and never sent to the model', async (t, { model, service }) => {
  const { client } = await service({ env })
  const go = latch()
  model.script('conv:a', [call({ name: 'deaf_sleep', arguments: { ms: 400, value: 'too late' } }), delayed(say('done'), go)])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [{ ...deaf, timeout_ms: 50 }] })
  const orphaned = await stream.event('tool.orphaned')
  const begun = await stream.event('tool.started', ({ call_id: id }) => id === orphaned.call_id)
  for (const field of ['run_id', 'turn', 'batch_id', 'name'] as const) t.equal(orphaned[field], begun[field], `C11: ${field}`)
  t.match(orphaned, { name: 'deaf_sleep', reason: 'timeout', output: 'too late', turn: 1 })
  t.match((await client.get<Page>(`/runs/${run.id}/orphans`)).data, [{ call_id: orphaned.call_id, run_id: run.id, turn: 1, name: 'deaf_sleep', reason: 'timeout', output: 'too late' }])
  go.open()
  await stream.ended
  t.notMatch(JSON.stringify(model.requests().map(({ body }) => body)), /too late"?[^}]*tool_call_id/)
  t.match((await client.calls(run.id))[0], { status: 'failed', error: { code: 'timeout' } })
  t.equal((await client.request('DELETE', `/runs/${run.id}/orphans/${orphaned.call_id}`)).status, 204)
  t.same((await client.get<Page>(`/runs/${run.id}/orphans`)).data, [])
  t.match(problemIn(await client.request('DELETE', `/runs/${run.id}/orphans/${orphaned.call_id}`)), { status: 404 })
})

story('D6: a result that comes after an interrupt is an orphan of its run; attached, the model reads it at the next turn, once', async (t, { model, service }) => {
  const { client } = await service({ env })
  const go = latch()
  model.script('conv:a', [call({ name: 'deaf_sleep', arguments: { ms: 300, value: 'found it' } }), delayed(say('first'), go), say('second')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [deaf] })
  await stream.event('tool.started')
  await send(client, run, 'rather this')
  const { call_id: id, reason } = await stream.event('tool.orphaned')
  t.equal(reason, 'cancelled')
  const key = { 'idempotency-key': 'attach-1' }
  const [attached, repeated] = [
    await client.request('POST', `/runs/${run.id}/orphans/${id}/attach`, { headers: key }), await client.request('POST', `/runs/${run.id}/orphans/${id}/attach`, { headers: key })
  ]
  t.equal(attached.status, 202)
  t.equal(repeated.text, attached.text)
  t.match(JSON.parse(attached.text), { receipt: 'queued', mode: 'steer' })
  t.match(problemIn(await client.request('POST', `/runs/${run.id}/orphans/${id}/attach`)), { status: 404 })
  go.open()
  await stream.ended
  const [, , third] = model.requests()
  t.same(told(third).slice(0, 3), ['conv:a', 'rather this', 'first'])
  t.match(told(third)[3], /call_.*deaf_sleep:\nfound it$/)
  t.equal(told(third).length, 4)
})

story('a result that comes after the run has ended belongs to the conversation; attached, the next run has it', async (t, { model, service }) => {
  const { client } = await service({ env })
  model.script('conv:a', [call({ name: 'deaf_sleep', arguments: { ms: 300, value: 'found it' } }), say('I see')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [deaf] })
  const conversation = await client.open(`/conversations/${run.conversation_id}/events`)
  await stream.event('tool.started')
  await client.cancel(run.id)
  const { call_id: id } = await conversation.event('tool.orphaned', (event) => event.reason === 'run_ended' && event.run_id === undefined)
  t.equal((await client.request('POST', `/runs/${run.id}/orphans/${id}/attach`)).status, 202)
  await client.finish({ input: 'well?', conversation_id: run.conversation_id })
  t.match(told(model.requests()[1]), ['conv:a', /found it$/, 'well?'])
  conversation.close()
})

/** The orphans of a run whose call was cancelled and left to finish: with what `answer` has its tool say then. */
async function leftToFinish ({ model, tools, service, tool }: World, answer: object): Promise<Page['data']> {
  const { client } = await service()
  model.script('conv:a', [call({ name: 'hold', arguments: { key: 'k', ...answer } }), say('yes')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [tool('hold', { cancellable: false })] })
  await tools.waitFor((attempts) => attempts.length === 1)
  await send(client, run, 'rather this')
  tools.release('k')
  await stream.ended
  const conversation = await client.open(`/conversations/${run.conversation_id}/events`)
  await conversation.event('tool.orphaned')
  conversation.close()
  return (await client.get<Page>(`/runs/${run.id}/orphans`)).data
}

story('cancellable false: a cancelled call is left to finish, and its result is an orphan', async (t, world) => {
  const { model, tools } = world
  t.match(await leftToFinish(world, { value: 'paid' }), [{ output: 'paid' }])
  t.equal(tools.attempts[0]?.aborted, false)
  t.same(told(model.requests()[1]), ['conv:a', 'rather this'])
})

story('D6: an error that a tool answers too late is an orphan as well', async (t, world) => {
  const orphans = await leftToFinish(world, { value: 'already paid', status: 409 })
  t.match(orphans, [{ reason: /^(cancelled|run_ended)$/, output: { error: { code: 'http_error', message: /409.*already paid/ } } }])
  t.notMatch(JSON.stringify(world.model.requests()[1]?.body), /already paid/)
})
