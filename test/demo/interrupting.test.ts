/**
 * docs/interrupting.md shows what happens in each case. Here each case happens, and the page must say the same. `DOCS=write` writes it
 * into the page instead.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import type { Event } from '../../src/core/event.js'
import type { Message } from '../../src/core/message.js'
import type { CreateRun, Run } from '../../src/schemas/run.js'
import type { Client, EventStream } from '../support/client.js'
import { answer, heldAt, latch, say, status, type Latch, type Reply } from '../support/model-reply.js'
import { story, type World } from '../support/world.js'

const PAGE = join(import.meta.dirname, '../../docs/interrupting.md')

interface Scene {
  client: Client
  world: World
  run: Run
  stream: EventStream
  /** The second LLM call, or whichever a case holds, answers once this is open. */
  gate: Latch
  /** Posts a message to the run and notes the receipt. */
  post: (content: string, options?: object, to?: Run) => Promise<void>
  /** Posts another run to the conversation and notes the answer. */
  again: (input: string, onActiveRun: CreateRun['on_active_run']) => Promise<Run>
  /** `quick` has its result and `slow` has not. */
  inBatch: () => Promise<void>
  /** Lets `slow` answer. */
  release: () => void
}

interface Case {
  /** Of REQUIREMENTS. */
  rows: string
  /** What the model answers, in turn. */
  replies: (gate: Latch) => Reply[]
  run?: Partial<CreateRun>
  /** The first event to show: the page shows those before it once. */
  from?: number
  /** The judge of whole runs does not know of this option. */
  unjudged?: true
  tell: (scene: Scene) => Promise<void>
}

const batch = answer({ text: 'I look at both.', calls: [{ name: 'quick', arguments: { value: 1 } }, { name: 'slow', arguments: { value: 2 } }] })
const done = say('Here you are.')
const inBatch = { replies: () => [batch, done, say('As you wish.')], from: 8 }

const cases: Record<string, Case> = {
  'interrupt an LLM call': {
    rows: 'I1, I21',
    replies: (gate) => [heldAt(say(['Half an ', 'answer']), 2, gate), done],
    async tell ({ stream, post }) {
      await stream.until((frame) => frame.event === 'turn.delta')
      await post('Shorter, please.', { mode: 'interrupt' })
    }
  },
  'interrupt a batch': {
    rows: 'I2, I7',
    ...inBatch,
    from: 1,
    async tell ({ inBatch, post }) {
      await inBatch()
      await post('Never mind the slow one.', { mode: 'interrupt' })
    }
  },
  'interrupt a batch, discard': {
    rows: 'I2',
    ...inBatch,
    unjudged: true,
    async tell ({ inBatch, post }) {
      await inBatch()
      await post('Forget all that.', { mode: 'interrupt', completed_calls: 'discard' })
    }
  },
  'interrupt a batch, tombstone': {
    rows: 'I9',
    ...inBatch,
    run: { tool_policy: { cancelled_calls: 'tombstone_started' } },
    async tell ({ inBatch, post }) {
      await inBatch()
      await post('Never mind the slow one.', { mode: 'interrupt' })
    }
  },
  'interrupt the wait for a retry': {
    rows: 'I1',
    replies: () => [status(503, { retryAfter: 300 }), done],
    async tell ({ stream, post }) {
      await stream.event('turn.retrying')
      await post('Are you there?', { mode: 'interrupt' })
    }
  },
  'steer in a batch': {
    rows: 'I15',
    ...inBatch,
    async tell ({ inBatch, post, release }) {
      await inBatch()
      await post('Mind the tide.', { mode: 'steer' })
      release()
    }
  },
  'steer in the last LLM call': {
    rows: 'I16',
    replies: (gate) => [heldAt(say(['Here you ', 'are.']), 2, gate), say('And with the tide.')],
    async tell ({ stream, post, gate }) {
      await stream.until((frame) => frame.event === 'turn.delta')
      await post('Mind the tide.', { mode: 'steer' })
      gate.open()
    }
  },
  'queue in a batch': {
    rows: 'I11',
    ...inBatch,
    async tell ({ inBatch, post, release }) {
      await inBatch()
      await post('And then the weather.', { mode: 'queue' })
      release()
    }
  },
  'interrupt with messages waiting': {
    rows: 'I13',
    ...inBatch,
    async tell ({ inBatch, post }) {
      await inBatch()
      await post('First.', { mode: 'queue' })
      await post('Second.', { mode: 'steer' })
      await post('Now.', { mode: 'interrupt' })
    }
  },
  'interrupt and supersede': {
    rows: 'I13',
    ...inBatch,
    async tell ({ inBatch, post }) {
      await inBatch()
      await post('First.', { mode: 'queue' })
      await post('Now.', { mode: 'interrupt', queued: 'supersede' })
    }
  },
  'edit and withdraw': {
    rows: 'I11',
    ...inBatch,
    async tell ({ client, run, inBatch, post, release }) {
      await inBatch()
      await post('Both words.', { mode: 'steer' })
      await post('Never mind.', { mode: 'queue' })
      const { data } = await client.get<{ data: { message_id: string }[] }>(`/runs/${run.id}/messages`)
      const [first, second] = data.map((message) => `/runs/${run.id}/messages/${message.message_id}`)
      await client.request('PATCH', first ?? '', { body: { content: 'Better words.' } })
      await client.request('DELETE', second ?? '')
      release()
    }
  },
  scheduled: {
    rows: 'I22',
    ...inBatch,
    async tell ({ inBatch, post, release }) {
      await inBatch()
      await post('Time is up.', { after_seconds: 0.2 })
      await sleep(250) // what it waits for is time
      release()
    }
  },
  'a run that waits': {
    rows: 'B5',
    replies: (gate) => [heldAt(done, 0, gate), say('Both at once.')],
    async tell ({ stream, again, post, gate }) {
      await stream.event('turn.started')
      const second = await again('The next thing.', 'queue')
      await post('And one more.', { mode: 'auto' }, second)
      gate.open()
    }
  },
  'cancel a batch': {
    rows: 'I19',
    ...inBatch,
    async tell ({ client, inBatch, run }) {
      await inBatch()
      await client.cancel(run.id)
    }
  },
  'cancel with a message waiting': {
    rows: 'I14',
    ...inBatch,
    async tell ({ client, inBatch, post, run }) {
      await inBatch()
      await post('And then the weather.', { mode: 'queue' })
      await client.cancel(run.id)
    }
  },
  'a second run: queue': {
    rows: 'B5',
    ...inBatch,
    async tell ({ inBatch, again, release }) {
      await inBatch()
      await again('The next thing.', 'queue')
      release()
    }
  },
  'a second run: interrupt': {
    rows: 'B5',
    ...inBatch,
    async tell ({ inBatch, again }) {
      await inBatch()
      await again('The next thing.', 'interrupt')
    }
  },
  'a second run: rollback': {
    rows: 'B5',
    ...inBatch,
    unjudged: true,
    async tell ({ inBatch, again }) {
      await inBatch()
      await again('The next thing.', 'rollback')
    }
  }
}

const told = new Map<string, string>()

for (const [name, { rows, replies, run: options, from = 1, unjudged, tell }] of Object.entries(cases)) {
  story(`${rows}: docs/interrupting.md, "${name}"`, async (t, world) => {
    const { client } = await world.service()
    const gate = latch()
    world.model.otherwise(() => { throw new Error('unmarked') })
    world.model.script('conv:a', replies(gate))
    const tools = [world.tool('echo', { name: 'quick', effects: 'read' }), world.tool('hold', { name: 'slow' })]
    const run = await client.start({ input: 'conv:a Look it up.', tools, ...options })
    const stream = await client.follow(run)
    const notes: string[] = []
    const runs = [run]
    await tell({
      client,
      world,
      run,
      stream,
      gate,
      async post (content, body, to = run) {
        const { status: code, text } = await client.request('POST', `/runs/${to.id}/messages`, { body: { content, ...body } })
        notes.push(`“${content}” → ${code} ${receipt(text, stream.events())}`)
      },
      async again (input, onActiveRun) {
        const second = await client.start({ input: `conv:a ${input}`, conversation_id: run.conversation_id, on_active_run: onActiveRun })
        runs.push(second)
        return second
      },
      async inBatch () {
        await Promise.all([stream.event('tool.completed'), world.tools.waitFor((attempts) => attempts.some((attempt) => attempt.route === 'hold'))])
      },
      release: () => world.tools.release()
    })
    for (const one of runs) await client.ended(one)
    if (unjudged) client.seen.conversations.clear()
    const log = await client.log({ conversation: run.conversation_id })
    const ledger = await client.messages(run.conversation_id)
    told.set(name, [...eventLines(log, runs).slice(from - 1), '', ...ledger.map(ledgerLine), ...(notes.length > 0 ? ['', ...notes] : [])].join('\n'))
    if (process.env.DOCS !== 'write') t.equal(block(readFileSync(PAGE, 'utf8'), name), told.get(name), 'the page says what happens')
  })
}

void t.test('the page shows every case and no other', async (t) => {
  let page = readFileSync(PAGE, 'utf8')
  if (process.env.DOCS === 'write') {
    for (const [name, text] of told) page = page.replace(blockPattern(name), (_, before: string, after: string) => `${before}${text}${after}`)
    writeFileSync(PAGE, page)
  }
  t.strictSame([...page.matchAll(/<!-- case: (.*) -->/g)].map(([, name]) => name), Object.keys(cases))
})

const blockPattern = (name: string): RegExp => new RegExp(`(<!-- case: ${name} -->\\n\`\`\`text\\n)[^]*?(\\n\`\`\`)`)

function block (page: string, name: string): string | undefined {
  const [found, before = '', after = ''] = blockPattern(name).exec(page) ?? []
  return found?.slice(before.length, found.length - after.length)
}

const marker = /^conv:a /

/** One line per event: its number, its type, and what tells it from others of its type. */
function eventLines (log: Event[], runs: Run[]): string[] {
  const contents = new Map<unknown, unknown>()
  const runNumber = (id: unknown) => `run ${runs.findIndex((run) => run.id === id) + 1}`
  const names = (calls: unknown) => (calls as { name: string }[]).map((call) => call.name).join(', ')
  return log.map((event) => {
    const { type, seq, turn } = event
    if (type === 'message.accepted') contents.set(event.message_id, event.content)
    const facts = [
      type.startsWith('run.') && runs.length > 1 ? runNumber(event.run_id) : '',
      turn === undefined ? '' : `turn ${turn}`,
      Array.isArray(event.tool_calls) && event.tool_calls.length > 0 ? `calls ${names(event.tool_calls)}` : '',
      Array.isArray(event.calls) ? names(event.calls) : '',
      type.startsWith('tool.') ? event.name as string : '',
      event.message_id === undefined ? '' : `“${String(contents.get(event.message_id))}”${event.edited === true ? ', edited' : ''}`,
      typeof event.reason === 'string' ? event.reason.replace(/run_\w+/, runNumber) : ''
    ]
    return `${String(seq).padStart(2)}  ${type.padEnd(18)} ${facts.filter((fact) => fact !== '').join(', ')}`.trimEnd()
  })
}

function ledgerLine ({ role, content, tool_calls: calls = [], name }: Message): string {
  const said = typeof content === 'string' && content !== '' ? `“${content.replace(marker, '')}”` : ''
  const asked = calls.length > 0 ? `calls ${calls.map((call) => call.name).join(', ')}` : ''
  return `${role.padEnd(10)} ${role === 'tool' ? `${name}: ${String(content)}` : [said, asked].filter((part) => part !== '').join(', ')}`
}

function receipt (text: string, events: Event[]): string {
  const told = JSON.parse(text) as { receipt: string, mode: string, cancelled_call_ids: string[], position: number }
  const names = told.cancelled_call_ids.map((id) => events.find((event) => event.call_id === id)?.name as string)
  return `receipt ${told.receipt}, mode ${told.mode}, cancelled [${names.join(', ')}], position ${told.position}`
}
