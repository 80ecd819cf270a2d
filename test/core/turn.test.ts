import t from 'tap'
import { docNames } from '../../src/core/draft.js'
import { MAX_TURN_LOSSES } from '../../src/core/lapse.js'
import {
  answer, ask, by, call, cancel, claimed, fail, given, handOver, inShort, lose, pass, prepared, recover, remembered, result, retry, start, stopped, TOKENS, work,
  type Scene, type Step
} from '../support/core-scene.js'

const ending = (scene: Scene) => JSON.parse(scene.docs.get(docNames.end('r1')) ?? 'null')

// --- Claims and fences ---------------------------------------------------------------------------------------------------------------

t.test('B1: a due turn goes to one worker, with a fence of its own; the next one finds nothing to do', async (t) => {
  const scene = given(start())
  const { effects } = scene.when(work('w1'))
  t.strictSame(effects, [{ type: 'call_model', turn: 1, attempt: 1, fence: scene.fence() }])
  t.strictSame(claimed(scene), ['w1 turn'])
  t.equal(scene.when(work('w2')).refusal, 'nothing_due')
})

t.test('a turn is not claimed without a worker, nor by one that has no room for it', async (t) => {
  const scene = given(start())
  t.equal(scene.when(work('w1', { turn: false })).refusal, 'nothing_due')
  t.strictSame(claimed(scene), [])
  t.equal(scene.state().run?.status, 'queued')
})

t.test('the worker that starts a run, settles the last call or ends the run before goes straight on with the next turn', async (t) => {
  t.match(given().when(by('w1', start())).effects, [{ type: 'call_model', turn: 1 }])
  const scene = given(by('w1', start()), start({ run_id: 'r2' }), by('w1', ask(call('a'))))
  t.match(scene.when(by('w1', result('a'))).effects, [{ type: 'call_model', turn: 2 }])
  t.match(scene.when(by('w1', answer('done'))).effects, [{ type: 'call_model', turn: 3 }])
})

t.test('B7, B8: every time a turn changes hands its fence grows, and a word under an older one is refused', async (t) => {
  const late = [remembered(answer('late')), remembered(ask(call('x'))), remembered(retry()), remembered(fail()), remembered(recover('x'))]
  const changes: [how: string, steps: Step[], grows: boolean][] = [
    ['its worker is lost', [lose('w1'), work('w2')], true],
    ['its worker is lost and nobody has taken over yet', [lose('w1')], false],
    ['it is tried again by the same worker', [by('w1', retry())], true],
    ['it waits to be tried again', [retry({ delay_ms: 1000 })], false],
    ['it was answered, and the next one is under way', [by('w1', ask(call('a'))), by('w1', result('a'))], true],
    ['its calls run', [by('w1', ask(call('a')))], false],
    ['its run was cancelled, and the next run is under way', [start({ run_id: 'r2' }), by('w1', cancel())], true]
  ]
  for (const [how, steps, grows] of changes) {
    const scene = given(start(), work('w1'), prepared(...late))
    const fence = scene.fence()
    scene.given(...steps)
    t.equal(scene.fence() > fence, grows, how)
    for (const step of late) t.equal(scene.when(step).refusal, 'stale', how)
  }
})

// --- Tries ---------------------------------------------------------------------------------------------------------------------------

t.test('F9, C5: a turn that is tried again says so, and does not start twice', async (t) => {
  const scene = given(start(), work('w1'), pass(10))
  const then = scene.when(retry({ reason: 'provider_rate_limited', delay_ms: 500 }))
  t.strictSame(then.events, [{
    seq: 4, run_seq: 4, type: 'turn.retrying', run_id: 'r1', conversation_id: 'c', time: new Date(scene.now).toISOString(), turn: 1, lane: 'main', caused_by: [3],
    attempt: 2, reason: 'provider_rate_limited', delay_ms: 500, model: 'model'
  }])
  t.strictSame(claimed(scene), [])
  scene.given(pass(500))
  const again = scene.when(work('w2'))
  t.strictSame(again.said, [], 'no second turn.started')
  t.strictSame(again.effects, [{ type: 'call_model', turn: 1, attempt: 2, fence: scene.fence() }])
  t.match(scene.when(answer('hello')).events, [{ type: 'turn.completed', turn: 1, attempt: 2, caused_by: [4] }, { type: 'run.completed', caused_by: [5] }])
  t.strictSame(scene.log.map(inShort), ['run.created', 'run.started', 'turn.started 1', 'turn.retrying 1', 'turn.completed 1', 'run.completed'])
})

t.test('F9: the delay is kept: nobody gets the turn a millisecond early', async (t) => {
  const scene = given(start(), work(), by('w1', retry({ delay_ms: 500 })), pass(499))
  t.strictSame(claimed(scene), [])
  t.equal(scene.when(work()).refusal, 'nothing_due')
  t.match(scene.given(pass(1)).when(work()).effects, [{ type: 'call_model', attempt: 2 }])
})

t.test('F9: without a delay the worker that failed tries again at once', async (t) => {
  const scene = given(start(), work())
  t.match(scene.when(by('w1', retry())), { said: ['turn.retrying 1'], effects: [{ type: 'call_model', turn: 1, attempt: 2 }] })
})

t.test('F9: fallbacks take over in their order, each with tries of its own, and the last stays', async (t) => {
  const scene = given(start({ models: ['first', 'second', 'third'] }), work(), by('w1', retry()))
  const facts = () => {
    const phase = scene.state().run?.phase
    return phase?.type === 'turn' ? [scene.state().run?.models[phase.model], phase.tries, phase.attempt] : null
  }
  t.strictSame(facts(), ['first', 1, 2])
  t.match(scene.when(by('w1', retry({ next_model: true }))).events, [{ type: 'turn.retrying', attempt: 3, model: 'second' }])
  t.strictSame(facts(), ['second', 0, 3])
  t.match(scene.when(by('w1', retry({ next_model: true }))).events, [{ type: 'turn.retrying', attempt: 4, model: 'third' }])
  t.match(scene.when(by('w1', retry({ next_model: true }))).events, [{ type: 'turn.retrying', attempt: 5, model: 'third' }], 'there is no fourth')
  t.strictSame(facts(), ['third', 1, 5])
  scene.given(by('w1', ask(call('a'))), by('w1', result('a')))
  t.match(scene.log.at(-1), { type: 'turn.started', turn: 2, attempt: 1, model: 'first' }, 'the next turn begins with the first again')
})

t.test('F8, F10, F11: an LLM call that failed for good fails the run, with its reason, and leaves nothing of the turn', async (t) => {
  const scene = given(start(), work(), by('w1', retry()))
  const then = scene.when(fail('provider_refused'))
  t.strictSame(then.said, ['run.failed'])
  t.match(then.events[0], { caused_by: [4], output: null, stop_reason: null, error: { code: 'provider_refused', message: 'no', retryable: false } })
  t.strictSame(stopped(then.effects), [], 'the worker knows')
  t.equal(scene.ledger.length, 1)
  t.strictSame(scene.given(start({ run_id: 'r2' }), work(), answer('hello')).log.slice(-2).map(inShort), ['turn.completed 2 r2', 'run.completed r2'], 'F13: the conversation goes on')
})

// --- Losses --------------------------------------------------------------------------------------------------------------------------

t.test('B7: the turn of a lost worker is due again at once, for whoever comes', async (t) => {
  const scene = given(start(), work('w1'), pass(10_000))
  const then = scene.when(lose('w1'))
  t.match(then.events, [{ type: 'turn.retrying', turn: 1, attempt: 2, reason: 'worker_lost', delay_ms: 0, caused_by: [3] }])
  t.strictSame(stopped(then.effects), ['w1 turn worker_lost'])
  t.match(scene.when(work('w2')).effects, [{ type: 'call_model', turn: 1, attempt: 2 }])
})

t.test('B7: the claims of other workers and of earlier fences do not lapse', async (t) => {
  const old = remembered(lose('w1'))
  const scene = given(start(), work('w1'), prepared(old), lose('w1'), work('w2'))
  t.equal(scene.when(old).refusal, 'nothing_due')
  t.equal(scene.when(lose('w1')).refusal, 'nothing_due')
  t.strictSame(claimed(scene), ['w2 turn'])
})

t.test(`a turn that has cost ${MAX_TURN_LOSSES} workers fails its run`, async (t) => {
  const scene = given(start())
  for (let i = 1; i < MAX_TURN_LOSSES; i++) t.strictSame(scene.given(work(`w${i}`)).when(lose(`w${i}`)).said, ['turn.retrying 1'])
  const then = scene.given(work('w0')).when(lose('w0'))
  t.strictSame(then.said, ['run.failed'])
  t.match(then.events[0], { error: { code: 'worker_lost', retryable: true } })
  t.strictSame(stopped(then.effects), ['w0 turn worker_lost'], 'it is told once')
})

t.test('tries that fail do not count as losses', async (t) => {
  const scene = given(start(), work('w1'))
  for (let i = 0; i < 2 * MAX_TURN_LOSSES; i++) scene.given(by('w1', retry()))
  t.strictSame(scene.when(lose('w1')).said, ['turn.retrying 1'])
})

t.test('losses and lost leases do not use up the tries of a model', async (t) => {
  const scene = given(start(), work('w1'), lose('w1'), work('w2'), by('w2', retry({ reason: 'lease_lost', tried: false })))
  t.match(scene.state().run?.phase, { tries: 0, attempt: 3 })
  t.match(scene.given(by('w2', retry())).state().run?.phase, { tries: 1, attempt: 4 })
})

t.test('F53: a turn that is handed over is due again at once, and that is no loss however often', async (t) => {
  const scene = given(start())
  for (let i = 0; i < 2 * MAX_TURN_LOSSES; i++) {
    t.match(scene.given(work('w1')).when(handOver('w1')).events, [{ type: 'turn.retrying', reason: 'handed_over', delay_ms: 0 }])
  }
  t.strictSame(scene.given(work('w2'), answer('done')).log.at(-1)?.type, 'run.completed')
})

// --- What it cost --------------------------------------------------------------------------------------------------------------------

t.test('usage counts every LLM call that was begun, also those that gave no answer', async (t) => {
  const begun: [what: string, steps: Step[], llmCalls: number, tokens: number][] = [
    ['none', [cancel()], 0, 0],
    ['one that was cancelled', [work(), cancel()], 1, 0],
    ['one that failed', [work(), fail()], 1, 0],
    ['one that was lost and one that was answered', [work('w1'), lose('w1'), work('w2'), answer('x')], 2, 15],
    ['two that were tried again, one with usage', [work(), by('w1', retry({ usage: TOKENS })), by('w1', retry()), answer('x')], 3, 30],
    ['one of each turn', [work(), by('w1', ask(call('a'), call('b'))), result('a'), by('w1', result('b')), answer('x')], 2, 30]
  ]
  for (const [what, steps, llmCalls, tokens] of begun) {
    t.match(ending(given(start(), ...steps)).usage, { llm_calls: llmCalls, total_tokens: tokens, input_tokens: tokens / 1.5, output_tokens: tokens / 3 }, what)
  }
})

t.test('usage counts the calls a model asked for', async (t) => {
  const fault = { code: 'unknown_tool', message: 'there is no such tool' }
  t.match(ending(given(start(), work(), ask(call('a'), call('b', { fault })), cancel())).usage, { tool_calls: 2 })
})

t.test('a missing usage counts as nothing', async (t) => {
  t.strictSame(ending(given(start(), work(), answer('x', { usage: null }))).usage, { input_tokens: 0, output_tokens: 0, total_tokens: 0, llm_calls: 1, tool_calls: 0 })
})

// --- Recovery ------------------------------------------------------------------------------------------------------------------------

t.test('a repaired transcript is reported, and the turn goes on under the same fence', async (t) => {
  const scene = given(start(), work())
  const { events } = scene.when(recover('tool call call_x has no result and was left out'))
  t.match(events, [{ type: 'conversation.recovered', run_id: 'r1', turn: 1, caused_by: [3], detail: 'tool call call_x has no result and was left out' }])
  t.strictSame(claimed(scene), ['w1 turn'])
  t.strictSame(scene.when(answer('hello')).said, ['turn.completed 1', 'run.completed'])
})
