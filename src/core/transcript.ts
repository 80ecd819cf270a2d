import type { ContentPart, Message } from './message.js'

/** A message as a provider takes it (chat completions). */
export type WireMessage =
  | { role: 'system', content: string }
  | { role: 'user', content: string | ContentPart[] }
  | { role: 'assistant', content: string | null, tool_calls?: WireCall[] }
  | { role: 'tool', tool_call_id: string, content: string }

export interface WireCall { id: string, type: 'function', function: { name: string, arguments: string } }

export interface Transcript {
  messages: WireMessage[]
  /** What had to be left out or added so that a provider accepts it; empty when the ledger was in order, as it always should be. */
  repairs: string[]
}

/**
 * What is sent to the provider, and the last guard before it (I3): every tool call is answered exactly once, right behind its
 * message, in order; nothing is empty; the last message is one to answer. A ledger that breaks a rule is repaired here, and the
 * repair is reported: one bad turn must never poison a conversation. Null: nothing is left that a model could answer.
 *
 * A provider's own call id is sent back to it (some insist, FAULTS M10) unless it is empty, too long, no Unicode or was used before (M9).
 */
export function transcript (ledger: Message[], instructions: string | null): Transcript | null {
  const messages: WireMessage[] = []
  const repairs: string[] = []
  const used = new Set<string>()
  const sound = (message: Message, text: string): string => {
    const whole = wellFormed(text)
    if (whole !== text) repairs.push(`message ${message.id} held half a surrogate pair, which was replaced`)
    return whole
  }
  if (instructions !== null) messages.push({ role: 'system', content: instructions })

  for (let i = 0; i < ledger.length; i++) {
    const message = ledger[i] as Message
    switch (message.role) {
      case 'system':
        messages.push({ role: 'system', content: sound(message, textOf(message)) })
        break
      case 'user': {
        const { content } = message
        if (content.length === 0) repairs.push(`empty user message ${message.id} left out`)
        else if (typeof content === 'string') messages.push({ role: 'user', content: sound(message, content) })
        else messages.push({ role: 'user', content: content.map((part) => part.type === 'text' ? { ...part, text: sound(message, part.text) } : part) })
        break
      }
      case 'tool':
        // Answers are taken together with their assistant message, below; one that stands alone answers nothing.
        repairs.push(`tool message ${message.id} answers no call and was left out`)
        break
      case 'assistant': {
        const calls = message.tool_calls ?? []
        const answers = new Map<string, Message>()
        while (ledger[i + 1]?.role === 'tool') {
          const answer = ledger[++i] as Message
          const id = answer.tool_call_id ?? ''
          if (answers.has(id) || !calls.some((call) => call.call_id === id)) repairs.push(`tool message ${answer.id} answers no open call and was left out`)
          else answers.set(id, answer)
        }
        const kept = calls.filter(({ call_id: id }, at) => {
          const twice = calls.findIndex((call) => call.call_id === id) < at
          if (!twice && answers.has(id)) return true
          repairs.push(twice ? `tool call ${id} stands twice and was left out once` : `tool call ${id} has no result and was left out`)
          return false
        })
        const text = sound(message, textOf(message))
        if (kept.length === 0) {
          if (text === '') repairs.push(`assistant message ${message.id} says nothing and was left out`)
          else messages.push({ role: 'assistant', content: text })
          break
        }
        const ids = new Map(kept.map((call) => [call.call_id, wireId(call.provider_id, call.call_id, used)]))
        messages.push({
          role: 'assistant',
          content: text === '' ? null : text,
          tool_calls: kept.map((call) => ({
            id: ids.get(call.call_id) as string, type: 'function', function: { name: call.name, arguments: JSON.stringify(call.arguments) }
          }))
        })
        for (const [id, answer] of answers) messages.push({ role: 'tool', tool_call_id: ids.get(id) as string, content: sound(answer, textOf(answer)) || 'null' })
      }
    }
  }
  while (isFinished(messages.at(-1))) {
    messages.pop()
    repairs.push('the last assistant message asked nothing and was left out')
  }
  return messages.some((message) => message.role !== 'system') ? { messages, repairs } : null
}

/** The longest call id a provider takes back. */
const MAX_ID = 40

const isFinished = (message: WireMessage | undefined): boolean => message?.role === 'assistant' && message.tool_calls === undefined

function textOf ({ content }: Message): string {
  return typeof content === 'string' ? content : content.map((part) => part.type === 'text' ? part.text : '').join('')
}

function wireId (providerId: string | undefined, callId: string, used: Set<string>): string {
  const own = providerId !== undefined && providerId !== '' && providerId.length <= MAX_ID && providerId === wellFormed(providerId)
  let id = own && !used.has(providerId) ? providerId : callId
  // A provider may have given what is our id of another call.
  while (used.has(id)) id += '_'
  used.add(id)
  return id
}

/** Node has the method, TypeScript's ES2023 library does not know it yet. */
function wellFormed (text: string): string {
  return (text as string & { toWellFormed: () => string }).toWellFormed()
}
