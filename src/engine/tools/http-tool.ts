import { createHash, randomBytes } from 'node:crypto'
import type { HttpTool } from '../../core/tool.js'
import type { Egress } from './egress.js'
import type { HttpRequest } from './exchange.js'
import type { ToolContext, ToolFault } from './tool.js'

/** Hop-by-hop headers (RFC 9110 section 7.6.1), framing, and what Interlock itself sets or will set. */
const RESERVED_HEADERS = new Set([
  'connection', 'keep-alive', 'proxy-connection', 'proxy-authenticate', 'proxy-authorization', 'te', 'trailer', 'transfer-encoding', 'upgrade',
  'host', 'content-length', 'expect', 'accept-encoding',
  'idempotency-key', 'traceparent', 'tracestate'
])
const RESERVED_PREFIXES = ['interlock-', 'webhook-']

/** What is wrong with the URL and the headers of a declared tool. No DNS: where a name leads is judged at each call. */
export function httpToolFaults (tool: HttpTool, egress: Egress): ToolFault[] {
  const faults: ToolFault[] = []
  if (!URL.canParse(tool.url)) {
    faults.push({ pointer: '/url', detail: 'is not an absolute URL' })
  } else {
    const refusal = egress.refusal(new URL(tool.url))
    if (refusal !== null) faults.push({ pointer: '/url', detail: refusal, code: 'blocked_url' })
  }
  const seen = new Set<string>()
  for (const name of Object.keys(tool.headers ?? {})) {
    const lower = name.toLowerCase()
    const pointer = `/headers/${name.replaceAll('~', '~0').replaceAll('/', '~1')}`
    if (RESERVED_HEADERS.has(lower) || RESERVED_PREFIXES.some((prefix) => lower.startsWith(prefix))) {
      faults.push({ pointer, detail: 'is set by Interlock or belongs to the connection' })
    } else if (seen.has(lower)) {
      faults.push({ pointer, detail: 'is given twice, in different case' })
    }
    seen.add(lower)
  }
  return faults
}

/** The request that carries a call: the arguments are the JSON body; for GET and DELETE the query, anything but a string in it as JSON text. */
export function httpToolRequest (tool: HttpTool, args: Record<string, unknown>, context: ToolContext): HttpRequest {
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
    declaredHeaders: Object.fromEntries(Object.entries(tool.headers ?? {}).map(([name, value]) => [name.toLowerCase(), value])),
    headers: {
      'idempotency-key': `${context.run_id}.${context.call_id}`,
      'interlock-run-id': context.run_id,
      'interlock-call-id': context.call_id,
      'interlock-turn': String(context.turn),
      'interlock-attempt': String(context.attempt),
      traceparent: traceparent(context.run_id)
    }
  }
}

/** W3C Trace Context: all requests of a run share a trace id, each is its own parent. Sampled, or the tool's own tracing would leave it out. */
function traceparent (runId: string): string {
  const traceId = createHash('sha256').update(runId).digest('hex').slice(0, 32)
  return `00-${traceId}-${randomBytes(8).toString('hex')}-01`
}
