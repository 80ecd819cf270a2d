import { createClient } from '../support/client.js'
import { call, delayed, heldAt, latch, say } from '../support/model-reply.js'
import { begin, median, send, told } from '../support/schedule-http.js'
import { story } from '../support/world.js'

const TOOLS_DIR = `${import.meta.dirname}/../support/tools`

story('I3: tools at work on two workers see the abort, whoever took the message', async (t, { model, tools, process, tool }) => {
  const [api] = await Promise.all([process('api'), process('worker', { INTERLOCK_TOOL_CONCURRENCY: '2' }), process('worker', { INTERLOCK_TOOL_CONCURRENCY: '2' })])
  const { client } = api
  model.script('conv:a', [call(...Array.from({ length: 4 }, () => ({ name: 'hold', arguments: { key: 'never' } }))), say('yes')])
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [tool('hold', { placement: 'spread' })] })
  // Four at once, and no worker takes more than two.
  await tools.waitFor((attempts) => attempts.length === 4)
  const { cancelled_call_ids: cancelled } = await send(client, run, 'rather this')
  t.equal(cancelled.length, 4)
  await stream.ended
  await tools.waitFor((attempts) => attempts.every(({ ended_at: ended }) => ended !== null))
  t.ok(tools.attempts.every(({ aborted }) => aborted))
  t.same(told(model.requests()[1]), ['conv:a', 'rather this'])
})

story('FAULTS F33, I1: an LLM call on another process is closed by the message, not by a renewal', async (t, { model, process }) => {
  const [{ client }] = await Promise.all([process('api'), process('worker')])
  model.otherwise((_, n) => n < 16 ? heldAt(say(['half ', 'whole']), 2, latch()) : say('yes'))
  const { run, stream } = await begin(client, { input: 'conv:a' })
  const closed: number[] = []
  for (let n = 1; n < 16; n++) {
    const request = await model.waitForRequest((one) => one.n === n)
    await stream.until(({ event, data }) => event === 'turn.delta' && (JSON.parse(data) as { turn: number }).turn === n)
    const at = performance.now()
    await send(client, run, `message ${n}`)
    const { aborted, endedAt } = await request.ended
    t.equal(aborted, true)
    closed.push((endedAt ?? Infinity) - at)
  }
  await stream.ended
  t.ok(median(closed) <= 1000, `closed after ${median(closed).toFixed(1)} ms`)
  t.equal(model.maxInFlight(), 1)
})

story('D8, I20: a worker that cannot hear the abort changes nothing when it wakes up, and the run does not wait for it', async (t, { model, process }) => {
  const env = { INTERLOCK_LOCK_TTL_MS: '1000', INTERLOCK_STALLED_MS: '1000' }
  const [{ url }, frozen] = await Promise.all([process('api', env), process('worker', env)])
  // Not watched: while it is frozen, its LLM call stays open beside the next one.
  const client = createClient(url)
  const go = latch()
  model.script('conv:a', [heldAt(say(['far ', 'too late']), 2, go), say('yes'), say('and again')])
  const { run, stream } = await begin(client, { input: 'conv:a' })
  await stream.until(({ event }) => event === 'turn.delta')
  frozen.signal('SIGSTOP')
  const [, receipt] = await Promise.all([process('worker', env), send(client, run, 'rather this')])
  t.equal(receipt.receipt, 'interrupted')
  await stream.ended
  t.match(await client.run(run.id), { status: 'completed', output: 'yes' })
  const before = await client.log({ run: run.id })
  go.open()
  frozen.signal('SIGCONT')
  // It is awake and has heard: its connection is closed by it, or at its end by the provider.
  await model.requests()[0]?.ended
  const { run: next } = await client.finish({ input: 'go on', conversation_id: run.conversation_id })
  t.equal(next.output, 'and again')
  t.same(await client.log({ run: run.id }), before)
  t.same((await client.messages(run.conversation_id)).map(({ content }) => content), ['conv:a', 'rather this', 'yes', 'go on', 'and again'])
})

story('I30: messages that wait cost a turn less than 10 ms', async (t, { model, service }) => {
  const { client } = await service({ env: { INTERLOCK_TOOLS_DIR: TOOLS_DIR } })
  const turns = 200
  const go = latch()
  model.otherwise(({ conversation }, n) => {
    const reply = n <= turns ? call({ name: 'echo', arguments: { value: n } }) : say('done')
    return n === 1 && conversation === 'conv:with' ? delayed(reply, go) : reply
  })
  const body = { tools: [{ kind: 'module' as const, name: 'echo' }], limits: { max_turns: turns + 5 } }
  const loaded = await begin(client, { input: 'conv:with', ...body })
  for (let i = 0; i < 50; i++) await send(client, loaded.run, { content: `waits ${i}`, mode: 'queue' })
  // Both at once, so that a busy machine slows down both.
  const free = await begin(client, { input: 'conv:without', ...body })
  go.open()
  await Promise.all([loaded.stream.ended, free.stream.ended])
  const perTurn = (name: string) => {
    const requests = model.requests(name).slice(1, turns)
    return median(requests.slice(1).map((request, i) => request.arrivedAt - (requests[i]?.endedAt ?? Infinity)))
  }
  const [withMessages, without] = [perTurn('conv:with'), perTurn('conv:without')]
  t.ok(withMessages - without < 10, `${withMessages.toFixed(2)} ms with fifty messages waiting, ${without.toFixed(2)} ms without`)
  t.equal(told(model.requests('conv:with').at(-1)).filter((text) => text.startsWith('waits')).length, 50)
})
