import t, { type Test } from 'tap'
import { scriptedAnswer, type ScriptedMessage } from '../../src/engine/model/scripted/script.js'
import { startSampleApi } from '../../src/demo/sample-api.js'

const tools = ['list_characters', 'get_character', 'get_location', 'http_fetch'].map((name) => ({ function: { name } }))

/** The conversation of the demo on the real sample API, without waiting for the model: what it asks for in each turn, and what it says last. */
async function converse (t: Test, messages: ScriptedMessage[]): Promise<{ asked: string[][], text: string }> {
  const api = await startSampleApi()
  t.teardown(api.close)
  const asked: string[][] = []
  for (;;) {
    const { text, calls } = scriptedAnswer({ model: 'm', messages, tools })
    if (calls.length === 0) return { asked, text }
    asked.push(calls.map((call) => `${call.name} ${call.arguments.replace(api.url, '')}`))
    const made = calls.map((call, i) => ({ id: `call_${messages.length}_${i}`, function: call }))
    const results = await Promise.all(made.map(async ({ id, function: { name, arguments: json } }) => {
      const { id: n, url } = JSON.parse(json) as { id?: number, url?: string }
      const path = name === 'get_location' ? `/locations?id=${n}` : n === undefined ? '/characters' : `/characters?id=${n}`
      return { role: 'tool', tool_call_id: id, content: await (await fetch(url ?? api.url + path)).text() }
    }))
    messages.push({ role: 'assistant', content: text, tool_calls: made }, ...results)
  }
}

t.test('whoever names a region in mid-run gets that region alone, and nothing is fetched twice', async (t) => {
  const messages: ScriptedMessage[] = [{ role: 'user', content: 'Fetch the characters, then two of the related locations.' }]
  const whole = await converse(t, messages)
  t.strictSame(whole.asked.map((calls) => calls.length), [1, 3, 2, 3, 2])
  t.match(whole.text, /^There are 7 characters: .* Stonemere lies in the mountains .* For comparison: /)

  // As after an interrupt in the fourth turn that kept one of its three calls.
  const from = messages.findIndex((message) => message.tool_calls?.[0]?.function.name === 'http_fetch')
  const [ask, kept] = messages.slice(from) as [ScriptedMessage, ScriptedMessage]
  const trimmed = { ...ask, tool_calls: ask.tool_calls?.slice(0, 1) }
  const narrowed = await converse(t, [...messages.slice(0, from), trimmed, kept, { role: 'user', content: 'Only the mountains, please.' }])
  t.strictSame(narrowed.asked, [
    ['get_location {"id":3}', 'get_location {"id":4}', 'get_location {"id":5}'],
    ['get_character {"id":5}', 'get_character {"id":6}']
  ])
  t.match(narrowed.text, /^Of the 7 characters 5 belong to the mountains: .* Hawk Pass lies in the mountains and has 45 inhabitants/)
  t.notMatch(narrowed.text, /lowlands|For comparison/)
})

t.test('the sample API answers 404 for what it does not have', async (t) => {
  const api = await startSampleApi()
  t.teardown(api.close)
  for (const path of ['/', '/characters/99', '/locations', '/locations?id=x', '/other/1']) t.equal((await fetch(api.url + path)).status, 404, path)
  t.equal((await fetch(`${api.url}/characters`, { method: 'POST' })).status, 404)
})
