import type { Event } from '../../src/core/event.js'
import type { Decisions } from '../../src/schemas/action.js'
import { createRandom, type Random } from './random.js'
import type { Timeline } from './timeline.js'
import type { Answer } from './workload.js'

type Decision = Decisions['decisions'][number]

/** Those whom runs ask: they hear what readers hear, and answer in their own way and time, some of them not before everything is calm. */
export interface People { hear: (conversation: string, event: Event) => void }

export interface PeopleOptions {
  seed: number
  timeline: Timeline
  /** From here on whatever waits for somebody is answered. */
  calmFrom: number
  ask: (conversation: string, runId: string, answer: Answer, after: number) => void
}

interface Asked { call_id: string, name: string, kind: 'approval' | 'client_tool' }

/** How often somebody looks, once all is calm, whether a run still waits. Milliseconds. */
const DUTY_MS = 300

export function createPeople ({ seed, timeline, calmFrom, ask }: PeopleOptions): People {
  const runOf = new Map<string, string>()
  const settled = new Set<string>()
  const resolved = new Set<string>()

  function hear (conversation: string, event: Event): void {
    const { type, run_id: run, call_id: call } = event
    if (type === 'turn.completed') for (const { call_id: id } of event.tool_calls as { call_id: string }[]) runOf.set(id, run as string)
    if (type === 'tool.completed' || type === 'tool.failed' || type === 'tool.cancelled') settled.add(call as string)
    if (type === 'suspension.resolved') resolved.add(event.suspension_id as string)
    if (type === 'suspension.created') answer(conversation, run as string, event.suspension_id as string, event.calls as Asked[])
    if (type === 'tool.orphaned') lookAtOrphan(conversation, call as string, event.seq)
  }

  function answer (conversation: string, run: string, suspension: string, calls: Asked[]): void {
    const random = createRandom(seed, `people ${suspension}`)
    const approvals = calls.filter(({ kind }) => kind === 'approval').map(({ call_id: id }) => id)
    const clients = calls.filter(({ kind }) => kind === 'client_tool').map(({ call_id: id }) => id)
    const patience = random.pick([30, 30, 200, 800])
    const soon = () => patience * random.next() ** 2
    const style = random.pick(['together', 'together', 'parts', 'rivals', 'twice', 'absent', 'lost'] as const)
    const decide = (ids: string[], after: number, made = ids.map((id) => decisionOn(id, random))) => {
      ask(conversation, run, { do: 'decide', body: { suspension_id: suspension, decisions: made }, wrong: false }, after)
    }
    const submit = (ids: string[], after: number) => {
      const outputs = ids.map((id) => ({ call_id: id, output: outputOf(id, random), ...(random.chance(0.15) && { is_error: true }) }))
      ask(conversation, run, { do: 'outputs', body: { outputs }, wrong: false }, after)
    }
    if (random.chance(0.2)) beWrong(conversation, run, suspension, calls, random)
    if (style !== 'absent') {
      for (const [ids, tell] of [[approvals, decide], [clients, submit]] as const) {
        if (ids.length === 0) continue
        const parts = style === 'parts' ? ids.map((id) => [id]) : [ids]
        for (const part of parts.sort(() => random.next() - 0.5)) {
          if (style === 'lost' && random.chance(0.5)) continue
          const after = soon()
          tell(part, after)
          // Another person, at almost the same time, or the same one again.
          if (style === 'rivals') tell(random.chance(0.5) ? part : part.slice(0, 1), after + 4 * random.next())
          if (style === 'twice') tell(part, after + soon())
        }
      }
    }
    // Whatever comes now comes too late, unless it was left open.
    if (clients.length > 0 && random.chance(0.15)) submit(clients.slice(0, 1), 300 + 500 * random.next())
    const duty = (): boolean => {
      if (resolved.has(suspension)) return false
      for (const id of approvals) if (!settled.has(id)) decide([id], 2 * random.next(), [random.chance(0.8) ? { call_id: id, decision: 'approve' } : decisionOn(id, random)])
      for (const id of clients) if (!settled.has(id)) submit([id], 2 * random.next())
      timeline.at(timeline.now() + DUTY_MS, duty)
      return false
    }
    timeline.at(Math.max(timeline.now() + 1000, calmFrom) + DUTY_MS * random.next(), duty)
  }

  /** Wrong ids, or the wrong kind of answer: nothing of it may be taken. */
  function beWrong (conversation: string, run: string, suspension: string, calls: Asked[], random: Random): void {
    const [one] = calls as [Asked]
    const after = 60 * random.next()
    const approve = (id: string): Decision => ({ call_id: id, decision: 'approve' })
    const unknown = `${one.call_id.slice(0, -4)}ZZZZ`
    const kind = random.int(0, 3)
    if (kind === 0) ask(conversation, run, { do: 'decide', body: { suspension_id: `${suspension}9`, decisions: [approve(one.call_id)] }, wrong: true }, after)
    if (kind === 1) ask(conversation, run, { do: 'decide', body: { suspension_id: suspension, decisions: [approve(one.call_id), approve(unknown)] }, wrong: true }, after)
    if (kind === 2) ask(conversation, run, { do: 'outputs', body: { outputs: [{ call_id: one.call_id, output: 'not asked' }, { call_id: unknown, output: 'unknown' }] }, wrong: true }, after)
    // What a person has approved may be the client's business a moment later.
    if (kind === 3 && one.name !== 'seal') {
      const answer: Answer = one.kind === 'client_tool'
        ? { do: 'decide', body: { suspension_id: suspension, decisions: [approve(one.call_id)] }, wrong: true }
        : { do: 'outputs', body: { outputs: [{ call_id: one.call_id, output: 'forged' }] }, wrong: true }
      ask(conversation, run, answer, after)
    }
  }

  function lookAtOrphan (conversation: string, callId: string, seq: number): void {
    const random = createRandom(seed, `orphan ${callId} ${seq}`)
    const run = runOf.get(callId) ?? ''
    const kinds = random.pick<('attach' | 'discard')[]>([[], ['attach'], ['discard'], ['attach', 'attach'], ['attach', 'discard']] as never)
    for (const kind of kinds as unknown as ('attach' | 'discard')[]) ask(conversation, run, { do: kind, call_id: callId }, 150 * random.next())
  }

  return { hear }
}

function decisionOn (id: string, random: Random): Decision {
  const kind = random.next()
  if (kind < 0.5) return { call_id: id, decision: 'approve' }
  if (kind < 0.7) return { call_id: id, decision: 'reject', ...(random.chance(0.5) && { reason: `because of ${random.int(1, 999)}` }) }
  if (kind < 0.85) return { call_id: id, decision: 'edit', arguments: { n: `edited ${id} ${random.int(1, 999)}`, box: 'a' } }
  return { call_id: id, decision: 'answer', output: outputOf(id, random) }
}

const outputOf = (id: string, random: Random): unknown => random.pick<unknown>([`${id} by hand ${random.int(1, 999)}`, { of: id, by: random.int(1, 999) }])
