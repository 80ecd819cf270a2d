/*
 * The properties of seed 002 once more, over HTTP against real processes: one API, two workers, and each property's hundred cases at
 * work at once. A case that breaks is printed with its values; `seed` makes the same cases again.
 */
import fc from 'fast-check'
import root, { type Test } from 'tap'
import { checkState } from '../../src/core/check.js'
import type { State } from '../../src/core/state.js'
import type { Run } from '../../src/schemas/run.js'
import type { PostMessage } from '../../src/schemas/message.js'
import { createClient, type Client, type EventStream } from '../support/client.js'
import { answer, call, delayed, latch, say, type ReplyCall } from '../support/model-reply.js'
import { changedMessage } from '../support/payload.js'
import { damages, spoil } from '../support/schedule-damage.js'
import { all, begin, insist, send, told } from '../support/schedule-http.js'
import { story, type World } from '../support/world.js'

root.setTimeout(600_000)

const CASES = 100
const WIDTH = 25
const never = latch()

/** Whoever of them is watched is judged by all its records at the end: every tenth, which is dear. */
interface Place { world: World, watched: Client, plain: Client }

async function cases<T> (
  t: Test, { watched, plain }: Place, title: string, arbitrary: fc.Arbitrary<T>, holds: (client: Client, name: string, one: T) => Promise<void>, count = CASES
): Promise<void> {
  await t.test(title, async (t) => {
    const [, label = ''] = /^Property ([\d.]+)/.exec(title) ?? []
    const broken: string[] = []
    await all(fc.sample(arbitrary, { numRuns: count, seed: 2 }), WIDTH, async (one, i) => {
      await holds(i % 10 === 0 ? watched : plain, `conv:p${label.replace('.', '-')}-${i}`, one).catch((error: Error) => {
        broken.push(`case ${i}, ${JSON.stringify(one)}: ${error.message}`)
      })
    })
    t.same(broken, [], `${count} cases`)
  })
}

function must (holds: boolean, otherwise: string): void {
  if (!holds) throw new Error(otherwise)
}

function same (found: unknown, wanted: unknown, what = ''): void {
  must(JSON.stringify(found) === JSON.stringify(wanted), `${what} found ${JSON.stringify(found)}, not ${JSON.stringify(wanted)}`)
}

interface Busy { done: number, open: number }
/** An LLM call (no calls open), or a batch. */
const busy: fc.Arbitrary<Busy> = fc.oneof(fc.constant({ done: 0, open: 0 }), fc.record({ done: fc.integer({ min: 0, max: 3 }), open: fc.integer({ min: 1, max: 3 }) }))
const patient = fc.constantFrom<('steer' | 'queue')[]>('steer', 'queue')

/** Brings a run to where something can be stopped; from then on the model says `after`. */
async function reach (client: Client, { world: { model, tools, tool } }: Place, name: string, { done, open }: Busy, over: Partial<Parameters<Client['start']>[0]> = {}): Promise<{ run: Run, stream: EventStream, ids: string[] }> {
  const keys = [...Array.from({ length: done }, (_, i) => `${name}-done${i}`), ...Array.from({ length: open }, (_, i) => `${name}-open${i}`)]
  const first = open === 0 ? delayed(say('never'), never) : answer({ text: 'I look.', calls: keys.map((key): ReplyCall => ({ id: key.replace(/\W/g, '_'), name: 'hold', arguments: { key, value: key } })) })
  model.script(name, (_, n) => n === 1 ? first : say(`answer ${n}`))
  const { run, stream } = await begin(client, { input: name, tools: [tool('hold')], ...over })
  if (open === 0) await model.waitForRequest((request) => request.conversation === name, 60_000)
  for (const key of keys.slice(0, done)) {
    tools.release(key)
    await stream.event('tool.completed', ({ output }) => output === key)
  }
  if (open > 0) await stream.count(5 + keys.length + done)
  const ids = stream.events().filter(({ type }) => type === 'tool.started').flatMap(({ call_id: id }) => id ?? [])
  return { run, stream, ids: ids.slice(done) }
}

const usersOf = (texts: string[]) => texts.filter((text) => !text.startsWith('= ') && !text.includes('→') && !text.startsWith('answer '))

story('the properties of seed 002 hold over HTTP', async (t, world) => {
  const [api] = await Promise.all([world.process('api'), world.process('worker'), world.process('worker')])
  const place: Place = { world, watched: api.client, plain: createClient(api.url) }
  const { model } = world

  await cases(t, place, 'Property 1: a run is active from its start to its end, and only then a message interrupts it (1.1 1.2 1.3 1.5)',
    fc.array(fc.string({ minLength: 1, maxLength: 20 }), { minLength: 1, maxLength: 5 }), async (client, name, payloads) => {
      model.script(name, (_, n) => n <= payloads.length ? delayed(say('never'), never) : say('done'))
      const { run, stream } = await begin(client, { input: name })
      for (const [i, content] of payloads.entries()) {
        await model.waitForRequest((request) => request.conversation === name && request.n === i + 1, 60_000)
        same((await send(client, run, { content })).receipt, 'interrupted')
      }
      await stream.ended
      same((await insist(client, run, { content: 'late' })).status, 409)
      same(told(model.requests(name).at(-1)), [name, ...payloads])
      same(stream.types().filter((type) => type === 'turn.cancelled').length, payloads.length)
    })

  await cases(t, place, 'Property 2: a message stops what is pending, and nothing else, and leaves nothing pending (2.1 2.2 6.1 6.2)', busy, async (client, name, at) => {
    const { run, stream, ids } = await reach(client, place, name, at)
    const other = await reach(client, place, `${name}x`, at)
    same((await send(client, run, 'rather this')).cancelled_call_ids, ids)
    await stream.ended
    same(stream.events().filter(({ type }) => type === 'tool.cancelled').map(({ call_id: id }) => id), ids)
    must(other.stream.types().every((type) => !type.endsWith('.cancelled')), 'another conversation was disturbed')
    const [one, two] = [await client.cancel(other.run.id), await client.cancel(other.run.id)]
    same([one.status, two.status, two.version], ['cancelled', 'cancelled', one.version])
  })

  await cases(t, place, 'Property 3: a cancelled call leaves no reference in the ledger or in any later payload (2.3 2.4 3.1 3.2 7.3)',
    busy.filter(({ open }) => open > 0), async (client, name, at) => {
      const { run, stream, ids } = await reach(client, place, name, at)
      await send(client, run, 'rather this')
      await stream.ended
      const later = JSON.stringify([model.requests(name)[1]?.body, await client.messages(run.conversation_id)])
      must(!ids.some((id) => later.includes(id)) && !later.includes('open'), 'a trace is left')
      same(told(model.requests(name)[1]).filter((text) => text.startsWith('= ')).length, at.done)
    })

  await cases(t, place, 'Property 4: after any interruption the new message is the last content of the context (2.5)',
    fc.record({ at: busy, before: fc.array(patient, { maxLength: 3 }), content: fc.string({ minLength: 1, maxLength: 30 }), supersede: fc.boolean() }), async (client, name, one) => {
      const { run, stream } = await reach(client, place, name, one.at)
      for (const [i, mode] of one.before.entries()) await send(client, run, { content: `waits ${i}`, mode })
      await send(client, run, { content: one.content, queued: one.supersede ? 'supersede' : 'deliver' })
      await stream.ended
      same(model.requests(name)[1]?.body.messages.at(-1), { role: 'user', content: one.content })
    })

  await cases(t, place, 'Property 5: everything before what was cancelled stays as it was, to the byte (3.3 3.4)',
    fc.record({ at: busy.filter(({ open }) => open > 0), earlier: fc.integer({ min: 1, max: 10 }) }), async (client, name, { at, earlier }) => {
      const messages = Array.from({ length: earlier }, (_, i) => i % 2 === 0 ? { role: 'user', content: `${name} said ${i}` } : { role: 'assistant', content: `was told ${i}` })
      const { text } = await client.request('POST', '/conversations', { body: { messages } })
      const { id } = JSON.parse(text) as { id: string }
      const { run, stream } = await reach(client, place, name, at, { conversation_id: id, input: 'go on' })
      const ledger = await client.messages(id)
      await send(client, run, 'rather this')
      await stream.ended
      const [first, second] = model.requests(name)
      same(changedMessage(first?.body ?? { messages: [0] }, second?.body ?? { messages: [] }), null, 'the payload')
      same((await client.messages(id)).slice(0, ledger.length), ledger, 'the ledger')
      same(told(second).slice(earlier + 1, -1).length, at.done === 0 ? 0 : 1 + at.done)
    })

  await cases(t, place, 'Property 7: what waits is delivered in the order it was accepted, for any sequence (4.3 4.4)',
    fc.record({ posts: fc.array(fc.record({ mode: patient, wait: fc.boolean() }), { minLength: 2, maxLength: 8 }) }), async (client, name, { posts }) => {
      const go = latch()
      model.script(name, (_, n) => n === 1 ? delayed(say('answer 1'), go) : say(`answer ${n}`))
      const { run, stream } = await begin(client, { input: name })
      await model.waitForRequest((request) => request.conversation === name, 60_000)
      const sends: Promise<unknown>[] = []
      for (const [i, { mode, wait }] of posts.entries()) {
        const sent = send(client, run, { content: `message ${i}`, mode })
        sends.push(sent)
        if (wait) await sent
      }
      await Promise.all(sends)
      go.open()
      await stream.ended
      const accepted = stream.events().filter(({ type }) => type === 'message.accepted').map(({ content }) => String(content))
      same([...accepted].sort(), posts.map((_, i) => `message ${i}`).sort())
      same(usersOf(told(model.requests(name).at(-1))), [name, ...accepted])
    })

  await cases(t, place, 'Property 8: with messages waiting, a new one cancels what is pending and is handled at once, instead of their delivery later (4.5)',
    fc.record({ at: busy, count: fc.integer({ min: 1, max: 4 }), queued: fc.constantFrom<NonNullable<PostMessage['queued']>[]>('deliver', 'supersede') }), async (client, name, { at, count, queued }) => {
      const { run, stream } = await reach(client, place, name, at)
      const waiting = Array.from({ length: count }, (_, i) => `waits ${i}`)
      for (const content of waiting) await send(client, run, { content, mode: 'queue' })
      same((await send(client, run, { content: 'rather this', queued })).receipt, 'interrupted')
      await stream.ended
      same(usersOf(told(model.requests(name)[1])).slice(1), queued === 'deliver' ? [...waiting, 'rather this'] : ['rather this'])
      same(stream.types().filter((type) => type === 'message.superseded').length, queued === 'deliver' ? 0 : count)
      same(model.requests(name).length, 2)
    })

  const deed = fc.record({ mode: fc.constantFrom<NonNullable<PostMessage['mode']>[]>('auto', 'interrupt', 'steer', 'queue'), delay: fc.constantFrom(0, 0, 0, 0.05), after: fc.constantFrom('request', 'event', 'nothing') })
  await cases(t, place, 'Property 13: after any sequence of messages registry, queue and real state are one, and each message is in the ledger once (7.1 7.2 7.4; I14, I27)',
    fc.record({ deeds: fc.array(deed, { minLength: 1, maxLength: 6 }), turns: fc.integer({ min: 0, max: 3 }), cancel: fc.boolean() }), async (client, name, { deeds, turns, cancel }) => {
      model.script(name, (_, n) => n <= turns ? call({ id: `c${n}`, name: 'echo', arguments: { value: n } }) : say(`answer ${n}`))
      const { run, stream } = await begin(client, { input: name, tools: [world.tool('echo')] })
      const accepted: string[] = []
      const refused: number[] = []
      for (const [i, { mode, delay, after }] of deeds.entries()) {
        const { status } = await insist(client, run, { content: `message ${i}`, mode, after_seconds: delay })
        if (status === 202) accepted.push(`message ${i}`)
        else refused.push(status)
        if (status !== 202) break
        if (after === 'request') await client.run(run.id)
        if (after === 'event') await stream.count(stream.events().length + 1).catch(() => { /* it has ended */ })
        const { state } = await client.get<{ state: State }>(`/conversations/${run.conversation_id}/state`)
        same(checkState(state), [])
      }
      if (cancel) await client.cancel(run.id)
      await stream.ended
      same(refused.filter((status) => status !== 409), [])
      // Delayed messages come with the sweep; the next run is there for what came too late.
      const follow = await client.open(`/conversations/${run.conversation_id}/events`)
      await follow.until(() => follow.events().filter(({ type }) => type === 'message.delivered').length === accepted.length)
      follow.close()
      await client.ended(await client.start({ input: 'go on', conversation_id: run.conversation_id, tools: [world.tool('echo')] }))
      const { state } = await client.get<{ state: State }>(`/conversations/${run.conversation_id}/state`)
      same([state.run, state.queue, state.waiting, checkState(state)], [null, [], [], []])
      const contents = (await client.messages(run.conversation_id)).map(({ content }) => content)
      for (const content of accepted) same(contents.filter((one) => one === content).length, 1, content)
      const sent = told(model.requests(name).at(-1))
      for (const content of accepted) same(sent.filter((one) => one === content).length, 1, `${content} in the last payload`)
      must(model.maxInFlight(name) === 1, 'one LLM call at a time')
    }, 2 * CASES)
})

story('Property 12: where everything is done already the message is queued, and delivered behind the results (6.5)', async (t, world) => {
  const { model, tools } = world
  const many = { INTERLOCK_TURN_CONCURRENCY: '200', INTERLOCK_TOOL_CONCURRENCY: '1000', INTERLOCK_GRACE_MS: '120000' }
  const { client } = await world.process('api')
  // A worker that stops takes no more turns, but still says what its calls gave: then runs stand between their batch and their next turn.
  const leaving = await world.service({ roles: { api: false, worker: true }, env: { ...many, INTERLOCK_SWEEP_MS: '3600000' } })
  const each = fc.sample(fc.record({ count: fc.integer({ min: 1, max: 4 }), mode: fc.constantFrom('auto', 'interrupt', 'steer') }), { numRuns: CASES, seed: 2 })
  const begun = await all(each, WIDTH, async ({ count }, i) => {
    const name = `conv:p12-${i}`
    const keys = Array.from({ length: count }, (_, k) => `${i}-${k}`)
    model.script(name, (_, n) => n === 1 ? call(...keys.map((key): ReplyCall => ({ id: `c${key}`, name: 'hold', arguments: { key, value: key } }))) : say('yes'))
    return { name, keys, ...await begin(client, { input: name, tools: [world.tool('hold')] }) }
  })
  const calls = begun.flatMap(({ keys }) => keys)
  await tools.waitFor((attempts) => attempts.length === calls.length)
  const left = leaving.stop()
  for (let stopping = false; !stopping;) stopping = (await leaving.instance.services.health.ready()).checks.process === 'stopping'
  for (const key of calls) tools.release(key)
  await Promise.all(begun.map(({ stream }) => stream.event('batch.completed')))
  const receipts = await all(begun, WIDTH, ({ run }, i) => send(client, run, { content: 'behind it', mode: each[i]!.mode as 'auto' }))
  t.same(receipts.filter(({ receipt, cancelled_call_ids: cancelled }) => receipt !== 'queued' || cancelled.length > 0), [])
  t.equal(model.requests().length, CASES, 'nothing goes on yet')
  await Promise.all([left, world.process('worker', many)])
  await Promise.all(begun.map(({ stream }) => stream.ended))
  t.same(begun.filter(({ name, keys }) => {
    return JSON.stringify(told(model.requests(name)[1])) !== JSON.stringify([name, `→ ${keys.map(() => 'hold').join(' ')}`, ...keys.map((key) => `= ${key}`), 'behind it'])
  }).map(({ name }) => name), [])
})

story('Property 14: what was spoiled is noticed and repaired before the next LLM call, and no message is lost (7.5; I29)', async (t, world) => {
  const { model, tools, redis } = world
  const [api, one, two] = await Promise.all([world.process('api'), world.process('worker'), world.process('worker')])
  const place: Place = { world, watched: createClient(api.url), plain: createClient(api.url) }
  await cases(t, place, 'Property 14: of a hundred conversations (7.5)', fc.record({ harm: fc.constantFrom(...damages), count: fc.integer({ min: 1, max: 4 }) }), async (client, name, { harm, count }) => {
    model.script(name, (_, n) => n === 1 ? call({ id: 'c', name: 'hold', arguments: { key: name, value: 'seen' } }) : say(`answer ${n}`))
    const { run, stream } = await begin(client, { input: name, tools: [world.tool('hold')] })
    await stream.event('tool.started')
    const contents = Array.from({ length: count }, (_, i) => `waits ${i}`)
    for (const content of contents) await send(client, run, { content, mode: 'queue' })
    await spoil(redis, run.conversation_id, harm.harm)
    tools.release(name)
    await stream.ended
    const [recovered] = stream.events().filter(({ type }) => type === 'conversation.recovered')
    must(harm.detail.test(String(recovered?.detail)), `reported: ${String(recovered?.detail)}`)
    same(told(model.requests(name).at(-1)).filter((text) => text.startsWith('waits')).sort(), contents)
    same((await client.run(run.id)).status, 'completed')
  })
  // These errors were asked for.
  const errors = [one, two].flatMap(({ logs }) => logs.filter((line) => (JSON.parse(line) as { level: number }).level >= 50))
  t.ok(errors.length >= CASES && errors.every((line) => line.includes('row and ledger disagreed')), 'each is logged')
  for (const { logs } of [one, two]) logs.length = 0
})
