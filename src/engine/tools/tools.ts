import type { HttpTool, McpOffer, McpTool, RunTool, ToolDefinition } from '../../core/tool.js'
import { openEgress, type Resolve } from './egress.js'
import { exchange } from './exchange.js'
import { finalAnswer } from './final-answer.js'
import { httpFetch } from './http-fetch.js'
import { httpToolFaults, httpToolRequest } from './http-tool.js'
import { cut, jsonValue } from './json.js'
import { loadModuleTools, type ServerTool } from './module-tools.js'
import { openMcp, type McpListing, type McpRef } from './mcp/mcp.js'
import { parseMcpServers, type McpServer } from './mcp/servers.js'
import { NO_ARGUMENTS, openParameters } from './parameters.js'
import { openSecrets, type Secrets } from './secrets.js'
import { openSigning } from './signature.js'
import { ToolError, type ToolContext, type ToolFault, type ToolListing, type Tools } from './tool.js'

const MAX_MESSAGE_CHARS = 4_000
/** How long an MCP server has to say what tools it has, in milliseconds: a request waits for it. */
const LIST_MS = 10_000
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
  /** MCP servers that runs may name (`INTERLOCK_MCP_SERVERS`). Default: none. */
  mcpServers?: string
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
  const servers = withSecrets(options.mcpServers === undefined ? new Map() : parseMcpServers(options.mcpServers), secrets)
  const mcp = openMcp({ servers, egress, maxResponseBytes })

  const builtins = new Map([httpFetch(egress, maxResponseBytes), finalAnswer].map((tool) => [tool.name, tool]))
  const modules = new Map<string, ServerTool>()
  for (const tool of options.dir === undefined ? [] : await loadModuleTools(options.dir)) {
    if (builtins.has(tool.name)) throw new Error(`the tools folder has a tool named ${tool.name}, which is the name of a builtin tool`)
    modules.set(tool.name, tool)
  }
  const serverTool = (tool: RunTool): ServerTool | undefined => (tool.kind === 'module' ? modules : builtins).get(tool.name)
  const schemaOf = (tool: RunTool): Record<string, unknown> | undefined =>
    isDeclared(tool) ? { ...(tool.parameters ?? NO_ARGUMENTS) } : serverTool(tool)?.parameters
  const isIdempotent = (tool: RunTool): boolean => optionsOf(tool).idempotent ?? (isDeclared(tool) ? false : serverTool(tool)?.idempotent) ?? false

  /** Where an MCP tool is, with its secrets put in. */
  const refOf = ({ server, server_url: url, headers }: Pick<McpTool, 'server' | 'server_url' | 'headers'>): McpRef => {
    if (url === undefined) return { server: server ?? '' }
    const filled = Object.entries(headers ?? {}).map(([name, value]) => [name, secrets.fill(value, new URL(url))])
    return { server_url: url, headers: Object.fromEntries(filled) as Record<string, string> }
  }

  function mcpFaults (tool: McpTool): ToolFault[] {
    const { server, server_url: url, headers } = tool
    if ((server === undefined) === (url === undefined)) return [{ pointer: '/server', detail: 'either this or "server_url" is needed, and not both' }]
    if (server !== undefined && headers !== undefined) return [{ pointer: '/headers', detail: 'are for a "server_url"; a configured server has its own' }]
    if (url !== undefined && !URL.canParse(url)) return [{ pointer: '/server_url', detail: 'is not an absolute URL' }]
    const wrong = Object.entries(headers ?? {}).flatMap(([name, value]) => {
      const detail = url === undefined ? null : secrets.fault(value, new URL(url))
      return detail === null ? [] : [{ pointer: `/headers/${escapePointer(name)}`, detail }]
    })
    if (wrong.length > 0) return wrong
    const refusal = mcp.refusal(refOf(tool))
    return refusal === null ? [] : [refusal]
  }

  async function expand (declared: ToolDefinition[], most: number): Promise<{ tools: RunTool[], faults: ToolFault[] }> {
    // A server may say what it was sent, and its list is kept with the run and shown to the model.
    const lists = await Promise.all(declared.map((tool) => tool.kind === 'mcp' ? mcp.list(refOf(tool), LIST_MS).catch(messageOf).then(secrets.redact) : null))
    const taken = new Set(declared.flatMap((tool) => tool.kind === 'mcp' ? [] : tool.name))
    const found: RunTool[] = []
    const faults: ToolFault[] = []
    const count = declared.reduce((sum, tool, i) => sum + (tool.kind === 'mcp' ? asked(tool, lists[i] ?? []).length : 1), 0)
    if (count > most) return { tools: [], faults: [{ pointer: '', detail: `come to ${count} tools, ${most} may be offered: name the ones you want in "allowed"` }] }
    for (const [i, tool] of declared.entries()) {
      const one = tool.kind === 'mcp' ? await offersOf(tool, lists[i] ?? [], taken) : { tools: [tool], faults: [] }
      for (const fault of one.faults) faults.push({ ...fault, pointer: `/${i}${fault.pointer}` })
      for (const { name } of one.tools) taken.add(name)
      found.push(...one.tools)
    }
    return { tools: found, faults }
  }

  /** `listed`: what its server has, or why that is not known. */
  async function offersOf (tool: McpTool, listed: McpListing[] | string, taken: ReadonlySet<string>): Promise<{ tools: RunTool[], faults: ToolFault[] }> {
    const { allowed, approval, ...rest } = tool
    if (typeof listed === 'string') return { tools: [], faults: [{ pointer: tool.server === undefined ? '/server_url' : '/server', detail: listed }] }
    const names = new Set(listed.map((one) => one.name))
    const unknown = 'is no tool of this server: see its list'
    const faults: ToolFault[] = (allowed ?? []).flatMap((name, i) => names.has(name) ? [] : [{ pointer: `/allowed/${i}`, detail: unknown }])
    const consents = new Map(typeof approval === 'object' ? Object.entries(approval) : [])
    for (const name of consents.keys()) {
      const detail = !names.has(name) ? unknown : allowed?.includes(name) === false ? 'is not offered: it is not in "allowed"' : null
      if (detail !== null) faults.push({ pointer: `/approval/${escapePointer(name)}`, detail })
    }
    const used = new Set(taken)
    const offers: McpOffer[] = []
    for (const one of asked(tool, listed)) {
      const own = one.name.replace(/[^a-zA-Z0-9_-]/g, '_').slice(0, 64)
      const name = used.has(own) ? `${tool.name}_${own}`.slice(0, 64) : own
      // A tool whose schema cannot be checked is not offered, unless it was asked for.
      const broken = await parameters.check(one.parameters)
      if (used.has(name) || broken.length > 0) {
        const i = allowed?.indexOf(one.name) ?? -1
        if (i !== -1) faults.push({ pointer: `/allowed/${i}`, detail: used.has(name) ? `there are two tools named "${name}"` : `its parameters cannot be checked: ${broken[0]?.pointer} ${broken[0]?.detail}` })
        continue
      }
      used.add(name)
      const consent = typeof approval === 'object' ? consents.get(one.name) : approval
      offers.push({
        ...rest, name, tool: one.name, description: one.description, parameters: one.parameters,
        effects: tool.effects ?? one.effects, idempotent: tool.idempotent ?? one.idempotent, ...(consent !== undefined && { approval: consent })
      })
    }
    return { tools: offers, faults }
  }

  async function execute (tool: RunTool, args: Record<string, unknown>, context: ToolContext): Promise<unknown> {
    if (tool.kind === 'client') throw unknownTool(tool)
    if (tool.kind === 'http') {
      const request = httpToolRequest(tool, args, context, secrets, sign)
      return await exchange(egress, request, { signal: context.signal, maxBytes: maxResponseBytes, redact: secrets.redact })
    }
    if (tool.kind === 'mcp') {
      const progress = (data: unknown) => context.progress(secrets.redact(data))
      const output = await mcp.call(refOf(tool), tool.tool, args, { ...context, progress }).catch((error: unknown) => {
        // A server may say what it was sent. The reason of an abort is ours.
        throw error instanceof ToolError ? new ToolError(error.code, secrets.redact(error.message)) : error
      })
      return secrets.redact(jsonValue(output, maxResponseBytes))
    }
    const server = serverTool(tool)
    if (server === undefined) throw unknownTool(tool)
    // Copies both ways: a tool that goes on with its arguments or its answer after the end must change nothing here.
    return jsonValue(await server.run(structuredClone(args), context), maxResponseBytes)
  }

  return {
    async listings () {
      const own = [...builtins.values(), ...modules.values()].map(({ run: _, ...listing }): ToolListing => {
        return { ...listing, kind: builtins.has(listing.name) ? 'builtin' : 'module' }
      })
      const others = await Promise.all(mcp.names().map(async (server) => {
        const listed = secrets.redact(await mcp.list({ server }, LIST_MS).catch(() => []))
        return listed.map((one): ToolListing => ({ ...one, kind: 'mcp', server, timeout_ms: null, placement: 'local' }))
      }))
      return [...own, ...others.flat()]
    },

    async check (tool) {
      if (tool.kind !== 'mcp' && !isDeclared(tool) && serverTool(tool) === undefined) return [{ pointer: '/name', detail: `this server has no ${tool.kind} tool of that name: see GET /tools` }]
      const faults = tool.kind === 'mcp' ? mcpFaults(tool) : tool.kind === 'http' ? httpToolFaults(tool, egress, secrets) : []
      if (optionsOf(tool).retry !== undefined && !(tool.kind === 'mcp' ? tool.idempotent : isIdempotent(tool))) faults.push({ pointer: '/retry', detail: 'only for a tool that is idempotent: add "idempotent": true if it honours Idempotency-Key' })
      if (tool.approval_expires_seconds !== undefined && ![tool.approval ?? 'never'].flatMap((one) => typeof one === 'object' ? Object.values(one) : one).includes('always')) faults.push({ pointer: '/approval_expires_seconds', detail: 'only with "approval": "always"' })
      if (tool.name === 'final_answer' && tool.kind === 'builtin' && tool.approval === 'always') faults.push({ pointer: '/approval', detail: 'a final answer is no call that could be held back' })
      for (const [i, template] of (tool.resources ?? []).entries()) {
        if (/[{}]/.test(template.replace(/\{[^{}]+\}/g, ''))) faults.push({ pointer: `/resources/${i}`, detail: 'has a brace without its other half; write {field} for a field of the arguments' })
      }
      if (tool.kind === 'mcp' || !isDeclared(tool)) return faults
      const schema = schemaOf(tool)
      if (schema !== undefined) faults.push(...(await parameters.check(schema)).map((fault) => ({ ...fault, pointer: `/parameters${fault.pointer}` })))
      return faults
    },

    expand,

    describe (tool) {
      const description = isDeclared(tool) ? tool.description : serverTool(tool)?.description
      // A module tool that only other workers have is offered all the same: its calls fail one by one, as `parse` and `run` say.
      return { type: 'function', function: { name: tool.name, ...(description ? { description } : {}), parameters: schemaOf(tool) ?? NO_ARGUMENTS } }
    },

    rules (tool, timeoutMs) {
      const listed = isDeclared(tool) ? undefined : serverTool(tool)
      const { placement, retry, rate_limit: rateLimit, cancellable } = optionsOf(tool)
      const expires = tool.approval_expires_seconds
      return {
        effects: tool.effects ?? listed?.effects ?? 'write',
        idempotent: isIdempotent(tool),
        timeout_ms: tool.timeout_ms ?? listed?.timeout_ms ?? timeoutMs,
        placement: placement ?? listed?.placement ?? 'local',
        ...(tool.resources !== undefined && { resources: tool.resources }),
        ...(tool.exclusive === true && { exclusive: true }),
        ...(tool.max_concurrency !== undefined && { max_concurrency: tool.max_concurrency }),
        ...(rateLimit !== undefined && { rate_limited: true }),
        ...(tool.max_calls !== undefined && { max_calls: tool.max_calls }),
        ...(retry !== undefined && { retry }),
        ...(tool.approval === 'always' && { approval: { expires_ms: expires === undefined ? null : expires * 1000 } }),
        ...(tool.kind === 'client' && { client: { expires_ms: tool.timeout_ms ?? null } }),
        ...(cancellable === false && { uncancellable: true })
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

    async close () {
      await mcp.close()
      await egress.close()
    }
  }
}

/** Whether the definition itself has description and parameters. */
function isDeclared (tool: RunTool): tool is Extract<RunTool, { kind: 'http' | 'client' | 'mcp' }> {
  return tool.kind === 'http' || tool.kind === 'client' || tool.kind === 'mcp'
}

/** What a tool may say that a worker runs, and a client tool has none of. */
function optionsOf (tool: RunTool | McpTool): Pick<HttpTool, 'idempotent' | 'placement' | 'retry' | 'rate_limit' | 'cancellable'> {
  return tool.kind === 'client' ? {} : tool
}

/** A name as a part of a JSON pointer. */
const escapePointer = (name: string): string => name.replaceAll('~', '~0').replaceAll('/', '~1')

function unknownTool (tool: RunTool): ToolError {
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

/** The configured servers with the secrets that their headers name. Throws one sentence for the operator, which holds no value. */
function withSecrets (servers: Map<string, McpServer>, secrets: Secrets): Map<string, McpServer> {
  return new Map([...servers].map(([name, server]): [string, McpServer] => {
    if (!('url' in server) || server.headers === undefined) return [name, server]
    const url = new URL(server.url)
    const headers = Object.entries(server.headers).map(([header, value]) => {
      const fault = secrets.fault(value, url)
      if (fault !== null) throw new Error(`INTERLOCK_MCP_SERVERS: server ${JSON.stringify(name)}: the header ${JSON.stringify(header)} ${fault}`)
      return [header, secrets.fill(value, url)]
    })
    return [name, { ...server, headers: Object.fromEntries(headers) as Record<string, string> }]
  }))
}

/** The tools of a list that a definition asks for. */
function asked ({ allowed }: McpTool, listed: McpListing[] | string): McpListing[] {
  return typeof listed === 'string' ? [] : listed.filter(({ name }) => allowed?.includes(name) ?? true)
}
