import { answer, cut, heldAt, paced, status, type Reply, type ReplyCall } from '../support/model-reply.js'
import type { ModelServer, RecordedRequest } from '../support/model-server.js'
import { createRandom, type Random } from '../simulation/random.js'

/** What the provider said to a request. */
export interface Said { text: string, calls: { name: string, arguments: string }[], /** What was wrong with it; null: nothing, it is a whole answer. */ fault: string | null }

/** By `X-Client-Request-Id`. */
export type Sayings = Map<string, Said>

const FAULTS = ['429', '500', 'fin', 'rst', 'stall', 'no finish'] as const

/** Lets the model server answer as chance has it: texts in pieces, batches of what the request offers, and now and then a fault. */
export function provide (server: ModelServer, seed: number, faulty: () => boolean): Sayings {
  const said: Sayings = new Map()
  server.otherwise((request) => {
    const id = request.requestId ?? ''
    // By its number, which is the same for the same seed; ids are not.
    const random = createRandom(seed, `${request.conversation} ${request.n}`)
    const { text, calls } = words(request, id, random)
    const fault = faulty() && random.chance(0.1) ? random.pick(FAULTS) : null
    said.set(id, { text: text.join(''), calls: calls.map(({ name, arguments: args }) => ({ name, arguments: JSON.stringify(args) })), fault })
    const whole = answer({ text, calls, ...(fault === 'no finish' && { finish: null }) })
    const sent = fault === null ? whole : spoilt(whole, fault, random)
    return random.chance(0.2) ? heldAt(sent, 2, random.int(500, 2500)) : paced(sent, random.int(2, 30))
  })
  return said
}

function words ({ body }: RecordedRequest, id: string, random: Random): { text: string[], calls: ReplyCall[] } {
  const offered = (body.tools ?? []).flatMap((tool) => tool.type === 'function' ? tool.function.name : [])
  const asked = body.messages.length - 1 - body.messages.findLastIndex(({ role }) => role === 'user')
  const batches = body.messages.slice(-asked).filter(({ role }) => role === 'assistant').length
  const text = Array.from({ length: random.int(2, 8) }, (_, i) => random.chance(0.1) ? '\u0000😀\r\n\u2028' : `${i} of ${id}; `)
  text.push(`end of ${id}`)
  if (offered.length === 0 || batches >= 3 || !random.chance(batches === 0 ? 0.85 : 0.5)) return { text, calls: [] }
  const calls = Array.from({ length: random.int(1, 4) }, (_, i): ReplyCall => {
    const name = random.pick(offered)
    const value = `${id}#${i}`
    const ms = name.startsWith('slow') ? random.int(100, 1500) : name === 'late' ? random.int(300, 1600) : name === 'deaf' ? random.int(100, 900) : undefined
    return { id: `c${i}`, name, arguments: { value, ...(ms !== undefined && { ms }) } }
  })
  return { text: random.chance(0.5) ? text : [], calls }
}

function spoilt (reply: Reply, fault: typeof FAULTS[number], random: Random): Reply {
  switch (fault) {
    case '429': return status(429, { retryAfter: 1 })
    case '500': return status(500)
    case 'no finish': return reply
    // Before its finish: an answer that has that is whole.
    default: return cut(reply, random.int(1, Math.max(1, reply.parts.length - 3)), fault)
  }
}
