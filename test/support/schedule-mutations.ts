import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import fc from 'fast-check'
import { schedules } from './schedule-moves.js'
import { play, type Core } from './schedule-stage.js'

const ROOT = join(import.meta.dirname, '../..')

/** A fault somebody could make: in these files of the core, this text for that one. Each text must be there exactly once. */
export interface Mutation { fault: string, edits: [file: string, text: string, instead: string][] }

const settle = 'settle.ts'
const messages = 'messages.ts'
const decide = 'transition.ts'
const wire = 'transcript.ts'

/** Faults the judge of schedules must find. What they leave intact still looks like a conversation, most of the time. */
export const MUTATIONS: Mutation[] = [
  { fault: 'the fence is not looked at: a stopped LLM call answers the next turn', edits: [[decide, ' || run.phase.fence !== fence) return null', ') return null']] },
  { fault: 'the fence does not grow', edits: [[settle, 'phase.fence = ++state.fence', 'phase.fence = state.fence || 1'], [settle, '  draft.state.fence++\n  run.final = null', '  run.final = null']] },
  { fault: 'the attempt of a call is not looked at', edits: [[decide, ' || call.attempt !== attempt) return null', ') return null']] },
  { fault: 'a delivered message stays in the queue as well', edits: [
    [settle, 'const delivered = deliver(draft, run, messages)\n', 'const delivered = deliver(draft, run, messages); state.waiting.push(...messages.slice(0, 1))\n'],
    ['draft.ts', '{ doc: name }, \'}\'])\n  drop(draft, name)', '{ doc: name }, \'}\'])']
  ] },
  { fault: 'an unanswered call enters the ledger', edits: [[settle, 'for (const call of answers) append', 'for (const call of answers.slice(0, -1)) append']] },
  { fault: 'the barrier opens before the last call is settled', edits: [[settle, 'if (phase === null || phase.calls.some(isOpen)) return false', 'if (phase === null || phase.calls.filter(isOpen).length > 1) return false']] },
  { fault: 'a queued message comes with the next turn, not after the final answer', edits: [[settle, ' && message.mode === \'steer\' && message.due_at === null)', ' && message.due_at === null)']] },
  { fault: 'a message that raced the final answer is not answered', edits: [[settle, 'if (answer !== null && waiting.length === 0) {', 'if (answer !== null) {']] },
  { fault: 'a message that raced the final answer can be taken back, and nothing is asked', edits: [
    [settle, 'if (answer !== null) run.phase.caused_by = [...causedBy, ...deliver(draft, run, waiting)]', 'if (answer !== null) for (const message of waiting) message.mode = \'steer\'']
  ] },
  { fault: 'the text of a batch that was stopped whole stays', edits: [
    [settle, '  drop(draft, docNames.text(phase.turn))\n', '  if (kept.length === 0) append(draft, [{ doc: docNames.text(phase.turn) }, \'"tool_calls":[]}\'])\n  drop(draft, docNames.text(phase.turn))\n']
  ] },
  { fault: 'an interrupt comes before the messages that waited', edits: [[messages, 'state.waiting.push(message)', 'state.waiting.unshift(message)']] },
  { fault: 'supersede takes the new message as well', edits: [
    [messages, 'supersede(draft, active, ready, [accepted])', 'supersede(draft, active, [...ready, message], [accepted])'],
    [messages, '  state.waiting.push(message)', '  if (!interrupts || command.queued === \'deliver\') state.waiting.push(message)']
  ] },
  { fault: 'supersede is ignored', edits: [[messages, 'if (command.queued === \'supersede\') supersede', 'if (command.queued === \'supersede\' && ready.length > 1) supersede']] },
  { fault: 'a cancelled run takes its messages with it', edits: [
    [settle, '  deliver(draft, run, state.waiting.filter((message) => message.run_id === run.id && message.due_at === null))\n',
      '  if (status !== \'cancelled\') deliver(draft, run, state.waiting.filter((message) => message.run_id === run.id && message.due_at === null))\n  else state.waiting = state.waiting.filter((message) => message.run_id !== run.id)\n']
  ] },
  { fault: 'max_queued_messages is off by one', edits: [[messages, 'others.length >= run.limits.max_queued_messages', 'others.length > run.limits.max_queued_messages']] },
  { fault: 'a rule is dropped: messages of a cancelled waiting run are never released', edits: [
    [settle, 'state.run === null ? state.waiting.filter((message) => message.run_id === null && message.due_at === null) : []', 'state.waiting.filter(() => false)']
  ] },
  { fault: 'a rule is dropped: an interrupt goes beyond max_turns', edits: [[settle, 'run.answers >= maxTurns ? \'max_turns\' : ', '']] },
  { fault: 'what had not started yet survives an interrupt', edits: [
    [settle, '  for (const call of phase.calls.filter(isOpen)) {\n    abortWorker(draft, call.worker, null, [call.id], reason)', '  for (const call of phase.calls.filter((one) => one.status === \'running\')) {\n    abortWorker(draft, call.worker, null, [call.id], reason)']
  ] },
  { fault: 'settled siblings leave with the cancelled calls', edits: [[settle, 'leavesTombstone(run, call) : keepCompleted)', 'leavesTombstone(run, call) : keepCompleted && !phase.calls.some((one) => one.status === \'cancelled\'))']] },
  { fault: 'discard keeps what was settled', edits: [[messages, 'command.completed_calls === \'keep\'', 'true']] },
  { fault: 'a call that only read leaves a tombstone', edits: [[settle, ' && call.effects === \'write\' && call.started_at !== null)', ' && call.started_at !== null)']] },
  { fault: 'the wait before a retry is not interrupted', edits: [[messages, 'phase.attempt > 0', 'phase.worker !== null']] },
  { fault: 'nobody is told to stop when an LLM call is interrupted', edits: [[settle, '    abortWorker(draft, phase.worker, phase.fence, [], \'interrupted\')\n', '']] },
  { fault: 'a final answer survives the interrupt that came before it counted', edits: [[settle, '  draft.state.fence++\n  run.final = null\n', '  draft.state.fence++\n']] },
  { fault: 'a delayed message interrupts', edits: [[messages, 'const interrupts = command.due_at === null && ', 'const interrupts = ']] },
  { fault: 'delayed messages come in the order they were posted', edits: [[settle, '.sort((a, b) => (a.due_at as number) - (b.due_at as number))', '']] },
  { fault: 'what was due before an interrupt comes behind it', edits: [
    [decide, '  const released = releaseDelayedMessages(draft)\n', ''],
    [decide, '  const changed = settle(draft) || released\n', '  const released = releaseDelayedMessages(draft)\n  const changed = settle(draft) || released\n']
  ] },
  { fault: 'a repeated request is a second message', edits: [[messages, '  if (state.seen.includes(command.message_id)) return \'duplicate\'\n', '']] },
  { fault: 'an edited message keeps its old content', edits: [[messages, '  put(draft, docNames.input(message.id), JSON.stringify(command.content))\n  message.cause', '  message.cause']] },
  { fault: 'a withdrawn message is delivered', edits: [[messages, '  draft.state.waiting = draft.state.waiting.filter((one) => one !== message)\n  drop(draft, docNames.input(message.id))\n', '']] },
  { fault: 'rollback leaves the messages of the run waiting', edits: [[settle, '  supersede(draft, run, state.waiting.filter((message) => message.run_id === run.id), [causedBy])\n', '']] },
  { fault: 'rollback leaves the input of the run', edits: [[settle, 'draft.rewind = run.ledger_start\n  state.messages = run.ledger_start', 'draft.rewind = run.ledger_start + 1\n  state.messages = run.ledger_start + 1']] },
  { fault: 'a run that interrupts another one waits behind the others', edits: [[decide, 'state.queue.unshift(run)', 'state.queue.push(run)']] },
  { fault: 'transcript: a provider id that comes twice is sent twice', edits: [[wire, 'own && !used.has(providerId) ? providerId', 'own ? providerId'], [wire, 'while (used.has(id)) id += \'_\'\n', '']] },
  { fault: 'transcript: only the newest answer of a batch is sent', edits: [[wire, 'for (const [id, answer] of answers) messages.push', 'for (const [id, answer] of [...answers].slice(-1)) messages.push']] },
  { fault: 'transcript: a message after an assistant message is left out', edits: [[wire, 'else if (typeof content === \'string\') messages.push', 'else if (ledger[i - 1]?.role !== \'assistant\' && typeof content === \'string\') messages.push']] }
]

/** How a fault was found; null: it was not. */
export type Caught = { schedules: number, says: string } | null

/** Plants a fault into a copy of the core and plays schedules on it until the judge objects. Throws when the fault cannot be planted. */
export async function hunt ({ edits }: Mutation, { numRuns = 550, seed = 1 } = {}): Promise<Caught> {
  mkdirSync(join(ROOT, '.cache'), { recursive: true })
  // Inside the project, so that the copy finds what it imports.
  const dir = mkdtempSync(join(ROOT, '.cache/mutation-'))
  try {
    cpSync(join(ROOT, 'src/core'), dir, { recursive: true })
    for (const [file, text, instead] of edits) {
      const path = join(dir, file)
      const source = readFileSync(path, 'utf8')
      const found = source.split(text).length - 1
      if (found !== 1) throw new Error(`${file} holds this text ${found} times, and a fault is to be planted there: ${text}`)
      writeFileSync(path, source.replace(text, () => instead))
    }
    const loaded = await Promise.all(['transition.ts', 'transcript.ts'].map((file) => import(pathToFileURL(join(dir, file)).href) as Promise<Partial<Core>>))
    // The checker sees the state: what is to be shown is that commands and events are enough.
    const mutant = Object.assign({ checkState: () => [], checkLedger: () => [] }, ...loaded) as Core
    const found = fc.check(fc.property(schedules, (moves) => { play(mutant, moves) }), { numRuns, seed, endOnFailure: true })
    return found.failed ? { schedules: found.numRuns, says: (found.errorInstance as Error).message } : null
  } finally {
    rmSync(dir, { recursive: true, force: true })
  }
}
