import t from 'tap'
import type { RunTool } from '../../src/core/tool.js'
import { takePlace } from '../../src/engine/place.js'
import { createFakeClock, settled } from '../support/fake-clock.js'

const rate_limit = { max: 2, per_ms: 1000 }
const mcp = (over: object): RunTool => ({
  kind: 'mcp', name: 'search', tool: 'search', server: 'one', description: '', parameters: {}, effects: 'read', idempotent: false, rate_limit, ...over
})

t.test('rate_limit: tools share their places when they are the same one, and only then', async (t) => {
  const names: string[] = []
  const limiter = { reserve: async (name: string) => names.push(name) * 0 }
  const nameOf = async (tool: RunTool, tenant = 'me') => {
    await takePlace({ limiter, clock: createFakeClock() }, { tenant, tool, placed: false, signal: new AbortController().signal })
    return names.at(-1)
  }
  const same: [RunTool, RunTool][] = [
    [mcp({}), mcp({ name: 'one_search' })],
    [mcp({ server: undefined, server_url: 'https://a.example/mcp' }), mcp({ server: undefined, server_url: 'https://a.example/mcp', headers: { a: 'b' } })],
    [{ kind: 'module', name: 'm', rate_limit }, { kind: 'module', name: 'm', rate_limit, timeout_ms: 5 }]
  ]
  for (const [one, other] of same) t.equal(await nameOf(one), await nameOf(other))
  const others: RunTool[] = [
    mcp({}), mcp({ server: 'two' }), mcp({ tool: 'other' }), mcp({ server: undefined, server_url: 'https://a.example/mcp' }), mcp({ server: undefined, server_url: 'https://b.example/mcp' }),
    mcp({ server: 'https://a.example/mcp' }), { kind: 'module', name: 'search', rate_limit }, { kind: 'builtin', name: 'http_fetch', rate_limit },
    { kind: 'http', name: 'search', url: 'https://a.example/', rate_limit }, { kind: 'http', name: 'search', url: 'https://b.example/', rate_limit },
    mcp({ rate_limit: { max: 3, per_ms: 1000 } })
  ]
  const found = new Set<string | undefined>()
  for (const tool of others) found.add(await nameOf(tool))
  t.equal(found.size, others.length)
  t.not(await nameOf(mcp({}), 'me'), await nameOf(mcp({}), 'you'), 'and of one tenant')
})

t.test('rate_limit: short waits are waited for, long ones are not, and who is stopped takes no part', async (t) => {
  const clock = createFakeClock()
  const asked: boolean[] = []
  let answers: (number | Error)[] = []
  const limiter = {
    reserve: async (_name: string, _max: number, _perMs: number, placed = false) => {
      asked.push(placed)
      const answer = answers.shift() ?? 0
      if (answer instanceof Error) throw answer
      return answer
    }
  }
  const stop = new AbortController()
  const ask = (placed = false) => takePlace({ limiter, clock }, { tenant: 'me', tool: mcp({}), placed, signal: stop.signal })
  answers = [700]
  t.equal(await ask(), 700)
  t.equal(await ask(true), 0)
  answers = [30, 0]
  const soon = ask()
  await settled()
  await clock.pass(30)
  t.equal(await soon, 0)
  answers = [new Error('away'), 0]
  const away = ask()
  await settled()
  await clock.pass(250)
  t.equal(await away, 0)
  t.same(asked, [false, true, false, true, false, false], 'a place that was given is not asked for again')
  answers = [40]
  const stopped = ask()
  await settled()
  stop.abort()
  t.equal(await stopped, null)
})
