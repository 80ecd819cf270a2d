import { readFileSync } from 'node:fs'
import { parseJson } from '../json.js'

/** A server the operator configured: a process to start, which is spoken to by its standard input and output, or a streamable HTTP endpoint. */
export type McpServer =
  | { command: string, args?: string[], env?: Record<string, string>, cwd?: string }
  | { url: string, headers?: Record<string, string> }

/** What the transport sets, and what belongs to the connection. */
const RESERVED_HEADERS = new Set([
  'accept', 'accept-encoding', 'content-type', 'content-length', 'content-encoding', 'host', 'expect',
  'connection', 'keep-alive', 'proxy-connection', 'te', 'trailer', 'transfer-encoding', 'upgrade',
  'last-event-id', 'mcp-session-id', 'mcp-protocol-version'
])

/**
 * Parses the setting: JSON text, or the path of a JSON file, in the form many MCP clients use, `{"mcpServers": {"<name>": server}}`, or
 * the inner object alone. What stands beside `mcpServers` belongs to other programs that share the file. Throws one sentence that names
 * the place and shows no value, because values may be secret.
 */
export function parseMcpServers (setting: string): Map<string, McpServer> {
  const inline = setting.trimStart().startsWith('{')
  const source = inline ? 'INTERLOCK_MCP_SERVERS' : `the MCP servers file ${setting}`
  const whole = parsed(inline ? setting : fileText(setting), source)
  const wrapped = isObject(whole) && Object.hasOwn(whole, 'mcpServers')
  const servers = wrapped ? whole.mcpServers : whole
  if (!isObject(servers)) throw new Error(`${source}: ${wrapped ? 'mcpServers' : 'it'} must be an object of servers by name`)
  return new Map(Object.entries(servers).map(([name, server]) => {
    const fault = name.trim() === '' || name.length > 64 ? 'its name must have 1 to 64 characters' : serverFault(server)
    if (fault !== null) throw new Error(`${source}: server ${JSON.stringify(name)}: ${fault}`)
    return [name, withoutType(server as McpServer)]
  }))
}

/** What is wrong with the headers for a URL: the header's name and a sentence without its value. Null when nothing is. */
export function headerFault (headers: Record<string, string>): { name: string, detail: string } | null {
  const seen = new Set<string>()
  for (const [name, value] of Object.entries(headers)) {
    const lower = name.toLowerCase()
    if (!/^[a-z0-9!#$%&'*+.^_`|~-]{1,128}$/.test(lower)) return { name, detail: 'is no name of an HTTP header' }
    if (RESERVED_HEADERS.has(lower)) return { name, detail: 'is set by Interlock or belongs to the connection' }
    if (seen.has(lower)) return { name, detail: 'is given twice, in different case' }
    if (!/^[\t\x20-\x7e]*$/.test(value)) return { name, detail: 'must be one line of visible ASCII characters' }
    seen.add(lower)
  }
  return null
}

function fileText (path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? String(error.code) : 'unknown error'
    throw new Error(`the MCP servers file ${path} cannot be read (${code}): give JSON text or the path of a JSON file`, { cause: error })
  }
}

function parsed (text: string, source: string): unknown {
  try {
    return parseJson(text)
  } catch (error) {
    throw new Error(`${source} is not JSON: ${error instanceof Error ? error.message : 'it cannot be read'}`)
  }
}

function serverFault (server: unknown): string | null {
  if (!isObject(server)) return 'it must be an object with command or url'
  if (('command' in server) === ('url' in server)) return 'it must have either command or url'
  const { type, ...settings } = server
  const byCommand = 'command' in server
  if (type === 'sse') return 'type sse is the older transport, which is not supported: use the server\'s streamable HTTP URL'
  const types = byCommand ? ['stdio'] : ['http', 'streamable-http', 'streamableHttp']
  if (type !== undefined && !types.includes(type as string)) return `type must be ${types.join(', ')} or absent`
  const kinds: Record<string, (value: unknown) => string | null> = byCommand
    ? { command: nonEmptyText, args: textList, env: textByName, cwd: nonEmptyText }
    : { url: httpUrl, headers: headersByName }
  for (const [key, value] of Object.entries(settings)) {
    const fault = Object.hasOwn(kinds, key) ? kinds[key]?.(value) ?? null : 'is nothing that can be set here'
    if (fault !== null) return `${key} ${fault}`
  }
  return null
}

const nonEmptyText = (value: unknown): string | null => typeof value === 'string' && value !== '' && !value.includes('\0') ? null : 'must be text'
const textList = (value: unknown): string | null => Array.isArray(value) && value.every((item) => typeof item === 'string') ? null : 'must be a list of texts'

function textByName (value: unknown): string | null {
  if (!isObject(value)) return 'must be an object of texts'
  const wrong = Object.keys(value).find((name) => typeof value[name] !== 'string')
  return wrong === undefined ? null : `must be an object of texts: see ${JSON.stringify(wrong)}`
}

function headersByName (value: unknown): string | null {
  const fault = textByName(value)
  if (fault !== null) return fault
  const wrong = headerFault(value as Record<string, string>)
  return wrong === null ? null : `has ${JSON.stringify(wrong.name)}, which ${wrong.detail}`
}

function httpUrl (value: unknown): string | null {
  const url = typeof value === 'string' && URL.canParse(value) ? new URL(value) : null
  if (url === null || (url.protocol !== 'http:' && url.protocol !== 'https:')) return 'must be an absolute http or https URL'
  return url.username === '' && url.password === '' ? null : 'must not hold credentials: send them in a header'
}

function withoutType (server: McpServer & { type?: string }): McpServer {
  const { type: _, ...settings } = server
  return settings
}

function isObject (value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
