import { docNames, iso } from '../core/draft.js'
import { ORPHAN_TTL_MS } from '../core/orphans.js'
import type { Orphan as Kept, State } from '../core/state.js'
import { forModel } from '../engine/tools/output.js'
import { notFound, versionConflict } from '../errors.js'
import type { Orphan } from '../schemas/action.js'
import { answering, conversationOf, rowOf, type Context } from './context.js'
import { readReceipt } from './messages.js'
import type { Services } from './services.js'

/** Results that came too late: to see, to discard, or to hand to the model after all. */
export function createOrphanService (context: Pick<Context, 'store' | 'reads' | 'executed' | 'clock'>): Services['orphans'] {
  const { store, reads, executed, clock } = context

  const keptOf = (state: State, runId: string): Kept[] => {
    return state.orphans.filter((one) => one.run_id === runId && one.at + ORPHAN_TTL_MS > clock.now())
  }

  async function read (conversation: string, kept: Kept[]): Promise<Orphan[]> {
    const texts = await reads.docs(conversation, kept.map((one) => docNames.orphan(one.call_id)))
    return texts.flatMap((json, i) => json == null ? [] : [{ ...JSON.parse(json) as Omit<Orphan, 'expires_at'>, expires_at: iso((kept[i] as Kept).at + ORPHAN_TTL_MS) }])
  }

  return {
    list: (caller, runId) => answering(async () => {
      const conversation = await conversationOf(context, caller, runId)
      const { state } = await rowOf(context, caller, conversation)
      return { data: await read(conversation, keptOf(state, runId)), next_cursor: null }
    }),

    discard: (caller, runId, callId) => answering(async () => {
      const conversation = await conversationOf(context, caller, runId)
      const { refusal } = await executed.execute(conversation, { type: 'DiscardOrphan', at: clock.now(), run_id: runId, call_id: callId })
      if (refusal !== null) throw notFound('orphan')
    }),

    attach: (caller, runId, callId) => answering(async () => {
      const conversation = await conversationOf(context, caller, runId)
      const { state } = await rowOf(context, caller, conversation)
      const messageId = `msg_${caller.operation}`
      const [orphan] = await read(conversation, keptOf(state, runId).filter((one) => one.call_id === callId))
      if (orphan !== undefined) {
        const limit = state.run?.limits.max_result_chars ?? 60_000
        const content = `A result that came late, of the call ${callId} to ${orphan.name}:\n${forModel(orphan.output, limit).text}`
        const { refusal } = await executed.execute(conversation, {
          type: 'AttachOrphan', at: clock.now(), run_id: runId, call_id: callId, message_id: messageId, content
        }, { claim: 'local' })
        if (refusal === 'not_found') throw notFound('orphan')
      }
      // Where this very request has attached it before, its receipt is there.
      const receipt = await readReceipt(store, conversation, messageId)
      if (receipt === null) throw orphan === undefined ? notFound('orphan') : versionConflict()
      return receipt
    })
  }
}
