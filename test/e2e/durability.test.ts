import type { Run } from '../../src/schemas/run.js'
import { createClient, within } from '../support/client.js'
import { lastId, watchConversation } from '../support/epochs.js'
import { say } from '../support/model-reply.js'
import { redisBench } from '../support/redis-bench.js'
import { spawnProcess } from '../support/service.js'
import { turnsScript } from '../support/turns-script.js'
import { story } from '../support/world.js'

const env = { INTERLOCK_LOCK_TTL_MS: '1000', INTERLOCK_SWEEP_MS: '200', INTERLOCK_STALLED_MS: '1000' }
const durable = { ownRedis: { args: ['--appendfsync', 'always'] }, env: { ...env, INTERLOCK_PROFILE: 'durable' } }
const range = (n: number) => Array.from({ length: n }, (_, i) => i)

for (const [profile, options] of Object.entries({ fast: { ownRedis: true, env }, durable })) {
  story(`F60, I14: everything is killed with -9 and started again, ${profile}: nothing that was acknowledged is lost`, async (t, { model, server, process, service, tool }) => {
    // Long enough for messages to come in the middle of it.
    model.otherwise(turnsScript('4x3@50'))
    const first = await process('all')
    const begun = await Promise.all(range(5).map((i) => first.client.start({ input: `conv:${i}`, tools: [tool('sleep', { effects: 'read' })] })))
    const streams = await Promise.all(begun.map((run) => first.client.follow(run)))
    const told: { run: Run, text: string }[] = []
    const telling = (async () => {
      for (let i = 0; i < 10; i++) {
        const run = begun[i % 5] as Run
        const text = `message ${i}`
        const answer = await first.client.request('POST', `/runs/${run.id}/messages`, { body: { content: text, mode: 'queue' } }).catch(() => null)
        if (answer === null) return
        if (answer.status === 202) told.push({ run, text })
      }
    })()
    await Promise.all(streams.map((stream) => stream.count(10)))
    await within((async () => { while (told.length < 3) await new Promise(setImmediate) })(), () => 'no message is accepted')
    await Promise.all([first.kill(), server?.kill()])
    await telling
    await Promise.all(streams.map((stream) => stream.ended))
    await server?.start()
    const { client } = await service()
    for (const [i, run] of begun.entries()) {
      t.match(await client.ended(run), { status: 'completed', output: 'All done.' })
      const log = await client.log({ run: run.id })
      const shown = streams[i]?.events() ?? []
      t.same(shown, log.slice(0, shown.length), 'every event that was seen is there')
    }
    t.ok(told.length > 0)
    for (const { run, text } of told) {
      const ledger = await client.messages(run.conversation_id)
      t.equal(ledger.filter(({ content }) => content === text).length, 1, text)
    }
  }, { ...options, except: ['deltas', 'rollback'] })
}

story('F60: a kill -9 of Redis alone, everysec: nothing acknowledged is lost, no reader is reset, nobody is restarted', async (t, { model, server, service, tool }) => {
  const { client } = await service()
  model.otherwise(turnsScript('3x3'))
  const runs = await Promise.all(range(6).map((i) => client.start({ input: `conv:${i}`, tools: [tool('sleep', { effects: 'read' })] })))
  const streams = await Promise.all(runs.map((run) => client.open(`/conversations/${run.conversation_id}/events`)))
  const watched = watchConversation(t, client, runs[0]?.conversation_id ?? '')
  for (const least of [8, 16]) {
    await Promise.all(streams.map((stream) => stream.count(least)))
    await server?.kill()
    await server?.start()
  }
  for (const run of runs) t.match(await client.ended(run), { status: 'completed', output: 'All done.' })
  for (const [i, run] of runs.entries()) {
    const { last_seq: last } = await client.conversation(run.conversation_id)
    // A stream may have been cut while Redis was away: its reader comes back with what it had.
    const seen = streams[i]?.events().length ?? 0
    const rest = seen < last ? await client.open(`/conversations/${run.conversation_id}/events`, { lastEventId: lastId(streams[i]!) }) : null
    await rest?.count(last - seen)
    for (const stream of [streams[i], rest]) t.same(stream?.frames.filter(({ event }) => event === 'stream.reset') ?? [], [], 'an epoch in which nothing was lost resets nobody')
  }
  t.ok((await watched.stop()).length > 1, 'a restart begins an epoch: nobody can tell whether something was lost')
}, { ownRedis: true, env, except: ['deltas', 'rollback'] })

story('F69: with the profile durable a process does not start on a Redis that acknowledges before it is on disk, and says which setting', async (t, { env }) => {
  const child = spawnProcess(t, 'all', env({ INTERLOCK_PROFILE: 'durable' }))
  t.same(await child.exited, { code: 1, signal: null })
  t.match(child.stderr(), /^Redis has appendfsync everysec, but the profile durable needs appendonly yes and appendfsync always: set both, or INTERLOCK_PROFILE to fast\.\n$/)
}, { ownRedis: true })

story('F81: a cursor older than what is kept is answered, never with a silent gap', async (t, { model, service, redis }) => {
  const { client } = await service()
  model.otherwise([say('done'), say('done again')])
  const { run } = await client.finish({ input: 'conv:a' })
  const { conversation_id: id } = run
  await client.finish({ input: 'more', conversation_id: id })
  const bench = await redisBench(t, redis.url, redis.prefix, [])
  await bench.command.xtrim(bench.keys.events(id), 'MINID', '8-0')
  for (const after of ['0', '3', '6']) {
    const stream = await client.open(`/conversations/${id}/events`, { after })
    const { data } = await stream.until(({ event }) => event === 'stream.reset')
    t.match(JSON.parse(data), { reason: 'events_trimmed', last_seq: 10, snapshot: { id } })
    const page = await client.request('GET', `/conversations/${id}/events?after=${after}`, { headers: { accept: 'application/json' } })
    t.equal(page.status, 410)
    t.match(JSON.parse(page.text), { code: 'events_trimmed', first_seq: 8 })
    stream.close()
  }
  const stream = await client.open(`/conversations/${id}/events`, { after: '8' })
  await stream.count(2)
  t.same(stream.events().map(({ seq }) => seq), [9, 10])
  stream.close()
  await createClient(client.url).request('DELETE', `/conversations/${id}`)
  client.seen.conversations.clear()
})

story('F82: a cursor beyond the tail, garbage, negative, or of another conversation is answered, and nothing hangs', async (t, { model, service }) => {
  const { client } = await service()
  model.otherwise(() => say('done'))
  const { run } = await client.finish({ input: 'conv:a' })
  for (const path of [`/conversations/${run.conversation_id}/events`, `/runs/${run.id}/events`]) {
    for (const cursor of ['6', '999999', '5.2.3', '-1', 'x', '1e3', '1.1', '0x1', 'run_1', '%00', '99999999999999999999']) {
      const answer = await client.request('GET', `${path}?after=${cursor}`, { headers: { accept: 'application/json' } })
      t.match(JSON.parse(answer.text), { status: 422, code: 'validation_failed' }, cursor)
    }
    const stream = await client.open(path, { lastEventId: '999999' })
    await stream.until(({ event }) => event === 'stream.reset')
    stream.close()
  }
})
