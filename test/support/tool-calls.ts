import type { ReplyCall } from './model-reply.js'
import type { RecordedRequest } from './model-server.js'

/** `n` calls of one tool, with the ids `<prefix>0`, `<prefix>1`, …; a conversation should not see one twice. */
export function many (n: number, name: string, args: (i: number) => Record<string, unknown>, prefix = 'c'): ReplyCall[] {
  return Array.from({ length: n }, (_, i) => ({ id: `${prefix}${i}`, name, arguments: args(i) }))
}

/** What the tool messages of a request say, in their order. */
export function results (request: RecordedRequest | undefined): string[] {
  return request?.body.messages.flatMap((message) => message.role === 'tool' ? [String(message.content)] : []) ?? []
}
