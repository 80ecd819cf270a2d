import t from 'tap'
import { docNames } from '../../src/core/draft.js'
import { MAX_LOSSES } from '../../src/core/lapse.js'
import { answer, ask, by, call, cancel, claimed, createScene, cutResult, failure, given, handOver, inShort, lose, pass, progress, remembered, result, rules, type Scene, START, start, type Step, stopped, TOKENS, work } from '../support/core-scene.js'

const time = (ms = 0) => new Date(START + ms).toISOString()
const fault = { code: 'invalid_arguments', message: 'at must be a string' }
const results = (scene: Scene) => scene.ledger.filter((message) => message.role === 'tool').map((message) => [message.tool_call_id?.slice(5), message.content])
const doc = (scene: Scene, name: string) => JSON.parse(scene.docs.get(name) ?? 'null')

t.test('C7, C8, C10, C11, C12, D3, F1: a batch says exactly this, and enters the ledger as one', async (t) => {
  const scene = given(start(), work('w1'), pass(10))
  const asked = answer('let me look', { finish_reason: 'tool_calls', calls: [call('a'), call('b', { arguments: {}, raw: '{"at', fault }), call('c')] })
  const opened = scene.when(by('w1', asked))
  const common = { run_id: 'r1', conversation_id: 'c', turn: 1, lane: 'main' }
  const batch = { ...common, batch_id: 'b1' }
  const calls = [
    { call_id: 'call_a', name: 'look', arguments: { at: 'a' } },
    { call_id: 'call_b', name: 'look', arguments: {}, raw_arguments: '{"at' },
    { call_id: 'call_c', name: 'look', arguments: { at: 'c' } }
  ]
  t.strictSame(opened.events, [
    {
      seq: 4, run_seq: 4, type: 'turn.completed', ...common, time: time(10), caused_by: [3],
      attempt: 1, text: 'let me look', finish_reason: 'tool_calls', tool_calls: calls, usage: TOKENS
    },
    { seq: 5, run_seq: 5, type: 'batch.started', ...batch, time: time(10), caused_by: [4], calls },
    { seq: 6, run_seq: 6, type: 'tool.started', ...batch, time: time(10), call_id: 'call_a', caused_by: [5], name: 'look', arguments: { at: 'a' }, attempt: 1 },
    { seq: 7, run_seq: 7, type: 'tool.started', ...batch, time: time(10), call_id: 'call_c', caused_by: [5], name: 'look', arguments: { at: 'c' }, attempt: 1 },
    { seq: 8, run_seq: 8, type: 'tool.failed', ...batch, time: time(10), call_id: 'call_b', caused_by: [5], name: 'look', duration_ms: 0, error: fault }
  ])
  t.strictSame(opened.effects, [{ type: 'run_calls', calls: [{ call_id: 'call_a', attempt: 1 }, { call_id: 'call_c', attempt: 1 }] }])
  t.equal(scene.ledger.length, 1, 'D3: the ledger stays as it is until the batch closes')

  scene.given(pass(20))
  t.strictSame(scene.when(by('w1', progress('c', { done: 0.5 }))).events, [
    { seq: 9, run_seq: 9, type: 'tool.progress', ...batch, time: time(30), call_id: 'call_c', caused_by: [7], name: 'look', data: { done: 0.5 } }
  ])
  t.strictSame(scene.when(by('w1', result('c', { seen: [1, null] }))).events, [
    { seq: 10, run_seq: 10, type: 'tool.completed', ...batch, time: time(30), call_id: 'call_c', caused_by: [7], name: 'look', duration_ms: 20, output: { seen: [1, null] } }
  ])
  t.equal(scene.ledger.length, 1)

  scene.given(pass(5))
  const closed = scene.when(by('w1', failure('a', 'not there')))
  t.strictSame(closed.events, [
    {
      seq: 11, run_seq: 11, type: 'tool.failed', ...batch, time: time(35), call_id: 'call_a', caused_by: [6], name: 'look', duration_ms: 25,
      error: { code: 'tool_error', message: 'not there' }
    },
    {
      seq: 12, run_seq: 12, type: 'batch.completed', ...batch, time: time(35), caused_by: [11, 8, 10], duration_ms: 25,
      counts: { completed: 1, failed: 2, cancelled: 0 }
    },
    {
      seq: 13, run_seq: 13, type: 'turn.started', ...common, turn: 2, time: time(35), caused_by: [12], attempt: 1, model: 'model', message_count: 5
    }
  ])
  const entry = { turn: 1, run_id: 'r1' }
  t.strictSame(closed.messages, [
    {
      id: 'm_turn1', role: 'assistant', content: 'let me look', ...entry, created_at: time(10),
      tool_calls: [
        { call_id: 'call_a', name: 'look', arguments: { at: 'a' }, provider_id: 'p_a' },
        { call_id: 'call_b', name: 'look', arguments: {}, provider_id: 'p_b' },
        { call_id: 'call_c', name: 'look', arguments: { at: 'c' }, provider_id: 'p_c' }
      ]
    },
    { id: 'msg_a', role: 'tool', content: '{"error":{"code":"tool_error","message":"not there"}}', ...entry, created_at: time(35), tool_call_id: 'call_a', name: 'look' },
    { id: 'msg_b', role: 'tool', content: JSON.stringify({ error: fault }), ...entry, created_at: time(10), tool_call_id: 'call_b', name: 'look' },
    { id: 'msg_c', role: 'tool', content: '{"seen":[1,null]}', ...entry, created_at: time(30), tool_call_id: 'call_c', name: 'look' }
  ])
})

// --- Dispatch ------------------------------------------------------------------------------------------------------------------------

t.test('C7: all calls that can start do so in request order, before any of them has worked', async (t) => {
  const scene = given(start(), work())
  t.strictSame(scene.when(ask(...['a', 'b', 'c'].map((name) => call(name)))).said, ['turn.completed 1', 'batch.started', 'tool.started a', 'tool.started b', 'tool.started c'])
})

t.test('E4: max_tool_concurrency is kept, what is above it waits in request order, and none is dropped', async (t) => {
  const scene = given(start({ limits: { max_tool_concurrency: 2 } }), work())
  t.strictSame(scene.when(ask(...['a', 'b', 'c', 'd', 'e'].map((name) => call(name)))).said.slice(2), ['tool.started a', 'tool.started b'])
  t.strictSame(scene.when(result('b')).said, ['tool.completed b', 'tool.started c'])
  t.strictSame(scene.when(failure('a')).said, ['tool.failed a', 'tool.started d'])
  t.strictSame(scene.when(result('d')).said, ['tool.completed d', 'tool.started e'])
  t.strictSame(scene.when(result('e')).said, ['tool.completed e'])
  t.strictSame(scene.when(result('c')).said, ['tool.completed c', 'batch.completed'])
})

t.test('E5: with parallel false the calls follow each other in request order', async (t) => {
  const scene = given(start({ policy: { parallel: false } }), work())
  const calls = [call('a'), call('b', { fault }), call('c')]
  t.strictSame(scene.when(ask(...calls)).said.slice(2), ['tool.started a', 'tool.failed b'])
  t.strictSame(scene.when(result('a')).said, ['tool.completed a', 'tool.started c'])
  t.strictSame(scene.when(result('c')).said, ['tool.completed c', 'batch.completed'])
})

t.test('E4: a call that cannot run takes up no room', async (t) => {
  const scene = given(start({ limits: { max_tool_concurrency: 1 } }), work())
  t.strictSame(scene.when(ask(call('a', { fault }), call('b'))).said.slice(2), ['tool.started b', 'tool.failed a'])
})

t.test('E7: a single call is a batch', async (t) => {
  const scene = given(start(), work(), ask(call('a')))
  t.strictSame(scene.when(result('a')).said, ['tool.completed a', 'batch.completed'])
})

t.test('E8: sixty calls in one answer run sixteen at a time and all complete', async (t) => {
  const names = Array.from({ length: 60 }, (_, i) => `n${i}`)
  const scene = given(start(), work(), ask(...names.map((name) => call(name))))
  const running = () => {
    const count = (type: string) => scene.log.filter((event) => event.type === type).length
    return count('tool.started') - count('tool.completed')
  }
  for (const name of names) {
    t.equal(running(), Math.min(16, names.length - names.indexOf(name)))
    scene.given(result(name))
  }
  t.match(scene.log.at(-1), { type: 'batch.completed', counts: { completed: 60, failed: 0, cancelled: 0 } })
  t.strictSame(results(scene).map(([name]) => name), names)
})

t.test('E9: calls that cannot run fail with a clear text, and their siblings run', async (t) => {
  const scene = given(start(), work(), ask(call('a', { fault: { code: 'unknown_tool', message: 'there is no tool "a"' } }), call('b'), call('c', { fault })))
  scene.given(result('b'), work())
  t.strictSame(results(scene), [['a', '{"error":{"code":"unknown_tool","message":"there is no tool \\"a\\""}}'], ['b', 'output of b'], ['c', JSON.stringify({ error: fault })]])
})

t.test('E9: a batch of nothing but calls that cannot run closes by itself', async (t) => {
  const scene = given(start(), work())
  t.strictSame(scene.when(by('w1', ask(call('a', { fault }), call('b', { fault })))).said,
    ['turn.completed 1', 'batch.started', 'tool.failed a', 'tool.failed b', 'batch.completed', 'turn.started 2'])
})

// --- Claims --------------------------------------------------------------------------------------------------------------------------

t.test('the worker that opened a batch claims as many calls as it has room for, the others are left for more', async (t) => {
  const scene = given(start(), work('w1'))
  const then = scene.when(by('w1', ask(...['a', 'b', 'c', 'd'].map((name) => call(name))), { calls: 2 }))
  t.strictSame(then.effects, [{ type: 'run_calls', calls: [{ call_id: 'call_a', attempt: 1 }, { call_id: 'call_b', attempt: 1 }] }])
  t.strictSame(claimed(scene), ['w1 a', 'w1 b'])
  t.strictSame(scene.when(work('w2', { calls: 1 })).effects, [{ type: 'run_calls', calls: [{ call_id: 'call_c', attempt: 1 }] }])
  t.strictSame(scene.given(work('w3')).when(work('w4')).refusal, 'nothing_due')
  t.strictSame(claimed(scene), ['w1 a', 'w1 b', 'w2 c', 'w3 d'])
})

t.test('a worker without room claims nothing', async (t) => {
  const scene = given(start(), work('w1'))
  t.strictSame(scene.when(by('w1', ask(call('a')), { calls: 0 })).effects, [])
  t.equal(scene.when(work('w1', { calls: -1 })).refusal, 'nothing_due')
})

t.test('a call that asks to be spread goes to a worker that came for it', async (t) => {
  const scene = given(start(), work('w1'), by('w1', ask(call('a', { rules: rules({ placement: 'spread' }) }), call('b'))))
  t.strictSame(claimed(scene), ['w1 b'])
  t.strictSame(claimed(scene.given(work('w2'))), ['w2 a', 'w1 b'])
})

t.test('a settled call frees its place at its worker for the next one', async (t) => {
  const scene = given(start({ limits: { max_tool_concurrency: 1 } }), work('w1'), by('w1', ask(call('a'), call('b'))))
  t.strictSame(scene.when(by('w1', result('a'), { calls: 1 })).effects, [{ type: 'run_calls', calls: [{ call_id: 'call_b', attempt: 1 }] }])
})

// --- The barrier ---------------------------------------------------------------------------------------------------------------------

t.test('D2: no turn starts while a call is open, whoever comes', async (t) => {
  const scene = given(start(), work('w1'), by('w1', ask(call('a'), call('b'))), result('a'))
  t.equal(scene.when(work('w2')).refusal, 'nothing_due')
  t.strictSame(scene.when(by('w1', result('b'))).said, ['tool.completed b', 'batch.completed', 'turn.started 2'])
})

t.test('B1: results that come together start the next turn once', async (t) => {
  const names = Array.from({ length: 10 }, (_, i) => `n${i}`)
  const scene = given(start(), work('w1'), by('w1', ask(...names.map((name) => call(name)))))
  const started = names.flatMap((name) => scene.when(by('w1', result(name))).effects.filter((effect) => effect.type === 'call_model'))
  t.equal(started.length, 1)
})

t.test('C9: calls are reported in the order they finish', async (t) => {
  const scene = given(start(), work(), ask(call('a'), call('b'), call('c')), result('b'), result('c'), result('a'))
  t.strictSame(scene.log.map(inShort).filter((what) => what.startsWith('tool.completed')), ['tool.completed b', 'tool.completed c', 'tool.completed a'])
})

t.test('G1, G2, D10: results enter the ledger in request order, or by option in the order they finished', async (t) => {
  for (const [order, expected] of [['request', ['a', 'b', 'c']], ['completion', ['b', 'c', 'a']]] as const) {
    const scene = given(start({ policy: { message_order: order } }), work(), ask(call('a'), call('b', { fault }), call('c')), result('c'), result('a'))
    t.strictSame(results(scene).map(([name]) => name), expected, order)
    t.strictSame(scene.ledger[1]?.tool_calls?.map((one) => one.call_id), ['call_a', 'call_b', 'call_c'], 'the calls stay in request order')
  }
})

t.test('G3: text and calls in one answer: both are kept, and the answer is not final', async (t) => {
  const scene = given(start(), work(), answer('let me look', { calls: [call('a')] }), result('a'))
  t.match(scene.ledger[1], { role: 'assistant', content: 'let me look', tool_calls: [{ call_id: 'call_a' }] })
  t.equal(scene.log.at(-1)?.type, 'batch.completed')
})

t.test('D10: calls of one name are told apart by their ids', async (t) => {
  const names = ['a', 'b', 'c', 'd', 'e']
  const scene = given(start(), work(), ask(...names.map((name) => call(name))), ...['d', 'a', 'e', 'c', 'b'].map((name) => result(name)))
  t.strictSame(results(scene), names.map((name) => [name, `output of ${name}`]))
})

t.test('D9: a result of an earlier turn finds no place in a later one', async (t) => {
  const late = remembered(result('a', 'late', 1))
  const scene = given(start(), work('w1'), by('w1', ask(call('a'))), result('a'), work('w1'), by('w1', ask(call('b'))))
  t.equal(scene.when(late).refusal, 'stale')
  scene.given(result('b'))
  t.strictSame(results(scene), [['a', 'output of a'], ['b', 'output of b']])
})

t.test('B9: the next turn sees every result of the batch before it, once', async (t) => {
  const scene = given(start(), work(), by('w1', ask(call('a'), call('b'))), by('w1', result('b')), by('w1', result('a')))
  t.match(scene.log.at(-1), { type: 'turn.started', turn: 2, message_count: 4 })
  t.strictSame(scene.ledger.map((message) => message.role), ['user', 'assistant', 'tool', 'tool'])
})

t.test('E18: outputs that are no strings keep their type in the event and are text for the model', async (t) => {
  for (const output of [null, 0, false, '', [], { a: [null] }]) {
    const scene = given(start(), work(), ask(call('a')))
    const then = scene.when(result('a', output))
    t.strictSame(then.events[0]?.output, output)
    t.equal(results(scene).length, 1)
    t.equal(typeof results(scene)[0]?.[1], 'string')
  }
})

t.test('E16: a result that had to be cut is cut in the event and for the model, and whole beside the row', async (t) => {
  const scene = given(start(), work(), ask(call('a')))
  const then = scene.when(cutResult('a', 'x'.repeat(1000), 'xx [cut]'))
  t.match(then.events[0], { type: 'tool.completed', output: 'xx [cut]', truncated: true })
  t.strictSame(results(scene), [['a', 'xx [cut]']])
  t.equal(doc(scene, docNames.done('call_a')).output, 'x'.repeat(1000))
})

t.test('what a model wrote instead of arguments is told up to max_result_chars', async (t) => {
  const scene = given(start({ limits: { max_result_chars: 100 } }), work())
  const [completed] = scene.when(ask(call('a', { raw: 'x'.repeat(500), arguments: {}, fault }))).events
  t.equal((completed?.tool_calls as { raw_arguments: string }[])[0]?.raw_arguments.length, 100)
})

t.test('D4: a call that timed out fails, its batch closes and the run goes on', async (t) => {
  const scene = given(start(), work('w1'), by('w1', ask(call('a'))))
  const error = { code: 'timeout', message: 'the tool did not answer within 300 ms' }
  const then = scene.when((at) => ({
    type: 'CompleteCall', at: at.now, call_id: 'call_a', attempt: 1, outcome: { status: 'failed', error, text: JSON.stringify({ error }) },
    executor: { worker: 'w1', turn: true, calls: 8, spread: false }
  }))
  t.strictSame(then.said, ['tool.failed a', 'batch.completed', 'turn.started 2'])
  t.match(then.events[0], { error })
  t.equal(scene.when(result('a', 'late', 1)).refusal, 'stale', 'D5: what comes later changes nothing')
})

t.test('D8: a result for a call there is not, or for an attempt that is not running, is refused', async (t) => {
  const scene = given(start({ limits: { max_tool_concurrency: 1 } }), work(), ask(call('a'), call('b')))
  t.equal(scene.when(result('x', 1, 1)).refusal, 'stale', 'unknown')
  t.equal(scene.when(result('a', 1, 2)).refusal, 'stale', 'another attempt')
  t.equal(scene.when(result('b', 1, 0)).refusal, 'stale', 'not started yet')
  t.equal(scene.when(result('b', 1, 1)).refusal, 'stale', 'not started yet')
})

// --- Failures ------------------------------------------------------------------------------------------------------------------------

t.test('F2: a failure stops no sibling', async (t) => {
  const scene = given(start(), work(), ask(call('a'), call('b')))
  const then = scene.when(failure('a'))
  t.strictSame(then.said, ['tool.failed a'])
  t.strictSame(then.effects, [])
  t.strictSame(scene.when(result('b')).said, ['tool.completed b', 'batch.completed'])
})

t.test('F3: with fail_run the batch settles, then the run fails, naming the first failure and listing all', async (t) => {
  const scene = given(start({ policy: { on_error: 'fail_run' } }), work('w1'), by('w1', ask(call('a'), call('b'), call('c'))), failure('c', 'third broke'), result('b'))
  const then = scene.when(by('w1', failure('a', 'first broke')))
  t.strictSame(then.said, ['tool.failed a', 'batch.completed', 'run.failed'])
  t.match(then.events[1], { counts: { completed: 1, failed: 2, cancelled: 0 } })
  t.match(then.events[2], {
    caused_by: [then.events[1]?.seq],
    output: null,
    error: {
      code: 'tool_failed',
      retryable: false,
      message: /call_c.*third broke/,
      failures: [
        { call_id: 'call_c', name: 'look', code: 'tool_error', message: 'third broke' },
        { call_id: 'call_a', name: 'look', code: 'tool_error', message: 'first broke' }
      ]
    }
  })
  t.strictSame(then.effects, [], 'no further LLM call')
  t.strictSame(results(scene).length, 3, 'the ledger has the whole batch')
})

t.test('F4: when all calls fail the model is told, or by option the run fails', async (t) => {
  for (const [onError, last] of [['continue', 'turn.started 2'], ['fail_run', 'run.failed']] as const) {
    const scene = given(start({ policy: { on_error: onError } }), work(), by('w1', ask(call('a'), call('b'), call('c'))), failure('a'), failure('b'))
    t.equal(scene.when(by('w1', failure('c'))).said.at(-1), last)
  }
})

t.test('F3: also a call that cannot run fails its run under fail_run', async (t) => {
  const scene = given(start({ policy: { on_error: 'fail_run' } }), work())
  t.match(scene.when(by('w1', ask(call('a', { fault })))).events.at(-1), { type: 'run.failed', error: { failures: [{ call_id: 'call_a', code: 'invalid_arguments' }] } })
})

t.test('F5: the model is told of every failure, and never by an empty message', async (t) => {
  const scene = given(start(), work('w1'), by('w1', ask(call('a'), call('b', { fault }), call('c', { rules: rules({ effects: 'write' }) }))), failure('a', ''), lose('w1'))
  t.equal(results(scene).length, 3)
  for (const [, content] of results(scene)) t.match(JSON.parse(content as string), { error: { code: String } })
})

// --- Lost workers --------------------------------------------------------------------------------------------------------------------

t.test('D11: of a lost worker\'s calls those that only read, or are idempotent, run again; what has finished stays', async (t) => {
  const calls = [call('a'), call('b'), call('c', { rules: rules({ effects: 'write' }) }), call('d', { rules: rules({ effects: 'write', idempotent: true }) })]
  const scene = given(start(), work('w1'), by('w1', ask(...calls)), result('a'), pass(10_000))
  const then = scene.when(lose('w1'))
  t.strictSame(then.said, ['tool.failed c', 'tool.started b', 'tool.started d'])
  t.match(then.events, [
    { error: { code: 'outcome_unknown' }, duration_ms: 10_000 },
    { attempt: 2, arguments: { at: 'b' } },
    { attempt: 2, arguments: { at: 'd' } }
  ])
  t.strictSame(stopped(then.effects), ['w1 b worker_lost', 'w1 c worker_lost', 'w1 d worker_lost'])
  t.equal(scene.when(result('b', 'late', 1)).refusal, 'stale', 'the first attempt\'s word counts no more')
  scene.given(work('w2'), result('d'))
  t.strictSame(claimed(scene), ['w2 b'])
  t.match(scene.given(pass(5)).when(by('w2', result('b'))).events[0], { type: 'tool.completed', duration_ms: 10_005 }, 'it lasts from its first start')
  t.match(doc(scene, docNames.done('call_b')), { attempt: 2, started_at: START, ended_at: START + 10_005, output: 'output of b' })
})

t.test('only the calls of the lost worker lapse, and only at the attempt it had', async (t) => {
  const scene = given(start(), work('w1'), by('w1', ask(call('a'), call('b')), { calls: 1 }), work('w2'))
  const old = remembered(lose('w1'))
  t.strictSame(scene.when(old).said, ['tool.started a'])
  t.strictSame(claimed(scene), ['w2 b'])
  scene.given(work('w3'))
  t.equal(scene.when(old).refusal, 'nothing_due')
  t.strictSame(claimed(scene), ['w3 a', 'w2 b'])
})

t.test(`a call that has cost ${MAX_LOSSES} workers fails, and its batch closes`, async (t) => {
  const scene = given(start(), work('w0'), ask(call('a')))
  for (let i = 1; i < MAX_LOSSES; i++) t.strictSame(scene.given(work(`w${i}`)).when(lose(`w${i}`)).said, ['tool.started a'])
  const then = scene.given(work('w9')).when(lose('w9'))
  t.strictSame(then.said, ['tool.failed a', 'batch.completed'])
  t.match(then.events[0], { error: { code: 'outcome_unknown' } })
})

t.test('F53: calls that are handed over: what only reads runs again, however often; of what writes nobody knows', async (t) => {
  const scene = given(start(), work('w1'), by('w1', ask(call('a'), call('b', { rules: rules({ effects: 'write' }) }))))
  const then = scene.when(handOver('w1'))
  t.match(then.events.find(({ type }) => type === 'tool.failed'), { error: { code: 'outcome_unknown', message: /told to stop/ } })
  for (let i = 0; i < 2 * MAX_LOSSES; i++) t.strictSame(scene.given(work('w2')).when(handOver('w2')).events.filter(({ type }) => type === 'tool.failed'), [])
})

t.test('a call that runs again keeps its place before those that have not started', async (t) => {
  const scene = given(start({ limits: { max_tool_concurrency: 1 } }), work('w1'), by('w1', ask(call('a'), call('b'))))
  t.strictSame(scene.when(lose('w1')).said, ['tool.started a'])
})

// --- Final answer --------------------------------------------------------------------------------------------------------------------

const final = (name: string, over = {}) => call(name, { name: 'final_answer', ...over })
const withFinal = { policy: { final_answer_tool: 'final_answer' as const } }

t.test('H1: a final answer waits for its siblings, then ends the run as its last event', async (t) => {
  const scene = given(start(withFinal), work(), by('w1', ask(call('a'), final('b'), call('c'))))
  t.strictSame(scene.when(by('w1', result('b', 'the answer'))).said, ['tool.completed b'])
  t.strictSame(scene.when(by('w1', result('c'))).said, ['tool.completed c'])
  const then = scene.when(by('w1', result('a')))
  t.strictSame(then.said, ['tool.completed a', 'batch.completed', 'run.completed'])
  t.match(then.events.at(-1), { output: 'the answer', stop_reason: null, error: null })
  t.strictSame(then.effects, [], 'no further LLM call')
  t.equal(results(scene).length, 3)
})

t.test('H3: of two final answers the first in request order counts, however they finish', async (t) => {
  for (const order of [['a', 'b'], ['b', 'a']]) {
    const scene = given(start(withFinal), work(), ask(final('a'), final('b')), ...order.map((name) => result(name, { answer: name })))
    t.match(scene.log.at(-1), { type: 'run.completed', output: { answer: 'a' } })
    t.equal(scene.log.filter((event) => event.type === 'run.completed').length, 1)
  }
})

t.test('H2, H3: with cancel a final answer stops its siblings, but for one before it that may yet be the first', async (t) => {
  const cancelling = { policy: { ...withFinal.policy, on_final_answer: 'cancel' as const } }
  for (const [last, answer] of [[result('a', 'first'), 'first'], [failure('a'), 'second']] as const) {
    const scene = given(start(cancelling), work(), by('w1', ask(final('a'), final('b'), call('c'), final('d'))))
    t.strictSame(scene.when(by('w1', result('b', 'second'))).said, ['tool.completed b', 'tool.cancelled c', 'tool.cancelled d'])
    const { said, events } = scene.when(by('w1', last))
    t.strictSame(said.slice(1), ['batch.completed', 'run.completed'])
    t.match(events.at(-1), { output: answer })
  }
})

t.test('H3, H5: a final answer that failed is passed over', async (t) => {
  const scene = given(start(withFinal), work(), ask(final('a', { fault }), final('b')), result('b', 'second'))
  t.match(scene.log.at(-1), { type: 'run.completed', output: 'second' })
})

t.test('H4: a final answer counts although a sibling failed, under both policies', async (t) => {
  for (const onError of ['continue', 'fail_run'] as const) {
    const scene = given(start({ policy: { ...withFinal.policy, on_error: onError } }), work(), ask(final('a'), call('b')), result('a', 'yes'), failure('b'))
    t.match(scene.log.at(-1), { type: 'run.completed', output: 'yes', error: null })
  }
})

t.test('H5: a final answer that failed does not end the run', async (t) => {
  const scene = given(start(withFinal), work())
  t.equal(scene.when(by('w1', ask(final('a', { fault })))).said.at(-1), 'turn.started 2')
  t.strictSame(given(start(withFinal), work(), by('w1', ask(final('a')))).when(by('w1', failure('a'))).said, ['tool.failed a', 'batch.completed', 'turn.started 2'])
})

t.test('without the option a tool called final_answer is a tool like any other', async (t) => {
  const scene = given(start(), work(), by('w1', ask(final('a'))))
  t.equal(scene.when(by('w1', result('a'))).said.at(-1), 'turn.started 2')
})

t.test('a final answer null or empty is an answer', async (t) => {
  for (const output of [null, '']) {
    t.match(given(start(withFinal), work(), ask(final('a')), result('a', output)).log.at(-1), { type: 'run.completed', output })
  }
})

t.test('H1: a cancellation while a final answer waits for its siblings cancels the run', async (t) => {
  const scene = given(start(withFinal), work(), ask(final('a'), call('b')), result('a', 'yes'))
  t.strictSame(scene.when(cancel()).said, ['tool.cancelled b', 'run.cancelled'])
})

// --- Beside the row ------------------------------------------------------------------------------------------------------------------

t.test('what a batch needs stands beside the row while it is open; what readers need stays', async (t) => {
  const scene = createScene()
  const names = () => [...scene.docs.keys()].sort()
  scene.given(start(), work())
  t.strictSame(names(), ['run/r1'])
  scene.given(ask(call('a'), call('b')))
  t.strictSame(names(), ['batch/1', 'call/call_a', 'call/call_b', 'run/r1', 'text/1'])
  t.strictSame(doc(scene, docNames.batch(1)), { run_id: 'r1', batch_id: 'b1', calls: ['call_a', 'call_b'] })
  t.strictSame(doc(scene, docNames.call('call_a')), { call_id: 'call_a', name: 'look', arguments: { at: 'a' }, provider_id: 'p_a' })
  scene.given(pass(30), result('a'))
  t.strictSame(names(), ['batch/1', 'call/call_a', 'call/call_b', 'done/call_a', 'message/call_a', 'run/r1', 'text/1'])
  t.strictSame(doc(scene, docNames.done('call_a')), {
    run_id: 'r1', turn: 1, batch_id: 'b1', status: 'completed', attempt: 1, started_at: START, ended_at: START + 30, duration_ms: 30, seq: 8, output: 'output of a'
  })
  scene.given(failure('b'))
  const kept = ['batch/1', 'call/call_a', 'call/call_b', 'done/call_a', 'done/call_b', 'run/r1']
  t.strictSame(names(), kept)
  t.match(doc(scene, docNames.done('call_b')), { status: 'failed', error: { code: 'tool_error', message: 'b broke' } })
  scene.given(work(), answer('done'))
  t.strictSame(names(), [...kept, 'end/r1'].sort())
})

t.test('a call without a provider id has none in the ledger', async (t) => {
  const scene = given(start(), work(), ask(call('a', { provider_id: '' })), result('a'))
  t.strictSame(scene.ledger[1]?.tool_calls, [{ call_id: 'call_a', name: 'look', arguments: { at: 'a' } }])
})

const endings: [how: string, steps: Step[]][] = [
  ['cancelled', [cancel()]],
  ['cancelled with nothing settled', [cancel()]],
  ['timed out', [pass(4_000_000), lose('w1')]]
]
for (const [how, steps] of endings) {
  t.test(`a batch that was ${how} leaves nothing beside the row that nobody reads`, async (t) => {
    const scene = given(start(), work('w1'), by('w1', ask(call('a'), call('b'))), ...how.endsWith('nothing settled') ? [] : [result('a')], ...steps)
    t.strictSame([...scene.docs.keys()].filter((name) => /^(text|message|input)/.test(name)), [])
    t.match(doc(scene, docNames.done('call_b')), { status: 'cancelled', reason: how === 'timed out' ? 'run_timeout' : 'cancelled' })
  })
}

t.test('the row holds arguments only until their call is dispatched', async (t) => {
  const scene = given(start({ limits: { max_tool_concurrency: 1 } }), work(), ask(call('a'), call('b')))
  const held = () => {
    const phase = scene.state().run?.phase
    return phase?.type === 'batch' ? phase.calls.map((one) => one.arguments) : null
  }
  t.strictSame(held(), [null, { at: 'b' }])
  t.strictSame((scene.given(result('a')), held()), [null, null])
})
