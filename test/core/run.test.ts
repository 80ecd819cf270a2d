import t from 'tap'
import type { PostMessage } from '../../src/core/command.js'
import { docNames } from '../../src/core/draft.js'
import { answer, ask, by, call, cancel, claimed, create, createScene, fail, failure, given, inShort, lose, pass, prepared, progress, recover, remembered, result, retry, rules, START, start, type Step, stopped, sweep, TOKENS, work } from '../support/core-scene.js'

const NO_USAGE = { input_tokens: 0, output_tokens: 0, total_tokens: 0, llm_calls: 0, tool_calls: 0 }
const time = (ms = 0) => new Date(START + ms).toISOString()

t.test('A4, C4, C6: a run that needs no tools says exactly this', async (t) => {
  const scene = given(start({ models: ['first', 'second'], metadata: { key: 'value' } }), pass(20), work('w1'), pass(300), answer('hello'))
  const common = { conversation_id: 'c', run_id: 'r1' }
  t.strictSame(scene.log, [
    { seq: 1, run_seq: 1, type: 'run.created', ...common, time: time(), caused_by: [], input: 'input of r1', model: 'first', on_active_run: 'queue' },
    { seq: 2, run_seq: 2, type: 'run.started', ...common, time: time(20), caused_by: [1] },
    { seq: 3, run_seq: 3, type: 'turn.started', ...common, time: time(20), turn: 1, lane: 'main', caused_by: [2], attempt: 1, model: 'first', message_count: 1 },
    {
      seq: 4, run_seq: 4, type: 'turn.completed', ...common, time: time(320), turn: 1, lane: 'main', caused_by: [3],
      attempt: 1, text: 'hello', finish_reason: 'stop', tool_calls: [], usage: TOKENS
    },
    {
      seq: 5, run_seq: 5, type: 'run.completed', ...common, time: time(320), caused_by: [4],
      output: 'hello', usage: { ...TOKENS, llm_calls: 1, tool_calls: 0 }, stop_reason: null, error: null
    }
  ])
  t.strictSame(scene.ledger, [
    { id: 'm_r1', role: 'user', turn: 1, run_id: 'r1', created_at: time(), content: 'input of r1' },
    { id: 'm_turn1', role: 'assistant', content: 'hello', turn: 1, run_id: 'r1', created_at: time(320) }
  ])
  t.strictSame(JSON.parse(scene.docs.get(docNames.run('r1')) ?? ''), { created_at: START, created_seq: 1, request: { tools: [] } })
  t.strictSame(JSON.parse(scene.docs.get(docNames.end('r1')) ?? ''), {
    status: 'completed', started_at: START + 20, ended_at: START + 320, output: 'hello', usage: { ...TOKENS, llm_calls: 1, tool_calls: 0 },
    error: null, stop_reason: null, reason: null, last_seq: 5, turn: 1, turns: 1, run_seq: 5
  })
})

t.test('M1: the row counts what there is: events, turns, messages', async (t) => {
  const { seq, turn, messages, run, queue } = given(start(), work(), answer('hello')).state()
  t.strictSame({ seq, turn, messages, run, queue }, { seq: 5, turn: 1, messages: 2, run: null, queue: [] })
})

t.test('E7: an answer without text or calls ends the run and leaves no empty message', async (t) => {
  const scene = given(start(), work(), answer(''))
  t.match(scene.log.at(-1), { type: 'run.completed', output: '' })
  t.equal(scene.ledger.length, 1)
})

t.test('an answer cut at the token limit makes the run incomplete, and its text is kept', async (t) => {
  const scene = given(start(), work(), answer('half a', { finish_reason: 'length' }))
  t.match(scene.log.at(-1), { type: 'run.incomplete', output: 'half a', stop_reason: 'length', error: null })
  t.match(scene.ledger.at(-1), { role: 'assistant', content: 'half a' })
})

t.test('A7, C4: nothing moves a run that has ended, not even a year later', async (t) => {
  const late = { answer: remembered(answer('late')), retry: remembered(retry()), fail: remembered(fail()), recover: remembered(recover('x')), result: remembered(result('a')) }
  const scene = given(start(), work(), ask(call('a')), work(), prepared(late.result), result('a'), work())
  scene.given(prepared(late.answer, late.retry, late.fail, late.recover), answer('done'), pass(31_536_000_000))
  const before = JSON.stringify([scene.state(), scene.log, scene.ledger])
  const refused: [what: string, step: Step, refusal: string][] = [
    ['another answer', late.answer, 'stale'],
    ['a retry', late.retry, 'stale'],
    ['a failure of the turn', late.fail, 'stale'],
    ['a recovery', late.recover, 'stale'],
    ['a result', late.result, 'stale'],
    ['news of a call', progress('a', 1), 'stale'],
    ['a cancellation', cancel(), 'run_ended'],
    ['a cancellation of a run there never was', cancel('r9'), 'run_ended'],
    ['a lapse', lose('w1'), 'nothing_due'],
    ['the sweep', sweep(), 'nothing_due'],
    ['a worker', work(), 'nothing_due']
  ]
  for (const [what, step, refusal] of refused) t.equal(scene.when(step).refusal, refusal, what)
  t.equal(JSON.stringify([scene.state(), scene.log, scene.ledger]), before)
})

// --- Cancel --------------------------------------------------------------------------------------------------------------------------

const phases: { phase: string, steps: Step[], said: string[], aborts: string[], ledger: string[] }[] = [
  { phase: 'before a worker came', steps: [start()], said: ['run.cancelled'], aborts: [], ledger: ['user'] },
  { phase: 'in an LLM call', steps: [start(), work('w1')], said: ['turn.cancelled 1', 'run.cancelled'], aborts: ['w1 turn cancelled'], ledger: ['user'] },
  {
    phase: 'while a turn waits to be tried again',
    steps: [start(), work('w1'), retry({ delay_ms: 500 })],
    said: ['turn.cancelled 1', 'run.cancelled'],
    aborts: [],
    ledger: ['user']
  },
  {
    phase: 'while calls run',
    steps: [start(), work('w1'), by('w1', ask(call('a'), call('b')), { calls: 1 }), work('w2')],
    said: ['tool.cancelled a', 'tool.cancelled b', 'run.cancelled'],
    aborts: ['w1 a cancelled', 'w2 b cancelled'],
    ledger: ['user']
  },
  {
    phase: 'while calls wait for room',
    steps: [start({ limits: { max_tool_concurrency: 1 } }), work('w1'), by('w1', ask(call('a'), call('b')))],
    said: ['tool.cancelled a', 'tool.cancelled b', 'run.cancelled'],
    aborts: ['w1 a cancelled'],
    ledger: ['user']
  },
  {
    phase: 'while calls wait for a worker',
    steps: [start(), work('w1'), ask(call('a'))],
    said: ['tool.cancelled a', 'run.cancelled'],
    aborts: [],
    ledger: ['user']
  },
  {
    phase: 'with some calls settled',
    steps: [start(), work('w1'), by('w1', ask(call('a'), call('b'), call('c'))), result('b'), failure('c')],
    said: ['tool.cancelled a', 'run.cancelled'],
    aborts: ['w1 a cancelled'],
    ledger: ['user', 'assistant b c', 'tool b', 'tool c']
  },
  {
    phase: 'between two turns',
    steps: [start(), work('w1'), by('w1', ask(call('a'))), result('a')],
    said: ['run.cancelled'],
    aborts: [],
    ledger: ['user', 'assistant a', 'tool a']
  }
]
for (const { phase, steps, said, aborts, ledger } of phases) {
  t.test(`C4: a run cancelled ${phase} stops its work and says so last`, async (t) => {
    const scene = given(...steps)
    const then = scene.when(cancel('r1', 'cancelled'))
    t.strictSame(then.said, said)
    t.strictSame(stopped(then.effects), aborts)
    t.match(then.events.at(-1), { type: 'run.cancelled', reason: 'cancelled', output: null, stop_reason: null, error: null })
    t.strictSame(scene.ledger.map(({ role, tool_calls, tool_call_id }) => {
      return [role, ...(tool_calls ?? []).map(({ call_id }) => call_id.slice(5)), ...tool_call_id === undefined ? [] : [tool_call_id.slice(5)]].join(' ')
    }), ledger)
    t.strictSame(claimed(scene), [])
    t.equal(scene.when(cancel('r1')).refusal, 'run_ended', 'a second cancellation changes nothing')
    t.strictSame(scene.given(start({ run_id: 'r2' }), work('w3')).log.slice(-3).map(inShort), ['run.created r2', 'run.started r2', `turn.started ${scene.state().turn} r2`],
      'F13: the conversation takes the next run at once')
  })
}

t.test('a cancellation follows from what it cancelled', async (t) => {
  const inTurn = given(start(), work())
  t.match(inTurn.when(cancel()).events, [{ type: 'turn.cancelled', turn: 1, caused_by: [3], reason: 'cancelled' }, { type: 'run.cancelled', caused_by: [4] }])
  const inBatch = given(start(), work(), by('w1', ask(call('a'), call('b'))), pass(40))
  t.match(inBatch.when(cancel()).events, [
    { type: 'tool.cancelled', turn: 1, batch_id: 'b1', call_id: 'call_a', name: 'look', duration_ms: 40, reason: 'cancelled', caused_by: [6] },
    { type: 'tool.cancelled', call_id: 'call_b', caused_by: [7] },
    { type: 'run.cancelled', caused_by: [8, 9] }
  ])
})

// --- Limits --------------------------------------------------------------------------------------------------------------------------

const limits: { limit: string, run: Parameters<typeof start>[0], steps: Step[], last: Step, stop: string }[] = [
  { limit: 'max_turns 1', run: { limits: { max_turns: 1 } }, steps: [work(), by('w1', ask(call('a')))], last: by('w1', result('a')), stop: 'max_turns' },
  {
    limit: 'max_turns 2',
    run: { limits: { max_turns: 2 } },
    steps: [work(), by('w1', ask(call('a'))), by('w1', result('a')), by('w1', ask(call('b')))],
    last: by('w1', failure('b')),
    stop: 'max_turns'
  },
  {
    limit: 'max_total_tokens, just reached',
    run: { limits: { max_total_tokens: 15 } },
    steps: [work(), by('w1', ask(call('a')))],
    last: by('w1', result('a')),
    stop: 'max_total_tokens'
  }
]
for (const { limit, run, steps, last, stop } of limits) {
  t.test(`F12: with ${limit} the run ends once the batch has settled, and asks the model no more`, async (t) => {
    const scene = given(start(run), ...steps)
    const then = scene.when(last)
    t.strictSame(then.said.slice(1), ['batch.completed', 'run.incomplete'])
    t.match(then.events.at(-1), { stop_reason: stop, output: null, error: null })
    t.notOk(then.effects.some((effect) => effect.type === 'call_model'))
    t.equal(scene.ledger.at(-1)?.role, 'tool', 'the results are kept')
  })
}

t.test('F12: below a limit the run goes on', async (t) => {
  for (const limits of [{ max_turns: 2 }, { max_total_tokens: 16 }]) {
    const scene = given(start({ limits }), work(), by('w1', ask(call('a'))))
    t.strictSame(scene.when(by('w1', result('a'))).said, ['tool.completed a', 'batch.completed', 'turn.started 2'])
  }
})

t.test('a limit does not take away an answer', async (t) => {
  const scene = given(start({ limits: { max_turns: 1, max_total_tokens: 1 } }), work())
  t.strictSame(scene.when(answer('done')).said, ['turn.completed 1', 'run.completed'])
})

const post = (over: Partial<PostMessage> = {}): Step => ({ now }) => ({
  type: 'PostMessage', at: now, run_id: 'r1', message_id: 'm_new', content: 'wait', mode: 'auto', queued: 'deliver', completed_calls: 'keep', due_at: null, ...over
})

t.test('F12: a message does not take a run past its limits: it is delivered, and the run ends', async (t) => {
  for (const [limits, stop] of [[{ max_turns: 1 }, 'max_turns'], [{ max_total_tokens: 15 }, 'max_total_tokens']] as const) {
    const interrupted = given(start({ limits }), work(), by('w1', ask(call('a'))))
    t.strictSame(interrupted.when(by('w1', post())).said, ['message.accepted', 'tool.cancelled a', 'message.delivered', 'run.incomplete'])
    const answered = given(start({ limits }), work(), post({ mode: 'queue' }))
    t.strictSame(answered.when(by('w1', answer('done'))).said, ['turn.completed 1', 'message.delivered', 'run.incomplete'])
    for (const scene of [interrupted, answered]) {
      t.match(scene.log.at(-1), { stop_reason: stop })
      t.match(scene.ledger.at(-1), { role: 'user', content: 'wait' })
    }
  }
})

t.test('a message that an answer is not final for is in the ledger at once, so that the model is asked something', async (t) => {
  const scene = given(start(), work(), post({ mode: 'queue' }))
  t.strictSame(scene.when(answer('done')).said, ['turn.completed 1', 'message.delivered'])
  t.equal(scene.when(({ now }) => ({ type: 'WithdrawMessage', at: now, run_id: 'r1', message_id: 'm_new' })).refusal, 'not_found')
  t.match(scene.when(work()).events, [{ type: 'turn.started', turn: 2, caused_by: [5, 6], message_count: 3 }])
})

t.test('a delayed message of a run that still waits does not go to the run before it', async (t) => {
  const scene = given(start(), work(), start({ run_id: 'r2' }), post({ run_id: 'r2', due_at: START + 100 }), pass(100))
  t.strictSame(scene.given(sweep()).when(by('w1', answer('done'))).said, ['turn.completed 1', 'run.completed', 'run.started r2', 'message.delivered r2', 'turn.started 2 r2'])
  t.strictSame(scene.ledger.map((message) => message.content), ['input of r1', 'done', 'input of r2', 'wait'])
})

const timeouts: [phase: string, steps: Step[], said: string[], aborts: string[]][] = [
  ['in an LLM call', [work('w1')], ['turn.cancelled 1', 'run.incomplete'], ['w1 turn run_timeout']],
  ['while a turn waits to be tried again', [work('w1'), retry({ delay_ms: 5000 })], ['turn.cancelled 1', 'run.incomplete'], []],
  ['while calls run', [work('w1'), by('w1', ask(call('a'), call('b'))), result('b')], ['tool.cancelled a', 'run.incomplete'], ['w1 a run_timeout']],
  ['between two turns', [work('w1'), by('w1', ask(call('a'))), result('a')], ['run.incomplete'], []]
]
for (const [phase, steps, said, aborts] of timeouts) {
  t.test(`run_timeout_ms passes ${phase}: the run ends as incomplete`, async (t) => {
    const scene = given(pass(70), start({ limits: { run_timeout_ms: 1000 } }), pass(30), ...steps)
    t.equal(scene.given(pass(999)).when(sweep()).refusal, 'nothing_due', 'not a millisecond early')
    const then = scene.given(pass(1)).when(sweep())
    t.strictSame(then.said, said)
    t.strictSame(stopped(then.effects), aborts)
    t.match(then.events.at(-1), { stop_reason: 'run_timeout', error: null })
    t.notMatch(then.events.at(-1), { reason: String })
  })
}

t.test('run_timeout_ms counts from the first turn, not from the queue', async (t) => {
  const scene = given(start({ limits: { run_timeout_ms: 1000 } }), pass(5000))
  t.equal(scene.when(sweep()).refusal, 'nothing_due')
  t.equal(scene.given(work(), pass(999)).when(sweep()).refusal, 'nothing_due')
  t.strictSame(scene.given(pass(1)).when(sweep()).said, ['turn.cancelled 1', 'run.incomplete'])
})

// --- Runs that wait ------------------------------------------------------------------------------------------------------------------

t.test('B5, B10: runs on a busy conversation wait and follow each other in order of arrival', async (t) => {
  const scene = given(start(), work(), start({ run_id: 'r2' }), start({ run_id: 'r3' }))
  t.strictSame(scene.state().queue.map((run) => run.id), ['r2', 'r3'])
  const then = scene.when(by('w1', answer('one')))
  t.strictSame(then.said, ['turn.completed 1', 'run.completed', 'run.started r2', 'turn.started 2 r2'])
  t.match(then.events.at(-1), { message_count: 3 }, 'the second run sees the first one\'s answer')
  scene.given(by('w1', answer('two')), by('w1', answer('three')))
  t.strictSame(scene.ledger.map((message) => [message.role, message.run_id, message.turn, message.content]), [
    ['user', 'r1', 1, 'input of r1'], ['assistant', 'r1', 1, 'one'],
    ['user', 'r2', 2, 'input of r2'], ['assistant', 'r2', 2, 'two'],
    ['user', 'r3', 3, 'input of r3'], ['assistant', 'r3', 3, 'three']
  ])
})

t.test('C1, D1: seq goes on over all runs of a conversation, run_seq counts each run, turn numbers only rise', async (t) => {
  const scene = given(start(), work(), start({ run_id: 'r2' }), by('w1', ask(call('a'))), by('w1', result('a')), by('w1', answer('one')), by('w1', answer('two')))
  t.strictSame(scene.log.map((event) => event.seq), scene.log.map((_, i) => i + 1))
  for (const run of ['r1', 'r2']) {
    const own = scene.log.filter((event) => event.run_id === run)
    t.strictSame(own.map((event) => event.run_seq), own.map((_, i) => i + 1))
  }
  t.strictSame(scene.log.filter((event) => event.type === 'turn.started').map((event) => [event.run_id, event.turn]), [['r1', 1], ['r1', 2], ['r2', 3]])
})

t.test('B5: on_active_run "reject" refuses while a run is active or waits, and says nothing', async (t) => {
  const reject = start({ run_id: 'r2', on_active_run: 'reject' })
  const scene = given(start(), work())
  t.equal(scene.when(reject).refusal, 'run_active')
  t.equal(scene.given(answer('one')).when(reject).refusal, null)
  const scheduled = given(start({ due_at: START + 1000 }))
  t.equal(scheduled.when(reject).refusal, null, 'a run that is scheduled for later is not in the way')
  const overdue = given(start({ due_at: START + 1000 }), pass(1000))
  t.equal(overdue.when(reject).refusal, 'run_active', 'one whose time has come is')
})

t.test('a scheduled run begins at its time, not before', async (t) => {
  const scene = given(start({ due_at: START + 1000 }), pass(999))
  t.equal(scene.state().run, null)
  t.equal(scene.ledger.length, 0, 'its input is not in the ledger yet')
  t.equal(scene.when(work()).refusal, 'nothing_due')
  t.strictSame(scene.given(pass(1)).when(work()).said, ['run.started', 'turn.started 1'])
})

t.test('a scheduled run does not keep others from running, and takes its place in order of arrival when it is due', async (t) => {
  const scene = given(start({ due_at: START + 1000 }), start({ run_id: 'r2' }), work(), start({ run_id: 'r3' }))
  t.equal(scene.state().run?.id, 'r2')
  scene.given(pass(1000), by('w1', answer('two')))
  t.equal(scene.state().run?.id, 'r1', 'it came before r3')
})

t.test('C4: a run cancelled while it waits ends with one event, and its input never enters the ledger', async (t) => {
  const inputs = [{ id: 'm_2a', role: 'user' as const, content: 'a' }, { id: 'm_2b', role: 'user' as const, content: 'b' }]
  const scene = given(start(), work(), start({ run_id: 'r2', messages: inputs }))
  const then = scene.when(cancel('r2', 'cancelled'))
  t.strictSame(then.said, ['run.cancelled r2'])
  t.match(then.events[0], { run_seq: 2, caused_by: [4], reason: 'cancelled', output: null, usage: NO_USAGE, stop_reason: null, error: null })
  t.strictSame(JSON.parse(scene.docs.get(docNames.end('r2')) ?? ''), {
    status: 'cancelled', started_at: null, ended_at: START, output: null, usage: NO_USAGE, error: null, stop_reason: null, reason: 'cancelled',
    last_seq: 5, turn: null, turns: 0, run_seq: 2
  })
  t.strictSame([...scene.docs.keys()].filter((name) => name.startsWith('input')), [], 'what it would have said is gone')
  scene.given(by('w1', answer('one')))
  t.strictSame(scene.ledger.map((message) => message.run_id), ['r1', 'r1'])
  t.equal(scene.when(cancel('r2')).refusal, 'run_ended')
})

t.test('an input of several messages, text or parts, enters the ledger in order when its run becomes active', async (t) => {
  const parts = [{ type: 'text', text: 'look "here"\n' }, { type: 'image_url', image_url: { url: 'https://example.test/a.png' } }]
  const messages = [{ id: 'm_1', role: 'user' as const, content: 'first' }, { id: 'm_2', role: 'user' as const, content: parts }]
  const scene = given(start({ messages }))
  t.strictSame(scene.ledger.map(({ id, content }) => ({ id, content })), [{ id: 'm_1', content: 'first' }, { id: 'm_2', content: parts }])
  t.strictSame([...scene.docs.keys()], ['run/r1'], 'and waits beside the row no more')
})

// --- Commands that come again --------------------------------------------------------------------------------------------------------

t.test('M5: a run that is started twice is one run, as long as its id is remembered', async (t) => {
  const scene = given(start())
  t.equal(scene.when(start()).refusal, 'duplicate')
  scene.given(work(), answer('one'))
  t.equal(scene.when(start()).refusal, 'duplicate', 'also when it has ended')
  for (let i = 2; i <= 32; i++) scene.given(start({ run_id: `r${i}` }), work(), answer('x'))
  t.equal(scene.when(start()).refusal, 'duplicate', 'also after 31 others')
  t.equal(scene.state().seen.length, 32, 'the row does not grow for ever')
})

const again: [what: string, steps: Step[], step: Step, refusal: string][] = [
  ['an answer', [start(), work()], answer('hello'), 'stale'],
  ['an answer with calls', [start(), work()], ask(call('a')), 'stale'],
  ['a retry', [start(), work()], retry(), 'stale'],
  ['a failure', [start(), work()], fail(), 'stale'],
  ['a result', [start(), work(), by('w1', ask(call('a'), call('b')))], result('a'), 'stale'],
  ['a failed result', [start(), work(), by('w1', ask(call('a'), call('b')))], failure('a'), 'stale'],
  ['a lapse of a turn', [start(), work()], lose('w1'), 'nothing_due'],
  ['a lapse of calls', [start(), work(), by('w1', ask(call('a'), call('b', { rules: rules({ effects: 'write' }) })))], lose('w1'), 'nothing_due'],
  ['a cancellation', [start(), work()], cancel(), 'run_ended']
]
for (const [what, steps, step, refusal] of again) {
  t.test(`B11, M5: ${what} that is delivered twice counts once`, async (t) => {
    const scene = given(...steps)
    const once = remembered(step)
    t.equal(scene.when(once).refusal, null)
    const before = JSON.stringify([scene.state(), scene.log, scene.ledger])
    t.equal(scene.when(once).refusal, refusal)
    t.equal(JSON.stringify([scene.state(), scene.log, scene.ledger]), before)
  })
}

// --- Conversations -------------------------------------------------------------------------------------------------------------------

t.test('a conversation begins with what it is created with', async (t) => {
  const scene = given(create([
    { id: 'm_1', role: 'system', content: 'be brief' },
    { id: 'm_2', role: 'user', content: 'look' },
    { id: 'm_3', role: 'assistant', content: '', tool_calls: [{ call_id: 'call_x', name: 'look', arguments: {} }] },
    { id: 'm_4', role: 'tool', content: 'seen', tool_call_id: 'call_x' }
  ], { metadata: { key: 'value' } }))
  const seed = { turn: null, run_id: null, created_at: time() }
  t.strictSame(scene.ledger, [
    { id: 'm_1', role: 'system', content: 'be brief', ...seed },
    { id: 'm_2', role: 'user', content: 'look', ...seed },
    { id: 'm_3', role: 'assistant', content: '', ...seed, tool_calls: [{ call_id: 'call_x', name: 'look', arguments: {} }] },
    { id: 'm_4', role: 'tool', content: 'seen', ...seed, tool_call_id: 'call_x' }
  ])
  t.match(scene.state(), { id: 'c', tenant: 'me', metadata: { key: 'value' }, messages: 4, has_system: true, seq: 0, turn: 0, run: null, seen: ['op'] })
  t.strictSame(scene.log, [])
  t.match(scene.given(start({ run_id: 'r2' }), work()).log.at(-1), { turn: 1, message_count: 5 })
})

t.test('what a client has named as if it were the prototype of an object is a name like any other', async (t) => {
  const metadata = JSON.parse('{"__proto__":{"a":{"b":"1"}},"c":"2"}') as Record<string, string>
  const scene = given(start({ metadata }), pass(20), work('w1'))
  t.equal(JSON.stringify(scene.state().run?.metadata), JSON.stringify(metadata))
})

t.test('M5: a conversation is created once; who repeats the request is recognised by it', async (t) => {
  const scene = given(create())
  t.equal(scene.when(create()).refusal, 'exists')
  t.equal(scene.when(create([], { operation: 'other' })).refusal, 'exists')
  t.ok(scene.state().seen.includes('op'))
  t.notOk(scene.state().seen.includes('other'))
})

t.test('A3: a run on a conversation that is not there, or is another tenant\'s, is not found', async (t) => {
  t.equal(createScene().when(start({ new_conversation: false })).refusal, 'not_found')
  for (const step of [work(), sweep(), cancel()]) t.equal(createScene().when(step).refusal, 'not_found')
  const scene = given(create())
  t.equal(scene.when(start({ run_id: 'r2', tenant: 'other' })).refusal, 'not_found')
  t.strictSame(scene.log, [])
})

t.test('a run can make its conversation', async (t) => {
  const scene = given(start({ tenant: 'you' }))
  t.match(scene.state(), { id: 'c', tenant: 'you', has_system: false, metadata: {}, created_at: START })
})
