import type { ToolContext } from '../../src/engine/tools/tool.js'

/** What a call runs with in tests; `progress` is collected nowhere unless given. */
export function toolContext (over: Partial<ToolContext> = {}): ToolContext {
  return {
    conversation_id: 'conv_1',
    run_id: 'run_1',
    call_id: 'call_1',
    turn: 1,
    attempt: 1,
    signal: new AbortController().signal,
    progress: () => {},
    ...over
  }
}
