/*
 * The fourteen properties of seed 002 (interrupting a running agent), each over generated cases. Numbers in brackets are its acceptance
 * criteria. Every step of every case is judged by a ledger kept from commands in and events and messages out (schedule-judge.ts), so what
 * stands here is only what the property says beyond that.
 */
import fc from 'fast-check'
import t from 'tap'
import { checkLedger, checkState } from '../../src/core/check.js'
import type { PostMessage } from '../../src/core/command.js'
import type { Message } from '../../src/core/message.js'
import type { State } from '../../src/core/state.js'
import { transcript } from '../../src/core/transcript.js'
import { transition } from '../../src/core/transition.js'
import {
  answer, ask, by, call, cancel, claimed, create, failure, lose, pass, progress, result, retry, start, stopped, sweep, work, type Step
} from '../support/core-scene.js'
import { schedules } from '../support/schedule-moves.js'
import { CORE, play } from '../support/schedule-stage.js'
import { inBrief, judgedScene, post, receiptOf, type JudgedScene } from '../support/schedule-steps.js'

const CASES = 120

function property<T> (title: string, cases: fc.Arbitrary<T>, holds: (one: T) => void): void {
  t.test(title, async (t) => {
    let judged = 0
    fc.assert(fc.property(cases, (one) => {
      holds(one)
      judged++
    }), { numRuns: CASES, seed: 2 })
    t.ok(judged >= 100, `${judged} cases`)
  })
}

function must (holds: boolean, otherwise: string): void {
  if (!holds) throw new Error(otherwise)
}

function same (found: unknown, wanted: unknown): void {
  must(JSON.stringify(found) === JSON.stringify(wanted), `found ${JSON.stringify(found)}, not ${JSON.stringify(wanted)}`)
}

const mode = fc.constantFrom<PostMessage['mode'][]>('auto', 'interrupt', 'steer', 'queue')
const queued = fc.constantFrom<PostMessage['queued'][]>('deliver', 'supersede')
const someNames = (least: number, most: number) => fc.integer({ min: least, max: most }).map((count) => Array.from({ length: count }, (_, i) => `n${i}`))
const texts = fc.array(fc.string({ minLength: 1, unit: 'grapheme' }), { minLength: 1, maxLength: 10 })
const seqOf = (scene: JudgedScene) => scene.log.length
const users = (scene: JudgedScene) => scene.ledger.flatMap((message) => message.role === 'user' ? [message.content] : [])

/** Something that can be stopped: an LLM call, the wait before its retry, a lost one, or a batch with some calls settled. */
interface Busy { what: string, steps: Step[], open: string[], done: string[] }
const busy = fc.oneof<fc.Arbitrary<Busy>[]>(
  fc.constantFrom<Busy[]>(
    { what: 'an LLM call', steps: [], open: [], done: [] },
    { what: 'the wait before a retry', steps: [retry({ delay_ms: 1000 })], open: [], done: [] },
    { what: 'a lost LLM call', steps: [lose('w1')], open: [], done: [] }
  ),
  fc.record({ done: fc.integer({ min: 0, max: 3 }), open: fc.integer({ min: 1, max: 4 }), shuffle: fc.boolean() }).map(({ done, open, shuffle }) => {
    const doneNames = Array.from({ length: done }, (_, i) => `done${i}`)
    const openNames = Array.from({ length: open }, (_, i) => `open${i}`)
    const all = shuffle ? [...openNames, ...doneNames] : [...doneNames, ...openNames]
    return { what: 'a batch', steps: [by('w1', ask(...all.map((name) => call(name)))), ...doneNames.map((name) => by('w1', result(name)))], open: openNames, done: doneNames }
  })
)

const begun: Step[] = [start(), work('w1')]
/** Brings a scene to its end, whatever is under way. */
function finish (scene: JudgedScene): void {
  for (let steps = 0; scene.state().run !== null || scene.state().queue.length > 0; steps++) {
    must(steps < 500, 'it never ends')
    const [claim] = claimed(scene)
    if (claim === undefined) scene.when(work('w1'))
    else if (claim.endsWith(' turn')) scene.given(by('w1', answer('done')))
    else scene.given(by('w1', result(claim.split(' ')[1] as string)))
    scene.now += 500
  }
  for (let i = 0; i < 100 && scene.state().waiting.length > 0; i++) scene.given(pass(1000), sweep())
  scene.judge.conclude()
}

// --- 1 -------------------------------------------------------------------------------------------------------------------------------

property('Property 1: a run is active from its start to its end, and only then a message interrupts it (1.1 1.2 1.3 1.5)', texts, (payloads) => {
  const scene = judgedScene(start(), work('w1'))
  same(scene.log.map((event) => event.type), ['run.created', 'run.started', 'turn.started'])
  payloads.forEach((content, i) => {
    scene.given(by('w1', post(`${i}`, { content })))
    must(receiptOf(scene, `m_${i}`)?.receipt === 'interrupted', 'a message to an active run interrupts it')
  })
  scene.given(by('w1', answer('done')))
  must(scene.when(post('late')).refusal === 'run_ended', 'nothing is active any more')
  same(users(scene), ['input of r1', ...payloads])
  const interrupts = scene.log.filter((event) => event.type === 'turn.cancelled').length
  same(interrupts, payloads.length)
})

property('Property 1.1: whatever is sent, started and ended in any order, a message interrupts exactly while something is active (1.1 1.3)',
  fc.array(fc.constantFrom('send', 'start', 'end'), { minLength: 5, maxLength: 20 }), (deeds) => {
    const scene = judgedScene(create())
    const sent: string[] = []
    let runs = 0
    let active = false
    for (const [i, deed] of deeds.entries()) {
      if (deed === 'send' && active) {
        sent.push(`message ${i}`)
        scene.given(by('w1', post(`${i}`, { to: `r${runs}` })))
        must(receiptOf(scene, `m_${i}`)?.receipt === 'interrupted', 'it interrupts')
      } else if (deed === 'end' && active) {
        scene.given(by('w1', answer('done')))
        active = false
      } else if (deed !== 'end' && !active) {
        const before = seqOf(scene)
        sent.push(`input of r${++runs}`)
        scene.given(start({ run_id: `r${runs}`, new_conversation: false }), work('w1'))
        same(scene.log.slice(before).map((event) => event.type), ['run.created', 'run.started', 'turn.started'])
        active = true
      }
    }
    finish(scene)
    same(users(scene), sent)
  })

property('Property 1.2: of several conversations only the one that is active is interrupted (1.2)',
  fc.record({ count: fc.integer({ min: 2, max: 5 }), active: fc.nat(4), sends: fc.array(fc.nat(4), { minLength: 1, maxLength: 10 }) }), (one) => {
    const { count, active, sends } = one
    const scenes = Array.from({ length: count }, (_, i) => i === active % count ? judgedScene(...begun) : judgedScene(start(), work('w1'), by('w1', answer('done'))))
    for (const [i, to] of sends.entries()) {
      const { refusal } = (scenes[to % count] as JudgedScene).when(by('w1', post(`${i}`)))
      must((refusal === null) === (to % count === active % count), 'only the active one takes it')
    }
    scenes.forEach((scene, i) => {
      const expected = i === active % count ? sends.filter((to) => to % count === i).length : 0
      same(scene.log.filter((event) => event.type === 'turn.cancelled').length, expected)
    })
  })

property('Property 1.3: active or not, everything that is sent comes out in order (1.4 1.5)', fc.record({ names: someNames(1, 10), at: busy, mode }), (one) => {
  const { names, at, mode } = one
  const scene = judgedScene(...begun, ...at.steps)
  for (const name of names) scene.given(post(name, { mode }))
  finish(scene)
  same(users(scene), ['input of r1', ...names.map((name) => `message ${name}`)])
})

property('Property 1.4: a delayed message never interrupts, says when it is due, and does not count as waiting for the next turn (1.4 5.4)',
  fc.record({ delay: fc.integer({ min: 1, max: 10_000 }), at: busy, mode }), ({ delay, at, mode }) => {
    const scene = judgedScene(...begun, ...at.steps)
    const then = scene.when(by('w1', post('x', { mode, after: delay })))
    const due = new Date(scene.now + delay).toISOString()
    must(then.events[0]?.receipt === 'scheduled' && then.events[0].due_at === due, 'it is scheduled')
    must(!then.said.some((said) => said.includes('cancelled')) && stopped(then.effects).length === 0, 'nothing is stopped')
    same(inBrief(scene.ledger), ['input of r1'])
    scene.given(pass(delay))
    finish(scene)
    same(users(scene), ['input of r1', 'message x'])
  })

// --- 2 -------------------------------------------------------------------------------------------------------------------------------

property('Property 2: a message stops what is pending, tells who works on it, and leaves nothing pending (2.1 2.2 6.1 6.2)', busy, (at) => {
  const scene = judgedScene(...begun, ...at.steps)
  const working = claimed(scene)
  const then = scene.when(post('x'))
  same(receiptOf(scene, 'm_x')?.cancelled_call_ids, at.open.map((name) => `call_${name}`))
  same(stopped(then.effects).sort(), working.map((claim) => `${claim} interrupted`).sort())
  same(claimed(scene), [])
  must(scene.when(work('w2')).said.includes('turn.started 2'), 'the message is handled at once')
})

property('Property 2.1: cancelling again and again acts once (2.1 6.2)', fc.record({ at: busy, times: fc.integer({ min: 2, max: 5 }) }), ({ at, times }) => {
  const scene = judgedScene(...begun, ...at.steps)
  const working = claimed(scene).length
  const outcomes = Array.from({ length: times }, () => scene.when(cancel()))
  same(outcomes.map((then) => then.refusal), [null, ...Array.from({ length: times - 1 }, () => 'run_ended')])
  same(outcomes.flatMap((then) => stopped(then.effects)).length, working)
})

property('Property 2.2: of several conversations only the one that is meant is stopped (2.2)',
  fc.record({ all: fc.array(busy, { minLength: 2, maxLength: 5 }), which: fc.nat(4) }), ({ all, which }) => {
    const scenes = all.map((at) => judgedScene(...begun, ...at.steps))
    const before = scenes.map((scene) => JSON.stringify(scene.state()))
    ;(scenes[which % all.length] as JudgedScene).given(post('x'))
    scenes.forEach((scene, i) => must((JSON.stringify(scene.state()) === before[i]) === (i !== which % all.length), 'the others are as they were'))
  })

property('Property 2.3: who ignores the abort changes nothing, and nothing gets stuck (2.2 6.2)', fc.record({ at: busy, words: fc.array(fc.nat(5), { maxLength: 6 }) }), ({ at, words }) => {
  const scene = judgedScene(...begun, ...at.steps)
  const fence = scene.fence()
  scene.given(by('w2', post('x')))
  for (const word of words) {
    const late: Step[] = [
      answer('late', { fence }), ask(call('late')), retry({ fence }), ...at.open.flatMap((name) => [result(name, 'late', 1), failure(name), progress(name, 'late')])
    ]
    const step = late[word % late.length] as Step
    const said = scene.when(word % late.length === 1 ? (here) => ({ ...step(here) as Extract<ReturnType<Step>, { type: 'CompleteTurn' }>, fence }) : step)
    must(said.refusal === 'stale', `late words are refused: ${said.said.join()}`)
  }
  finish(scene)
  same(users(scene), ['input of r1', 'message x'])
})

property('Property 2.4: something is found pending exactly where something is (2.1 6.1)', fc.oneof(
  busy.map((at) => ({ steps: [...begun, ...at.steps], pending: true })),
  fc.constantFrom<{ steps: Step[], pending: boolean }[]>(
    { steps: [start()], pending: false },
    { steps: [...begun, by('w1', ask(call('a'))), result('a')], pending: false },
    { steps: [...begun, post('before')], pending: false },
    { steps: [...begun, by('w1', answer('done'))], pending: false }
  )
), ({ steps, pending }) => {
  const scene = judgedScene(...steps)
  const then = scene.when(post('x'))
  must((receiptOf(scene, 'm_x')?.receipt === 'interrupted') === pending, 'found')
  must(pending || stopped(then.effects).length === 0, 'nothing to stop')
})

property('Property 2.5: without anything active a cancel changes nothing (6.5)', fc.integer({ min: 1, max: 5 }), (times) => {
  const scene = judgedScene(...begun, by('w1', answer('done')))
  const before = JSON.stringify(scene.state())
  for (let i = 0; i < times; i++) must(scene.when(cancel()).refusal === 'run_ended', 'refused')
  same(JSON.stringify(scene.state()), before)
})

property('Property 2.6: a cancel always leaves the conversation at rest, and free for the next run (2.2 6.4)', busy, (at) => {
  const scene = judgedScene(...begun, ...at.steps, cancel())
  must(scene.state().run === null, 'at rest')
  same(scene.given(start({ run_id: 'r2' }), work('w1')).log.slice(-2).map((event) => event.type), ['run.started', 'turn.started'])
})

// --- 3 -------------------------------------------------------------------------------------------------------------------------------

property('Property 3: a cancelled call leaves no reference in the ledger, whatever it has said (2.3 2.4 3.1 3.2 7.3)',
  fc.record({ responses: fc.integer({ min: 0, max: 5 }), at: busy }), ({ responses, at }) => {
    const scene = judgedScene(...begun, ...at.steps)
    const before = inBrief(scene.ledger).length
    for (const name of at.open) for (let i = 0; i < responses; i++) scene.given(progress(name, i))
    scene.given(post('x'), work('w1'))
    const ledger = JSON.stringify(scene.ledger) + JSON.stringify(scene.requests.at(-1))
    for (const name of at.open) must(!ledger.includes(`call_${name}`) && !ledger.includes(`p_${name}`), `${name} is still there`)
    same(scene.ledger.filter((message) => message.role === 'tool').length, at.done.length)
    if (at.done.length === 0) same(scene.ledger.length, before + 1)
    same(transcript(scene.ledger, null)?.repairs, [])
  })

// --- 4 -------------------------------------------------------------------------------------------------------------------------------

property('Property 4: after any interruption the new message is the last content of the context (2.5)',
  fc.record({ at: busy, before: fc.array(mode, { maxLength: 4 }), delayed: fc.boolean(), content: fc.string({ minLength: 1 }), queued }),
  ({ at, before, delayed, content, queued }) => {
    const waiting = before.filter((one) => one === 'steer' || one === 'queue')
    const scene = judgedScene(...begun, ...at.steps)
    if (delayed) scene.given(post('delayed', { after: 100 }), pass(200))
    scene.given(...waiting.map((mode, i) => post(`${i}`, { mode })), by('w1', post('x', { content, queued })))
    if (scene.requests.length < 2) scene.given(work('w1'))
    same(scene.requests.at(-1)?.at(-1), { role: 'user', content })
  })

// --- 5 -------------------------------------------------------------------------------------------------------------------------------

property('Property 5: everything before what was cancelled stays as it was, to the byte (3.3 3.4)', fc.record({ turns: fc.integer({ min: 1, max: 10 }), at: busy }), ({ turns, at }) => {
  const scene = judgedScene(create([{ id: 'm_system', role: 'system', content: 'Be brief.' }]), start({ new_conversation: false, limits: { max_turns: 30 } }), work('w1'))
  for (let i = 0; i < turns; i++) scene.given(by('w1', ask(call(`earlier${i}`))), by('w1', result(`earlier${i}`)))
  scene.given(...at.steps)
  const before = JSON.stringify(scene.ledger)
  scene.given(post('x'))
  must(JSON.stringify(scene.ledger).startsWith(before.slice(0, -1)), 'what was there is there')
  const kept = inBrief(scene.ledger).slice(2 + 2 * turns)
  same(kept, at.done.length === 0 ? [] : [`→ ${at.done.join(' ')}`, ...at.done.map((name) => `${name}: output of ${name}`)])
})

property('Property 5a: of a message with several calls those that are done stay, and a message without any disappears (3.3 3.4)',
  fc.record({ count: fc.integer({ min: 1, max: 5 }), done: fc.array(fc.nat(4), { maxLength: 4 }) }), ({ count, done }) => {
    const names = Array.from({ length: count }, (_, i) => `c${i}`)
    const finished = [...new Set(done.map((i) => names[i % count] as string))].slice(0, count - 1)
    const scene = judgedScene(...begun, by('w1', ask(...names.map((name) => call(name)))), ...finished.map((name) => by('w1', result(name))), post('x'))
    const left = names.filter((name) => finished.includes(name))
    same(inBrief(scene.ledger).slice(1), left.length === 0 ? [] : [`→ ${left.join(' ')}`, ...left.map((name) => `${name}: output of ${name}`)])
  })

property('Property 5b: results without a call are reported, each of them and nothing else (3.4 7.3)',
  fc.record({ pairs: fc.integer({ min: 1, max: 5 }), orphans: fc.array(fc.nat(4), { maxLength: 3 }) }), ({ pairs, orphans }) => {
    const base = { turn: 1, run_id: 'r1', created_at: new Date(0).toISOString() }
    const ledger = Array.from({ length: pairs }, (_, i): Message[] => [
      { id: `m_ask${i}`, role: 'assistant', content: '', tool_calls: [{ call_id: `call_${i}`, name: 'look', arguments: {} }], ...base },
      { id: `m_told${i}`, role: 'tool', content: 'seen', tool_call_id: `call_${i}`, ...base }
    ])
    orphans.forEach((at, i) => ledger[at % pairs]?.push({ id: `m_orphan${i}`, role: 'tool', content: 'seen', tool_call_id: `call_gone${i}`, ...base }))
    const sent = transcript([{ id: 'm_in', role: 'user', content: 'look', ...base }, ...ledger.flat()], null)
    same(sent?.repairs.map((repair) => /m_orphan\d/.exec(repair)?.[0]).sort(), orphans.map((_, i) => `m_orphan${i}`))
    same(sent?.messages.length, 1 + 2 * pairs)
  })

// --- 6, 7 ----------------------------------------------------------------------------------------------------------------------------

property('Property 6: a message that is queued for an active run is not handled at once (4.1 4.2)',
  fc.record({ at: busy, names: someNames(1, 10), mode: fc.constantFrom<PostMessage['mode'][]>('steer', 'queue') }), ({ at, names, mode }) => {
    const scene = judgedScene(...begun, ...at.steps)
    const working = claimed(scene)
    for (const name of names) {
      const then = scene.when(post(name, { mode }))
      same([then.said, then.effects.length, receiptOf(scene, `m_${name}`)?.receipt], [['message.accepted'], 0, 'queued'])
    }
    same([claimed(scene), users(scene)], [working, ['input of r1']])
    same(scene.judge.fates().waiting.length, names.length)
    finish(scene)
    same(users(scene), ['input of r1', ...names.map((name) => `message ${name}`)])
  })

property('Property 7: messages of one mode are delivered in the order they were accepted, for any sequence (4.3 4.4)',
  fc.array(fc.record({ mode: fc.constantFrom<PostMessage['mode'][]>('steer', 'queue'), between: fc.constantFrom('nothing', 'ask', 'result', 'answer') }), { minLength: 2, maxLength: 10 }), (posts) => {
    const scene = judgedScene(...begun)
    const accepted: Record<string, string[]> = { steer: [], queue: [] }
    posts.forEach(({ mode, between }, i) => {
      if (scene.when(post(`${i}`, { mode })).refusal === null) accepted[mode]?.push(`message ${i}`)
      const [claim] = claimed(scene)
      if (between === 'ask' && claim === 'w1 turn') scene.given(by('w1', ask(call(`c${i}`))))
      if (between === 'result' && claim !== undefined && !claim.endsWith('turn')) scene.given(by('w1', result(claim.slice(3))))
      if (between === 'answer' && claim === 'w1 turn') scene.given(by('w1', answer('done')))
    })
    finish(scene)
    const order = users(scene)
    for (const texts of Object.values(accepted)) same(order.filter((text) => texts.includes(text as string)), texts)
    same(order.length, 1 + Object.values(accepted).flat().length)
  })

// --- 8, 9 ----------------------------------------------------------------------------------------------------------------------------

property('Property 8: with messages waiting, a new one cancels what is pending and is handled at once, instead of their delivery later (4.5)',
  fc.record({ at: busy, names: someNames(1, 5), queued }), ({ at, names, queued }) => {
    const scene = judgedScene(...begun, ...at.steps, ...names.map((name) => post(name, { mode: 'queue' })))
    const then = scene.when(by('w2', post('x', { queued })))
    must(receiptOf(scene, 'm_x')?.receipt === 'interrupted' && then.said.includes('turn.started 2'), 'it is handled at once')
    const texts = names.map((name) => `message ${name}`)
    same(users(scene).slice(1), queued === 'deliver' ? [...texts, 'message x'] : ['message x'])
    same(scene.judge.fates()[queued === 'deliver' ? 'delivered' : 'superseded'].filter((id) => id !== 'm_x'), names.map((name) => `m_${name}`))
    same(scene.judge.fates().waiting, [])
  })

property('Property 9: a message to an active run ends in an interrupt or in the queue, never in neither (5.1 5.2 5.3)',
  fc.record({ at: busy, mode, after: fc.option(fc.integer({ min: 1, max: 1000 }), { nil: undefined }), full: fc.boolean() }), ({ at, mode, after, full }) => {
    const scene = judgedScene(start({ limits: { max_queued_messages: full ? 1 : 100 } }), work('w1'), ...at.steps, post('first', { mode: 'queue' }))
    const before = seqOf(scene)
    const { refusal } = scene.when(post('x', { mode, ...(after !== undefined && { after }) }))
    const receipt = receiptOf(scene, 'm_x')
    const events = scene.log.slice(before)
    if (refusal !== null) return same([refusal, receipt, events.length], ['queue_full', null, 0])
    must(events[0]?.type === 'message.accepted' && events[0].receipt === receipt?.receipt, 'the sender and the readers are told the same')
    const interrupted = events.some((event) => event.type === 'turn.cancelled' || event.type === 'tool.cancelled')
    const waits = scene.judge.fates().waiting.includes('m_x')
    same([receipt?.receipt === 'interrupted', waits], [interrupted, true])
  })

// --- 10 ------------------------------------------------------------------------------------------------------------------------------

property('Property 10: to a conversation at rest a message is an ordinary run: no wait, no interruption (5.4 5.5)',
  fc.array(fc.record({ delay: fc.constantFrom(null, null, 500), on: fc.constantFrom('queue', 'interrupt', 'rollback', 'reject') }), { minLength: 1, maxLength: 6 }), (runs) => {
    const scene = judgedScene(create())
    runs.forEach(({ delay, on }, i) => {
      const before = seqOf(scene)
      scene.given(start({ run_id: `r${i}`, new_conversation: false, on_active_run: on as 'queue', due_at: delay === null ? null : scene.now + delay }))
      if (delay !== null) {
        must(scene.when(work('w1')).refusal === 'nothing_due', 'not before its time')
        scene.given(pass(delay))
      }
      scene.given(work('w1'), by('w1', answer('done')))
      same(scene.log.slice(before).map((event) => event.type), ['run.created', 'run.started', 'turn.started', 'turn.completed', 'run.completed'])
    })
    same(users(scene), runs.map((_, i) => `input of r${i}`))
  })

// --- 11, 12 --------------------------------------------------------------------------------------------------------------------------

property('Property 11: the calls in flight are found and stopped, wherever they run, and their places are free at once (6.3 6.4)',
  fc.record({ count: fc.integer({ min: 1, max: 8 }), room: fc.integer({ min: 1, max: 8 }), first: fc.integer({ min: 0, max: 8 }), done: fc.nat(3) }), (one) => {
    const { count, room, first, done } = one
    const names = Array.from({ length: count }, (_, i) => `c${i}`)
    const scene = judgedScene(start({ limits: { max_tool_concurrency: room } }), work('w1'), by('w1', ask(...names.map((name) => call(name))), { calls: first }))
    if (scene.when(work('w2')).refusal === null) must(claimed(scene).length > 0, 'somebody works')
    for (let i = 0; i < Math.min(done, count - 1); i++) {
      const [claim] = claimed(scene)
      const [worker, name] = (claim as string).split(' ') as [string, string]
      scene.given(by(worker, result(name)))
    }
    const running = claimed(scene)
    const open = names.filter((name) => !scene.log.some((event) => event.type === 'tool.completed' && event.call_id === `call_${name}`))
    const then = scene.when(by('w3', post('x')))
    same(receiptOf(scene, 'm_x')?.cancelled_call_ids, open.map((name) => `call_${name}`))
    same(stopped(then.effects).sort(), running.map((claim) => `${claim} interrupted`).sort())
    const next = Array.from({ length: room }, (_, i) => `next${i}`)
    scene.given(by('w3', ask(...next.map((name) => call(name)))))
    same(scene.log.filter((event) => event.type === 'tool.started').slice(-room).map((event) => event.call_id), next.map((name) => `call_${name}`))
  })

property('Property 12: where everything is done already the message is queued, and delivered behind the results (6.5)',
  fc.record({ count: fc.integer({ min: 1, max: 5 }), fails: fc.boolean(), mode: fc.constantFrom<PostMessage['mode'][]>('auto', 'interrupt', 'steer') }), ({ count, fails, mode }) => {
    const names = Array.from({ length: count }, (_, i) => `c${i}`)
    const scene = judgedScene(...begun, by('w1', ask(...names.map((name) => call(name)))), ...names.map((name) => fails ? failure(name) : result(name)))
    const then = scene.when(post('x', { mode }))
    same([receiptOf(scene, 'm_x')?.receipt, receiptOf(scene, 'm_x')?.cancelled_call_ids, then.said], ['queued', [], ['message.accepted']])
    scene.given(work('w1'))
    same(scene.ledger.slice(-1 - count).map((message) => message.role), [...names.map(() => 'tool'), 'user'])
    same(scene.ledger.at(-1)?.content, 'message x')
  })

// --- 13 ------------------------------------------------------------------------------------------------------------------------------

property('Property 13: after any sequence of interruptions registry, queue and real state are one (7.1 7.2 7.4)', schedules, (moves) => {
  // Every step is checked by both the judge and checkState/checkLedger; at the end nothing is active and nothing waits.
  play(CORE, moves)
})

// --- 14 ------------------------------------------------------------------------------------------------------------------------------

/** Ways in which somebody may have spoiled a row or its ledger while a turn is under way. */
const damages: Record<string, (state: State, ledger: Message[]) => void> = {
  'a message waits twice': (state) => { if (state.waiting[0] !== undefined) state.waiting.push({ ...state.waiting[0] }) },
  'a message waits although the ledger has it': (state, ledger) => { state.waiting.push({ id: (ledger[0] as Message).id, run_id: 'r1', mode: 'queue', due_at: null, cause: 1 }) },
  'a message waits for a run that is over': (state) => { for (const message of state.waiting) message.run_id = 'r_gone' },
  'the count is too high': (state) => { state.messages += 2 },
  'the count is too low': (state) => { state.messages -= 1 },
  'the active run waits as well': (state) => { if (state.run !== null) state.queue.push({ ...state.run, inputs: [] }) },
  'a result answers no call': (_, ledger) => {
    ledger.push({ id: 'm_orphan', role: 'tool', content: 'x', tool_call_id: 'call_gone', turn: 1, run_id: 'r1', created_at: new Date(0).toISOString() })
  }
}

property('Property 14: what was spoiled is noticed and repaired before the next LLM call, and no message is lost (7.5)',
  fc.record({
    harm: fc.uniqueArray(fc.constantFrom(...Object.keys(damages)), { minLength: 1, maxLength: 3 }), names: someNames(1, 4), turns: fc.nat(2)
  }), ({ harm, names, turns }) => {
    const scene = judgedScene(...begun)
    for (let i = 1; i < turns; i++) scene.given(by('w1', ask(call(`c${i}`))), by('w1', result(`c${i}`)))
    scene.given(...names.map((name) => post(name, { mode: 'queue' })))
    let state = structuredClone(scene.state())
    const ledger = structuredClone(scene.ledger)
    for (const name of harm) damages[name]?.(state, ledger)
    // As the worker does before each LLM call (engine/turn.ts).
    const sent = transcript(ledger, null)
    const wrong = [...checkState(state), ...checkLedger(state, ledger), ...sent?.repairs ?? []]
    must(wrong.length > 0, `${harm.join()} went unnoticed`)
    const known = new Set(ledger.map((message) => message.id))
    const delivered = state.waiting.filter((message) => known.has(message.id)).map((message) => message.id)
    const repaired = transition(state, { type: 'Recover', at: scene.now, fence: scene.fence(), detail: wrong.join(), messages: ledger.length, delivered })
    if (repaired.refusal !== null) throw new Error(`refused as ${repaired.refusal}`)
    same(repaired.change.events.map((event) => [event.type, event.detail]), [['conversation.recovered', wrong.join()]])
    state = repaired.change.state
    same([...checkState(state), ...checkLedger(state, ledger)], [])
    same(state.waiting.map((message) => message.id), names.map((name) => `m_${name}`))
    const end = transition(state, { ...answer('done', { fence: scene.fence() })(scene) as Extract<ReturnType<Step>, { type: 'CompleteTurn' }> })
    if (end.refusal !== null) throw new Error(`the turn cannot end: ${end.refusal}`)
    same(end.change.events.filter((event) => event.type === 'message.delivered').map((event) => event.message_id), names.map((name) => `m_${name}`))
  })
