/*
 * Which calls of a batch may start, as properties over any batch (D12, E1-E14, J1-J4): with references, resources, limits, approvals and client
 * tools, whatever is answered in whichever order. The rules are written anew here, over what was asked for and what the events say.
 */
import assert from 'node:assert/strict'
import fc from 'fast-check'
import t from 'tap'
import type { ModelCall } from '../../src/core/command.js'
import type { ToolPolicy } from '../../src/core/run.js'
import type { CallRules } from '../../src/core/state.js'
import { ask, by, call, failure, given, result, rules, start, work, type Scene } from '../support/core-scene.js'

/** `FC_SEED` plays a run again that failed. */
const seed = Number(process.env.FC_SEED ?? Date.now() % 2 ** 31)

interface Asked { effects: 'read' | 'write', on: string | null, exclusive: boolean, most: number | null, gate: 'none' | 'approval' | 'client' | 'both', of: number | null, faulty: boolean }

const anyCall: fc.Arbitrary<Asked> = fc.record({
  effects: fc.constantFrom<('read' | 'write')[]>('read', 'write'),
  on: fc.constantFrom(null, null, 'a', 'a', 'b'),
  exclusive: fc.constantFrom(false, false, false, false, false, true),
  most: fc.constantFrom(null, null, null, 1),
  gate: fc.constantFrom<Asked['gate'][]>('none', 'none', 'none', 'none', 'approval', 'client', 'both'),
  of: fc.constantFrom(null, null, null, 1, 2, 3, 4, 9),
  faulty: fc.constantFrom(false, false, false, false, false, false, true)
})
interface AnyBatch { calls: Asked[], room: number, parallel: boolean, suspension: ToolPolicy['suspension'], answers: number[] }

const anyBatch: fc.Arbitrary<AnyBatch> = fc.record({
  calls: fc.array(anyCall, { minLength: 1, maxLength: 7 }),
  room: fc.integer({ min: 1, max: 8 }),
  parallel: fc.constantFrom(true, true, false),
  suspension: fc.constantFrom<ToolPolicy['suspension'][]>('grouped', 'sequential', 'barrier'),
  answers: fc.array(fc.nat(999), { minLength: 40, maxLength: 40 })
})

/** How the batch looks from outside. */
interface Seen { started: Set<number>, settled: Set<number>, completed: Set<number>, suspended: Set<number>, consented: Set<number> }

function toModelCall ({ effects, on, exclusive, most, gate, of, faulty }: Asked, i: number): ModelCall {
  const own: Partial<CallRules> = {
    effects, ...(on !== null && { resources: [`box/${on}`] }), ...(exclusive && { exclusive: true as const }), ...(most !== null && { max_concurrency: most }),
    ...((gate === 'approval' || gate === 'both') && { approval: { expires_ms: null } }), ...((gate === 'client' || gate === 'both') && { client: { expires_ms: null } })
  }
  return call(`n${i}`, {
    name: most === null ? 'look' : 'scarce', rules: rules(own), references: of === null ? [] : [String(of)], arguments: of === null ? {} : { of: `{{stepOutputs.${of}}}` },
    fault: faulty ? { code: 'unknown_tool', message: 'there is no such tool' } : null
  })
}

/** Plays a batch to its end and has every state of it looked at. Fails if it does not end. */
function playBatch ({ calls, room, parallel, suspension, answers }: AnyBatch, look: (seen: Seen, scene: Scene, news: string[]) => void): void {
  const scene = given(start({ limits: { max_tool_concurrency: room }, policy: { parallel, suspension } }), work('w1'))
  const seen: Seen = { started: new Set(), settled: new Set(), completed: new Set(), suspended: new Set(), consented: new Set() }
  let read = scene.log.length
  const number = (id: unknown) => Number(String(id).slice('call_n'.length))
  const learn = () => {
    const news = scene.log.slice(read)
    read = scene.log.length
    for (const event of news) {
      if (event.type === 'tool.started') seen.started.add(number(event.call_id))
      if (event.type === 'tool.completed') seen.completed.add(number(event.call_id))
      if (event.type === 'tool.completed' || event.type === 'tool.failed') seen.settled.add(number(event.call_id))
      if (event.type === 'suspension.created') for (const one of event.calls as { call_id: string }[]) seen.suspended.add(number(one.call_id))
      if (event.type !== 'suspension.resolved') continue
      // A consent is no wait any more; what the client then has to run is asked for anew.
      seen.suspended.clear()
      seen.consented.clear()
    }
    look(seen, scene, news.map((event) => `${event.type} ${event.call_id ?? ''}`))
  }
  scene.given(by('w1', ask(...calls.map(toModelCall)), { calls: 99 }))
  learn()
  for (let steps = 0; scene.state().run?.phase.type === 'batch'; steps++) {
    assert.ok(steps < 40, `the batch never closes: ${JSON.stringify([...seen.settled])} of ${calls.length}`)
    const how = answers[steps] as number
    const running = [...seen.started].filter((i) => !seen.settled.has(i) && !seen.suspended.has(i))
    const waiting = [...seen.suspended].filter((i) => !seen.settled.has(i) && !seen.consented.has(i))
    const open = [...running, ...waiting]
    assert.ok(open.length > 0, 'nobody outside owes anything, and the batch is open')
    const i = open[how % open.length] as number
    const gated = waiting.includes(i)
    const asked = calls[i] as Asked
    if (gated && asked.gate !== 'client' && !seen.started.has(i)) {
      const word = Math.floor(how / 8) % 3
      const suspensionId = scene.log.findLast((event) => event.type === 'suspension.created')?.suspension_id as string
      if (word < 2) seen.consented.add(i)
      scene.given(by('w1', ({ now }) => ({
        type: 'Decide', at: now, operation: 'op', run_id: 'r1', suspension_id: suspensionId,
        decisions: [word < 2 ? { call_id: `call_n${i}`, decision: 'approve' } : { call_id: `call_n${i}`, decision: 'reject', reason: null }]
      }), { calls: 99 }))
    } else if (gated) {
      const text = `output of n${i}`
      scene.given(by('w1', ({ now }) => ({ type: 'SubmitOutputs', at: now, operation: 'op', run_id: 'r1', outputs: [{ call_id: `call_n${i}`, outcome: { status: 'completed', output: text, text, truncated: false } }] }), { calls: 99 }))
    } else {
      scene.given(by('w1', how % 5 === 0 ? failure(`n${i}`) : result(`n${i}`), { calls: 99 }))
    }
    learn()
  }
}

const clash = (a: Asked, b: Asked) => a.exclusive || b.exclusive || (a.on !== null && a.on === b.on && (a.effects === 'write' || b.effects === 'write'))

t.test('E11, E13: any batch with any references, resources, limits, approvals and client tools closes, whoever answers what first', async (t) => {
  t.comment(`seed ${seed}: FC_SEED=${seed} plays this again`)
  fc.assert(fc.property(anyBatch, (batch) => { playBatch(batch, () => {}) }), { seed, numRuns: 1500 })
})

t.test('D12, E4, E14, E10: no two conflicting calls overlap, no limit is passed, and nothing runs before what it refers to', async (t) => {
  t.comment(`seed ${seed}`)
  fc.assert(fc.property(anyBatch, (batch) => {
    playBatch(batch, ({ started, settled, completed, suspended }, _, news) => {
      const { calls } = batch
      const working = [...started].filter((i) => !settled.has(i))
      for (const i of working) for (const j of working) if (i < j) assert.ok(!clash(calls[i] as Asked, calls[j] as Asked), `${i} and ${j} are under way at once`)
      const ours = working.filter((i) => !suspended.has(i))
      assert.ok(ours.length <= (batch.parallel ? batch.room : 1), `${ours.length} calls run`)
      assert.ok(ours.filter((i) => calls[i]?.most === 1).length <= 1, 'more of one tool run than may')
      for (const said of news) {
        const i = said.startsWith('tool.started') ? Number(said.split('call_n')[1]) : -1
        const of = calls[i]?.of ?? null
        if (of !== null) assert.ok(completed.has(of - 1), `${i} starts before ${of - 1}`)
      }
    })
  }), { seed, numRuns: 1500 })
})

t.test('E5: without parallel, calls that wait for nobody start strictly in request order', async (t) => {
  t.comment(`seed ${seed}`)
  const plain = anyBatch.map((batch) => ({ ...batch, calls: batch.calls.map((one) => ({ ...one, gate: 'none' as const, of: null, faulty: false })) }))
  fc.assert(fc.property(plain, (batch) => {
    const order: number[] = []
    playBatch({ ...batch, parallel: false, suspension: 'grouped' }, (_, __, news) => {
      for (const said of news) if (said.startsWith('tool.started')) order.push(Number(said.split('call_n')[1]))
    })
    assert.deepEqual(order, batch.calls.map((_, i) => i))
  }), { seed, numRuns: 500 })
})

t.test('E1, D12: no call waits without a reason: the overlap is as wide as references, resources and limits let it be', async (t) => {
  t.comment(`seed ${seed}`)
  // Requests that refer backwards only, so that request order is the order in which they can be run.
  const backwards = anyBatch.map((batch) => ({ ...batch, parallel: true, calls: batch.calls.map((one, i) => ({ ...one, of: one.of !== null && one.of <= i ? one.of : null })) }))
  fc.assert(fc.property(backwards, (batch) => {
    playBatch(batch, ({ started, settled, suspended }, scene) => {
      if (scene.state().run?.phase.type !== 'batch') return
      const { calls, room, suspension } = batch
      const working = [...started].filter((i) => !settled.has(i) && !suspended.has(i))
      for (const [i, one] of calls.entries()) {
        const gated = (j: number) => calls[j]?.gate !== 'none' && !settled.has(j) && calls[j]?.faulty === false && (!started.has(j) || suspended.has(j) || calls[j]?.gate !== 'approval')
        if (started.has(i) || settled.has(i) || one.faulty || one.gate !== 'none') continue
        const reasons = [
          working.length >= room && 'room',
          one.most === 1 && working.some((j) => calls[j]?.most === 1) && 'its tool',
          one.of !== null && !settled.has(one.of - 1) && 'a reference',
          calls.some((other, j) => j < i && !settled.has(j) && clash(other, one)) && 'a resource',
          suspension === 'barrier' && calls.some((_, j) => j < i && gated(j)) && 'a barrier'
        ].filter((reason) => reason !== false)
        assert.ok(reasons.length > 0, `${i} waits without a reason`)
      }
    })
  }), { seed, numRuns: 1500 })
})

t.test('D12: a call that was edited to what another one is at work on waits for it', async (t) => {
  const box = (effects: 'read' | 'write') => rules({ effects, resources: ['box/{box}'] })
  const scene = given(
    start(), work('w1'),
    by('w1', ask(
      call('client', { name: 'client', rules: rules({ client: { expires_ms: null } }) }),
      call('lock', { name: 'lock', arguments: { box: 'b' }, rules: { ...box('write'), approval: { expires_ms: null } } }),
      call('fill', { name: 'fill', arguments: { box: 'a', of: '{{stepOutputs.client}}' }, references: ['client'], rules: box('write') })
    )),
    by('w1', ({ now }) => ({ type: 'SubmitOutputs', at: now, operation: 'op', run_id: 'r1', outputs: [{ call_id: 'call_client', outcome: { status: 'completed', output: 'x', text: 'x', truncated: false } }] }))
  )
  t.match(scene.log.filter((event) => event.type === 'tool.started').map((event) => event.call_id), ['call_client', 'call_fill'], 'one of the group is answered, and what waited for it runs')
  const then = scene.when(by('w1', ({ now }) => ({
    type: 'Decide', at: now, operation: 'op', run_id: 'r1', suspension_id: scene.log.findLast((event) => event.type === 'suspension.created')?.suspension_id as string,
    decisions: [{ call_id: 'call_lock', decision: 'edit', arguments: { box: 'a' } }]
  })))
  t.same(then.said, ['suspension.resolved', 'run.resumed'])
  t.ok(scene.when(by('w1', result('fill'))).said.includes('tool.started lock'))
})
