import { createHash, randomBytes } from 'node:crypto'
import type { HttpTool } from '../../core/tool.js'
import type { Egress } from './egress.js'
import type { HttpRequest } from './exchange.js'
import type { Secrets } from './secrets.js'
import type { Sign } from './signature.js'
import type { ToolContext, ToolFault } from './tool.js'

/** Hop-by-hop headers (RFC 9110 section 7.6.1), framing, and what Interlock itself sets or will set. */
const RESERVED_HEADERS = new Set([
  'connection', 'keep-alive', 'proxy-connection', 'proxy-authenticate', 'proxy-authorization', 'te', 'trailer', 'transfer-encoding', 'upgrade',
  'host', 'content-length', 'expect', 'accept-encoding',
  'idempotency-key', 'traceparent', 'tracestate'
])
const RESERVED_PREFIXES = ['interlock-', 'webhook-']

/** What is wrong with the URL and the headers of a declared tool. No DNS: where a name leads is judged at each call. */
export function httpToolFaults (tool: HttpTool, egress: Egress, secrets: Secrets): ToolFault[] {
  const faults: ToolFault[] = []
  const url = URL.canParse(tool.url) ? new URL(tool.url) : null
  const refusal = url === null ? null : egress.refusal(url)
  if (url === null) faults.push({ pointer: '/url', detail: 'is not an absolute URL' })
  if (refusal !== null) faults.push({ pointer: '/url', detail: refusal, code: 'blocked_url' })
  const seen = new Set<string>()
  for (const [name, value] of Object.entries(tool.headers ?? {})) {
    const lower = name.toLowerCase()
    const pointer = `/headers/${name.replaceAll('~', '~0').replaceAll('/', '~1')}`
    if (RESERVED_HEADERS.has(lower) || RESERVED_PREFIXES.some((prefix) => lower.startsWith(prefix))) {
      faults.push({ pointer, detail: 'is set by Interlock or belongs to the connection' })
    } else if (seen.has(lower)) {
      faults.push({ pointer, detail: 'is given twice, in different case' })
    }
    seen.add(lower)
    const fault = url === null ? null : secrets.fault(value, url)
    if (fault !== null) faults.push({ pointer, detail: fault })
  }
  return faults
}

/**
 * The request that carries a call: the arguments are the JSON body; for GET and DELETE the query, anything but a string in it as JSON text.
 * Throws a ToolError when a header names a secret that may not be sent there.
 */
export function httpToolRequest (
  tool: HttpTool, args: Record<string, unknown>, context: ToolContext, secrets: Secrets, sign: Sign
): HttpRequest {
  const id = `${context.run_id}.${context.call_id}`
  const method = tool.method ?? 'POST'
  const url = new URL(tool.url)
  const inQuery = method === 'GET' || method === 'DELETE'
  if (inQuery) {
    // What the declared URL fixes (a key, an account) is not the model's to change or to double.
    const fixed = new Set(url.searchParams.keys())
    for (const [name, value] of Object.entries(args)) {
      if (!fixed.has(name)) url.searchParams.append(name, typeof value === 'string' ? value : JSON.stringify(value))
    }
  }
  return {
    url,
    method,
    body: inQuery ? null : JSON.stringify(args),
    declaredHeaders: Object.fromEntries(Object.entries(tool.headers ?? {}).map(([name, value]) => [name.toLowerCase(), secrets.fill(value, url)])),
    headers: {
      'idempotency-key': id,
      'interlock-run-id': context.run_id,
      'interlock-call-id': context.call_id,
      'interlock-turn': String(context.turn),
      'interlock-attempt': String(context.attempt),
      traceparent: traceparent(context.run_id)
    },
    sign: (body) => sign(id, body)
  }
}

/** W3C Trace Context: all requests of a run share a trace id, each is its own parent. Sampled, or the tool's own tracing would leave it out. */
function traceparent (runId: string): string {
  const traceId = createHash('sha256').update(runId).digest('hex').slice(0, 32)
  return `00-${traceId}-${randomBytes(8).toString('hex')}-01`
}
