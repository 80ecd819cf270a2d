import { cut, exceeds, jsonValue, MAX_JSON_DEPTH } from '../json.js'
import { ToolError } from '../tool.js'
import type { McpListing } from './mcp.js'

const MAX_PAGES = 100
const MAX_TOOLS = 1_000
/** As long as a declared tool's. It is stored with the run and sent with every LLM call. */
const MAX_DESCRIPTION_CHARS = 4_096

/** All tools of a server, by a function that brings the page for a cursor. Rejects with a ToolError on a list without a reasonable end. */
export async function allTools (page: (cursor: string | undefined) => Promise<Record<string, unknown>>, maxChars: number): Promise<McpListing[]> {
  const tools: McpListing[] = []
  let cursor: string | undefined
  for (let pages = 0; pages < MAX_PAGES; pages++) {
    const result = await page(cursor)
    tools.push(...(Array.isArray(result.tools) ? result.tools : []).flatMap(listing))
    if (tools.length > MAX_TOOLS) throw new ToolError('tool_error', `the server has more than ${MAX_TOOLS} tools`)
    const broken = exceeds(tools, { depth: MAX_JSON_DEPTH, chars: maxChars })
    if (broken === 'depth') throw new ToolError('tool_error', `the list of tools is nested deeper than ${MAX_JSON_DEPTH} levels`)
    if (broken === 'chars') throw new ToolError('tool_error', `the list of tools is longer than ${maxChars} characters`)
    // A copy without keys that would be a prototype somewhere (FAULTS S7).
    if (typeof result.nextCursor !== 'string') return jsonValue(tools, Infinity) as McpListing[]
    cursor = result.nextCursor
  }
  throw new ToolError('tool_error', `the list of tools has more than ${MAX_PAGES} pages`)
}

/** None for what is no tool, or one that can only be run as a task, which is not supported. */
function listing (tool: unknown): McpListing[] {
  const { name, description, inputSchema, annotations, execution } = (tool ?? {}) as Record<string, unknown>
  if (typeof name !== 'string' || name === '' || property(execution, 'taskSupport') === 'required') return []
  return [{
    name,
    description: typeof description === 'string' ? cut(description, MAX_DESCRIPTION_CHARS) : '',
    parameters: (inputSchema ?? {}) as Record<string, unknown>,
    effects: property(annotations, 'readOnlyHint') === true ? 'read' : 'write',
    idempotent: property(annotations, 'idempotentHint') === true
  }]
}

function property (value: unknown, name: string): unknown {
  return typeof value === 'object' && value !== null && Object.hasOwn(value, name) ? (value as Record<string, unknown>)[name] : undefined
}
