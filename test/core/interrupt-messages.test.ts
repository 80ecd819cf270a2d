import t from 'tap'
import type { PostMessage } from '../../src/core/command.js'
import type { ToolPolicy } from '../../src/core/run.js'
import { answer, ask, by, call, cancel, fail, failure, lose, pass, result, retry, rules, start, type Step, stopped, sweep, work } from '../support/core-scene.js'
import { edit, inBrief, judgedScene, post, receiptOf, withdraw } from '../support/schedule-steps.js'

/** a is done, b and c are at work, d waits for room. */
const openBatch: Step[] = [start({ limits: { max_tool_concurrency: 2 } }), work('w1'), by('w1', ask(call('a'), call('b'), call('c'), call('d'))), by('w1', result('a'))]

type Told = [receipt: string, mode: string, position: number, cancelled?: string[]]

const MODES: PostMessage['mode'][] = ['auto', 'interrupt', 'steer', 'queue']

/** The table of API.md: what becomes of a message, for every state a run can be in. */
const states: { when: string, steps: Step[], to?: string, told: Told | 'run_ended', steer: Told | 'run_ended', queue: Told | 'run_ended' }[] = [
  { when: 'before its first turn', steps: [start()], told: ['queued', 'steer', 1], steer: ['queued', 'steer', 1], queue: ['queued', 'queue', 1] },
  { when: 'before its due time', steps: [start({ due_at: Date.UTC(2031, 0, 1) })], told: ['queued', 'steer', 1], steer: ['queued', 'steer', 1], queue: ['queued', 'queue', 1] },
  { when: 'while it waits behind another run', steps: [start(), work(), start({ run_id: 'r2' })], to: 'r2', told: ['queued', 'steer', 1], steer: ['queued', 'steer', 1], queue: ['queued', 'queue', 1] },
  { when: 'in an LLM call', steps: [start(), work()], told: ['interrupted', 'interrupt', 0], steer: ['queued', 'steer', 1], queue: ['queued', 'queue', 1] },
  { when: 'in an LLM call while another run waits', steps: [start(), work(), start({ run_id: 'r2' })], told: ['interrupted', 'interrupt', 0], steer: ['queued', 'steer', 1], queue: ['queued', 'queue', 1] },
  { when: 'in the wait before a retry', steps: [start(), work(), retry({ delay_ms: 5000 })], told: ['interrupted', 'interrupt', 0], steer: ['queued', 'steer', 1], queue: ['queued', 'queue', 1] },
  { when: 'when the worker of its LLM call was lost', steps: [start(), work(), lose('w1')], told: ['interrupted', 'interrupt', 0], steer: ['queued', 'steer', 1], queue: ['queued', 'queue', 1] },
  { when: 'in an open batch', steps: openBatch, told: ['interrupted', 'interrupt', 0, ['call_b', 'call_c', 'call_d']], steer: ['queued', 'steer', 1], queue: ['queued', 'queue', 1] },
  { when: 'in a batch nobody has taken yet', steps: [start(), work(), ask(call('a'))], told: ['interrupted', 'interrupt', 0, ['call_a']], steer: ['queued', 'steer', 1], queue: ['queued', 'queue', 1] },
  { when: 'between batch and next turn', steps: [start(), work(), by('w1', ask(call('a'))), result('a')], told: ['queued', 'steer', 1], steer: ['queued', 'steer', 1], queue: ['queued', 'queue', 1] },
  { when: 'between an interrupt and the turn it asked for', steps: [start(), work(), post('first')], told: ['queued', 'steer', 2], steer: ['queued', 'steer', 2], queue: ['queued', 'queue', 2] },
  { when: 'after its end', steps: [start(), work(), answer('done')], told: 'run_ended', steer: 'run_ended', queue: 'run_ended' },
  { when: 'after it was cancelled', steps: [start(), work(), cancel()], told: 'run_ended', steer: 'run_ended', queue: 'run_ended' },
  { when: 'after it was cancelled while it waited', steps: [start(), work(), start({ run_id: 'r2' }), cancel('r2')], to: 'r2', told: 'run_ended', steer: 'run_ended', queue: 'run_ended' },
  { when: 'after it failed, while the next one is active', steps: [start(), work(), start({ run_id: 'r2' }), by('w1', fail())], told: 'run_ended', steer: 'run_ended', queue: 'run_ended' }
]
for (const { when, steps, to = 'r1', told, steer, queue } of states) {
  for (const mode of MODES) {
    const expected = mode === 'steer' ? steer : mode === 'queue' ? queue : told
    t.test(`I1, I2, I15, I25: a message ${when}, as ${mode}: ${typeof expected === 'string' ? expected : expected[0]}`, async (t) => {
      const scene = judgedScene(...steps)
      const then = scene.when(post('x', { mode, to }))
      if (typeof expected === 'string') return t.same(then, { refusal: expected, events: [], said: [], messages: [], effects: [] })
      const [receipt, delivered, position, cancelled = []] = expected
      t.same(receiptOf(scene, 'm_x'), { message_id: 'm_x', receipt, mode: delivered, cancelled_call_ids: cancelled, position })
      t.match(then.events[0], { type: 'message.accepted', run_id: to, message_id: 'm_x', mode: delivered, receipt, content: 'message x' })
      if (receipt !== 'interrupted') t.same([then.said.length, then.effects], [1, []], 'nothing else happens')
    })
  }
  if (told === 'run_ended') continue
  t.test(`I22: a delayed message ${when} is scheduled and stops nothing`, async (t) => {
    const scene = judgedScene(...steps)
    for (const mode of MODES) {
      const then = scene.when(post(mode, { mode, to, after: 400 }))
      t.match(then.events, [{ type: 'message.accepted', mode: 'steer', receipt: 'scheduled', due_at: new Date(scene.now + 400).toISOString() }])
      t.same([then.said.length, then.effects], [1, []])
    }
  })
}

// --- The order of events in each case ------------------------------------------------------------------------------------------------

t.test('I1: an interrupt of an LLM call: exactly these events, the worker is told, and the next turn has the message last', async (t) => {
  const scene = judgedScene(start(), work('w1'))
  const then = scene.when(by('w2', post('x')))
  t.same(then.said, ['message.accepted', 'turn.cancelled 1', 'message.delivered', 'turn.started 2'])
  t.match(then.events[1], { turn: 1, reason: 'interrupted' })
  t.match(then.events[2], { message_id: 'm_x', turn: 2 })
  t.same(stopped(then.effects), ['w1 turn interrupted'])
  t.match(then.effects.at(-1), { type: 'call_model', turn: 2, attempt: 1 })
  t.same(inBrief(scene.ledger), ['input of r1', 'message x'])
  // 1 run.created, 2 run.started, 3 turn.started
  t.same(then.events.map((event) => [event.seq, ...event.caused_by]), [[4, 1], [5, 3, 4], [6, 4], [7, 5, 6]], 'each says what it follows from')
})

t.test('I2, I3, I4, I23: an interrupt of a batch: every open call is cancelled in request order, who runs one is told, none starts any more', async (t) => {
  const scene = judgedScene(start({ limits: { max_tool_concurrency: 2 } }), work('w1'), by('w1', ask(call('a'), call('b'), call('c'), call('d'))), by('w1', result('b')))
  const then = scene.when(by('w2', post('x')))
  t.same(then.said, ['message.accepted', 'tool.cancelled a', 'tool.cancelled c', 'tool.cancelled d', 'message.delivered', 'turn.started 2'])
  t.same(stopped(then.effects), ['w1 a interrupted', 'w1 c interrupted'])
  t.same(inBrief(scene.ledger), ['input of r1', '→ b', 'b: output of b', 'message x'])
  for (const late of ['a', 'c', 'd']) t.equal(scene.when(result(late, 'late', 1)).refusal, 'stale')
})

t.test('I15: a message between batch and next turn keeps the results and comes behind them', async (t) => {
  const scene = judgedScene(start(), work('w1'), by('w1', ask(call('a'))), result('a'))
  t.same(scene.when(post('x')).said, ['message.accepted'])
  t.same(scene.when(work()).said, ['message.delivered', 'turn.started 2'])
  t.same(inBrief(scene.ledger), ['input of r1', '→ a', 'a: output of a', 'message x'])
})

t.test('I11: steer waits for the barrier, queue for the final answer, and the run goes on with it', async (t) => {
  const scene = judgedScene(start(), work('w1'), by('w1', ask(call('a'))), post('later', { mode: 'queue' }), post('soon', { mode: 'steer' }))
  t.same(scene.when(by('w1', result('a'))).said, ['tool.completed a', 'batch.completed', 'message.delivered', 'turn.started 2'])
  t.same(inBrief(scene.ledger).slice(-1), ['message soon'])
  t.same(scene.when(by('w1', answer('done'))).said, ['turn.completed 2', 'message.delivered', 'turn.started 3'])
  t.same(inBrief(scene.ledger).slice(-2), ['done', 'message later'])
  t.same(scene.when(by('w1', answer('really done'))).said, ['turn.completed 3', 'run.completed'])
})

t.test('I11: what waits when the answer is final is delivered in the order it was accepted, whatever its mode', async (t) => {
  const scene = judgedScene(start(), work('w1'), post('1', { mode: 'queue' }), post('2', { mode: 'steer' }), post('3', { mode: 'queue' }), by('w1', answer('done')))
  t.same(inBrief(scene.ledger), ['input of r1', 'done', 'message 1', 'message 2', 'message 3'])
})

t.test('H6: a message while a final answer waits for its siblings is not lost: the run goes on with it', async (t) => {
  const final = by('w1', ask(call('f', { name: 'final_answer' }), call('a')))
  const begin: Step[] = [start({ policy: { final_answer_tool: 'final_answer' } }), work('w1'), final, result('f', 'the answer')]
  const queued = judgedScene(...begin, post('x', { mode: 'queue' }))
  t.same(queued.when(by('w1', result('a'))).said, ['tool.completed a', 'batch.completed', 'message.delivered', 'turn.started 2'])
  t.same(queued.when(by('w1', answer('now'))).said, ['turn.completed 2', 'run.completed'])
  t.match(queued.log.at(-1), { output: 'now' })
  const interrupted = judgedScene(...begin)
  t.same(interrupted.when(by('w1', post('x'))).said, ['message.accepted', 'tool.cancelled a', 'message.delivered', 'turn.started 2'])
  t.same(inBrief(interrupted.ledger), ['input of r1', '→ f', 'f: the answer', 'message x'])
  t.match(interrupted.given(by('w1', ask(call('b'))), by('w1', result('b'))).log.at(-1), { type: 'turn.started', turn: 3 }, 'the answer that was given before does not count any more')
})

t.test('I12: a burst of interrupts: none lost, order kept, the newest last, one LLM call at a time', async (t) => {
  const scene = judgedScene(start(), work('w1'))
  for (let i = 0; i < 5; i++) scene.given(by('w1', post(`a${i}`)))
  for (let i = 0; i < 5; i++) scene.given(post(`b${i}`))
  scene.given(work())
  t.same(inBrief(scene.ledger).slice(1), [...[0, 1, 2, 3, 4].map((i) => `message a${i}`), ...[0, 1, 2, 3, 4].map((i) => `message b${i}`)])
})

t.test('I13: messages that wait come before the interrupt, in order; with supersede they do not come at all, and are told so', async (t) => {
  const waiting: Step[] = [start(), work('w1'), post('1', { mode: 'queue' }), post('2', { mode: 'steer' }), post('3', { after: 1000 })]
  const deliver = judgedScene(...waiting)
  t.same(deliver.when(by('w1', post('x'))).said, ['message.accepted', 'turn.cancelled 1', 'message.delivered', 'message.delivered', 'message.delivered', 'turn.started 2'])
  t.same(inBrief(deliver.ledger), ['input of r1', 'message 1', 'message 2', 'message x'])
  const supersede = judgedScene(...waiting)
  const then = supersede.when(by('w1', post('x', { queued: 'supersede' })))
  t.same(then.said, ['message.accepted', 'turn.cancelled 1', 'message.superseded', 'message.superseded', 'message.delivered', 'turn.started 2'])
  t.match(then.events.slice(2, 4), [{ message_id: 'm_1' }, { message_id: 'm_2' }])
  t.same(inBrief(supersede.ledger), ['input of r1', 'message x'])
  t.same(supersede.judge.fates(), { waiting: ['m_3'], delivered: ['m_x'], superseded: ['m_1', 'm_2'], withdrawn: [], 'rolled back': [] }, 'a delayed one is not superseded')
})

t.test('I13: supersede has nothing to do where nothing can be stopped', async (t) => {
  const scene = judgedScene(start(), post('1', { mode: 'queue' }), post('x', { queued: 'supersede' }), work('w1'))
  t.same(inBrief(scene.ledger), ['input of r1', 'message x'])
  t.same(scene.judge.fates().waiting, ['m_1'])
})

// --- What stays in the ledger --------------------------------------------------------------------------------------------------------

const stays: { cancelled_calls: ToolPolicy['cancelled_calls'], completed_calls: PostMessage['completed_calls'], ledger: string[] }[] = [
  { cancelled_calls: 'remove', completed_calls: 'keep', ledger: ['I look→ a b', 'a: output of a', 'b: tool_error'] },
  { cancelled_calls: 'remove', completed_calls: 'discard', ledger: [] },
  { cancelled_calls: 'tombstone_started', completed_calls: 'keep', ledger: ['I look→ a b d', 'a: output of a', 'b: tool_error', 'd: cancelled'] },
  { cancelled_calls: 'tombstone_started', completed_calls: 'discard', ledger: ['I look→ d', 'd: cancelled'] },
  { cancelled_calls: 'tombstone', completed_calls: 'keep', ledger: ['I look→ a b c d e', 'a: output of a', 'b: tool_error', 'c: cancelled', 'd: cancelled', 'e: cancelled'] },
  { cancelled_calls: 'tombstone', completed_calls: 'discard', ledger: ['I look→ c d e', 'c: cancelled', 'd: cancelled', 'e: cancelled'] }
]
for (const { cancelled_calls, completed_calls, ledger } of stays) {
  t.test(`I5, I7, I9: an interrupt with cancelled_calls ${cancelled_calls} and completed_calls ${completed_calls} leaves ${ledger[0] ?? 'nothing'}`, async (t) => {
    const asked = ['a', 'b', 'c', 'd', 'e'].map((name) => call(name, { rules: rules({ effects: name > 'c' ? 'write' : 'read' }) }))
    // c reads, d writes, and both have started; e would write, and has not.
    const scene = judgedScene(
      start({ policy: { cancelled_calls }, limits: { max_tool_concurrency: 2 } }), work('w1'),
      by('w1', answer('I look', { finish_reason: 'tool_calls', calls: asked })), by('w1', result('a')), by('w1', failure('b'))
    )
    const before = inBrief(scene.ledger)
    t.same(scene.when(by('w1', post('x', { completed_calls }))).said.slice(1, 4), ['tool.cancelled c', 'tool.cancelled d', 'tool.cancelled e'])
    t.same(inBrief(scene.ledger), [...before, ...ledger, 'message x'])
  })
}

t.test('I8: an assistant message none of whose calls has finished is gone, its text too', async (t) => {
  const scene = judgedScene(start(), work('w1'), by('w1', answer('I look', { finish_reason: 'tool_calls', calls: [call('a')] })), by('w1', post('x')))
  t.same(inBrief(scene.ledger), ['input of r1', 'message x'])
})

t.test('I6: everything before the batch stays as it was, and the log and the calls keep everything', async (t) => {
  const scene = judgedScene(start(), work('w1'), by('w1', ask(call('a'))), by('w1', result('a')), by('w1', ask(call('b'))))
  const before = JSON.stringify(scene.ledger)
  scene.given(by('w1', post('x')))
  t.equal(JSON.stringify(scene.ledger.slice(0, 3)), before)
  t.match(JSON.parse(scene.docs.get('done/call_b') ?? ''), { status: 'cancelled', reason: 'interrupted' })
})

// --- Limits --------------------------------------------------------------------------------------------------------------------------

t.test('I24: over max_queued_messages nothing is accepted; an interrupt needs no place, and frees them', async (t) => {
  const scene = judgedScene(start({ limits: { max_queued_messages: 2 } }), work('w1'), post('1', { mode: 'queue' }), post('2', { after: 500 }))
  for (const mode of ['steer', 'queue'] as const) t.equal(scene.when(post('3', { mode })).refusal, 'queue_full')
  t.equal(scene.when(post('3', { after: 5 })).refusal, 'queue_full')
  t.equal(scene.docs.has('input/m_3'), false)
  t.equal(scene.given(by('w1', post('x'))).log.at(-1)?.type, 'turn.started')
  t.same(scene.when(post('4', { mode: 'queue' })).said, ['message.accepted'])
  t.equal(scene.when(post('5', { mode: 'queue' })).refusal, 'queue_full')
})

t.test('F12: an interrupt takes no run beyond its limits; the message waits in the ledger for the next one', async (t) => {
  const scene = judgedScene(start({ limits: { max_turns: 1 } }), work('w1'), by('w1', ask(call('a'))))
  t.same(scene.when(by('w1', post('x'))).said, ['message.accepted', 'tool.cancelled a', 'message.delivered', 'run.incomplete'])
  t.match(scene.log.at(-1), { stop_reason: 'max_turns' })
  t.same(inBrief(scene.ledger), ['input of r1', 'message x'])
  const llm = judgedScene(start({ limits: { max_turns: 1 } }), work('w1'))
  for (const name of ['x', 'y', 'z']) t.same(llm.when(by('w1', post(name))).said.slice(1, 2), [`turn.cancelled ${'xyz'.indexOf(name) + 1}`])
  t.same(llm.when(by('w1', answer('done'))).said, ['turn.completed 4', 'run.completed'], 'an LLM call that was stopped uses up no turn')
})

t.test('I31: a hundred interrupts, one after the other, and the run still ends when they stop', async (t) => {
  const scene = judgedScene(start(), work('w1'))
  for (let i = 0; i < 100; i++) scene.given(by('w1', post(`${i}`)))
  scene.given(by('w1', answer('done')))
  t.match(scene.log.at(-1), { type: 'run.completed' })
  t.equal(scene.ledger.length, 102)
})

// --- Time ----------------------------------------------------------------------------------------------------------------------------

t.test('I22: delayed messages are delivered when due, in due order, as steer', async (t) => {
  const scene = judgedScene(start(), work('w1'), by('w1', ask(call('a'))), post('late', { after: 900 }), post('early', { after: 100 }), pass(1000))
  t.same(scene.when(by('w1', result('a'))).said, ['tool.completed a', 'batch.completed', 'message.delivered', 'message.delivered', 'turn.started 2'])
  t.same(inBrief(scene.ledger).slice(-2), ['message early', 'message late'])
})

t.test('I22: a message that becomes due during an LLM call waits for the turn\'s end, and keeps a final answer from ending the run', async (t) => {
  const scene = judgedScene(start(), work('w1'), post('x', { after: 100 }), pass(100))
  t.same(scene.when(by('w1', answer('done'))).said, ['turn.completed 1', 'message.delivered', 'turn.started 2'])
})

t.test('I22: what was due before an interrupt comes before it', async (t) => {
  const scene = judgedScene(start(), work('w1'), post('due', { after: 100 }), pass(100), by('w1', post('x')))
  t.same(inBrief(scene.ledger), ['input of r1', 'message due', 'message x'])
})

t.test('I22: a delayed message outlives its run: it steers the one that is active then, or waits in the ledger for the next', async (t) => {
  const left: Step[] = [start(), work('w1'), post('x', { after: 100 }), by('w1', answer('done'))]
  const active = judgedScene(...left, start({ run_id: 'r2' }), work('w1'), pass(100), by('w1', ask(call('a'))), by('w1', result('a')))
  t.same(inBrief(active.ledger).slice(-1), ['message x'])
  const idle = judgedScene(...left, pass(100))
  t.same(idle.when(sweep()).said, ['message.delivered'])
  t.same(inBrief(idle.ledger), ['input of r1', 'done', 'message x'])
  t.same(inBrief(idle.given(start({ run_id: 'r2' }), work('w1')).ledger).slice(-2), ['message x', 'input of r2'])
})

t.test('I22: a delayed message for a run that still waits stays with it', async (t) => {
  const scene = judgedScene(start(), work('w1'), start({ run_id: 'r2' }), post('x', { to: 'r2', after: 100 }), pass(100), by('w1', ask(call('a'))), by('w1', result('a')))
  t.same(inBrief(scene.ledger).slice(-1), ['a: output of a'])
  t.same(inBrief(scene.given(by('w1', answer('done'))).ledger).slice(-2), ['input of r2', 'message x'])
})

// --- Edit, withdraw ------------------------------------------------------------------------------------------------------------------

t.test('a waiting message can be changed and taken back, a delivered one cannot', async (t) => {
  const scene = judgedScene(start(), work('w1'), post('1', { mode: 'queue' }), post('2', { mode: 'queue' }))
  t.match(scene.when(edit('1', 'other words')).events, [{ type: 'message.accepted', message_id: 'm_1', content: 'other words', edited: true, receipt: 'queued', mode: 'queue' }])
  t.match(scene.when(withdraw('2')).events, [{ type: 'message.withdrawn', message_id: 'm_2' }])
  scene.given(by('w1', answer('done')))
  t.same(inBrief(scene.ledger), ['input of r1', 'done', 'other words'])
  for (const name of ['1', '2', 'never']) {
    t.equal(scene.when(edit(name, 'too late')).refusal, 'not_found')
    t.equal(scene.when(withdraw(name)).refusal, 'not_found')
  }
  t.equal(judgedScene(start(), post('1'), start({ run_id: 'r2' })).when(edit('1', 'x', 'r2')).refusal, 'not_found', 'not by way of another run')
})

t.test('a message a final answer did not see cannot be taken back: there would be nothing left to ask', async (t) => {
  const scene = judgedScene(start(), work('w1'), post('1', { mode: 'queue' }), answer('done'))
  t.equal(scene.when(withdraw('1')).refusal, 'not_found')
  scene.given(work('w2'))
  t.same(inBrief(scene.ledger), ['input of r1', 'done', 'message 1'])
})

t.test('I14: a request that is repeated is one message', async (t) => {
  const scene = judgedScene(start(), work('w1'), by('w1', post('x')))
  t.equal(scene.when(by('w1', post('x'))).refusal, 'duplicate')
  scene.given(by('w1', answer('done')))
  t.equal(scene.when(by('w1', post('x'))).refusal, 'duplicate', 'also once its run is over')
})

// --- Ends ----------------------------------------------------------------------------------------------------------------------------

const ends: { how: string, step: Step, last: string }[] = [
  { how: 'cancelled', step: cancel(), last: 'run.cancelled' },
  { how: 'failed', step: fail(), last: 'run.failed' },
  { how: 'cut at the token limit', step: answer('do', { finish_reason: 'length' }), last: 'run.incomplete' },
  { how: 'interrupted by another run', step: start({ run_id: 'r2', on_active_run: 'interrupt' }), last: 'run.cancelled' }
]
for (const { how, step, last } of ends) {
  t.test(`I16, I26: messages that wait when a run is ${how} enter the ledger before its last event, and the next run sees them`, async (t) => {
    const scene = judgedScene(start(), work('w1'), post('1', { mode: 'queue' }), post('2', { mode: 'steer' }))
    const then = scene.when(step)
    t.same(then.said.slice(-3), ['message.delivered', 'message.delivered', last])
    if (scene.state().run === null) scene.given(start({ run_id: 'r2' }))
    scene.given(work('w1'))
    t.same(inBrief(scene.ledger).slice(-3), ['message 1', 'message 2', 'input of r2'])
    t.equal(scene.when(post('late')).refusal, 'run_ended')
    t.same(scene.when(by('w1', post('y', { to: 'r2' }))).said.slice(0, 2), ['message.accepted r2', 'turn.cancelled 2 r2'], 'the next run is there for messages')
  })
}

t.test('I10: a message to a conversation at rest is a run of its own: nothing is interrupted', async (t) => {
  const scene = judgedScene(start(), work('w1'), by('w1', answer('done')), start({ run_id: 'r2' }), work('w1'))
  t.notOk(scene.log.some((event) => event.type === 'turn.cancelled' || event.type === 'message.accepted'))
})

t.test('B5: on_active_run interrupt ends the active run, keeps what it has finished, and starts before those that wait', async (t) => {
  const scene = judgedScene(...openBatch, start({ run_id: 'r2' }))
  const then = scene.when(by('w1', start({ run_id: 'r3', on_active_run: 'interrupt' })))
  t.same(then.said, ['run.created r3', 'tool.cancelled b', 'tool.cancelled c', 'tool.cancelled d', 'run.cancelled', 'run.started r3', 'turn.started 2 r3'])
  t.match(then.events.find((event) => event.type === 'run.cancelled'), { reason: 'interrupted_by r3' })
  t.same(inBrief(scene.ledger), ['input of r1', '→ a', 'a: output of a', 'input of r3'])
  t.same(scene.given(by('w1', answer('done'))).log.slice(-2).map((event) => event.run_id), ['r2', 'r2'])
})

t.test('B5: on_active_run rollback ends the active run and takes everything it brought out of the ledger, its messages too', async (t) => {
  const scene = judgedScene(
    start(), work('w1'), by('w1', answer('first')),
    start({ run_id: 'r2' }), work('w1'), by('w1', post('in', { to: 'r2' })), by('w1', ask(call('a'))), by('w1', result('a')), post('out', { to: 'r2', mode: 'queue' }), post('later', { to: 'r2', after: 5000 })
  )
  const then = scene.when(by('w1', start({ run_id: 'r3', on_active_run: 'rollback' })))
  t.same(then.said, ['run.created r3', 'message.superseded r2', 'message.superseded r2', 'turn.cancelled 4 r2', 'run.cancelled r2', 'run.started r3', 'turn.started 5 r3'])
  t.match(then.events.find((event) => event.type === 'run.cancelled'), { reason: 'rolled_back' })
  t.same(inBrief(scene.ledger), ['input of r1', 'first', 'input of r3'])
  t.same(scene.judge.fates(), { waiting: [], delivered: [], superseded: ['m_out', 'm_later'], withdrawn: [], 'rolled back': ['m_in'] })
})

t.test('B5: on a conversation at rest every on_active_run is a run like any other', async (t) => {
  for (const mode of ['queue', 'interrupt', 'rollback', 'reject'] as const) {
    const scene = judgedScene(start(), work('w1'), by('w1', answer('done')), start({ run_id: 'r2', on_active_run: mode }), work('w1'))
    t.same(inBrief(scene.ledger), ['input of r1', 'done', 'input of r2'], mode)
  }
})

t.test('I19: cancelling again does nothing', async (t) => {
  const scene = judgedScene(...openBatch, cancel())
  for (let i = 0; i < 4; i++) t.same(scene.when(cancel()), { refusal: 'run_ended', events: [], said: [], messages: [], effects: [] })
})
