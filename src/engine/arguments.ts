import { docNames } from '../core/draft.js'
import type { Reads } from '../store/store.js'

/** What calls are run with, by id: as the model wrote it, or as it was filled in or edited since. Those that are not there any more are left out. */
export async function readArguments (from: Pick<Reads, 'docs'>, conversation: string, callIds: string[]): Promise<Map<string, Record<string, unknown>>> {
  const stored = await from.docs(conversation, callIds.flatMap((id) => [docNames.arguments(id), docNames.call(id)]))
  return new Map(callIds.flatMap((id, i): [string, Record<string, unknown>][] => {
    const [own, written] = stored.slice(2 * i)
    if (own != null) return [[id, JSON.parse(own) as Record<string, unknown>]]
    return written == null ? [] : [[id, (JSON.parse(written) as { arguments?: Record<string, unknown> }).arguments ?? {}]]
  }))
}
