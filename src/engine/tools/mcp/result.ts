import { cut, jsonValue } from '../json.js'
import { ToolError } from '../tool.js'

const MAX_MESSAGE_CHARS = 4_000

/**
 * The output of a call: `structuredContent` if there is any, else the text of a single text block, else the list of blocks in a compact
 * form; null when there is nothing. A copy, and JSON. Throws a ToolError when the tool says that it failed, or for more than `maxChars`.
 */
export function callOutput (result: Record<string, unknown>, maxChars: number): unknown {
  const blocks = (Array.isArray(result.content) ? result.content : []).filter(isObject)
  if (result.isError === true) throw new ToolError('tool_error', cut(errorText(blocks), MAX_MESSAGE_CHARS))
  try {
    return jsonValue(output(result, blocks), maxChars)
  } catch (error) {
    throw new ToolError('tool_error', error instanceof Error ? error.message : 'the tool returned something that is not JSON', { cause: error })
  }
}

function output (result: Record<string, unknown>, blocks: Record<string, unknown>[]): unknown {
  if (isObject(result.structuredContent)) return result.structuredContent
  const [only] = blocks
  if (blocks.length === 1 && only?.type === 'text') return only.text === '' ? null : only.text
  return blocks.length === 0 ? null : blocks.map(compact)
}

/** Without annotations and `_meta`, which are for user interfaces. A kind of block that is not known is left as it is. */
function compact (block: Record<string, unknown>): Record<string, unknown> {
  switch (block.type) {
    case 'text': return { type: 'text', text: block.text }
    case 'image':
    case 'audio': return { type: block.type, mime_type: block.mimeType, data: block.data }
    case 'resource_link': return { type: 'resource_link', uri: block.uri, name: block.name, description: block.description, mime_type: block.mimeType }
    case 'resource': {
      const resource = isObject(block.resource) ? block.resource : {}
      return { type: 'resource', uri: resource.uri, mime_type: resource.mimeType, text: resource.text, data: resource.blob }
    }
    default: return block
  }
}

function errorText (blocks: Record<string, unknown>[]): string {
  const texts = blocks.flatMap(({ type, text }) => type === 'text' && typeof text === 'string' ? [text] : [])
  return texts.join('\n').trim() || 'the tool failed without a message'
}

function isObject (value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
