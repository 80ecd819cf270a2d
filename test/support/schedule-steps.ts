import { checkLedger, checkState } from '../../src/core/check.js'
import type { Command, PostMessage } from '../../src/core/command.js'
import { docNames } from '../../src/core/draft.js'
import type { Message } from '../../src/core/message.js'
import type { Receipt } from '../../src/core/messages.js'
import { transcript, type WireMessage } from '../../src/core/transcript.js'
import { createScene, type Scene, type Step } from './core-scene.js'
import { createJudge, type Judge } from './schedule-judge.js'

/** A scene whose every step is judged, and whose LLM requests are kept. */
export interface JudgedScene extends Scene {
  judge: Judge
  /** What each LLM call was sent, without the instructions. */
  requests: WireMessage[][]
}

export function judgedScene (...steps: Step[]): JudgedScene {
  const scene = createScene()
  const judge = createJudge()
  const requests: WireMessage[][] = []
  const when = scene.when.bind(scene)
  scene.when = (step) => {
    let command: Command | null = null
    const then = when((here) => command = step(here))
    if (command === null) return then
    const { refusal, events, effects, messages } = then
    judge.see({ command, refusal, events, effects, added: messages.length, ledger: scene.ledger, receipt: (id) => receiptOf(scene, id) })
    if (refusal !== null) return then
    const [wrong] = [...checkState(scene.state()), ...checkLedger(scene.state(), scene.ledger)]
    if (wrong !== undefined) throw new Error(`the checker says: ${wrong}`)
    if (!effects.some((effect) => effect.type === 'call_model')) return then
    const sent = transcript(scene.ledger, null)
    if (sent === null) throw new Error('an LLM call without a message to answer')
    judge.sent(sent.messages, sent.repairs)
    requests.push(sent.messages)
    return then
  }
  const judged = Object.assign(scene, { judge, requests })
  judged.given(...steps)
  return judged
}

type PostOptions = Partial<Omit<PostMessage, 'type' | 'at' | 'message_id' | 'run_id'>> & { to?: string, after?: number }

/** Posts the message `m_<name>`, to r1 and as `auto` unless it says otherwise; `after` milliseconds. */
export const post = (name: string, { to = 'r1', after, ...over }: PostOptions = {}): Step => ({ now }) => ({
  type: 'PostMessage',
  at: now,
  run_id: to,
  message_id: `m_${name}`,
  content: `message ${name}`,
  mode: 'auto',
  queued: 'deliver',
  completed_calls: 'keep',
  due_at: after === undefined ? null : now + after,
  ...over
})

export const edit = (name: string, content: string, to = 'r1'): Step => ({ now }) => ({ type: 'EditMessage', at: now, run_id: to, message_id: `m_${name}`, content })

export const withdraw = (name: string, to = 'r1'): Step => ({ now }) => ({ type: 'WithdrawMessage', at: now, run_id: to, message_id: `m_${name}` })

/** What the sender of a message was told. */
export function receiptOf (scene: Scene, messageId: string): Receipt | null {
  const text = scene.docs.get(docNames.receipt(messageId))
  return text === undefined ? null : JSON.parse(text) as Receipt
}

/** The ledger in short: `input of r1`, `→ a b` for calls, `a: output of a` for a result, `message x`. */
export function inBrief (ledger: Message[]): string[] {
  return ledger.map(({ role, content, tool_calls: calls, tool_call_id: id }) => {
    const text = typeof content === 'string' ? content : JSON.stringify(content)
    if (role === 'tool') return `${(id ?? '').replace('call_', '')}: ${/"code":"(\w+)"/.exec(text)?.[1] ?? text}`
    return calls === undefined ? text : `${text}→ ${calls.map((call) => call.call_id.replace('call_', '')).join(' ')}`
  })
}
