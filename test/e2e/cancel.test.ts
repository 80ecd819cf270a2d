import type { Test } from 'tap'
import type { Run } from '../../src/schemas/run.js'
import type { Client } from '../support/client.js'
import { answer, call, delayed, heldAt, latch, say, status, type Reply } from '../support/model-reply.js'
import { story, type World } from '../support/world.js'

interface Scene {
  /** Brings a run into the phase. */
  reach: (client: Client, world: World) => Promise<Run>
  /** What the model answers, the run after the cancel included. */
  replies: () => Reply[]
  /** Events from the cancel on. */
  told: string[]
  /** Roles of the ledger after the cancel. */
  left: string[]
  /** What must have stopped. */
  stopped?: (t: Test, world: World) => Promise<void>
}

const again = say('here I am')

async function aborted (t: Test, { model }: World): Promise<void> {
  const [request] = model.requests()
  t.ok((await request?.ended)?.aborted, 'the provider\'s connection was closed')
}

const scenes: Record<string, Scene> = {
  'before its time': {
    replies: () => [again],
    reach: (client) => client.start({ input: 'conv:a', after_seconds: 3600 }),
    told: ['run.cancelled'],
    left: []
  },
  'in an LLM call that has said nothing': {
    replies: () => [delayed(say('never'), latch()), again],
    async reach (client, { model }) {
      const run = await client.start({ input: 'conv:a' })
      await model.waitForRequest(() => true)
      return run
    },
    told: ['turn.cancelled', 'run.cancelled'],
    left: ['user'],
    stopped: aborted
  },
  'in an LLM call that has said half': {
    replies: () => [heldAt(say(['half an ', 'answer']), 2, latch()), again],
    async reach (client) {
      const run = await client.start({ input: 'conv:a' })
      const stream = await client.follow(run)
      await stream.until(({ event }) => event === 'turn.delta')
      return run
    },
    told: ['turn.cancelled', 'run.cancelled'],
    left: ['user'],
    stopped: aborted
  },
  'between two tries of a turn': {
    replies: () => [status(429, { retryAfter: 300 }), again],
    async reach (client) {
      const run = await client.start({ input: 'conv:a' })
      const stream = await client.follow(run)
      await stream.event('turn.retrying')
      return run
    },
    told: ['turn.cancelled', 'run.cancelled'],
    left: ['user']
  },
  'in a batch of which nothing is settled': {
    replies: () => [call({ id: 'c1', name: 'hold', arguments: { key: 'x' } }, { id: 'c2', name: 'hang', arguments: {} }), again],
    async reach (client, { tools, tool }) {
      const run = await client.start({ input: 'conv:a', tools: [tool('hold'), tool('hang')] })
      await tools.waitFor((attempts) => attempts.length === 2)
      return run
    },
    told: ['tool.cancelled', 'tool.cancelled', 'run.cancelled'],
    left: ['user'],
    stopped: async (t, { tools }) => {
      await tools.waitFor((attempts) => attempts.every(({ ended_at: ended }) => ended !== null))
      t.ok(tools.attempts.every((attempt) => attempt.aborted), 'the tools were told')
    }
  },
  'in a batch with calls settled, running and waiting': {
    replies: () => [answer({ text: 'I look.', calls: ['a', 'b', 'c', 'd'].map((key) => ({ id: key, name: 'hold', arguments: { key, value: key } })) }), again],
    async reach (client, { tools, tool }) {
      const run = await client.start({ input: 'conv:a', tools: [tool('hold')], limits: { max_tool_concurrency: 2 } })
      tools.release('b')
      const stream = await client.follow(run)
      await stream.event('tool.completed')
      await tools.waitFor((attempts) => attempts.length === 3)
      return run
    },
    told: ['tool.cancelled', 'tool.cancelled', 'tool.cancelled', 'run.cancelled'],
    // What was done stays, with its result; the calls that were stopped leave no trace.
    left: ['user', 'assistant', 'tool'],
    stopped: async (t, { tools }) => {
      await tools.waitFor((attempts) => attempts.every(({ ended_at: ended }) => ended !== null))
      t.same(tools.attempts.map(({ args, aborted: stopped }) => [args.key, stopped]).sort(), [['a', true], ['b', false], ['c', true]], 'the last one never began')
    }
  }
}

for (const [phase, { reach, replies, told, left, stopped }] of Object.entries(scenes)) {
  story(`cancel ${phase}: it ends at once, what runs is stopped, and the conversation can be used right away`, async (t, world) => {
    const { model, service, tool } = world
    const { client } = await service()
    model.script('conv:a', replies())
    const run = await reach(client, world)
    const before = (await client.log({ run: run.id })).length
    t.match(await client.cancel(run.id, '?wait=1'), { id: run.id, status: 'cancelled', output: null, current: null })
    const log = await client.log({ run: run.id })
    t.same(log.slice(before).map(({ type }) => type), told)
    t.match(log.at(-1), { reason: 'cancelled' })
    t.same((await client.messages(run.conversation_id)).map(({ role }) => role), left)
    await stopped?.(t, world)

    // A first message names the conversation to the model server, also where the cancelled run left none.
    const next = await client.finish({ input: 'conv:a', conversation_id: run.conversation_id, tools: [tool('hold')] })
    t.equal(next.run.output, 'here I am', 'send-after-cancel')
    t.same(await client.cancel(run.id), { ...await client.run(run.id) }, 'cancelling again changes nothing')
    t.equal((await client.log({ run: run.id })).length, log.length)
  })
}

story('cancel of a run that waits for another one leaves that one alone, and its input out of the ledger', async (t, { model, service }) => {
  const { client } = await service()
  const gate = latch()
  model.script('conv:a', [delayed(say('first'), gate), say('third')])
  const first = await client.start({ input: 'conv:a' })
  await model.waitForRequest(() => true)
  const second = await client.start({ input: 'never mind', conversation_id: first.conversation_id })
  const third = await client.start({ input: 'and then', conversation_id: first.conversation_id })
  t.equal((await client.cancel(second.id)).status, 'cancelled')
  gate.open()
  t.equal((await client.ended(third)).output, 'third')
  t.equal((await client.run(first.id)).output, 'first')
  t.same((await client.messages(first.conversation_id)).map(({ content }) => content), ['conv:a', 'first', 'and then', 'third'])
  t.same((await client.log({ run: second.id })).map(({ type }) => type), ['run.created', 'run.cancelled'])
})

story('cancel of a run that no worker has taken', async (t, { model, service }) => {
  const { client } = await service({ roles: { api: true, worker: false } })
  const run = await client.start({ input: 'conv:a' })
  t.equal((await client.cancel(run.id, '?wait=1')).status, 'cancelled')
  const next = await client.start({ input: 'conv:b', conversation_id: run.conversation_id })
  model.script('conv:a', [say('only this one')])
  await service()
  t.equal((await client.ended(next)).output, 'only this one')
  t.same(model.requests().map(({ body }) => body.messages.length), [2], 'both inputs are in the ledger, one LLM call was made')
})

story('cancel of an ended run answers it as it is', async (t, { model, service }) => {
  const { client } = await service()
  model.script('conv:a', [say('done')])
  const { run } = await client.finish({ input: 'conv:a' })
  t.same(await client.cancel(run.id, '?wait=1'), run)
})

story('cancel through another process than the one that works reaches it', async (t, { model, tools, service, tool }) => {
  await service({ roles: { api: false, worker: true } })
  const [{ client }, other] = await Promise.all([service({ roles: { api: true, worker: false } }), service({ roles: { api: true, worker: false } })])
  model.script('conv:a', [call({ id: 'c1', name: 'hang', arguments: {} }), say('again')])
  const run = await client.start({ input: 'conv:a', tools: [tool('hang')] })
  const stream = await client.follow(run)
  await tools.waitFor((attempts) => attempts.length === 1)
  t.equal((await other.client.cancel(run.id, '?wait=1')).status, 'cancelled')
  await stream.ended
  await tools.waitFor((attempts) => attempts[0]?.aborted === true)
  t.equal((await other.client.finish({ input: 'go on', conversation_id: run.conversation_id, tools: [tool('hang')] })).run.output, 'again')
})

story('F35: cancels that race the end of a run: one terminal event, whoever wins', async (t, { model, service }) => {
  const { client } = await service()
  const gates = Array.from({ length: 12 }, () => latch())
  model.otherwise(({ conversation }) => delayed(say('done'), gates[Number(conversation.slice('conv:'.length))] ?? 0))
  const ends = await Promise.all(gates.map(async (gate, i) => {
    const run = await client.start({ input: `conv:${i}` })
    await model.waitForRequest(({ conversation }) => conversation === `conv:${i}`)
    gate.open()
    await Promise.all([client.cancel(run.id), client.cancel(run.id)])
    return await client.run(run.id)
  }))
  for (const run of ends) t.match(run.status, /^(completed|cancelled)$/)
})
