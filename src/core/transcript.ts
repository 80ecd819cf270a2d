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
 * A provider's own call id is sent back to it (some insist, FAULTS M10) unless it is empty, too long or was used before (M9).
 */
export function transcript (ledger: Message[], instructions: string | null): Transcript | null {
  const messages: WireMessage[] = []
  const repairs: string[] = []
  const used = new Set<string>()
  if (instructions !== null) messages.push({ role: 'system', content: instructions })

  for (let i = 0; i < ledger.length; i++) {
    const message = ledger[i] as Message
    switch (message.role) {
      case 'system':
        messages.push({ role: 'system', content: textOf(message) })
        break
      case 'user':
        if (message.content.length === 0) repairs.push(`empty user message ${message.id} left out`)
        else messages.push({ role: 'user', content: message.content })
        break
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
        const kept = calls.filter((call) => {
          if (answers.has(call.call_id)) return true
          repairs.push(`tool call ${call.call_id} has no result and was left out`)
          return false
        })
        const text = textOf(message)
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
        for (const [id, answer] of answers) messages.push({ role: 'tool', tool_call_id: ids.get(id) as string, content: textOf(answer) || 'null' })
      }
    }
  }
  while (isFinished(messages.at(-1))) {
    messages.pop()
    repairs.push('the last assistant message asked nothing and was left out')
  }
  return messages.some((message) => message.role !== 'system') ? { messages, repairs } : null
}

const isFinished = (message: WireMessage | undefined): boolean => message?.role === 'assistant' && message.tool_calls === undefined

function textOf ({ content }: Message): string {
  return typeof content === 'string' ? content : content.map((part) => part.type === 'text' ? part.text : '').join('')
}

function wireId (providerId: string | undefined, callId: string, used: Set<string>): string {
  const fits = providerId !== undefined && providerId !== '' && providerId.length <= 64 && !used.has(providerId)
  const id = fits ? providerId : callId
  used.add(id)
  return id
}
