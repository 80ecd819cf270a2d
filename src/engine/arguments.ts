import { docNames } from '../core/draft.js'
import type { Store } from '../store/store.js'

/** What calls are run with, by id: as the model wrote it, or as it was filled in or edited since. */
export async function readArguments (from: Pick<Store, 'docs'>, conversation: string, callIds: string[]): Promise<Map<string, Record<string, unknown>>> {
  const stored = await from.docs(conversation, callIds.flatMap((id) => [docNames.arguments(id), docNames.call(id)]))
  return new Map(callIds.map((id, i) => {
    const [own, written] = stored.slice(2 * i)
    return [id, own != null ? JSON.parse(own) : (JSON.parse(written ?? '{}') as { arguments?: Record<string, unknown> }).arguments ?? {}]
  }))
}
