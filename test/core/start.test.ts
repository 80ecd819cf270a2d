import fc from 'fast-check'
import t from 'tap'
import type { CompleteCall, Decision, ModelCall } from '../../src/core/command.js'
import { checkState } from '../../src/core/check.js'
import { referencesIn } from '../../src/core/references.js'
import type { ToolPolicy } from '../../src/core/run.js'
import type { CallState } from '../../src/core/state.js'
import { ask, by, call, failure, given, pass, place, result, rules, start, sweep, work, type Scene, type Step } from '../support/core-scene.js'

/*
 * Which calls of a batch start, for any batch. The judge knows what the model asked for, and from then on only events.
 */

interface Asked {
  name: string
  effects: 'read' | 'write'
  resources: string[]
  exclusive: boolean
  max: number | null
  needs: 'approval' | 'client' | null
  /** Calls it refers to, by position; beyond the batch: unknown. */
  refers: number[]
  retries: boolean
  /** Its tool has a rate limit. */
  limited: boolean
}

const asked: fc.Arbitrary<Asked> = fc.record({
  name: fc.constantFrom('look', 'look', 'move'),
  effects: fc.constantFrom<('read' | 'write')[]>('read', 'write'),
  resources: fc.uniqueArray(fc.constantFrom('x', 'y', '{of}', '{no}'), { maxLength: 2 }),
  exclusive: fc.nat(9).map((n) => n === 0),
  max: fc.constantFrom(null, null, 1, 2),
  needs: fc.constantFrom(null, null, null, null, 'approval', 'client'),
  refers: fc.oneof({ weight: 3, arbitrary: fc.constant<number[]>([]) }, { weight: 1, arbitrary: fc.uniqueArray(fc.nat(8), { maxLength: 2 }) }),
  retries: fc.nat(4).map((n) => n === 0),
  limited: fc.nat(3).map((n) => n === 0)
})
const batch = fc.record({
  calls: fc.array(asked, { minLength: 1, maxLength: 8 }),
  room: fc.constantFrom(1, 2, 16, 16),
  parallel: fc.nat(5).map((n) => n > 0),
  suspension: fc.constantFrom<ToolPolicy['suspension'][]>('grouped', 'grouped', 'sequential', 'barrier'),
  luck: fc.infiniteStream(fc.nat(999))
})

const model = (calls: Asked[]): ModelCall[] => calls.map((one, i) => {
  const args = { of: 'x', ...Object.fromEntries(one.refers.map((to, k) => [`r${k}`, `{{stepOutputs.p_c${to}}}`])) }
  return call(`c${i}`, {
    // Calls of one tool have one cap.
    name: `${one.name}${one.max ?? ''}`,
    arguments: args,
    references: referencesIn(args),
    rules: rules({
      effects: one.effects,
      idempotent: one.retries,
      ...(one.resources.length > 0 && { resources: one.resources }),
      ...(one.exclusive && { exclusive: true as const }),
      ...(one.max !== null && { max_concurrency: one.max }),
      ...(one.needs === 'approval' && { approval: { expires_ms: null } }),
      ...(one.needs === 'client' && { client: { expires_ms: null } }),
      ...(one.limited && one.needs !== 'client' && { rate_limited: true as const }),
      ...(one.retries && { retry: { attempts: 2, backoff_ms: 100 } })
    })
  })
})

/** Whether two calls may never be at work together. `{of}` is always filled with x, `{no}` never, so that it may be any. */
function clash (a: Asked, b: Asked): boolean {
  const names = (one: Asked) => one.resources.map((name) => name === '{of}' ? 'x' : name)
  return a.exclusive || b.exclusive || ((a.effects === 'write' || b.effects === 'write') && names(a).some((name) => names(b).some((other) => name === other || name === '{no}' || other === '{no}')))
}

const statesOf = (scene: Scene): CallState[] => {
  const phase = scene.state().run?.phase
  return phase?.type === 'batch' ? phase.calls : []
}

t.test('E4, E10-E14, D12, J1: any batch closes; what clashes never overlaps; nothing waits without a reason', async (t) => {
  let closed = 0
  let overlapped = 0
  fc.assert(fc.property(batch, ({ calls, room, parallel, suspension, luck }) => {
    const roll = (n: number) => (luck.next().value as number) % n
    const scene = given(start({ limits: { max_tool_concurrency: room }, policy: { parallel, suspension } }), work('w1'))
    const working = new Set<number>()
    const settled = new Set<number>()
    const succeeded = new Set<number>()
    const consented = new Set<number>()
    const granted = new Set<number>()
    const notBefore = new Map<number, number>()
    let seen = 0

    const limit = parallel ? room : 1
    /** Reads what was said since the last time, and holds it against what was asked. */
    const listen = () => {
      for (const { type, call_id: id } of scene.log.slice(seen)) {
        const i = Number(id?.slice('call_c'.length))
        if (type === 'tool.started') {
          working.add(i)
          const one = calls[i] as Asked
          if (one.refers.some((to) => !succeeded.has(to))) throw new Error(`call ${i} starts before what it refers to`)
          for (const other of working) if (other !== i && clash(one, calls[other] as Asked)) throw new Error(`calls ${i} and ${other} are at work together`)
          if ((notBefore.get(i) ?? 0) > scene.now) throw new Error(`call ${i} is tried again too soon`)
          const limited = one.limited && one.needs !== 'client'
          if (limited && !granted.delete(i)) throw new Error(`call ${i} starts before its rate limit allows it`)
          const behind = statesOf(scene).find((other) => other.rank < (statesOf(scene)[i]?.rank ?? 0) && !settled.has(Number(other.id.slice('call_c'.length))))
          if (!parallel && behind !== undefined) throw new Error(`call ${i} does not wait for ${behind.id}`)
          const before = (j: number) => (statesOf(scene)[j]?.rank ?? Infinity) < (statesOf(scene)[i]?.rank ?? 0)
          const undecided = calls.findIndex(({ needs, refers }, j) => needs !== null && refers.length === 0 && !settled.has(j) && !consented.has(j) && before(j))
          if (suspension === 'barrier' && undecided !== -1 && one.refers.length === 0) throw new Error(`call ${i} passes the barrier ${undecided}`)
          const own = [...working].filter((other) => calls[other]?.needs !== 'client')
          if (one.needs !== 'client' && own.length > limit) throw new Error(`${own.length} calls are at work, ${limit} may`)
          const same = own.filter((other) => calls[other]?.name === one.name && calls[other]?.max === one.max)
          if (one.needs !== 'client' && one.max !== null && same.length > one.max) throw new Error(`${same.length} calls of ${one.name} are at work, ${one.max} may`)
        }
        if (type === 'suspension.created' && [...working].some((other) => calls[other]?.needs !== 'client')) throw new Error('a suspension is raised while calls are at work')
        if (type === 'tool.completed' || type === 'tool.failed') {
          working.delete(i)
          settled.add(i)
          if (type === 'tool.completed') succeeded.add(i)
        }
      }
      seen = scene.log.length
      if (working.size > 1) overlapped++
      const wrong = checkState(scene.state())
      if (wrong.length > 0) throw new Error(wrong.join('; '))
    }
    /** What a call that does not work has to wait for. */
    const reasons = (i: number, states: CallState[]): boolean => {
      const one = calls[i] as Asked
      const state = states[i] as CallState
      const busy = states.filter((other) => other.status === 'running' || (other.status === 'pending' && other.worker !== null))
      const before = states.filter((other) => other.rank < state.rank && other.settled === 0).map((other) => Number(other.id.slice('call_c'.length)))
      const isPlaced = (other: CallState) => other.settled === 0 && other.rules.rate_limited === true && (other.placed || busy.includes(other))
      const places = states.filter((other) => other.name === state.name && isPlaced(other))
      return (state.rules.rate_limited === true && !state.placed && places.length >= room) || state.worker !== null || (!parallel && before.length > 0) ||
        one.refers.some((to) => !settled.has(to)) || busy.length >= limit || before.some((other) => clash(one, calls[other] as Asked)) ||
        (one.max !== null && busy.filter((other) => other.name === state.name).length >= one.max) || (one.needs === 'approval' && !state.approved) || one.needs === 'client' ||
        state.ready_at > scene.now || (suspension === 'barrier' && before.some((other) => calls[other]?.needs === 'client' || (calls[other]?.needs === 'approval' && states[other]?.approved === false)))
    }

    scene.given(by('w1', ask(...model(calls))))
    listen()
    for (let steps = 0; scene.state().run?.phase.type === 'batch'; steps++) {
      if (steps > 100) throw new Error('the batch does not close')
      const states = statesOf(scene)
      for (const [i, state] of states.entries()) if (state.status === 'pending' && !reasons(i, states)) throw new Error(`call ${i} waits for nothing`)
      const phase = scene.state().run?.phase
      const running = states.filter((state) => state.status === 'running')
      const asking = states.filter((state) => state.status === 'pending' && state.worker !== null)
      const suspended = states.filter((state) => state.status === 'suspended' && !(state.approved && state.attempt === 0))
      const pickOne = <T>(from: T[]): T => from[roll(from.length)] as T
      if (asking.length > 0 && (running.length === 0 || roll(2) === 0)) {
        const state = pickOne(asking)
        const name = state.id.slice('call_'.length)
        const i = Number(name.slice(1))
        if (roll(5) === 0) {
          // The one who asked is gone.
          scene.given(by('w1', ({ now }) => ({ type: 'Lapse', at: now, fence: null, calls: [{ call_id: state.id, attempt: state.attempt, arguments: {} }] }), { calls: 16 }))
        } else {
          const wait = roll(3) === 0 ? 100 : 0
          if (wait === 0) granted.add(i)
          else notBefore.set(i, scene.now + wait)
          scene.given(by('w1', place(name, wait), { calls: 16 }))
        }
      } else if (running.length > 0) {
        const name = pickOne(running).id.slice('call_'.length)
        const i = Number(name.slice(1))
        const fails = roll(4) === 0
        // Its second try is its last.
        if (fails && calls[i]?.retries === true && scene.attempt(`call_${name}`) === 1) {
          working.delete(i)
          notBefore.set(i, scene.now + 100)
        }
        scene.given(by('w1', fails ? tried(name) : result(name), { calls: 16 }))
      } else if (suspended.length > 0 && phase?.type === 'batch') {
        const one = pickOne(suspended)
        consented.add(Number(one.id.slice('call_c'.length)))
        scene.given(by('w1', answered(one, phase.suspension?.id ?? '', roll(4)), { calls: 16 }))
      } else {
        // Only time can help: a retry waits.
        if (!states.some((state) => state.ready_at > scene.now)) throw new Error('nothing is at work, nobody is asked, and no time is waited for')
        scene.given(pass(100), by('w1', sweep(), { calls: 16 }))
      }
      listen()
    }
    if (settled.size !== calls.length) throw new Error(`${calls.length - settled.size} calls were dropped`)
    closed++
  }), { numRuns: 3000 })
  t.equal(closed, 3000)
  t.ok(overlapped > 1000, `${overlapped} times calls overlapped`)
})

/** A failed call that says its arguments, so that it may be tried again. */
function tried (name: string): Step {
  return (scene) => ({ ...failure(name)(scene) as CompleteCall, arguments: { of: 'x' } })
}

function answered (state: CallState, suspension: string, how: number): Step {
  const outcome = { status: 'completed' as const, output: 'given', text: 'given', truncated: false }
  const id = state.id
  if (state.rules.approval === undefined || state.approved) return ({ now }) => ({ type: 'SubmitOutputs', at: now, operation: 'op', run_id: 'r1', outputs: [{ call_id: id, outcome }] })
  const decisions: Decision[] = [
    { call_id: id, decision: 'approve' }, { call_id: id, decision: 'reject', reason: null },
    { call_id: id, decision: 'edit', arguments: { of: 'x' } }, { call_id: id, decision: 'answer', outcome }
  ]
  return ({ now }) => ({ type: 'Decide', at: now, operation: 'op', run_id: 'r1', suspension_id: suspension, decisions: [decisions[how] as Decision] })
}

t.test('D12: what writes one resource does so in request order, unless a reference turns it round', async (t) => {
  const write = (name: string, over: Partial<ModelCall> = {}) => call(name, { rules: rules({ effects: 'write', resources: ['x'] }), ...over })
  const scene = given(start(), work(), by('w1', ask(
    write('a', { arguments: { of: '{{stepOutputs.p_c}}' }, references: ['p_c'] }), write('b'), write('c')
  )))
  const order = ['b', 'c', 'a'].map((name) => {
    const at = statesOf(scene).filter((state) => state.status === 'running').map((state) => state.id)
    scene.given(by('w1', result(name)))
    return at
  })
  t.same(order, [['call_b'], ['call_c'], ['call_a']])
})

t.test('D12: as long as it is not known what a call writes, it may be anything: however its reference is written', async (t) => {
  const write = (name: string, of: string) => call(name, { arguments: { of }, references: referencesIn(of), rules: rules({ effects: 'write', resources: ['orders/{of}'] }) })
  for (const reference of ['{{stepOutputs.p_a}}', '{{ stepOutputs.p_a }}', '{{\tstepOutputs.p_a}}']) {
    const scene = given(start(), work(), by('w1', ask(call('a'), write('b', reference), write('c', '7'), write('d', '8'))))
    const order = [['a', 7], ['b', 1], ['c', 1]].map(([name, output]) => {
      const at = statesOf(scene).filter((state) => state.status === 'running').map((state) => state.id)
      scene.given(by('w1', result(String(name), output)))
      return at
    })
    t.same(order, [['call_a'], ['call_b', 'call_d'], ['call_c', 'call_d']], reference)
  }
})

t.test('E12: a reference to nothing refers to no call, also to none whose model gave it no id', async (t) => {
  for (const text of ['{{stepOutputs.}}', '{{stepOutputs. }}', 'x {{stepOutputs..a}}', '{{stepOutputs.[0]}}']) {
    const args = { of: text }
    const scene = given(start(), work(), by('w1', ask(call('a', { provider_id: '' }), call('b', { provider_id: '', arguments: args, references: referencesIn(args) }))))
    t.match(scene.log.find((event) => event.type === 'tool.failed'), { call_id: 'call_b', error: { code: 'invalid_arguments', message: /refers to no call of this batch/ } }, text)
  }
})

t.test('E10: what a tool gave is no reference, whatever it says, and cannot be multiplied without end', async (t) => {
  const args = { x: '{{stepOutputs.1}}', y: '{{stepOutputs.2.id}} and {{ stepOutputs.1 }}' }
  const scene = given(start(), work(), by('w1', ask(call('a'), call('b'), call('c', { arguments: args, references: referencesIn(args) }))))
  const page = 'page: {{stepOutputs.2.token}} {{ stepOutputs.2.id }}'
  scene.given(by('w1', result('a', page)), by('w1', result('b', { id: 7, token: 'SECRET' })))
  t.same(scene.log.at(-1), { ...scene.log.at(-1), type: 'tool.started', arguments: { x: page, y: `7 and ${page}` } })

  const many = { x: '{{stepOutputs.1}}'.repeat(60) }
  const other = given(start(), work(), by('w1', ask(call('a'), call('c', { arguments: many, references: referencesIn(many) }))))
  other.given(by('w1', result('a', 'x'.repeat(10_000_000))))
  t.match(other.log.find(({ type }) => type === 'tool.failed'), { error: { code: 'invalid_arguments', message: /more than 100000 characters/ } })

  t.same(referencesIn(`{{stepOutputs.${' '.repeat(500_000)}`), [], 'and a long text takes no time')
})
