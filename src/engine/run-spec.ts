import type { ChatCompletionTool } from 'openai/resources/chat/completions'
import { docNames } from '../core/draft.js'
import type { RunRecord } from '../core/state.js'
import type { RunTool } from '../core/tool.js'
import type { Reads } from '../store/store.js'
import type { Clock } from './ports.js'
import { createRecent } from './recent.js'
import type { Tools } from './tools/tool.js'

/** What performing a run's turns takes, beyond the state row: kept once beside it, as `StartRun.spec`. */
export interface RunSpec {
  instructions: string | null
  model_options: Record<string, unknown>
  tools: RunTool[]
}

/** A run's spec, made ready for use. */
export interface PreparedSpec {
  instructions: string | null
  options: Record<string, unknown>
  tools: Map<string, RunTool>
  /** The tools as the provider is told of them. */
  offered: ChatCompletionTool[]
}

const KEPT_SPECS = 2_000

/** Reads a run's spec, from memory where this process has had it before: it never changes. Null: the run is gone, with its conversation. */
export function createSpecs (reads: Pick<Reads, 'docs'>, tools: Tools, clock: Pick<Clock, 'now'>): (conversation: string, runId: string) => Promise<PreparedSpec | null> {
  const kept = createRecent<PreparedSpec>(clock, { most: KEPT_SPECS })
  return async (conversation, runId) => {
    let found = kept.get(runId)
    if (found === undefined) {
      const [json] = await reads.docs(conversation, [docNames.run(runId)])
      if (json == null) return null
      const spec = (JSON.parse(json) as RunRecord).request as RunSpec
      found = {
        instructions: spec.instructions,
        options: spec.model_options,
        tools: new Map(spec.tools.map((tool) => [tool.name, tool])),
        offered: spec.tools.map((tool) => tools.describe(tool))
      }
      kept.set(runId, found)
    }
    return found
  }
}
