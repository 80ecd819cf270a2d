import { call, say } from '../support/model-reply.js'
import { begin } from '../support/schedule-http.js'
import { many } from '../support/tool-calls.js'
import { story } from '../support/world.js'

for (const [name, signal] of [['stops', 'SIGTERM'], ['dies', 'SIGKILL']] as const) {
  story(`B6, B12: a worker that ${name} while a call waits for its rate limit costs it nothing, also one that writes`, async (t, { model, tools, service, process, tool }) => {
    const { client } = await service({ roles: { api: true, worker: false } })
    const env = { INTERLOCK_LEASE_MS: '2000' }
    const first = await process('worker', env)
    model.script('conv:a', [call(...many(3, 'echo', (i) => ({ value: i }))), say('done')])
    const { run, stream } = await begin(client, { input: 'conv:a', tools: [tool('echo', { rate_limit: { max: 1, per_ms: 1500 } })] })
    await stream.event('tool.completed')
    first.signal(signal)
    const { code } = await first.exited
    if (signal === 'SIGTERM') t.equal(code, 0, 'it does not wait for what has not begun')
    const second = await process('worker', env)
    await stream.ended
    t.match((await client.calls(run.id)).map(({ status, attempt }) => [status, attempt]), [['completed', 1], ['completed', 1], ['completed', 1]])
    t.same(tools.attempts.map(({ args }) => args.value), [0, 1, 2], 'in request order')
    await second.kill()
  }, { except: ['waits'] })
}
