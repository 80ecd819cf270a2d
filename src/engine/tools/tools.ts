import type { ToolDefinition } from '../../core/tool.js'
import { openEgress, type Resolve } from './egress.js'
import { exchange } from './exchange.js'
import { finalAnswer } from './final-answer.js'
import { httpFetch } from './http-fetch.js'
import { httpToolFaults, httpToolRequest } from './http-tool.js'
import { cut, jsonValue } from './json.js'
import { loadModuleTools, type ServerTool } from './module-tools.js'
import { NO_ARGUMENTS, openParameters } from './parameters.js'
import { openSecrets } from './secrets.js'
import { openSigning } from './signature.js'
import { ToolError, type ToolContext, type Tools } from './tool.js'

const MAX_MESSAGE_CHARS = 4_000
const MAX_PROGRESS_CHARS = 100_000

export interface ToolsOptions {
  /** The folder of module tools. Default: none. */
  dir?: string
  /** What tools may connect to beside the public internet: host, host:port, IP address or CIDR block (`INTERLOCK_ALLOWED_TOOL_HOSTS`). Default: nothing. */
  allowedHosts?: string[]
  /** Secrets that headers may name (`INTERLOCK_SECRETS`). Default: none. */
  secrets?: string
  /** What requests of http tools are signed with (`INTERLOCK_SIGNING_SECRET`). Default: they are not. */
  signingSecret?: string
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
  const secrets = openSecrets(options.secrets)
  const sign = openSigning(options.signingSecret)

  const builtins = new Map([httpFetch(egress, maxResponseBytes), finalAnswer].map((tool) => [tool.name, tool]))
  const modules = new Map<string, ServerTool>()
  for (const tool of options.dir === undefined ? [] : await loadModuleTools(options.dir)) {
    if (builtins.has(tool.name)) throw new Error(`the tools folder has a tool named ${tool.name}, which is the name of a builtin tool`)
    modules.set(tool.name, tool)
  }
  const serverTool = (tool: ToolDefinition): ServerTool | undefined => (tool.kind === 'module' ? modules : builtins).get(tool.name)
  const schemaOf = (tool: ToolDefinition): Record<string, unknown> | undefined =>
    isDeclared(tool) ? { ...(tool.parameters ?? NO_ARGUMENTS) } : serverTool(tool)?.parameters
  const isIdempotent = (tool: ToolDefinition): boolean => tool.idempotent ?? (isDeclared(tool) ? false : serverTool(tool)?.idempotent) ?? false

  async function execute (tool: ToolDefinition, args: Record<string, unknown>, context: ToolContext): Promise<unknown> {
    if (tool.kind === 'client') throw unknownTool(tool)
    if (tool.kind === 'http') {
      const request = httpToolRequest(tool, args, context, secrets, sign)
      return await exchange(egress, request, { signal: context.signal, maxBytes: maxResponseBytes, redact: secrets.redact })
    }
    const server = serverTool(tool)
    if (server === undefined) throw unknownTool(tool)
    // Copies both ways: a tool that goes on with its arguments or its answer after the end must change nothing here.
    return jsonValue(await server.run(structuredClone(args), context), maxResponseBytes)
  }

  return {
    listings: () => [...builtins.values(), ...modules.values()].map(({ run: _, ...listing }) => ({ ...listing, kind: builtins.has(listing.name) ? 'builtin' : 'module' })),

    async check (tool) {
      if (!isDeclared(tool) && serverTool(tool) === undefined) return [{ pointer: '/name', detail: `this server has no ${tool.kind} tool of that name: see GET /tools` }]
      const faults = tool.kind === 'http' ? httpToolFaults(tool, egress, secrets) : []
      if (tool.retry !== undefined && !isIdempotent(tool)) faults.push({ pointer: '/retry', detail: 'only for a tool that is idempotent: add "idempotent": true if it honours Idempotency-Key' })
      if (tool.approval_expires_seconds !== undefined && tool.approval !== 'always') faults.push({ pointer: '/approval_expires_seconds', detail: 'only with "approval": "always"' })
      if (tool.name === 'final_answer' && tool.kind === 'builtin' && tool.approval === 'always') faults.push({ pointer: '/approval', detail: 'a final answer is no call that could be held back' })
      for (const [i, template] of (tool.resources ?? []).entries()) {
        if (/[{}]/.test(template.replace(/\{[^{}]+\}/g, ''))) faults.push({ pointer: `/resources/${i}`, detail: 'has a brace without its other half; write {field} for a field of the arguments' })
      }
      if (!isDeclared(tool)) return faults
      const schema = schemaOf(tool)
      if (schema !== undefined) faults.push(...(await parameters.check(schema)).map((fault) => ({ ...fault, pointer: `/parameters${fault.pointer}` })))
      return faults
    },

    describe (tool) {
      const description = isDeclared(tool) ? tool.description : serverTool(tool)?.description
      // A module tool that only other workers have is offered all the same: its calls fail one by one, as `parse` and `run` say.
      return { type: 'function', function: { name: tool.name, ...(description ? { description } : {}), parameters: schemaOf(tool) ?? NO_ARGUMENTS } }
    },

    rules (tool, timeoutMs) {
      const listed = isDeclared(tool) ? undefined : serverTool(tool)
      const expires = tool.approval_expires_seconds
      return {
        effects: tool.effects ?? listed?.effects ?? 'write',
        idempotent: isIdempotent(tool),
        timeout_ms: tool.timeout_ms ?? listed?.timeout_ms ?? timeoutMs,
        placement: tool.placement ?? listed?.placement ?? 'local',
        ...(tool.resources !== undefined && { resources: tool.resources }),
        ...(tool.exclusive === true && { exclusive: true }),
        ...(tool.max_concurrency !== undefined && { max_concurrency: tool.max_concurrency }),
        ...(tool.max_calls !== undefined && { max_calls: tool.max_calls }),
        ...(tool.retry !== undefined && { retry: tool.retry }),
        ...(tool.approval === 'always' && { approval: { expires_ms: expires === undefined ? null : expires * 1000 } }),
        ...(tool.kind === 'client' && { client: { expires_ms: tool.timeout_ms ?? null } }),
        ...(tool.cancellable === false && { uncancellable: true })
      }
    },

    parse (tool, raw) {
      const schema = schemaOf(tool)
      if (schema === undefined) throw unknownTool(tool)
      return parameters.parse(schema, raw)
    },

    validate (tool, args) {
      const schema = schemaOf(tool)
      if (schema === undefined) throw unknownTool(tool)
      parameters.validate(schema, args)
    },

    run: (tool, args, context) => untilAborted(context, (guarded) => execute(tool, args, guarded)),

    close: () => egress.close()
  }
}

/** Whether the definition itself has description and parameters. */
function isDeclared (tool: ToolDefinition): tool is Extract<ToolDefinition, { kind: 'http' | 'client' }> {
  return tool.kind === 'http' || tool.kind === 'client'
}

function unknownTool (tool: ToolDefinition): ToolError {
  return new ToolError('unknown_tool', `This server has no ${tool.kind} tool named ${tool.name}.`)
}

/** Ends with the work or with the abort, whichever is first. What the work still gives afterwards is told to `late`, and nobody else. */
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
    let left = false
    const abort = (): void => {
      left = true
      end()
      reject(signal.reason as Error)
    }
    // Before the work adds listeners of its own: the reason must win over the error that the abort causes inside.
    signal.addEventListener('abort', abort)
    const guarded: ToolContext = { ...context, progress: (data) => { if (!over) context.progress(jsonValue(data, MAX_PROGRESS_CHARS)) } }
    work(guarded).then(
      (output) => {
        if (left) context.late?.(output)
        end()
        resolve(output)
      },
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
