import t from 'tap'
import { chart, growingSpan, noColours } from '../../src/demo/chart.js'
import type { StreamedEvent } from '../../src/demo/client.js'
import { createStory } from '../../src/demo/story.js'
import { printable, wrap } from '../../src/demo/text.js'
import { faults, type Kept } from '../../src/demo/totals.js'

const START = 1_700_000_000_000

/** A story of events, each given as type, milliseconds behind the start, and what else it says. */
function story (...events: [type: string, at: number, rest?: Partial<StreamedEvent>][]) {
  const told = createStory()
  events.forEach(([type, at, rest], i) => told.take({ type, seq: i + 1, time: new Date(START + at).toISOString(), ...rest } as StreamedEvent))
  return told
}

const interrupted = () => story(
  ['run.created', 0],
  ['turn.started', 0, { turn: 1 }],
  ['turn.completed', 1000, { turn: 1, text: 'Two at once.' }],
  ['tool.started', 1000, { turn: 1, call_id: 'a', name: 'get', arguments: { id: 1 } }],
  ['tool.started', 1000, { turn: 1, call_id: 'b', name: 'http_fetch', arguments: { url: 'http://127.0.0.1:1/things/2' } }],
  ['tool.completed', 2000, { call_id: 'a' }],
  ['message.accepted', 3000, { content: 'Stop.' }],
  ['tool.cancelled', 3000, { call_id: 'b' }],
  ['turn.started', 3000, { turn: 2 }]
)

t.test('a run becomes bars on one time line, with a line down from the message', async (t) => {
  const told = interrupted()
  t.strictSame(chart(told, { width: 80, span: 4400, now: START + 4000, palette: noColours }), [
    '                           0 s       1 s       2 s       3 s       4 s',
    'turn 1  LLM                ━━━━━━━━━━                    ┊                1.00 s',
    '  get 1                              ██████████          ┊                1.00 s',
    '  http_fetch /things/2               ███████████████████╳┊                2.00 s',
    'interrupt                                        “Stop.” ◆',
    'turn 2  LLM                                              ━━━━━━━━━━       1.00 s'
  ])
  t.strictSame(told.toolTime(), { sum: 3000, clock: 2000 })
  t.equal(told.marks()[0]?.cancelled, 1)
})

t.test('a chart fits its width whatever happens: short spans, long names, a message at the very start, a failed call', async (t) => {
  const told = story(
    ['run.created', 0],
    ['message.accepted', 0, { content: 'x'.repeat(200) }],
    ['turn.started', 0, { turn: 1 }],
    ['tool.started', 0, { turn: 1, call_id: 'a', name: 'y'.repeat(64), arguments: {} }],
    ['tool.failed', 9999, { call_id: 'a' }],
    ['run.failed', 9999]
  )
  for (const width of [60, 80, 100, 120]) {
    for (const span of [1, 4000, 10_000]) {
      const lines = chart(told, { width, span, now: START + 20_000, palette: noColours })
      t.ok(lines.every((line) => line.length <= width), `${width} columns, ${span} ms: ${Math.max(...lines.map((line) => line.length))}`)
      t.match(lines.at(-1), /!/)
    }
  }
  t.strictSame([0, 3900, 61_000, 500_000].map(growingSpan), [4000, 6000, 80_000, 540_000])
})

t.test('text from outside cannot move the cursor, keeps its length, and is wrapped at spaces', async (t) => {
  t.equal(printable('a\x1b[2Jb\rc\nd\x07\x9b'), 'a [2Jb c\nd  ')
  t.strictSame(wrap('one two three\nfour', 8), ['one two', 'three', 'four'])
  t.strictSame(wrap('unbreakable', 4), ['unbreakable'])
  const told = story(['run.created', 0], ['turn.started', 0, { turn: 1 }])
  for (const [offset, text] of [[0, 'ab'], [2, 'cd'], [0, 'AB'], [2, '\x1b']] as const) told.take({ type: 'turn.delta', offset, text } as StreamedEvent)
  t.equal(told.text, 'AB ', 'deltas are exact across a retried attempt')
})

t.test('what is read back is compared with what was streamed, and the ledger is checked', async (t) => {
  const streamed = ['{"seq":1}', '{"seq":2}']
  const ask = { role: 'assistant', content: '', tool_calls: [{ call_id: 'a' }, { call_id: 'b' }] }
  const result = (id: string) => ({ role: 'tool', content: '1', tool_call_id: id })
  const message = { role: 'user', content: 'Stop.' }
  const good: Kept = { events: streamed, messages: [message, ask, result('a'), result('b')] }
  t.strictSame(faults(good, streamed, 'Stop.'), [])
  const bad: [string, Kept, string[]][] = [
    ['the log is not what was streamed', { ...good, events: ['{"seq":1}'] }, streamed],
    ['the log is not what was streamed', { ...good, events: ['{"seq":1}', '{"seq": 2}'] }, streamed],
    ['the numbers of the events have a gap', { ...good, events: ['{"seq":1}', '{"seq":3}'] }, ['{"seq":1}', '{"seq":3}']],
    ['a tool call is without its result', { ...good, messages: [message, ask, result('b'), result('a')] }, streamed],
    ['a result is without its tool call', { ...good, messages: [...good.messages, result('c')] }, streamed],
    ['the message is not in the ledger once', { ...good, messages: [message, ...good.messages] }, streamed]
  ]
  for (const [fault, kept, heard] of bad) t.ok(faults(kept, heard, 'Stop.').includes(fault), fault)
})
