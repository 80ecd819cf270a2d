import type { Test } from 'tap'
import type { Conversation } from '../../src/schemas/conversation.js'
import type { Client, EventStream } from './client.js'

/** The id of the newest event a stream has shown: what a browser sends when it reconnects. */
export const lastId = ({ frames }: EventStream): string => frames.findLast((frame) => frame.id !== null)?.id ?? '0'

/** What a stream was told when what it had shown was lost. */
export async function resetOf (stream: EventStream): Promise<{ reason: string, epoch: number, last_seq: number, snapshot: unknown }> {
  const { data } = await stream.until(({ event }) => event === 'stream.reset')
  return JSON.parse(data) as { reason: string, epoch: number, last_seq: number, snapshot: unknown }
}

/** I4b: over all that was ever shown, an id of a conversation names one content. */
export function oneContentPerId (t: Test, streams: EventStream[]): void {
  const known = new Map<string, string>()
  for (const { id, data } of streams.flatMap((stream) => stream.frames)) {
    if (id === null) continue
    const name = `${id} of ${(JSON.parse(data) as { conversation_id: string }).conversation_id}`
    if (known.has(name) && known.get(name) !== data) t.fail(`event ${name} has two contents`, { one: known.get(name), other: data })
    known.set(name, data)
  }
}

/**
 * I15: reads a conversation again and again, beside whatever else the test does, until `stop`: within an epoch `version` and `last_seq` never go
 * back, and no epoch is followed by an earlier one. Resolves with the epochs it saw.
 */
export function watchConversation (t: Test, client: Client, id: string): { stop: () => Promise<number[]> } {
  let over = false
  const epochs: number[] = []
  const watching = (async () => {
    let before: Conversation | undefined
    while (!over) {
      const answer = await client.request('GET', `/conversations/${id}`).catch(() => null)
      if (answer?.status !== 200) {
        await new Promise((resolve) => setTimeout(resolve, 10))
        continue
      }
      const now = JSON.parse(answer.text) as Conversation
      if (epochs.at(-1) !== now.epoch) epochs.push(now.epoch)
      if (before !== undefined) {
        if (now.epoch < before.epoch) t.fail('an epoch came back', { before, now })
        if (now.epoch === before.epoch && (now.version < before.version || now.last_seq < before.last_seq)) t.fail('a conversation went back within an epoch', { before, now })
      }
      before = now
    }
  })()
  return {
    async stop () {
      over = true
      await watching
      return epochs
    }
  }
}
