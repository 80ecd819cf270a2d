import { randomUUID } from 'node:crypto'
import type { Receipt } from '../../src/core/messages.js'
import type { CreateRun, Run } from '../../src/schemas/run.js'
import type { PostMessage } from '../../src/schemas/message.js'
import type { Answer, Client, EventStream } from './client.js'
import type { RecordedRequest } from './model-server.js'

/** Posts a message to a run, whatever the answer. */
export function tell (client: Client, run: Run | string, body: unknown, headers?: Record<string, string>): Promise<Answer> {
  return client.request('POST', `/runs/${typeof run === 'string' ? run : run.id}/messages`, { body, headers })
}

/** As `tell`, and again with the same key as long as the answer is 503: on a busy machine Redis can be too slow, and then nobody knows whether it was heard. */
export async function insist (client: Client, run: Run | string, message: PostMessage): Promise<Answer> {
  const headers = { 'idempotency-key': randomUUID() }
  for (;;) {
    const answer = await tell(client, run, message, headers)
    if (answer.status !== 503 && !answer.text.includes('"idempotency_in_progress"')) return answer
  }
}

/** As `insist`; throws unless the message was accepted. */
export async function send (client: Client, run: Run | string, message: PostMessage | string): Promise<Receipt> {
  const answer = await insist(client, run, typeof message === 'string' ? { content: message } : message)
  if (answer.status !== 202) throw new Error(`POST /runs/…/messages: ${answer.status} ${answer.text}`)
  return JSON.parse(answer.text) as Receipt
}

/** Starts a run and follows it. */
export async function begin (client: Client, body: CreateRun): Promise<{ run: Run, stream: EventStream }> {
  const run = await client.start(body)
  return { run, stream: await client.follow(run) }
}

/** What a request tells the model, in short: the text of user messages, `text→ names` of an assistant, `= result`. */
export function told (request: RecordedRequest | undefined): string[] {
  return request?.body.messages.map((message) => {
    const text = typeof message.content === 'string' ? message.content : message.content == null ? '' : JSON.stringify(message.content)
    if (message.role === 'tool') return `= ${text}`
    const calls = message.role === 'assistant' ? message.tool_calls?.flatMap((call) => call.type === 'function' ? [call.function.name] : []) : undefined
    return calls === undefined ? text : `${text}→ ${calls.join(' ')}`
  }) ?? []
}

/** The middle one of some numbers. */
export const median = (values: number[]): number => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] as number

/** Does all tasks, `width` of them at a time, and resolves with what came of them. */
export async function all<T, R> (items: T[], width: number, task: (item: T, i: number) => Promise<R>): Promise<R[]> {
  const results: R[] = []
  let next = 0
  await Promise.all(Array.from({ length: width }, async () => {
    for (let i = next++; i < items.length; i = next++) results[i] = await task(items[i] as T, i)
  }))
  return results
}
