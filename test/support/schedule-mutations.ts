import { cpSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import fc from 'fast-check'
import { replaceOnce } from './core-sources.js'
import { schedules } from './schedule-moves.js'
import { play, type Core } from './schedule-stage.js'

const ROOT = join(import.meta.dirname, '../..')

/** A fault somebody could make: in the core, this text for that one. Each text must be there exactly once. */
export interface Mutation { fault: string, edits: [text: string, instead: string][] }

/** Faults the judge of schedules must find. What they leave intact still looks like a conversation, most of the time. */
export const MUTATIONS: Mutation[] = [
  { fault: 'the fence is not looked at: a stopped LLM call answers the next turn', edits: [[' || run.phase.fence !== fence) return null', ') return null']] },
  { fault: 'the fence does not grow', edits: [['phase.fence = nextFence(draft)', 'phase.fence = state.fence || 1'], ['  nextFence(draft)\n  run.final = null', '  run.final = null']] },
  { fault: 'the attempt of a call is not looked at', edits: [[' || call.attempt !== attempt) return null', ') return null']] },
  { fault: 'a delivered message stays in the queue as well', edits: [
    ['const delivered = deliver(draft, run, messages)\n', 'const delivered = deliver(draft, run, messages); state.waiting.push(...messages.slice(0, 1))\n'],
    ['{ doc: name }, \'}\'])\n  drop(draft, name)', '{ doc: name }, \'}\'])']
  ] },
  { fault: 'an unanswered call enters the ledger', edits: [['for (const call of answers) append', 'for (const call of answers.slice(0, -1)) append']] },
  { fault: 'the barrier opens before the last call is settled', edits: [['if (phase === null || phase.calls.some(isOpen)) return false', 'if (phase === null || phase.calls.filter(isOpen).length > 1) return false']] },
  { fault: 'a queued message comes with the next turn, not after the final answer', edits: [[' && message.mode === \'steer\' && message.due_at === null)', ' && message.due_at === null)']] },
  { fault: 'a message that raced the final answer is not answered', edits: [['if (answer !== null && waiting.length === 0) {', 'if (answer !== null) {']] },
  { fault: 'a message that raced the final answer can be taken back, and nothing is asked', edits: [
    ['if (answer !== null) run.phase.caused_by = [...causedBy, ...deliver(draft, run, waiting)]', 'if (answer !== null) for (const message of waiting) message.mode = \'steer\'']
  ] },
  { fault: 'the text of a batch that was stopped whole stays', edits: [
    ['  drop(draft, docNames.text(phase.turn))\n', '  if (kept.length === 0) append(draft, [{ doc: docNames.text(phase.turn) }, \'"tool_calls":[]}\'])\n  drop(draft, docNames.text(phase.turn))\n']
  ] },
  { fault: 'an interrupt comes before the messages that waited', edits: [['state.waiting.push(message)\n  put(draft', 'state.waiting.unshift(message)\n  put(draft']] },
  { fault: 'supersede takes the new message as well', edits: [
    ['supersede(draft, active, ready, [accepted])', 'supersede(draft, active, [...ready, message], [accepted])'],
    ['  state.waiting.push(message)\n  put(draft', '  if (!interrupts || command.queued === \'deliver\') state.waiting.push(message)\n  put(draft']
  ] },
  { fault: 'supersede is ignored', edits: [['if (command.queued === \'supersede\') supersede', 'if (command.queued === \'supersede\' && ready.length > 1) supersede']] },
  { fault: 'a cancelled run takes its messages with it', edits: [
    ['  deliver(draft, run, state.waiting.filter((message) => message.run_id === run.id && message.due_at === null))\n',
      '  if (status !== \'cancelled\') deliver(draft, run, state.waiting.filter((message) => message.run_id === run.id && message.due_at === null))\n  else state.waiting = state.waiting.filter((message) => message.run_id !== run.id)\n']
  ] },
  { fault: 'max_queued_messages is off by one', edits: [['others.length >= run.limits.max_queued_messages', 'others.length > run.limits.max_queued_messages']] },
  { fault: 'a rule is dropped: messages of a cancelled waiting run are never released', edits: [
    ['state.run === null ? state.waiting.filter((message) => message.run_id === null && message.due_at === null) : []', 'state.waiting.filter(() => false)']
  ] },
  { fault: 'a rule is dropped: an interrupt goes beyond max_turns', edits: [['run.answers >= maxTurns ? \'max_turns\' : ', '']] },
  { fault: 'what had not started yet survives an interrupt', edits: [
    ['  for (const call of phase.calls.filter(isOpen)) {\n    if (causedBy', '  for (const call of phase.calls.filter((one) => one.status === \'running\')) {\n    if (causedBy']
  ] },
  { fault: 'settled siblings leave with the cancelled calls', edits: [['leavesTombstone(run, call) : keepCompleted)', 'leavesTombstone(run, call) : keepCompleted && !phase.calls.some((one) => one.status === \'cancelled\'))']] },
  { fault: 'discard keeps what was settled', edits: [['command.completed_calls === \'keep\'', 'true']] },
  { fault: 'a call that only read leaves a tombstone', edits: [[' && call.rules.effects === \'write\' && call.started_at !== null)', ' && call.started_at !== null)']] },
  { fault: 'the wait before a retry is not interrupted', edits: [['phase.type === \'batch\' || phase.attempt > 0', 'phase.type === \'batch\' || phase.worker !== null']] },
  { fault: 'nobody is told to stop when an LLM call is interrupted', edits: [['    abortWorker(draft, phase.worker, phase.fence, [], \'interrupted\')\n', '']] },
  { fault: 'a final answer survives the interrupt that came before it counted', edits: [['  nextFence(draft)\n  run.final = null\n', '  nextFence(draft)\n']] },
  { fault: 'a delayed message interrupts', edits: [['const interrupts = command.due_at === null && ', 'const interrupts = ']] },
  { fault: 'delayed messages come in the order they were posted', edits: [['.sort((a, b) => (a.due_at as number) - (b.due_at as number))', '']] },
  { fault: 'what was due before an interrupt comes behind it', edits: [
    ['[releaseDelayedMessages(draft), forgetOldOrphans(draft)].includes(true)', 'forgetOldOrphans(draft)'],
    ['  const changed = settle(draft) || released\n', '  const delayed = releaseDelayedMessages(draft)\n  const changed = settle(draft) || released || delayed\n']
  ] },
  { fault: 'a repeated request is a second message', edits: [['  if (state.seen.includes(command.message_id)) return \'duplicate\'\n\n', '']] },
  { fault: 'an edited message keeps its old content', edits: [['  put(draft, docNames.input(message.id), JSON.stringify(command.content))\n  message.cause', '  message.cause']] },
  { fault: 'a withdrawn message is delivered', edits: [['  draft.state.waiting = draft.state.waiting.filter((one) => one !== message)\n  drop(draft, docNames.input(message.id))\n', '']] },
  { fault: 'rollback leaves the messages of the run waiting', edits: [['  supersede(draft, run, state.waiting.filter((message) => message.run_id === run.id), [causedBy])\n', '']] },
  { fault: 'rollback leaves the input of the run', edits: [['draft.rewind = run.ledger_start\n  state.messages = run.ledger_start', 'draft.rewind = run.ledger_start + 1\n  state.messages = run.ledger_start + 1']] },
  { fault: 'a run that interrupts another one waits behind the others', edits: [['state.queue.unshift(run)', 'state.queue.push(run)']] },
  { fault: 'transcript: a provider id that comes twice is sent twice', edits: [['own && !used.has(providerId) ? providerId', 'own ? providerId'], ['while (used.has(id)) id += \'_\'\n', '']] },
  { fault: 'transcript: only the newest answer of a batch is sent', edits: [['for (const [id, answer] of answers) messages.push', 'for (const [id, answer] of [...answers].slice(-1)) messages.push']] },
  { fault: 'transcript: a message after an assistant message is left out', edits: [['else if (typeof content === \'string\') messages.push', 'else if (ledger[i - 1]?.role !== \'assistant\' && typeof content === \'string\') messages.push']] }
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
    for (const [text, instead] of edits) replaceOnce(dir, text, instead)
    const loaded = await Promise.all(['transition.ts', 'transcript.ts'].map((file) => import(pathToFileURL(join(dir, file)).href) as Promise<Partial<Core>>))
    // The checker sees the state: what is to be shown is that commands and events are enough.
    const mutant = Object.assign({ checkState: () => [], checkLedger: () => [] }, ...loaded) as Core
    const found = fc.check(fc.property(schedules, (moves) => { play(mutant, moves) }), { numRuns, seed, endOnFailure: true })
    return found.failed ? { schedules: found.numRuns, says: (found.errorInstance as Error).message } : null
  } finally {
    rmSync(dir, { recursive: true, force: true })
  }
}
