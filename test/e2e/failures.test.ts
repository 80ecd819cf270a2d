import { join } from 'node:path'
import { answer, call, cut, delayed, events, heldAt, latch, say, status, stream as deltas, type Reply } from '../support/model-reply.js'
import { results } from '../support/tool-calls.js'
import { story } from '../support/world.js'

const TOOLS_DIR = join(import.meta.dirname, '../support/tools')

const fail = (id: string, message = 'no luck') => ({ id, name: 'fail', arguments: { message } })

story('F1: one call of three fails: each has its terminal event, the model is told which and why, and the run goes on', async (t, { model, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call({ id: 'c1', name: 'echo', arguments: { value: 'one' } }, fail('c2', 'out of stock'), { id: 'c3', name: 'echo', arguments: { value: 'three' } }), say('done')])
  const { run, stream } = await client.finish({ input: 'conv:a', tools: [tool('echo'), tool('fail')] })
  t.match(run, { status: 'completed', output: 'done' })
  t.same(stream.types().filter((type) => /^tool\.(completed|failed)$/.test(type)).sort(), ['tool.completed', 'tool.completed', 'tool.failed'])
  t.match(results(model.requests()[1]), ['one', /"error":.*"code":"http_error".*out of stock/, 'three'])
  t.same((await client.calls(run.id)).map((one) => one.status), ['completed', 'failed', 'completed'])
})

story('F2: a failure does not cancel its siblings', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call(fail('c1'), { id: 'c2', name: 'hold', arguments: { key: 'x', value: 'kept' } }), say('done')])
  const stream = await client.follow(await client.start({ input: 'conv:a', tools: [tool('hold'), tool('fail')] }))
  await stream.event('tool.failed')
  await tools.waitFor((attempts) => attempts.some(({ route }) => route === 'hold'))
  tools.release('x')
  await stream.ended
  t.equal(results(model.requests()[1])[1], 'kept')
  t.equal(tools.attempts.find(({ route }) => route === 'hold')?.aborted, false)
})

story('F3: on_error fail_run lets the batch settle, then fails the run, naming the first failure and listing all', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call({ id: 'c1', name: 'hold', arguments: { key: 'ok', value: 1 } }, { id: 'c2', name: 'slow', arguments: { key: 'bad' } }, fail('c3', 'the first to fail'))])
  const slow = tool('hold', { name: 'slow', timeout_ms: 400 })
  const run = await client.start({ input: 'conv:a', tools: [tool('hold'), slow, tool('fail')], tool_policy: { on_error: 'fail_run' } })
  const stream = await client.follow(run)
  await stream.event('tool.failed', ({ name }) => name === 'fail')
  await stream.event('tool.failed', ({ name }) => name === 'slow')
  t.equal((await client.run(run.id)).status, 'running', 'one is still at work')
  tools.release('ok')
  await stream.ended
  const calls = await client.calls(run.id)
  t.same(stream.types().slice(-3), ['tool.completed', 'batch.completed', 'run.failed'])
  const { error } = await client.run(run.id)
  t.match(error, { code: 'tool_failed', retryable: false, message: /fail.*the first to fail/ })
  t.match(error?.failures, [{ call_id: calls[2]?.call_id, name: 'fail', code: 'http_error' }, { call_id: calls[1]?.call_id, name: 'slow', code: 'timeout' }])
  t.equal(model.requests().length, 1, 'the model is not asked again')
})

for (const policy of ['continue', 'fail_run'] as const) {
  story(`F4: all calls fail, on_error ${policy}`, async (t, { model, service, tool }) => {
    const { client } = await service()
    model.script('conv:a', [call(fail('c1', 'one'), fail('c2', 'two'), fail('c3', 'three')), say('sorry')])
    const { run, stream } = await client.finish({ input: 'conv:a', tools: [tool('fail')], tool_policy: { on_error: policy } })
    t.match(stream.events().find(({ type }) => type === 'batch.completed'), { counts: { completed: 0, failed: 3, cancelled: 0 } })
    if (policy === 'continue') {
      t.match(run, { status: 'completed', output: 'sorry' })
      t.match(results(model.requests()[1]), [/one/, /two/, /three/])
    } else {
      t.equal(run.status, 'failed')
      t.equal(run.error?.failures?.length, 3)
      t.equal(model.requests().length, 1)
    }
  })
}

story('F5: the message of a failed call is never empty', async (t, { model, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [
    call(
      { id: 'c1', name: 'raw', arguments: { status: 500, text: '' } },
      { id: 'c2', name: 'raw', arguments: { status: 404, headers: { 'content-type': 'application/json' }, text: '{}' } },
      { id: 'c3', name: 'close', arguments: {} }, { id: 'c4', name: 'cut', arguments: {} }
    ),
    say('done')
  ])
  await client.finish({ input: 'conv:a', tools: [tool('raw'), tool('close'), tool('cut')] })
  for (const text of results(model.requests()[1])) {
    const { error } = JSON.parse(text) as { error: { code: string, message: string } }
    t.equal(error.code, 'http_error')
    t.match(error.message, /\w{3}/)
  }
})

story('F6: events carry code and message of a failure, and nobody outside sees a stack', async (t, { model, service }) => {
  const { client } = await service({ env: { INTERLOCK_TOOLS_DIR: TOOLS_DIR } })
  model.script('conv:a', [call({ id: 'c1', name: 'fail', arguments: { way: 'throws' } }, { id: 'c2', name: 'fail', arguments: { way: 'type_error' } }), say('done')])
  const { run, stream } = await client.finish({ input: 'conv:a', tools: [{ kind: 'module', name: 'fail' }] })
  t.match(stream.events().find(({ type }) => type === 'tool.failed'), { error: { code: 'tool_error', message: 'the stock exchange is closed on Sundays' } })
  const shown = [stream.raw(), await client.calls(run.id), await client.messages(run.conversation_id), model.requests()[1]?.body]
  for (const text of shown) t.notMatch(JSON.stringify(text), /failing\.ts|\.js:\d|\\n\s*at /)
})

story('F7: whatever a tool does fails only its own call', async (t, { model, service }) => {
  const { client } = await service({ env: { INTERLOCK_TOOLS_DIR: TOOLS_DIR } })
  const ways = ['rejects', 'rejects_text', 'rejects_nothing', 'rejects_trap', 'evil_thenable', 'cycle', 'bigint', 'getter', 'deep', 'huge', 'holes', 'symbol', 'proto']
  model.script('conv:a', [call(...ways.map((way, i) => ({ id: `c${i}`, name: 'fail', arguments: { way } })), { id: 'good', name: 'echo', arguments: { value: 'fine' } }), say('done')])
  const { run } = await client.finish({ input: 'conv:a', tools: [{ kind: 'module', name: 'fail' }, { kind: 'module', name: 'echo' }] })
  t.match(run, { status: 'completed', output: 'done' })
  const calls = await client.calls(run.id)
  t.match(calls.at(-1), { status: 'completed', output: 'fine' })
  t.same(calls.filter((one) => one.status !== 'completed' && one.status !== 'failed'), [])
  t.ok(calls.filter((one) => one.status === 'failed').length >= 8)
  t.equal(({} as Record<string, unknown>).polluted, undefined)
})

story('FAULTS F18, F8: a provider\'s 4xx fails the run once, and is not tried again', async (t, { model, service }) => {
  const { client } = await service()
  const cases: [reply: Reply, code: string][] = [
    [status(400, { message: 'canary-of-the-provider', type: 'invalid_request_error' }), 'provider_bad_request'],
    [status(400, { errorCode: 'context_length_exceeded' }), 'context_length_exceeded'],
    [status(401), 'provider_unauthorized'],
    [status(404), 'provider_model_not_found'],
    [status(400, { errorCode: 'content_filter' }), 'content_filter'],
    [answer({ refusal: 'I would rather not.' }), 'refusal'],
    [answer({ text: 'half', finish: 'content_filter' }), 'content_filter']
  ]
  for (const [i, [reply, code]] of cases.entries()) {
    model.script(`conv:${i}`, [reply])
    const { run, stream } = await client.finish({ input: `conv:${i}` })
    t.match(run, { status: 'failed', error: { code, retryable: false } }, code)
    t.same(stream.types(), ['run.created', 'run.started', 'turn.started', 'run.failed'])
    t.notMatch(stream.raw(), /canary-of-the-provider/, 'what a provider says may quote the request')
    t.equal(model.requests(`conv:${i}`).length, 1)
  }
})

story('FAULTS F10, F9, C5, C6: a 429 is tried again after what Retry-After says; one turn.started, one turn.completed, one run.created', async (t, { model, service }) => {
  const { client } = await service()
  model.script('conv:a', [status(429, { retryAfter: 1 }), say('at last')])
  const { run, stream } = await client.finish({ input: 'conv:a' })
  t.match(run, { status: 'completed', output: 'at last', usage: { llm_calls: 2 } })
  t.same(stream.types(), ['run.created', 'run.started', 'turn.started', 'turn.retrying', 'turn.completed', 'run.completed'])
  const retrying = stream.events().find(({ type }) => type === 'turn.retrying')
  t.match(retrying, { turn: 1, attempt: 2, reason: 'provider_rate_limited' })
  t.ok(Number(retrying?.delay_ms) >= 1000)
  const [first, second] = model.requests()
  t.ok((second?.arrivedAt ?? 0) - (first?.endedAt ?? 0) >= 990, 'it waited')
  t.match(stream.events().find(({ type }) => type === 'turn.completed'), { attempt: 2, turn: 1 })
})

story('FAULTS F11, F9: 5xx and cut streams are tried again with a growing delay; nothing of a cut answer is kept', async (t, { model, service, tool, tools }) => {
  const { client } = await service()
  const gate = latch()
  const half = answer({ text: ['Half', ' an', ' answer'], calls: [{ name: 'echo', arguments: { value: 'never' } }] })
  model.script('conv:a', [status(500), cut(half, -3, 'fin'), delayed(say(['who', 'le']), gate)])
  const run = await client.start({ input: 'conv:a', tools: [tool('echo')] })
  const stream = await client.follow(run)
  await stream.event('turn.retrying', ({ attempt }) => attempt === 3)
  gate.open()
  await stream.ended
  t.equal((await client.run(run.id)).output, 'whole')
  const retries = stream.events().filter(({ type }) => type === 'turn.retrying')
  t.match(retries, [{ attempt: 2, reason: 'provider_unavailable' }, { attempt: 3, reason: /provider_(truncated|connection)/ }])
  t.ok(Number(retries[0]?.delay_ms) <= 500 && Number(retries[1]?.delay_ms) >= 500, 'half of it is chance')
  t.equal(stream.text(1), 'whole')
  t.same((await client.messages(run.conversation_id)).map(({ content }) => content), ['conv:a', 'whole'])
  t.equal(tools.count(), 0, 'the call of a cut answer is not run')
})

story('FAULTS F11, F10: when the tries are used up the run fails, and says how often it tried', async (t, { model, service }) => {
  const { client } = await service({ env: { INTERLOCK_MODEL_ATTEMPTS: '2' } })
  model.otherwise(() => status(500))
  const { run, stream } = await client.finish({ input: 'conv:a' })
  t.match(run, { status: 'failed', error: { code: 'provider_unavailable', retryable: true, message: /500.*2 attempts/ }, usage: { llm_calls: 2 } })
  t.same(stream.types(), ['run.created', 'run.started', 'turn.started', 'turn.retrying', 'run.failed'])
  t.equal(model.requests().length, 2)
})

story('F10: fallback_models are asked before a run fails', async (t, { model, service }) => {
  const { client } = await service({ env: { INTERLOCK_MODEL_ATTEMPTS: '1' } })
  model.script('conv:a', ({ body }) => body.model === 'third' ? say('from the third') : status(503))
  const { run, stream } = await client.finish({ input: 'conv:a', model: 'first', fallback_models: ['second', 'third'] })
  t.equal(run.output, 'from the third')
  t.same(model.requests().map(({ body }) => body.model), ['first', 'second', 'third'])
  t.same(stream.events().filter(({ type }) => type === 'turn.retrying').map((event) => event.model), ['second', 'third'])
})

story('F11: answers that are none are tried again, then fail the run; nothing of them is kept', async (t, { model, service, tool, tools }) => {
  const { client } = await service({ env: { INTERLOCK_MODEL_ATTEMPTS: '2' } })
  const broken: [what: string, reply: Reply][] = [
    ['no choices', events({ id: 'x', object: 'chat.completion.chunk', choices: [] }, '[DONE]')],
    ['half a tool call', cut(call({ name: 'echo', arguments: { value: 'x'.repeat(100) } }), 5, 'end')],
    ['not JSON', events('{"choices": [', '[DONE]')],
    ['nothing said', deltas([{ role: 'assistant', content: '' }])],
    ['a call without a name', deltas([{ tool_calls: [{ index: 0, id: 'c', function: { arguments: '{}' } }] }], { finish: 'tool_calls' })],
    ['an error in the stream', events({ error: { message: 'overloaded', type: 'server_error' } })]
  ]
  await Promise.all(broken.map(async ([what, reply], i) => {
    model.script(`conv:again-${i}`, [reply, say('fine')])
    model.script(`conv:ever-${i}`, [reply, reply])
    const [again, ever] = await Promise.all([`conv:again-${i}`, `conv:ever-${i}`].map((input) => client.finish({ input, tools: [tool('echo')] })))
    t.match(again?.run, { status: 'completed', output: 'fine' }, what)
    t.match(ever?.run, { status: 'failed', error: { code: /^provider_/ } }, what)
    for (const one of [again, ever]) {
      const { length } = await client.messages(one?.run.conversation_id ?? '')
      t.equal(length, one === again ? 2 : 1, `${what}: nothing half in the ledger`)
    }
  }))
  t.equal(tools.count(), 0)
})

story('F12: the turn limit ends the run as incomplete, with its last batch in the ledger', async (t, { model, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', ({ n }) => call({ id: `c${n}`, name: 'echo', arguments: { value: n } }))
  const { run, stream } = await client.finish({ input: 'conv:a', tools: [tool('echo')], limits: { max_turns: 3 } })
  t.match(run, { status: 'incomplete', stop_reason: 'max_turns', error: null, usage: { llm_calls: 3, tool_calls: 3 } })
  t.same(stream.types().slice(-2), ['batch.completed', 'run.incomplete'])
  t.equal(model.requests().length, 3)
  t.equal((await client.messages(run.conversation_id)).length, 7)
})

story('F12: max_total_tokens, run_timeout_ms and length end a run as incomplete too', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:tokens', ({ n }) => answer({ calls: [{ id: `c${n}`, name: 'echo', arguments: { value: n } }], usage: [100, 50] }))
  const tokens = await client.finish({ input: 'conv:tokens', tools: [tool('echo')], limits: { max_total_tokens: 300 } })
  t.match(tokens.run, { status: 'incomplete', stop_reason: 'max_total_tokens', usage: { total_tokens: 300, llm_calls: 2 } })
  model.script('conv:time', [call({ name: 'hang', arguments: {} })])
  const time = await client.finish({ input: 'conv:time', tools: [tool('hang')], limits: { run_timeout_ms: 300 } })
  t.match(time.run, { status: 'incomplete', stop_reason: 'run_timeout' })
  t.same(time.stream.types().slice(-2), ['tool.cancelled', 'run.incomplete'])
  await tools.waitFor((attempts) => attempts.every(({ ended_at: ended }) => ended !== null))
  model.script('conv:length', [answer({ text: 'and so on and', calls: [{ name: 'echo', arguments: '{"value": "cut' }], finish: 'length' })])
  const length = await client.finish({ input: 'conv:length', tools: [tool('echo')] })
  t.match(length.run, { status: 'incomplete', stop_reason: 'length', output: 'and so on and', usage: { tool_calls: 0 } })
})

story('FAULTS F11, F13: after a failed, an incomplete and a cancelled run the conversation goes on', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  const gate = latch()
  const replies = [
    status(400), say('after a 400'),
    call({ id: 'c1', name: 'echo', arguments: { value: 1 } }), say('after max_turns'),
    heldAt(say(['half an', ' answer']), 2, gate), say('after a cancel'),
    call({ id: 'c2', name: 'fail', arguments: {} }), say('after fail_run')
  ]
  model.script('conv:a', replies)
  const more = (body: object) => client.finish({ input: 'go on', conversation_id: id, tools: [tool('echo'), tool('fail')], ...body })
  const first = await client.finish({ input: 'conv:a' })
  const { conversation_id: id } = first.run
  t.equal(first.run.status, 'failed')
  t.equal((await more({})).run.output, 'after a 400')
  t.equal((await more({ limits: { max_turns: 1 } })).run.status, 'incomplete')
  t.equal((await more({})).run.output, 'after max_turns')
  const cancelled = await client.start({ input: 'conv:a', conversation_id: id })
  await model.waitForRequest(({ n }) => n === 5)
  t.equal((await client.cancel(cancelled.id, '?wait=1')).status, 'cancelled')
  t.equal((await more({})).run.output, 'after a cancel')
  t.equal((await more({ tool_policy: { on_error: 'fail_run' } })).run.status, 'failed')
  t.equal((await more({})).run.output, 'after fail_run')
  t.equal(tools.count(), 2)
})

const final = (id: string, value: unknown) => ({ id, name: 'final_answer', arguments: { answer: value } })
const ends = { tool_policy: { final_answer_tool: 'final_answer' as const } }

story('H1: beside final_answer the others settle, then the run ends with the answer, and the model is not asked again', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.script('conv:a', [call({ id: 'c1', name: 'hold', arguments: { key: 'a', value: 1 } }, final('c2', { sum: 42 }), { id: 'c3', name: 'hold', arguments: { key: 'b', value: 2 } })])
  const run = await client.start({ input: 'conv:a', tools: [tool('hold')], ...ends })
  const stream = await client.follow(run)
  await stream.event('tool.completed', ({ name }) => name === 'final_answer')
  await tools.waitFor((attempts) => attempts.length === 2)
  t.equal((await client.run(run.id)).status, 'running')
  tools.release('b')
  tools.release('a')
  await stream.ended
  t.same(stream.types().slice(-2), ['batch.completed', 'run.completed'])
  t.equal(stream.types().filter((type) => type === 'tool.completed').length, 3)
  t.match(await client.run(run.id), { status: 'completed', output: { sum: 42 } })
  t.equal(model.requests().length, 1)
})

story('H3: of two final answers the first in request order counts, and there is one end', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  model.otherwise(() => call({ id: 'c0', name: 'hold', arguments: { key: 'x' } }, final('c1', 'first'), final('c2', 'second')))
  for (let i = 0; i < 5; i++) {
    const run = await client.start({ input: `conv:${i}`, tools: [tool('hold')], ...ends })
    tools.release('x')
    t.match(await client.ended(run), { status: 'completed', output: 'first' })
  }
  t.equal(model.requests().length, 5)
})

for (const policy of ['continue', 'fail_run'] as const) {
  story(`H4: a final answer stands beside a failed sibling, on_error ${policy}`, async (t, { model, service, tool }) => {
    const { client } = await service()
    model.script('conv:a', [call(fail('c1'), final('c2', 'the answer'))])
    const { run, stream } = await client.finish({ input: 'conv:a', tools: [tool('fail')], tool_policy: { final_answer_tool: 'final_answer', on_error: policy } })
    t.match(run, { status: 'completed', output: 'the answer', error: null })
    t.match(stream.events().find(({ type }) => type === 'batch.completed'), { counts: { completed: 1, failed: 1 } })
  })
}

story('H5: a final_answer that fails does not end the run', async (t, { model, service }) => {
  const { client } = await service()
  model.script('conv:a', [call({ id: 'c1', name: 'final_answer', arguments: { anser: 1 } }), call(final('c2', 'now'))])
  const { run } = await client.finish({ input: 'conv:a', ...ends })
  t.match(run, { status: 'completed', output: 'now', usage: { llm_calls: 2 } })
  t.match(results(model.requests()[1]), [/invalid_arguments.*answer/])
  t.same(model.requests()[0]?.body.tools?.map((one) => one.type === 'function' && one.function.name), ['final_answer'], 'naming it offers it')
})
