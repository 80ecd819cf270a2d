import { docNames, iso } from '../core/draft.js'
import type { Receipt } from '../core/messages.js'
import type { State } from '../core/state.js'
import { messageDelivered, notFound, queueFull, runEnded, versionConflict } from '../errors.js'
import type { PostedMessage } from '../schemas/message.js'
import type { Store } from '../store/store.js'
import { answering, conversationOf, rowOf, type Context } from './context.js'
import type { Caller, Services } from './services.js'

/** What the sender of a message was told. Null: there is no such message. */
export async function readReceipt (store: Store, conversation: string, messageId: string): Promise<Receipt | null> {
  const [receipt] = await store.docs(conversation, [docNames.receipt(messageId)])
  return receipt == null ? null : JSON.parse(receipt) as Receipt
}

/** Messages to a run in progress. */
export function createMessageService (context: Context): Services['messages'] {
  const { store, executed, clock } = context

  /** Those of a run's messages that wait, in the order in which they will be delivered. */
  async function waitingOf (conversation: string, state: State, runId: string): Promise<PostedMessage[]> {
    const waiting = state.waiting.filter((message) => message.run_id === runId)
    const contents = await store.docs(conversation, waiting.map((message) => docNames.input(message.id)))
    return waiting.map(({ id, mode, due_at: due }, i) => ({
      message_id: id, mode, content: JSON.parse(contents[i] ?? 'null') as PostedMessage['content'], due_at: due === null ? null : iso(due), position: i + 1
    }))
  }

  /** Why a message cannot be changed: it was delivered or withdrawn, or there never was one. */
  async function gone (caller: Caller, conversation: string, runId: string, messageId: string): Promise<Error> {
    const { state } = await rowOf(context, caller, conversation)
    if (await readReceipt(store, conversation, messageId) === null) return notFound('message')
    return state.run?.id === runId || state.queue.some((run) => run.id === runId) ? messageDelivered(messageId) : runEnded(runId, conversation)
  }

  return {
    post: (caller, runId, body) => answering(async () => {
      const conversation = await conversationOf(context, caller, runId)
      const messageId = `msg_${caller.operation}`
      const delay = body.after_seconds ?? 0
      const at = clock.now()
      // The row remembers the last operations only; what this one was told is there for good.
      const before = caller.repeated === true ? await readReceipt(store, conversation, messageId) : null
      if (before !== null) return before
      const { refusal } = await executed.execute(conversation, {
        type: 'PostMessage',
        at,
        run_id: runId,
        message_id: messageId,
        content: body.content,
        mode: body.mode ?? 'auto',
        queued: body.queued ?? 'deliver',
        completed_calls: body.completed_calls ?? 'keep',
        due_at: delay > 0 ? at + delay * 1000 : null
      }, { claim: 'local' })
      if (refusal === 'run_ended') throw runEnded(runId, conversation)
      if (refusal === 'not_found') throw notFound('run')
      if (refusal === 'queue_full') {
        const { state } = await rowOf(context, caller, conversation)
        const run = state.run?.id === runId ? state.run : state.queue.find((one) => one.id === runId)
        if (run === undefined) throw runEnded(runId, conversation)
        throw queueFull(run.limits.max_queued_messages)
      }
      const receipt = await readReceipt(store, conversation, messageId)
      if (receipt === null) throw versionConflict()
      return receipt
    }),

    list: (caller, runId) => answering(async () => {
      const conversation = await conversationOf(context, caller, runId)
      const { state } = await rowOf(context, caller, conversation)
      return { data: await waitingOf(conversation, state, runId), next_cursor: null }
    }),

    edit: (caller, runId, messageId, content) => answering(async () => {
      const conversation = await conversationOf(context, caller, runId)
      const { refusal, row, events: [told] } = await executed.execute(conversation, { type: 'EditMessage', at: clock.now(), run_id: runId, message_id: messageId, content })
      if (refusal !== null || row === null) throw await gone(caller, conversation, runId, messageId)
      const edited = (await waitingOf(conversation, row.state, runId)).find((message) => message.message_id === messageId)
      if (edited !== undefined) return { ...edited, content }
      // What was stored together with it has delivered it: as it says now.
      return { message_id: messageId, mode: told?.mode as PostedMessage['mode'], content, due_at: (told?.due_at ?? null) as string | null, position: 1 }
    }),

    withdraw: (caller, runId, messageId) => answering(async () => {
      const conversation = await conversationOf(context, caller, runId)
      const { refusal } = await executed.execute(conversation, { type: 'WithdrawMessage', at: clock.now(), run_id: runId, message_id: messageId })
      if (refusal !== null) throw await gone(caller, conversation, runId, messageId)
    })
  }
}
