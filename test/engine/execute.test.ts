import t from 'tap'
import type { Command } from '../../src/core/command.js'
import { ConflictError, IMPATIENT_MS, UnavailableError } from '../../src/engine/execute.js'
import { calls, createBench, type EngineBench, type Process } from '../support/engine-bench.js'
import { settled } from '../support/fake-clock.js'

const cancel = (bench: EngineBench, runId = 'run_1'): Command => ({ type: 'CancelRun', at: bench.clock.now(), run_id: runId, reason: 'cancelled' })
const message = (bench: EngineBench, id: string): Command => ({
  type: 'PostMessage', at: bench.clock.now(), run_id: 'run_1', message_id: id, content: id, mode: 'queue', queued: 'deliver', completed_calls: 'keep', due_at: null
})
/** What a worker that was given the turn says. */
const answer = (bench: EngineBench, fence: number): Command => ({
  type: 'CompleteTurn', at: bench.clock.now(), fence, text: 'done', finish_reason: 'stop', calls: [], usage: null, message_id: 'm', batch_id: 'b'
})

t.test('commands that arrive together are decided one after the other and stored as one', async (t) => {
  const bench = createBench()
  const api = bench.api()
  await bench.start(api)
  const results = await Promise.all(Array.from({ length: 50 }, (_, i) => api.executed.execute('c', message(bench, `m${i}`))))
  t.ok(results.every(({ refusal, row }) => refusal === null && row?.version === 2))
  t.equal(bench.commits.length, 2)
  t.same((await bench.events()).slice(1).map((event) => event.message_id), Array.from({ length: 50 }, (_, i) => `m${i}`), 'in the order in which they came')
})

t.test('what arrives while a commit is on its way goes into the next one', async (t) => {
  const bench = createBench()
  const api = bench.api()
  const later: ReturnType<typeof api.executed.execute>[] = []
  bench.beforeCommit = async () => {
    bench.beforeCommit = null
    for (const id of ['a', 'b']) later.push(api.executed.execute('c', message(bench, id)))
  }
  await bench.start(api)
  await Promise.all(later)
  t.same(bench.commits.map(({ events }) => events.map(({ type }) => type)), [['run.created'], ['message.accepted', 'message.accepted']])
})

t.test('one of them can be refused without the others', async (t) => {
  const bench = createBench()
  const api = bench.api()
  await bench.start(api)
  const all = await Promise.all([message(bench, 'a'), message(bench, 'a'), cancel(bench, 'run_9'), message(bench, 'b')].map((command) => api.executed.execute('c', command)))
  t.same(all.map(({ refusal }) => refusal), [null, 'duplicate', 'run_ended', null])
  t.equal(bench.commits.length, 2)
})

t.test('M2 M3: processes that change the same conversation at once lose nothing', async (t) => {
  const bench = createBench()
  const apis = Array.from({ length: 4 }, (_, i) => bench.api(`api${i}`))
  await bench.start(apis[0] as Process)
  const all = await Promise.all(apis.flatMap(({ executed }, i) => Array.from({ length: 10 }, (_, k) => executed.execute('c', message(bench, `m${i}-${k}`)))))
  t.ok(all.every(({ refusal }) => refusal === null))
  const accepted = (await bench.events()).slice(1).map((event) => event.message_id)
  t.equal(new Set(accepted).size, 40)
  t.equal(accepted.length, 40)
})

t.test('a refusal is only given on a row that was just read', async (t) => {
  const bench = createBench()
  const [one, other] = [bench.api('one'), bench.api('other')]
  await bench.start(one)
  await one.executed.execute('c', cancel(bench))
  await bench.start(other, { run_id: 'run_2', new_conversation: false })
  t.equal((await one.executed.execute('c', cancel(bench, 'run_2'))).refusal, null, 'the row it knew had no such run')
  t.same((await bench.said()).at(-1), 'run.cancelled')
})

t.test('M3: a request that others are always ahead of is told so, and changes nothing; what was paid for is tried until it is heard', async (t) => {
  const bench = createBench()
  const [worker, other] = [await bench.worker('w'), bench.api('other')]
  await bench.start(worker)
  await settled()
  let ahead = 0
  bench.beforeCommit = async ({ events }) => {
    const mine = events.some(({ type, message_id: id }) => type === 'turn.completed' || id === 'mine')
    if (mine && ahead < 40) await other.executed.execute('c', message(bench, `other${++ahead}`))
  }
  const refused = t.rejects(worker.executed.execute('c', message(bench, 'mine')), ConflictError)
  await bench.asked[0]?.answer({ text: 'paid for' })
  await bench.clock.pass(400)
  await refused
  t.ok(ahead > 8, 'after eight more tries')
  await bench.clock.pass(4000)
  t.equal(ahead, 40)
  const events = await bench.events()
  t.equal(events.filter(({ type }) => type === 'turn.completed').length, 1)
  t.notOk(events.some((event) => event.message_id === 'mine'))
})

for (const fault of ['before', 'after'] as const) {
  t.test(`F5: a commit whose outcome is unknown (it was lost ${fault} it was done) is sent again until it is known, and done once`, async (t) => {
    const bench = createBench()
    const api = bench.api()
    bench.faults.commit = [fault, fault, fault]
    const starting = bench.start(api)
    await bench.clock.pass(IMPATIENT_MS - 1)
    const { refusal, row } = await starting
    t.equal(refusal, null)
    t.equal(row?.version, 1)
    t.equal(new Set(bench.commits.map(({ token }) => token)).size, 1, 'under one token')
    t.same(await bench.said(), ['run.created'])
    t.equal(bench.hints.length, 1, 'and what follows it follows once')
  })
}

t.test('F54: a request waits for a store that is away no longer than it says, and says so', async (t) => {
  const bench = createBench()
  const api = bench.api()
  bench.faults.load = new Array<'before'>(100).fill('before')
  const starting = api.executed.execute('c', cancel(bench))
  let over = false
  const refused = t.rejects(starting, UnavailableError).then(() => { over = true })
  await bench.clock.pass(IMPATIENT_MS - 1)
  t.equal(over, false)
  await bench.clock.pass(1)
  t.equal(over, true)
  await refused
  await bench.clock.pass(60_000)
  t.equal(bench.commits.length, 0, 'and then nobody goes on trying')
  t.equal(bench.clock.timers(), 0)
})

t.test('F54: a store that does not even refuse holds a request no longer', async (t) => {
  const bench = createBench()
  const api = bench.api()
  bench.faults.load = ['never']
  const refused = t.rejects(api.executed.execute('c', cancel(bench)), UnavailableError)
  await bench.clock.pass(IMPATIENT_MS)
  await refused
})

t.test('F54: a request does not wait behind what is more patient', async (t) => {
  const bench = createBench()
  const worker = await bench.worker('w')
  await bench.start(worker)
  await settled()
  bench.faults.commit = new Array<'before'>(1000).fill('before')
  await bench.asked[0]?.answer({ text: 'paid for' })
  await bench.clock.pass(5000)
  const refused = t.rejects(worker.executed.execute('c', cancel(bench)), UnavailableError)
  await bench.clock.pass(IMPATIENT_MS)
  await refused
  await bench.clock.pass(1_800_000)
  bench.faults.commit = []
  await bench.clock.pass(1000)
  t.same((await bench.said()).slice(-2), ['turn.completed', 'run.completed'], 'which is stored half an hour later, and the request that was given up is not')
})

t.test('what was given up may still happen, and is done about all the same', async (t) => {
  const bench = createBench()
  const api = bench.api()
  bench.faults.commit = new Array<'after'>(100).fill('after')
  const refused = t.rejects(bench.start(api), UnavailableError)
  await bench.clock.pass(IMPATIENT_MS + 1000)
  await refused
  t.same(await bench.said(), ['run.created'])
  bench.faults.commit = []
  t.equal((await bench.start(api)).refusal, 'duplicate', 'asked again, it is recognised')
})

t.test('a hint that cannot be queued is no error', async (t) => {
  const bench = createBench()
  const api = bench.api()
  bench.queueAway = true
  t.equal((await bench.start(api)).refusal, null)
  t.same(api.logged, ['hint not queued; the sweep will find it'])
})

t.test('only what a commit made due is queued', async (t) => {
  const bench = createBench()
  const api = bench.api()
  await bench.start(api)
  await api.executed.execute('c', message(bench, 'a'))
  await bench.start(api, { run_id: 'run_2', new_conversation: false })
  t.same(bench.hints.map(({ jobs }) => jobs.map(({ id }) => id)), [['run_1-t1-a1']])
})

t.test('I1: a process without a worker tells the worker whose turn was cancelled', async (t) => {
  const bench = createBench()
  const [worker, api] = [await bench.worker('w'), bench.api()]
  await bench.start(worker)
  await settled()
  await api.executed.execute('c', cancel(bench))
  await settled()
  t.match(api.notes, [{ type: 'abort', conversation: 'c', call_ids: [], reason: 'cancelled' }])
  t.equal(bench.asked[0]?.signal.aborted, true)
})

t.test('I1: commands that are stored together are performed as they stand in the end', async (t) => {
  const bench = createBench()
  const worker = await bench.worker('w')
  await Promise.all([bench.start(worker), worker.executed.execute('c', cancel(bench))])
  await settled()
  t.equal(bench.commits.length, 1)
  t.same(await bench.said(), ['run.created', 'run.started', 'turn.started', 'turn.cancelled', 'run.cancelled'])
  t.equal(bench.asked.length, 0, 'no LLM call begins for a run that is cancelled already')

  await bench.start(worker, { run_id: 'run_2', new_conversation: false })
  await settled()
  // While a commit is on its way the LLM answers with calls, and then somebody cancels the run.
  const cancelling = new Promise((resolve) => {
    bench.beforeCommit = async () => {
      bench.beforeCommit = null
      await bench.asked[0]?.answer({ tool_calls: calls('look', 'look') })
      resolve(worker.executed.execute('c', cancel(bench, 'run_2')))
    }
  })
  await bench.start(worker, { run_id: 'run_3', new_conversation: false })
  t.match(await cancelling, { refusal: null })
  await settled()
  t.same((await bench.said()).slice(-3), ['tool.cancelled', 'tool.cancelled', 'run.cancelled'])
  t.equal(bench.ran.length, 0, 'and no tool')
  t.same(worker.logged.filter((line) => line.includes('failed')), [])
})

t.test('B8: who has lost the right to write is refused', async (t) => {
  const bench = createBench()
  const worker = await bench.worker('w')
  await bench.start(worker)
  await settled()
  const row = await bench.store.load('c')
  const fence = row?.state.fence ?? 0
  t.equal((await worker.executed.execute('c', answer(bench, fence - 1))).refusal, 'stale')
  t.equal((await worker.executed.execute('c', answer(bench, fence + 1))).refusal, 'stale')
  t.equal((await worker.executed.execute('c', answer(bench, fence))).refusal, null)
  t.equal((await worker.executed.execute('c', answer(bench, fence))).refusal, 'stale')
})

t.test('I21: a worker of a conversation that was deleted and made again is refused', async (t) => {
  const bench = createBench()
  const [worker, api] = [await bench.worker('w'), bench.api()]
  await bench.start(worker)
  await settled()
  await bench.store.remove('c')
  await bench.clock.pass(5)
  const other = await bench.worker('v')
  await bench.start(other, { run_id: 'run_2' })
  await settled()
  t.equal(bench.asked.length, 1, 'the other one waits for the lease')
  await bench.asked[0]?.answer({ text: 'of the former self' })
  t.notOk((await bench.said()).includes('turn.completed'))
  t.equal((await api.executed.execute('c', cancel(bench))).refusal, 'run_ended')
})

t.test('I21: what makes a conversation, and was stored without an answer, does not bring it back once it was deleted', async (t) => {
  for (const again of [false, true]) {
    const bench = createBench()
    const [late, api] = [bench.api('late'), bench.api()]
    bench.faults.commit = ['after']
    const making = bench.start(late)
    await settled()
    await bench.store.remove('c')
    if (again) await bench.start(api, { run_id: 'run_2' })
    await bench.clock.pass(100)
    t.equal((await making).refusal, null, 'it was done')
    t.same((await bench.said()).length, again ? 1 : 0)
  }
})

t.test('I21: what makes a conversation and is on the way for long does not bring it back if nobody waits for it any more', async (t) => {
  for (const waits of [false, true]) {
    const bench = createBench()
    const [late, api] = [bench.api('late'), bench.api()]
    let arrive = () => { /* nothing is under way */ }
    bench.beforeCommit = () => new Promise<void>((resolve) => { arrive = resolve })
    const making = bench.start(late).then(({ refusal }) => refusal, (error: Error) => error.name)
    await settled()
    bench.beforeCommit = null
    await bench.start(api)
    await bench.store.remove('c')
    await bench.clock.pass(waits ? 100 : IMPATIENT_MS)
    arrive()
    t.equal(await making, waits ? null : 'UnavailableError')
    await settled()
    t.equal(await bench.store.load('c') !== null, waits)
  }
})

t.test('a commit that nobody waits for any more is not sent', async (t) => {
  const bench = createBench()
  const api = bench.api()
  bench.faults.commit = ['before', 'before', 'before', 'before', 'before'] // the pause behind the fifth lasts until after the request was answered
  const refused = t.rejects(bench.start(api), UnavailableError)
  await bench.clock.pass(1000)
  await refused
  await bench.clock.pass(10_000)
  t.equal(await bench.store.load('c'), null)
})

t.test('what is known here of a row is checked between two commits, and read if nothing is known', async (t) => {
  const bench = createBench()
  const [api, other] = [bench.api(), bench.api('other')]
  await bench.start(api)
  const seen: (number | undefined)[] = []
  const looking = (process: Process) => new Promise<void>((resolve) => {
    process.executed.between('c', (row) => {
      seen.push(row?.version)
      resolve()
    })
  })
  const posting = api.executed.execute('c', message(bench, 'a'))
  await Promise.all([looking(api), posting])
  await looking(api)
  await looking(other)
  t.same(seen, [1, 2, 2])
  other.executed.forget('c')
  bench.faults.load = ['before']
  other.executed.between('c', () => t.fail('the store was away'))
  await settled()
  t.same(other.logged, [])
})
