import type { Client } from './client.js'
import type { Story } from './story.js'
import { count, seconds } from './text.js'

interface LedgerMessage { role: string, content: unknown, tool_calls?: { call_id: string }[], tool_call_id?: string }

/** What is in Redis once the run has ended, read back over HTTP. */
export interface Kept {
  /** The events of the log, as text. */
  events: string[]
  messages: LedgerMessage[]
}

interface Page<T> { data: T[], next_cursor: string | null }

export async function readBack (client: Client, runId: string, conversationId: string): Promise<Kept> {
  const events: string[] = []
  for (let after: string | null = '0'; after !== null;) {
    const page = await client.text(`/runs/${runId}/events?limit=100&after=${after}`)
    const { data, next_cursor: next } = JSON.parse(page) as Page<unknown>
    events.push(...data.map((event) => JSON.stringify(event)))
    after = next
  }
  const messages: LedgerMessage[] = []
  for (let cursor: string | null = ''; cursor !== null;) {
    const page: Page<LedgerMessage> = await client.get(`/conversations/${conversationId}/messages?limit=100${cursor === '' ? '' : `&cursor=${encodeURIComponent(cursor)}`}`)
    messages.push(...page.data)
    cursor = page.next_cursor
  }
  return { events, messages }
}

/** What is wrong with what was kept, given what was streamed: empty, as it must be. */
export function faults ({ events, messages }: Kept, streamed: string[], interrupt: string | null): string[] {
  const wrong: string[] = []
  if (events.length !== streamed.length || events.some((event, i) => event !== streamed[i])) wrong.push('the log is not what was streamed')
  if (streamed.some((event, i) => (JSON.parse(event) as { seq: number }).seq !== i + 1)) wrong.push('the numbers of the events have a gap')
  messages.forEach(({ tool_calls: calls = [] }, i) => {
    const answers = messages.slice(i + 1, i + 1 + calls.length).map((message) => message.tool_call_id)
    if (calls.some((call, n) => call.call_id !== answers[n])) wrong.push('a tool call is without its result')
  })
  const asked = messages.flatMap((message) => message.tool_calls ?? []).length
  if (messages.filter((message) => message.role === 'tool').length !== asked) wrong.push('a result is without its tool call')
  if (interrupt !== null && messages.filter((message) => message.content === interrupt).length !== 1) wrong.push('the message is not in the ledger once')
  return wrong
}

export interface Facts {
  llmCalls: number
  /** From the posted message until this client read of the next turn's start, in milliseconds; null: no message was posted. */
  reactionMs: number | null
  kept: Kept
}

/** The run in numbers. */
export function totals (story: Story, { llmCalls, reactionMs, kept }: Facts): [name: string, text: string][] {
  const turns = story.turns()
  const calls = story.calls()
  const having = (state: string) => calls.filter((call) => call.state === state).length
  const { sum, clock } = story.toolTime()
  const llm = turns.reduce((ms, turn) => ms + (turn.to ?? turn.from) - turn.from, 0)
  const wall = (story.to ?? story.from) - story.from
  const cut = having('cancelled')
  const failed = having('failed')
  const marks = story.marks()
  return [
    ['turns', `${turns.length}, strictly one after the other; ${count(llmCalls, 'LLM call')} in ${seconds(llm)}`],
    ['tool calls', `${calls.length}: ${having('completed')} completed${cut > 0 ? `, ${cut} cut short by the message` : ''}${failed > 0 ? `, ${failed} failed` : ''}`],
    ['in parallel', `the calls took ${seconds(sum)} together, and ${seconds(clock)} on the clock`],
    ['wall time', `${seconds(wall)}; with one call at a time it would have been ${seconds(wall + sum - clock)}`],
    ['interrupt', marks.length === 0 || reactionMs === null ? 'none: the model was done before there was anything to interrupt'
      : `posted in mid-run; ${cut > 0 ? `${count(cut, 'call')} cut short` : 'the LLM call cut short'}, next turn ${Math.round(reactionMs)} ms later`],
    ['events', `${kept.events.length} stored, read back from Redis: same bytes, seq 1 to ${kept.events.length}, no gap`],
    ['ledger', `${kept.messages.length} messages; every tool call has its one result`]
  ]
}
