import type { ChatCompletionTool } from 'openai/resources/chat/completions'
import type { CallRules } from '../../core/state.js'
import type { RunTool, ToolDefinition } from '../../core/tool.js'

/** What a running call may know and use. */
export interface ToolContext {
  conversation_id: string
  run_id: string
  call_id: string
  turn: number
  /** 1 for the first execution; higher after a worker was lost. */
  attempt: number
  /** Fires on timeout, interrupt, cancel and shutdown, with a reason. A tool that ignores it changes nothing: its result is refused. */
  signal: AbortSignal
  /** Tells listeners about progress (`tool.progress`). Any JSON value. */
  progress: (data: unknown) => void
  /** Is told what a tool still gave after the call was given up: a result that nobody waits for. */
  late?: (output: unknown) => void
}

/** A failed call. It goes to the model as `{"error": {"code", "message"}}`; `message` is safe to show. */
export class ToolError extends Error {
  override name = 'ToolError'
  readonly code: 'unknown_tool' | 'invalid_arguments' | 'timeout' | 'http_error' | 'tool_error'
  constructor (code: ToolError['code'], message: string, options?: ErrorOptions) {
    super(message, options)
    this.code = code
  }
}

/** A tool the server itself offers, as `GET /tools` lists it. */
export interface ToolListing {
  name: string
  kind: 'builtin' | 'module' | 'mcp'
  /** The MCP server it is of. */
  server?: string
  description: string
  parameters: Record<string, unknown>
  effects: 'read' | 'write'
  idempotent: boolean
  timeout_ms: number | null
  placement: 'local' | 'spread'
}

/** Something wrong with a declared tool; `pointer` is a JSON pointer below the tool (`/parameters/properties/x`). */
export interface ToolFault { pointer: string, detail: string, code?: 'blocked_url' }

/** All that the engine and the routes need of tools. Safe to share between runs. */
export interface Tools {
  /** The builtin and module tools of this server, and those of its MCP servers that answer. */
  listings: () => Promise<ToolListing[]>
  /** What is wrong with a tool a client declared: unknown module, hostile or invalid JSON Schema, forbidden header, blocked URL. Empty when nothing is. */
  check: (tool: ToolDefinition) => Promise<ToolFault[]>
  /**
   * The tools that definitions which have passed `check` stand for: themselves, or those of their MCP servers that are allowed. Faults instead, where a server
   * does not answer or has no such tool, and where they come to more than `most`; their pointers begin with the place of the definition. Takes as long as the
   * slowest server, 10 s at most.
   */
  expand: (tools: ToolDefinition[], most: number) => Promise<{ tools: RunTool[], faults: ToolFault[] }>
  /** The tool as the provider is told of it. */
  describe: (tool: RunTool) => ChatCompletionTool
  /** What the listing and the definition say of when and how a call may run. `timeoutMs` where neither says. */
  rules: (tool: RunTool, timeoutMs: number) => CallRules
  /**
   * Parses and validates what the model wrote. Never repairs it. Throws a `ToolError` with `invalid_arguments`. Arguments that refer to
   * other calls are only parsed: they are validated when they are complete.
   */
  parse: (tool: RunTool, raw: string) => Record<string, unknown>
  /** Validates arguments at hand. Throws as `parse` does. */
  validate: (tool: RunTool, args: Record<string, unknown>) => void
  /**
   * Runs one call. Resolves with its output (any JSON value), rejects with a `ToolError` for whatever went wrong in the tool,
   * or with the signal's reason when aborted: at once, also when the tool ignores the abort.
   */
  run: (tool: RunTool, args: Record<string, unknown>, context: ToolContext) => Promise<unknown>
  close: () => Promise<void>
}
