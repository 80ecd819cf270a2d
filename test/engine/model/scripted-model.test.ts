import type { ChatCompletionMessageParam, ChatCompletionTool } from 'openai/resources/chat/completions'
import t, { type Test } from 'tap'
import { listModels } from '../../../src/engine/model/list-models.js'
import type { Model, ModelAnswer } from '../../../src/engine/model/model.js'
import { openaiModel } from '../../../src/engine/model/openai-model.js'
import { startScriptedModel } from '../../../src/engine/model/scripted/scripted-model.js'
import { checkPayload } from '../../support/payload.js'

const apiKey = 'any'

async function setup (t: Test) {
  const scripted = await startScriptedModel({ pieceMs: 0 })
  t.teardown(scripted.close)
  return { ...scripted, model: openaiModel({ apiKey, baseUrl: scripted.baseUrl }) }
}

const offer = (...names: string[]): ChatCompletionTool[] => names.map((name) => ({ type: 'function', function: { name } }))
const user = (content: string): ChatCompletionMessageParam => ({ role: 'user', content })

type RunTool = (name: string, args: string) => unknown

/** Runs a conversation to its end with these tools, and keeps history as a run does: arguments that are no JSON enter it as `{}`. */
async function converse (model: Model, messages: ChatCompletionMessageParam[], tools: ChatCompletionTool[], run: RunTool, parallel = true) {
  const turns: ModelAnswer[] = []
  while (turns.length < 20) {
    const options = { parallel_tool_calls: parallel, options: {}, request_id: `r.${turns.length}` }
    const answer = await model.complete({ model: 'm', messages, tools, ...options }, { signal: new AbortController().signal, onText: () => {} })
    turns.push(answer)
    if (answer.tool_calls.length === 0) return turns
    messages.push(
      {
        role: 'assistant',
        content: answer.text,
        tool_calls: answer.tool_calls.map(({ id, name, arguments: args }) => ({ id, type: 'function', function: { name, arguments: isJson(args) ? args : '{}' } }))
      },
      ...answer.tool_calls.map(({ id, name, arguments: args }) => ({ role: 'tool' as const, tool_call_id: id, content: JSON.stringify(run(name, args)) }))
    )
    t.strictSame(checkPayload({ model: 'm', messages, tools }), [], 'what was said makes a valid conversation')
  }
  throw new Error('it does not end')
}

function isJson (text: string): boolean {
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}

const asked = (turns: ModelAnswer[]) => turns.map((turn) => turn.tool_calls.map(({ name, arguments: args }) => `${name} ${args}`))

const characters = [[1, 2], [2, 3], [2, 1], [1, 5], [4], [2, 6], [3, 1]].map((places, i) => (
  { id: i + 1, name: `Person ${i + 1}`, location_ids: places, url: `http://api.test/characters/${i + 1}` }))

function sampleApi (name: string, args: string): unknown {
  const { id, url } = JSON.parse(args) as { id?: number, url?: string }
  if (name === 'list_characters') return { characters }
  if (name === 'get_character') return characters[id! - 1]
  if (name === 'get_location') return { id, name: `Place ${id}`, region: `Region ${id}`, population: id! * 100 }
  return { status: 200, body: characters.find((one) => one.url === url) }
}

const demoTools = offer('list_characters', 'get_character', 'get_location', 'http_fetch')
const demoQuestion = 'Fetch the characters, then two of the related locations.'

t.test('the demo: the list, three characters at once, two related locations at once, and more, each drawn from the results', async (t) => {
  const { model } = await setup(t)
  const turns = await converse(model, [user(demoQuestion)], demoTools, sampleApi)
  t.strictSame(asked(turns), [
    ['list_characters {}'],
    ['get_character {"id":1}', 'get_character {"id":2}', 'get_character {"id":3}'],
    ['get_location {"id":2}', 'get_location {"id":1}'],
    ['http_fetch {"url":"http://api.test/characters/4"}', 'http_fetch {"url":"http://api.test/characters/6"}', 'http_fetch {"url":"http://api.test/characters/7"}'],
    ['get_location {"id":3}', 'get_location {"id":5}'],
    []
  ])
  const last = turns.at(-1)!
  t.equal(last.finish_reason, 'stop')
  t.ok(last.usage!.output_tokens > 0)
  for (const fact of ['7 characters', 'Person 1', 'Place 2 lies in Region 2 and has 200 inhabitants', 'Place 5 in Region 5 has 500', '11 tool results', 'not a language model']) {
    t.ok(last.text.includes(fact), fact)
  }
  t.ok(turns.every((turn) => turn.text !== ''))
})

t.test('the demo goes on without what failed, says so, and with other tools does what it can', async (t) => {
  const { model } = await setup(t)
  const failing = (name: string, args: string) => name === 'get_location' && args.includes('2') ? { error: { code: 'timeout', message: 'slow' } } : sampleApi(name, args)
  const turns = await converse(model, [user(demoQuestion)], demoTools, failing)
  t.equal(turns.length, 6)
  t.match(turns.at(-1)!.text, /Not everything worked: get_location \{"id":2\} brought nothing readable/)

  const alone = await converse(model, [user(demoQuestion)], offer('list_characters'), () => ({ error: { code: 'http_error', message: '500' } }))
  t.strictSame(asked(alone), [['list_characters {}'], []])
  t.match(alone.at(-1)!.text, /could not be read/)

  const sequential = await converse(model, [user(demoQuestion)], demoTools, sampleApi, false)
  t.ok(sequential.every((turn) => turn.tool_calls.length <= 1))
  t.strictSame(asked(sequential).flat(), asked(await converse(model, [user(demoQuestion)], demoTools, sampleApi)).flat())
})

t.test('a demo that was interrupted does not make its calls again', async (t) => {
  const { model } = await setup(t)
  const messages = [user(demoQuestion)]
  const whole = await converse(model, messages, demoTools, sampleApi)
  const interrupted = messages.slice(0, 7) // up to the results for the three characters
  const rest = await converse(model, [...interrupted, user('Please hurry.')], demoTools, sampleApi)
  t.strictSame(asked(rest), asked(whole).slice(2))
})

t.test('lines "call <tool> {json}" make one turn of parallel calls, and their results are quoted', async (t) => {
  const { model } = await setup(t)
  const messages = [user('Please:\ncall get_weather {"city": "Ulm"}\n  call now\ncall broken {"x": \ncall me\nthank you')]
  const turns = await converse(model, messages, offer('get_weather', 'now'), (name) => ({ from: name }))
  t.strictSame(asked(turns), [['get_weather {"city": "Ulm"}', 'now {}', 'broken {"x":'], []])
  t.match(turns[1]!.text, /All 3 calls came back:\n- get_weather returned "\{\\"from\\":\\"get_weather\\"\}"\n- now returned/)

  const again = await converse(model, [...messages, { role: 'assistant', content: turns[1]!.text }, user('call now')], offer('now'), () => 'noon')
  t.strictSame(asked(again), [['now {}'], []], 'only the newest message counts')
  const sequential = await converse(model, [user('call a\ncall b')], offer('a', 'b'), () => 1, false)
  t.strictSame(asked(sequential), [['a {}'], ['b {}'], []])
})

t.test('everything else is echoed, with what it is and how to get a real model', async (t) => {
  const { model } = await setup(t)
  const [plain] = await converse(model, [{ role: 'user', content: [{ type: 'text', text: 'What is "love"?' }] }], [], () => null)
  t.match(plain!.text, /built-in scripted model.*not a language model.*You wrote: "What is \\"love\\"\?".*OPENAI_API_KEY.*OPENAI_MODEL.*OPENAI_BASE_URL/s)
  const [withTools] = await converse(model, [user('hi')], offer('get_weather'), () => null)
  t.match(withTools!.text, /offers get_weather: a line such as "call get_weather \{\}"/)
  const [long] = await converse(model, [user('x'.repeat(10_000))], [], () => null)
  t.ok(long!.text.length < 1500)
})

t.test('it is deterministic, paces its pieces, and stops when the client goes', async (t) => {
  const { model } = await setup(t)
  const tell = (of: Model, signal = new AbortController().signal, onText = (_: string) => {}) =>
    of.complete({ model: 'm', messages: [user('hi')], options: {}, request_id: 'r' }, { signal, onText })
  t.strictSame(await tell(model), await tell(model))

  const slow = await startScriptedModel({ pieceMs: 2 })
  t.teardown(slow.close)
  const heard: string[] = []
  const { text } = await tell(openaiModel({ apiKey, baseUrl: slow.baseUrl }), undefined, (piece) => heard.push(piece))
  t.ok(heard.length > 20)
  t.equal(heard.join(''), text)
  const abort = new AbortController()
  t.equal(await tell(openaiModel({ apiKey, baseUrl: slow.baseUrl }), abort.signal, () => abort.abort('gone')).catch((reason: unknown) => reason), 'gone')
})

t.test('the rest of the protocol: models, no streaming, errors', async (t) => {
  const { baseUrl, close } = await setup(t)
  t.strictSame(await listModels({ apiKey, baseUrl }), ['scripted'])
  const post = (body: string) => fetch(`${baseUrl}/chat/completions`, { method: 'POST', body })
  const plain = await post(JSON.stringify({ model: 'm', messages: [user('call now')], tools: offer('now') }))
  t.match(await plain.json(), { object: 'chat.completion', model: 'm', choices: [{ message: { tool_calls: [{ id: 'call_1', function: { name: 'now', arguments: '{}' } }] }, finish_reason: 'tool_calls' }], usage: { total_tokens: Number } })
  for (const body of ['{', '[]', '{"model":"m"}', '{"model":"m","messages":[]}', '{"model":"m","messages":[null]}']) {
    const refused = await post(body)
    t.equal(refused.status, 400)
    t.match(await refused.json(), { error: { type: 'invalid_request_error' } })
  }
  t.equal((await fetch(`${baseUrl}/embeddings`, { method: 'POST', body: '{}' })).status, 404)
  await close()
  await close()
})
