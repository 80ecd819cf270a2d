/*
 * A message against whatever else may happen at the same moment, two hundred times each, on two processes that are both API and worker.
 * Whoever wins: each message that was accepted is in the ledger once and in an LLM payload once, each that was refused is nowhere, every
 * payload is valid, and no conversation ever has two LLM calls in flight.
 */
import root, { type Test } from 'tap'
import type { Run } from '../../src/schemas/run.js'
import { createClient, type Client } from '../support/client.js'
import { call, delayed, latch, say, type Reply } from '../support/model-reply.js'
import { all, begin, insist, told } from '../support/schedule-http.js'
import { story, type World } from '../support/world.js'

root.setTimeout(600_000)

const REPEATS = 200
const WIDTH = 25
const never = latch()
const MODES = ['auto', 'steer', 'queue', 'interrupt'] as const

/** One conversation in which two things happen at once. */
interface Ring {
  name: string
  run: Run
  /** The two processes, one of them first by turns. */
  here: Client
  there: Client
  mode: typeof MODES[number]
}

interface Race {
  /** What the model says to the first request, while the race is on, and to all that follow. */
  first: (name: string) => Reply
  /** Brings the run to the start. */
  ready: (ring: Ring, world: World) => Promise<unknown>
  /** What the message races. Contents of messages it sends, if they are accepted. */
  against: (ring: Ring, world: World) => Promise<string[]>
}

/** Some turns of the event loop: who is first is to differ from one repeat to the next. */
async function turns (count: number): Promise<void> {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve))
}

const sendTo = async (client: Client, { run, mode }: Ring, content: string): Promise<string[]> => {
  const { status, text } = await insist(client, run, { content, mode })
  if (status !== 202 && !text.includes('"run_ended"')) throw new Error(`${status} ${text}`)
  return status === 202 ? [content] : []
}

const gates = new Map<string, ReturnType<typeof latch>>()

const races: Record<string, Race> = {
  'the last tool\'s end': {
    first: (name) => call({ id: 'c', name: 'hold', arguments: { key: name, value: 'seen' } }),
    ready: ({ name }, { tools }) => tools.waitFor((attempts) => attempts.some(({ args }) => args.key === name)),
    against: async ({ name }, { tools }) => {
      tools.release(name)
      return []
    }
  },
  'the final answer': {
    first: (name) => {
      const gate = latch()
      gates.set(name, gate)
      return delayed(say('answer 1'), gate)
    },
    ready: ({ name }, { model }) => model.waitForRequest(({ conversation }) => conversation === name, 60_000),
    against: async ({ name }) => {
      gates.get(name)?.open()
      return []
    }
  },
  'a cancel of an LLM call': {
    first: () => delayed(say('never'), never),
    ready: ({ name }, { model }) => model.waitForRequest(({ conversation }) => conversation === name, 60_000),
    against: async ({ there, run }) => {
      await there.cancel(run.id)
      return []
    }
  },
  'a cancel of a batch': {
    first: (name) => call({ id: 'c', name: 'hold', arguments: { key: name, value: 'seen' } }, { id: 'd', name: 'hang', arguments: {} }),
    ready: ({ name }, { tools }) => tools.waitFor((attempts) => attempts.some(({ args }) => args.key === name)),
    against: async ({ there, run }) => {
      await there.cancel(run.id)
      return []
    }
  },
  'a second message': {
    first: () => delayed(say('never'), never),
    ready: ({ name }, { model }) => model.waitForRequest(({ conversation }) => conversation === name, 60_000),
    // Patient messages alone would wait for ever for an answer that never comes.
    against: (ring) => sendTo(ring.there, { ...ring, mode: 'auto' }, 'the other message')
  }
}

for (const [what, race] of Object.entries(races)) {
  const row = what === 'the last tool\'s end' ? 'I15' : what === 'the final answer' ? 'I16' : what === 'a second message' ? 'I12' : 'I25'
  story(`${row}, I14: a message against ${what}, ${REPEATS} times`, (t, world) => runRace(t, world, what, race))
}

async function runRace (t: Test, world: World, what: string, { first, ready, against }: Race): Promise<void> {
  const { model, tool } = world
  const [one, two] = await Promise.all([world.process('all'), world.process('all')])
  const plain = [createClient(one.url), createClient(two.url)] as const
  const outcomes = new Map<string, number>()
  const broken: string[] = []

  await all(Array.from({ length: REPEATS }, (_, i) => i), WIDTH, async (i) => {
    const name = `conv:${i}`
    // Every tenth is judged by all its records, which is dear.
    const clients = i % 10 === 0 ? [one.client, two.client] as const : plain
    const [here, there] = i % 2 === 0 ? clients : [clients[1], clients[0]]
    model.script(name, (_, n) => n === 1 ? first(name) : say(`answer ${n}`))
    const tools = [tool('hold'), tool('hang')]
    const { run, stream } = await begin(here, { input: name, tools })
    const ring: Ring = { name, run, here, there, mode: MODES[i % MODES.length] as Ring['mode'] }
    await ready(ring, world)
    const lead = i % 16 - 8
    const [mine, others] = await Promise.all([
      turns(Math.max(0, lead)).then(() => sendTo(here, ring, 'the message')),
      turns(Math.max(0, -lead)).then(() => against(ring, world))
    ])
    await stream.ended
    const told202 = [...mine, ...others]
    // Whatever its run did not live to answer, the next one does.
    const next = await here.start({ input: 'go on', conversation_id: run.conversation_id, tools })
    await here.ended(next)
    const { status } = await here.run(run.id)
    const outcome = `${mine.length === 0 ? 'refused' : 'accepted'}, ${status} after ${model.requests(name).filter(({ requestId }) => requestId?.startsWith(run.id)).length} LLM calls`
    outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1)

    const ledger = (await here.messages(run.conversation_id)).map(({ content }) => content)
    const last = told(model.requests(name).at(-1))
    const order = stream.events().filter(({ type }) => type === 'message.delivered').map(({ message_id: id }) => id)
    const accepted = stream.events().filter(({ type }) => type === 'message.accepted').map(({ message_id: id }) => id)
    const wrong = [
      ...['the message', 'the other message'].flatMap((content) => {
        const times = told202.includes(content) ? 1 : 0
        const found = [ledger, last].map((texts) => texts.filter((text) => text === content).length)
        return found.every((count) => count === times) ? [] : [`"${content}" was accepted ${times} times; it is ${found[0]} times in the ledger and ${found[1]} times in the last payload`]
      }),
      ...[...accepted].sort().join() === [...order].sort().join() && accepted.length === told202.length ? [] : [`accepted ${accepted.join()}, delivered ${order.join()}`],
      ...model.maxInFlight(name) === 1 ? [] : ['two LLM calls were in flight'],
      ...status === 'completed' || status === 'cancelled' ? [] : [`the run is ${status}`]
    ]
    broken.push(...wrong.map((text) => `${name} (${ring.mode}, lead ${lead}): ${text}`))
  })
  t.same(broken, [], `${REPEATS} times against ${what}`)
  for (const [outcome, times] of [...outcomes].sort()) t.comment(`${times} times ${outcome}`)
}
