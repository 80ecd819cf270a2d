import { createClient } from '../support/client.js'
import { call, say } from '../support/model-reply.js'
import { damages, spoil } from '../support/schedule-damage.js'
import { begin, send, told } from '../support/schedule-http.js'
import { story } from '../support/world.js'

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
    await spoil(world.redis, run.conversation_id, harm)
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
