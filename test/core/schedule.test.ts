import t from 'tap'
import { CALLS_PER_JOB, dueAt, isOverdue, wanted } from '../../src/core/schedule.js'
import { ask, by, call, cancel, claimed, given, lose, pass, result, retry, rules, start, work, type Scene, type Step } from '../support/core-scene.js'

const times = { leaseMs: 10_000, sweepMs: 1000 }
const jobs = (scene: Scene) => wanted(scene.state(), scene.now, times.leaseMs).map((job) => job.id)
/** When somebody has to look again, in milliseconds from now. */
const due = (scene: Scene) => {
  const at = dueAt(scene.state(), scene.now, times)
  return at === null ? null : at - scene.now
}
const calls = (count: number) => Array.from({ length: count }, (_, i) => call(`n${i}`))

const rows: { when: string, steps: Step[], jobs: string[], due: number | null }[] = [
  { when: 'a run waits for its first worker', steps: [start()], jobs: ['r1-t1-a1'], due: 1000 },
  { when: 'an LLM call is under way', steps: [start(), work()], jobs: [], due: 10_000 },
  { when: 'a turn may be tried again at once', steps: [start(), work(), retry()], jobs: ['r1-t1-a2'], due: 1000 },
  { when: 'a turn waits to be tried again', steps: [start(), work(), retry({ delay_ms: 300 })], jobs: [], due: 300 },
  { when: 'that wait is over', steps: [start(), work(), retry({ delay_ms: 300 }), pass(300)], jobs: ['r1-t1-a2'], due: 1000 },
  { when: 'a turn\'s worker was lost', steps: [start(), work(), lose('w1')], jobs: ['r1-t1-a2'], due: 1000 },
  { when: 'all calls run', steps: [start(), work(), by('w1', ask(...calls(3)))], jobs: [], due: 10_000 },
  { when: 'nobody has taken the calls', steps: [start(), work(), ask(...calls(3))], jobs: ['r1-t1-call_n0-a1'], due: 1000 },
  { when: 'some calls were taken', steps: [start(), work(), by('w1', ask(...calls(3)), { calls: 1 })], jobs: ['r1-t1-call_n1-a1'], due: 1000 },
  {
    when: `more than ${CALLS_PER_JOB} calls wait for workers`,
    steps: [start(), work(), ask(...calls(CALLS_PER_JOB + 1))],
    jobs: ['r1-t1-call_n0-a1', `r1-t1-call_n${CALLS_PER_JOB}-a1`],
    due: 1000
  },
  {
    when: 'calls wait for room behind others that run',
    steps: [start({ limits: { max_tool_concurrency: 1 } }), work(), by('w1', ask(...calls(3)))],
    jobs: [],
    due: 10_000
  },
  { when: 'a call\'s worker was lost', steps: [start(), work(), by('w1', ask(call('a'))), lose('w1')], jobs: ['r1-t1-call_a-a2'], due: 1000 },
  { when: 'the next turn is due', steps: [start(), work(), ask(call('a')), result('a')], jobs: ['r1-t2-a1'], due: 1000 },
  { when: 'a run is scheduled', steps: [start({ due_at: 1 }), start({ run_id: 'r2', due_at: Date.UTC(2030, 0, 2) }), cancel('r1')], jobs: [], due: 86_400_000 },
  { when: 'all runs have ended', steps: [start(), cancel()], jobs: [], due: null },
  {
    when: 'the run\'s own timeout comes before anything else',
    steps: [start({ limits: { run_timeout_ms: 500 } }), work()],
    jobs: [],
    due: 500
  },
  {
    when: 'a run whose time has come waits for the active one',
    steps: [start(), work(), start({ run_id: 'r2', due_at: Date.UTC(2030, 0, 1, 0, 0, 1) }), pass(5000)],
    jobs: [],
    due: 10_000
  }
]
for (const { when, steps, jobs: expected, due: inMs } of rows) {
  t.test(`N11: when ${when}, the jobs are [${expected.join(' ')}] and somebody looks again ${inMs === null ? 'never' : `in ${inMs} ms`}`, async (t) => {
    const scene = given(...steps)
    t.strictSame(jobs(scene), expected)
    t.equal(due(scene), inMs)
  })
}

t.test('B11: a wanted job keeps its id while a queue may still have it, then gets one for each doubling of the lease', async (t) => {
  const scene = given(start())
  const seen: [waited: number, job: string | undefined][] = [
    [0, 'r1-t1-a1'], [9_999, 'r1-t1-a1'], [10_000, 'r1-t1-a1-g1'], [19_999, 'r1-t1-a1-g1'], [20_000, 'r1-t1-a1-g2'], [39_999, 'r1-t1-a1-g2'], [40_000, 'r1-t1-a1-g3']
  ]
  const began = scene.now
  for (const [waited, job] of seen) t.strictSame(jobs(scene.given(pass(began + waited - scene.now))), [job], `after ${waited} ms`)
  const batch = given(start(), work(), ask(call('a')), pass(25_000))
  t.strictSame(jobs(batch), ['r1-t1-call_a-a1-g2'])
})

t.test('B11: no two jobs of a conversation share an id, over all its turns, tries and calls', async (t) => {
  const scene = given(start(), start({ run_id: 'r2' }))
  const all = jobs(scene)
  const steps = [
    work('w1'), retry(), work('w1'), lose('w1'), work('w1'), ask(call('a'), call('b')), work('w1'), lose('w1'), work('w1'), result('b'), result('a'), work('w1'), cancel()
  ]
  for (const step of steps) all.push(...jobs(scene.given(step)))
  t.strictSame(all, ['r1-t1-a1', 'r1-t1-a2', 'r1-t1-a3', 'r1-t1-call_a-a1', 'r1-t1-call_a-a2', 'r1-t2-a1', 'r2-t3-a1'])
})

t.test('N11: the longer nobody takes a job, the more rarely somebody looks, but always again', async (t) => {
  const scene = given(start())
  t.equal(due(scene), 1000)
  t.equal(due(scene.given(pass(1000))), 1000)
  t.equal(due(scene.given(pass(9000))), 5000)
  t.equal(due(scene.given(pass(90_000))), 30_000, 'every three leases at last')
})

t.test('N11: what nobody takes for a lease is overdue, a turn, a call, and the place of a call under a rate limit', async (t) => {
  const limited = call('a', { rules: rules({ rate_limited: true }) })
  for (const steps of [[start()], [start(), work(), ask(call('a'))], [start(), work(), ask(limited)]]) {
    const scene = given(...steps)
    const late = () => isOverdue(scene.state(), scene.now, times.leaseMs)
    t.strictSame([late(), (scene.given(pass(times.leaseMs - 1)), late()), (scene.given(pass(1)), late())], [false, false, true])
    scene.given(work('w2'))
    t.equal(late(), false, 'somebody has it')
  }
})

t.test('FAULTS F27: calls over which two workers died run alone, one by one, behind all others', async (t) => {
  const scene = given(start({ limits: { max_tool_concurrency: 3 } }), work('w1'), by('w1', ask(...['a', 'b', 'c', 'd'].map((name) => call(name))), { calls: 3 }))
  t.strictSame(claimed(scene), ['w1 a', 'w1 b', 'w1 c'])
  t.strictSame(claimed(scene.given(lose('w1'), work('w2'))), ['w2 a', 'w2 b', 'w2 c'], 'one death says nothing')
  t.strictSame(claimed(scene.given(lose('w2'), work('w3'))), ['w3 d'])
  t.strictSame(claimed(scene.given(result('d'), work('w3'))), ['w3 a'])
  t.strictSame(claimed(scene.given(lose('w3'), work('w4'))), ['w4 a'])
  t.strictSame(claimed(scene.given(result('a'), work('w4'))), ['w4 b'])
  t.strictSame(claimed(scene.given(result('b'), work('w4'))), ['w4 c'])
})

t.test('every claim names its worker, and the fence or attempt it holds', async (t) => {
  const scene = given(start(), work('w1'))
  t.strictSame(claimed(scene), ['w1 turn'])
  scene.given(by('w1', ask(call('a'), call('b'), call('c')), { calls: 2 }))
  t.strictSame(claimed(scene), ['w1 a', 'w1 b'])
  t.strictSame(claimed(scene.given(work('w2'), result('a'))), ['w1 b', 'w2 c'])
  t.strictSame(claimed(scene.given(cancel())), [])
})
