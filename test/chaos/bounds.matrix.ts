/*
 * What the death of a worker costs with the settings that come with Interlock: nothing here is made short. Every other file of the matrix sets times
 * that are shorter, and so cannot tell whether something waits for a default that is long.
 */
import root from 'tap'
import { dieAt, inTime } from '../support/death.js'
import { call, say } from '../support/model-reply.js'
import { story } from '../support/world.js'

root.setTimeout(600_000)

/** Lock TTL + sweep interval + 1 s, by default. Milliseconds. */
const BOUND_MS = 10_000 + 1000 + 1000

for (const [when, text, at] of [
  ['before its LLM call', 'turn.started', 'answered'],
  ['before the answer is stored', 'turn.completed', 'unsent'],
  ['when the answer is stored', 'turn.completed', 'answered'],
  ['before the result of a call is stored', 'tool.completed', 'unsent'],
  ['when the batch is closed', 'batch.completed', 'answered'],
  ['before the end is stored', 'run.completed', 'unsent']
] as const) {
  story(`F1-F6, F20-F22: a worker killed ${when}: another one goes on within the bound of the default settings`, async (t, world) => {
    const { model, tool } = world
    model.otherwise((_, n) => n === 1 ? call({ id: 'c1', name: 'echo', arguments: { value: 'x' } }) : say('done'))
    const death = await dieAt(t, world, { text, at }, { input: 'conv:a', tools: [tool('echo', { effects: 'read' })] })
    t.match(await death.client.run(death.run.id), { status: 'completed', output: 'done' })
    t.comment(`${death.costMs} ms`)
    inTime(t, death, BOUND_MS)
  }, { long: true })
}
