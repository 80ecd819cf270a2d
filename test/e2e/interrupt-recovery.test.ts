import { Redis } from 'ioredis'
import type { Message } from '../../src/core/message.js'
import type { State } from '../../src/core/state.js'
import { createKeys } from '../../src/store/keys.js'
import { createClient } from '../support/client.js'
import { call, say } from '../support/model-reply.js'
import { begin, send, told } from '../support/schedule-http.js'
import { story, type World } from '../support/world.js'

interface Damage {
  what: string
  harm: (state: State, ledger: Message[]) => void
  /** What the report of the repair must name. */
  detail: RegExp
}

/** Ways to make row and ledger disagree, in the middle of a batch with two messages waiting. */
const damages: Damage[] = [
  {
    what: 'a message waits twice',
    harm: (state) => { state.waiting.push({ ...state.waiting[0]! }) },
    detail: /a message waits twice/
  },
  {
    what: 'a message waits for a run that is over',
    harm: (state) => { state.waiting[0]!.run_id = 'run_0000000000000000000000000000' },
    detail: /waits for run run_0+, which is over/
  },
  {
    what: 'a message waits although the ledger has it',
    harm: (state, ledger) => { state.waiting.push({ ...state.waiting[0]!, id: ledger[0]!.id }) },
    detail: /still waits, but is in the ledger/
  },
  {
    what: 'the row counts too many messages',
    harm: (state) => { state.messages += 2 },
    detail: /the ledger has 3 messages, the row says 5/
  },
  {
    what: 'the row counts too few messages',
    harm: (state) => { state.messages -= 1 },
    detail: /the ledger has 3 messages, the row says 2/
  },
  {
    what: 'the ledger has a result that answers no call',
    harm: (_, ledger) => { ledger.push({ ...ledger[0]!, id: 'msg_orphan', role: 'tool', content: 'x', tool_call_id: 'call_gone' }) },
    detail: /tool message msg_orphan answers no call/
  },
  {
    what: 'the active run waits as well',
    harm: (state) => { state.queue.push({ ...state.run!, inputs: [] }) },
    detail: /a run is both active and queued/
  }
]

/** Changes a conversation behind everybody's back. The version rises, so that nobody goes on with the row as he remembers it. */
async function spoil ({ redis: { url, prefix } }: World, conversation: string, harm: Damage['harm']): Promise<void> {
  const keys = createKeys(prefix, 16)
  const redis = new Redis(url)
  const [json, version] = await redis.hmget(keys.row(conversation), 'state', 'version') as [string, string]
  const stored = await redis.lrange(keys.messages(conversation), 0, -1)
  const state = JSON.parse(json) as State
  const ledger = stored.map((one) => JSON.parse(one) as Message)
  harm(state, ledger)
  await redis.hset(keys.row(conversation), 'state', JSON.stringify(state), 'version', Number(version) + 1)
  for (const message of ledger.slice(stored.length)) await redis.rpush(keys.messages(conversation), JSON.stringify(message))
  await redis.quit()
}

for (const { what, harm, detail } of damages) {
  story(`I29: ${what}: it is logged, repaired before the next LLM call and reported, and no message is lost`, async (t, world) => {
    const { model, tools, service, tool } = world
    const { url, logs } = await service()
    // Not watched: the judge of all conversations is told of the damage below.
    const client = createClient(url)
    model.script('conv:a', [call({ name: 'hold', arguments: { key: 'x', value: 'seen' } }), say('done'), say('yes'), say('and again')])
    const { run, stream } = await begin(client, { input: 'conv:a', tools: [tool('hold')] })
    await tools.waitFor((attempts) => attempts.length === 1)
    for (const content of ['queued 1', 'queued 2']) await send(client, run, { content, mode: 'queue' })
    await spoil(world, run.conversation_id, harm)
    tools.release('x')
    await stream.ended
    const [recovered] = stream.events().filter(({ type }) => type === 'conversation.recovered')
    t.match(recovered, { detail, turn: 2 })
    const errors = logs.map((line) => JSON.parse(line) as { level: number, conversation_id?: string, msg: string }).filter(({ level }) => level >= 50)
    t.match(errors[0], { conversation_id: run.conversation_id, msg: /^row and ledger disagreed/ })
    t.match(await client.run(run.id), { status: 'completed', output: 'yes' })
    const messages = told(model.requests()[2])
    t.same(messages.slice(0, 4), ['conv:a', '→ hold', '= seen', 'done'])
    t.same(messages.slice(4).sort(), ['queued 1', 'queued 2'], 'both messages, once')
    t.match(await client.conversation(run.conversation_id), { active_run_id: null, queued_run_ids: [], waiting_for: null, message_count: (await client.messages(run.conversation_id)).length })
    const next = await client.finish({ input: 'go on', conversation_id: run.conversation_id })
    t.equal(next.run.output, 'and again', 'the conversation goes on')
    // These errors were asked for.
    logs.length = 0
  })
}
