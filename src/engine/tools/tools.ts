import type { ToolDefinition } from '../../core/tool.js'
import { openEgress, type Resolve } from './egress.js'
import { exchange } from './exchange.js'
import { finalAnswer } from './final-answer.js'
import { httpFetch } from './http-fetch.js'
import { httpToolFaults, httpToolRequest } from './http-tool.js'
import { cut, jsonValue } from './json.js'
import { loadModuleTools, type ServerTool } from './module-tools.js'
import { NO_ARGUMENTS, openParameters } from './parameters.js'
import { ToolError, type ToolContext, type Tools } from './tool.js'

const MAX_MESSAGE_CHARS = 4_000
const MAX_PROGRESS_CHARS = 100_000

export interface ToolsOptions {
  /** The folder of module tools. Default: none. */
  dir?: string
  /** What tools may connect to beside the public internet: host, host:port, IP address or CIDR block (`INTERLOCK_ALLOWED_TOOL_HOSTS`). Default: nothing. */
  allowedHosts?: string[]
  /** Bytes of an HTTP answer after decompression, and characters of what a module tool returns. Default: 10,000,000. */
  maxResponseBytes?: number
  /** How host names are resolved. Default: as the operating system does. */
  resolve?: Resolve
}

/** Opens all that runs tools. Rejects with one sentence when the tools folder or an allowed host is not usable. */
export async function openTools (options: ToolsOptions = {}): Promise<Tools> {
  const { allowedHosts = [], maxResponseBytes = 10_000_000, resolve } = options
  const egress = openEgress({ allowedHosts, resolve })
  const parameters = openParameters()

  const builtins = new Map([httpFetch(egress, maxResponseBytes), finalAnswer].map((tool) => [tool.name, tool]))
  const modules = new Map<string, ServerTool>()
  for (const tool of options.dir === undefined ? [] : await loadModuleTools(options.dir)) {
    if (builtins.has(tool.name)) throw new Error(`the tools folder has a tool named ${tool.name}, which is the name of a builtin tool`)
    modules.set(tool.name, tool)
  }
  const serverTool = (tool: ToolDefinition): ServerTool | undefined => (tool.kind === 'module' ? modules : builtins).get(tool.name)
  const schemaOf = (tool: ToolDefinition): Record<string, unknown> | undefined =>
    tool.kind === 'http' ? { ...(tool.parameters ?? NO_ARGUMENTS) } : serverTool(tool)?.parameters

  async function execute (tool: ToolDefinition, args: Record<string, unknown>, context: ToolContext): Promise<unknown> {
    if (tool.kind === 'http') return await exchange(egress, httpToolRequest(tool, args, context), { signal: context.signal, maxBytes: maxResponseBytes })
    const server = serverTool(tool)
    if (server === undefined) throw unknownTool(tool)
    // Copies both ways: a tool that goes on with its arguments or its answer after the end must change nothing here.
    return jsonValue(await server.run(structuredClone(args), context), maxResponseBytes)
  }

  return {
    listings: () => [...builtins.values(), ...modules.values()].map(({ run: _, ...listing }) => ({ ...listing, kind: builtins.has(listing.name) ? 'builtin' : 'module' })),

    async check (tool) {
      if (tool.kind !== 'http') {
        return serverTool(tool) === undefined ? [{ pointer: '/name', detail: `this server has no ${tool.kind} tool of that name: see GET /tools` }] : []
      }
      const faults = httpToolFaults(tool, egress)
      const schema = schemaOf(tool)
      if (schema !== undefined) faults.push(...(await parameters.check(schema)).map((fault) => ({ ...fault, pointer: `/parameters${fault.pointer}` })))
      return faults
    },

    describe (tool) {
      const description = tool.kind === 'http' ? tool.description : serverTool(tool)?.description
      // A module tool that only other workers have is offered all the same: its calls fail one by one, as `parse` and `run` say.
      return { type: 'function', function: { name: tool.name, ...(description ? { description } : {}), parameters: schemaOf(tool) ?? NO_ARGUMENTS } }
    },

    facts (tool) {
      const listed = tool.kind === 'http' ? undefined : serverTool(tool)
      return {
        effects: tool.effects ?? listed?.effects ?? 'write',
        idempotent: tool.idempotent ?? listed?.idempotent ?? false,
        timeout_ms: tool.timeout_ms ?? listed?.timeout_ms ?? null,
        placement: tool.placement ?? listed?.placement ?? 'local'
      }
    },

    parse (tool, raw) {
      const schema = schemaOf(tool)
      if (schema === undefined) throw unknownTool(tool)
      return parameters.parse(schema, raw)
    },

    run: (tool, args, context) => untilAborted(context, (guarded) => execute(tool, args, guarded)),

    close: () => egress.close()
  }
}

function unknownTool (tool: ToolDefinition): ToolError {
  return new ToolError('unknown_tool', `This server has no ${tool.kind} tool named ${tool.name}.`)
}

/** Ends with the work or with the abort, whichever is first. What the work still does or says afterwards reaches nobody. */
function untilAborted<T> (context: ToolContext, work: (context: ToolContext) => Promise<T>): Promise<T> {
  const { signal } = context
  return new Promise((resolve, reject) => {
    if (signal.aborted) {
      reject(signal.reason as Error)
      return
    }
    let over = false
    const end = (): void => {
      over = true
      signal.removeEventListener('abort', abort)
    }
    const abort = (): void => {
      end()
      reject(signal.reason as Error)
    }
    // Before the work adds listeners of its own: the reason must win over the error that the abort causes inside.
    signal.addEventListener('abort', abort)
    const guarded: ToolContext = { ...context, progress: (data) => { if (!over) context.progress(jsonValue(data, MAX_PROGRESS_CHARS)) } }
    work(guarded).then(
      (output) => { end(); resolve(output) },
      (error: unknown) => { end(); reject(toolError(error)) }
    )
  })
}

/** Whatever was thrown, as the error the model is told: a bounded message, never a stack. The cause is for logs. */
function toolError (thrown: unknown): ToolError {
  const code = thrown instanceof ToolError ? thrown.code : 'tool_error'
  return new ToolError(code, cut(messageOf(thrown), MAX_MESSAGE_CHARS), { cause: thrown })
}

function messageOf (thrown: unknown): string {
  try {
    const message = typeof thrown === 'object' && thrown !== null && 'message' in thrown ? thrown.message : thrown
    if (typeof message === 'string' && message.trim() !== '') return message
  } catch {
    // A getter or proxy that throws: it has no message then.
  }
  return 'the tool failed without a message'
}
