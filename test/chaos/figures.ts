import { TERMINAL, type Event } from '../../src/core/event.js'
import type { Journal } from './journal.js'

/** What a chaos run has seen, for people. */
export interface Figures {
  seed: number
  minutes: number
  rounds: number
  conversations: number
  runs: Record<string, number>
  messages: number
  llm_calls: number
  /** LLM calls that gave nothing, by the reason the log names. */
  wasted: Record<string, number>
  tool_executions: number
  tool_executions_again: number
  kills: number
  faults: Record<string, number>
  /** LLM calls made again, or beside another, for what was done to their own process; or only to all of them, through Redis or the machine. */
  excused: { own: number, all: number }
  requests: number
  streams: number
  /** Milliseconds from a fault to the next event of the conversations it hit, by kind. */
  recovery: Record<string, { n: number, p50: number, p99: number, max: number }>
  /** The longest that a conversation took after everything was healed. Milliseconds. */
  rest_ms: number
  violations: number
}

/** How long after each fault the conversations it hit went on, by kind. What clients do is no progress. */
export function recoveries (journal: Journal, logs: Map<string, Event[]>): Map<string, number[]> {
  const found = new Map<string, number[]>()
  for (const { kind, from, hit } of journal.faults) {
    for (const conversation of hit) {
      const events = logs.get(conversation) ?? []
      const at = (event: Event) => Date.parse(event.time)
      // Times in the log are whole milliseconds.
      const next = events.find((event) => at(event) > from + 1 && !event.type.startsWith('message.') && event.type !== 'run.created')
      const active = events.some((event) => event.type === 'run.started' && at(event) <= from && !events.some((end) => end.run_id === event.run_id && TERMINAL.has(end.type) && at(end) <= from))
      if (next === undefined || !active) continue
      found.set(kind, [...found.get(kind) ?? [], at(next) - from])
    }
  }
  return found
}

/** LLM calls that gave nothing: what followed them says why. */
export function wasted (events: Event[], requested: Set<string>): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const event of events) {
    const attempt = event.type === 'turn.retrying' ? (event.attempt as number) - 1 : event.attempt as number
    if (event.type !== 'turn.retrying' && event.type !== 'turn.cancelled') continue
    const tries = event.type === 'turn.cancelled' ? [...requested].filter((id) => id.startsWith(`${event.run_id}.${event.turn}.`)).length > 0 : requested.has(`${event.run_id}.${event.turn}.${attempt}`)
    if (!tries) continue
    const reason = event.type === 'turn.cancelled' ? `cancelled: ${String(event.reason).replace(/ .*/, '')}` : String(event.reason)
    counts[reason] = (counts[reason] ?? 0) + 1
  }
  return counts
}

export function spread (values: number[]): { n: number, p50: number, p99: number, max: number } {
  const sorted = [...values].sort((a, b) => a - b)
  const at = (part: number) => Math.round(sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))] ?? 0)
  return { n: sorted.length, p50: at(0.5), p99: at(0.99), max: Math.round(sorted.at(-1) ?? 0) }
}

/** As a page of Markdown. */
export function page (figures: Figures): string {
  const list = (counts: Record<string, number>) => Object.entries(counts).sort(([, a], [, b]) => b - a).map(([name, n]) => `${name} ${n}`).join(', ') || 'none'
  return [
    `Seed ${figures.seed}, ${figures.minutes} minutes, ${figures.rounds} rounds: **${figures.violations} violations**.`,
    '',
    '| | |', '| --- | --- |',
    `| conversations, runs | ${figures.conversations}, ${Object.values(figures.runs).reduce((a, b) => a + b, 0)} (${list(figures.runs)}) |`,
    `| requests of clients; of these messages in mid-run; connections of readers | ${figures.requests}; ${figures.messages}; ${figures.streams} |`,
    `| processes killed | ${figures.kills} |`,
    `| faults | ${list(figures.faults)} |`,
    `| LLM calls; without use | ${figures.llm_calls}; ${list(figures.wasted)} |`,
    `| LLM calls again or beside another, for a fault of their process; only for one of Redis or the machine | ${figures.excused.own}; ${figures.excused.all} |`,
    `| tool executions; of these again | ${figures.tool_executions}; ${figures.tool_executions_again} |`,
    `| longest until everything was at rest after healing | ${Math.round(figures.rest_ms)} ms |`,
    '',
    'Milliseconds from a fault to the next event of the conversations it hit, the work\'s own time included:',
    '',
    '| fault | n | p50 | p99 | max |', '| --- | --- | --- | --- | --- |',
    ...Object.entries(figures.recovery).sort(([, a], [, b]) => b.n - a.n).map(([kind, { n, p50, p99, max }]) => `| ${kind} | ${n} | ${p50} | ${p99} | ${max} |`),
    ''
  ].join('\n')
}
