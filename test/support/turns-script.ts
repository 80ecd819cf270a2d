import { answer, delayed, say, type Reply } from './model-reply.js'
import type { Script } from './model-server.js'

/** `3x5`: three turns of five parallel calls each, then text. `3x5@200`: each answer begins after 200 ms. */
const SPEC = /^(\d+)x(\d+)(?:@(\d+))?$/
const OVERRIDE = /\bscript:(\d+x\d+(?:@\d+)?)\b/

/**
 * The script of the benchmarks. A conversation whose first user message holds `script:3x5@200` follows that, the others the default.
 * The calls are of the first tool offered, with the arguments `{"i": 0}`, `{"i": 1}`, … The turn is read from the messages after the newest user message, so a
 * repeated attempt gets the same answer. Replies are made once and sent from then on as they are.
 */
export function turnsScript (defaultSpec: string): Script {
  if (!SPEC.test(defaultSpec)) throw new Error(`not a script: ${defaultSpec}, expected something like 3x5 or 3x5@200`)
  const made = new Map<string, Reply>()

  return ({ body: { messages, tools } }) => {
    const first = messages.find((message) => message.role === 'user')?.content
    const spec = (typeof first === 'string' ? OVERRIDE.exec(first)?.[1] : undefined) ?? defaultSpec
    const lastUser = messages.findLastIndex((message) => message.role === 'user')
    const turn = messages.reduce((n, message, i) => n + (i > lastUser && message.role === 'assistant' ? 1 : 0), 0)
    const tool = tools?.[0]?.type === 'function' ? tools[0].function.name : ''
    const key = `${spec} ${turn} ${tool}`
    const known = made.get(key)
    if (known !== undefined) return known
    const reply = makeReply(spec, turn, tool)
    made.set(key, reply)
    return reply
  }
}

function makeReply (spec: string, turn: number, tool: string): Reply {
  const [, turns, width, ms = '0'] = SPEC.exec(spec) ?? []
  const calls = Array.from({ length: Number(width) }, (_, i) => ({ id: `call_${turn}_${i}`, name: tool, arguments: { i } }))
  const reply = turn < Number(turns) && tool !== '' && calls.length > 0 ? answer({ calls, fragment: 64 }) : say(['All ', 'done', '.'])
  return ms === '0' ? reply : delayed(reply, Number(ms))
}
