import t from 'tap'
import { HARMLESS } from './faults.js'
import { judge } from './judge.js'
import { simulate, type Evidence } from './world.js'

const SEEDS = 300

/** What happened, in one line per thing that can be seen. */
function record ({ lives, llmCalls, executions, requests, happened }: Evidence): string {
  return JSON.stringify([
    lives.map(({ events, times }) => [events, times]), llmCalls.map(({ request, start }) => [request, start]), executions.map(({ call_id: id, start }) => [id, start]),
    requests.map(({ text, outcome }) => [text, outcome]), happened
  ])
}

t.test(`N7: ${SEEDS} seeds: whatever is lost, late, repeated or killed, every invariant holds and everything comes to rest`, async (t) => {
  const seen = {
    faults: new Set<string>(), lost: 0, interrupted: 0, rolledBack: 0, deleted: 0, retried: 0,
    approved: 0, rejected: 0, expired: 0, answered: 0, superseded: 0, orphaned: 0, attached: 0, tooLate: 0, depended: 0, tried: 0
  }
  for (let seed = 1; seed <= SEEDS; seed++) {
    const evidence = await simulate(seed)
    const wrong = judge(evidence)
    if (wrong.length > 0) t.fail(`seed ${seed}: ${wrong[0]}`, { again: `npm run simulate -- --seed ${seed}`, wrong })
    for (const { kind } of evidence.struck) seen.faults.add(kind)
    for (const { action, outcome, refusal } of evidence.requests) {
      if (action.do === 'decide' && outcome === 'accepted') for (const { decision } of action.body.decisions) if (decision !== 'reject') seen.approved++
      if (action.do === 'outputs' && outcome === 'accepted') seen.answered++
      if (action.do === 'attach' && outcome === 'accepted') seen.attached++
      if (refusal === 'call_settled' as never) seen.tooLate++
    }
    for (const { events, removed } of evidence.lives) {
      if (removed) seen.deleted++
      for (const { type, json } of events) {
        if (type === 'tool.orphaned') seen.orphaned++
        if (json.includes('"message":"a person has rejected')) seen.rejected++
        if (type === 'suspension.resolved' && json.includes('"outcome":"expired"')) seen.expired++
        if (type === 'suspension.resolved' && json.includes('"outcome":"superseded"')) seen.superseded++
        if (json.includes('"code":"dependency_failed"')) seen.depended++
        if (type === 'tool.started' && json.includes('"name":"often"') && json.includes('"attempt":2')) seen.tried++
      }
      for (const { json } of events) {
        if (json.includes('"reason":"worker_lost"')) seen.lost++
        if (json.includes('"reason":"interrupted"')) seen.interrupted++
        if (json.includes('"reason":"rolled_back"')) seen.rolledBack++
        if (json.includes('"reason":"provider_')) seen.retried++
      }
    }
  }
  // A simulation in which nothing happens finds nothing.
  t.same([...seen.faults].filter((kind) => HARMLESS.has(kind as never)).length, HARMLESS.size, 'every kind of harmless fault struck')
  for (const kind of ['crash', 'pause', 'stop', 'cut', 'stall', 'outage']) t.ok(seen.faults.has(kind), kind)
  for (const [what, times] of Object.entries(seen)) if (typeof times === 'number') t.ok(times > 3, `${what}: ${times}`)
})

t.test('a seed happens in the same way every time, and without a fault it happens in another', async (t) => {
  for (const seed of [6, 33, 105, 688]) t.equal(record(await simulate(seed)), record(await simulate(seed)), `seed ${seed}`)
  const whole = await simulate(33)
  t.ok(whole.struck.length > 0)
  const without = new Set(whole.faults.map((_, i) => i))
  const none = await simulate(33, { without })
  t.same(none.struck, [])
  t.same(judge(none), [])
})

t.test('a replay tells what happened, with times and processes', async (t) => {
  const lines: string[] = []
  const evidence = await simulate(33, { trace: (line) => { lines.push(line) } })
  for (const { events } of evidence.lives) for (const { seq, type } of events) t.ok(lines.some((line) => line.includes(` log   ${seq} ${type}`)), `${seq} ${type}`)
  t.equal(lines.filter((line) => line.includes(' FAULT ')).length, evidence.struck.length)
})

t.test('the judge sees what is wrong', async (t) => {
  /** What the judge says of a good run of things after something in it was changed. */
  const spoilt = async (spoil: (evidence: Evidence) => void): Promise<string> => {
    for (let seed = 1; ; seed++) {
      const evidence = await simulate(seed)
      if (evidence.llmCalls.length < 3 || evidence.executions.length < 1 || evidence.lives.some(({ removed }) => removed)) continue
      spoil(evidence)
      return judge(evidence).map((line) => line.split(' ')[0]).join(' ')
    }
  }
  const change = (evidence: Evidence, type: string, to: (event: Record<string, unknown>) => void) => {
    for (const life of evidence.lives) {
      const { events } = life
      const found = events.find((event) => event.type === type)
      if (found === undefined) continue
      to(life.told[events.indexOf(found)] as unknown as Record<string, unknown>)
      return
    }
    throw new Error(`no ${type} to change`)
  }
  t.equal(await spoilt(() => {}), '')
  t.match(await spoilt((evidence) => { evidence.llmCalls.push(evidence.llmCalls[0] as never) }), 'I1b')
  t.match(await spoilt((evidence) => { evidence.executions.push(evidence.executions[0] as never) }), 'I7')
  t.match(await spoilt((evidence) => { evidence.lives[0]?.told.splice(evidence.lives[0].told.findLastIndex(({ type }) => /^run\.(completed|incomplete|failed|cancelled)$/.test(type)), 1) }), 'I13')
  t.match(await spoilt((evidence) => { evidence.lives[0]?.told.splice(2, 1) }), 'I4')
  t.match(await spoilt((evidence) => change(evidence, 'turn.completed', (event) => { event.text = 'another' })), 'I17')
  t.match(await spoilt((evidence) => change(evidence, 'tool.completed', (event) => { event.output = 'another' })), 'I16')
  t.match(await spoilt((evidence) => { for (const { ledger } of evidence.stored.values()) ledger.pop() }), 'I27')
  t.match(await spoilt((evidence) => { Object.assign(evidence.requests[0] as object, { outcome: 'refused' }) }), 'I5')
  t.match(await spoilt(({ llmCalls: [first] }) => { first?.request.messages.push({ role: 'assistant', content: 'mine' }) }), 'I3')
  t.match(await spoilt((evidence) => { evidence.errors.push('something') }), 'the')
  t.match(await spoilt((evidence) => { evidence.stuck = 'it is' }), 'I13')

  /** The same for a run of things in which people were asked. */
  const withPeople = async (spoil: (evidence: Evidence) => boolean): Promise<string> => {
    for (let seed = 1; seed < 500; seed++) {
      const evidence = await simulate(seed)
      if (judge(evidence).length === 0 && evidence.lives.every(({ removed }) => !removed) && spoil(evidence)) return judge(evidence).map((line) => line.split(' ')[0]).join(' ')
    }
    return 'no such run'
  }
  const decided = (evidence: Evidence, what: string) => evidence.requests.find(({ action, outcome, repeated }) => {
    return action.do === 'decide' && outcome === 'accepted' && !repeated && action.body.decisions.every(({ decision }) => decision === what)
  })
  const refuse = (request: Evidence['requests'][number] | undefined) => {
    if (request !== undefined) Object.assign(request, { outcome: 'refused', refusal: 'call_settled', repeated: false })
    return request !== undefined
  }
  t.match(await withPeople((evidence) => refuse(decided(evidence, 'approve'))), 'I8', 'a call runs that nobody has approved')
  t.match(await withPeople((evidence) => refuse(decided(evidence, 'reject'))), 'I8', 'a rejection that nobody has said')
  t.match(await withPeople((evidence) => refuse(decided(evidence, 'answer'))), 'I16', 'an answer that nobody has given')
  t.match(await withPeople((evidence) => {
    const one = decided(evidence, 'approve')
    if (one !== undefined) evidence.requests.push({ ...one, text: 'another' })
    return one !== undefined
  }), 'I8', 'two decisions on one call')
  t.match(await withPeople((evidence) => {
    const kept = [...evidence.orphans.values()].find((ids) => ids.length > 0)
    kept?.pop()
    return kept !== undefined
  }), 'I10', 'an orphan that is not listed')
})
