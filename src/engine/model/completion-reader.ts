import { StringDecoder } from 'node:string_decoder'
import type { ModelAnswer, TokenUsage } from './model.js'
import { modelError, streamError } from './provider-error.js'

/** Characters of text, refusal, names and arguments one answer may have. A model that writes more is broken or hostile (FAULTS S24). */
const MAX_ANSWER_CHARS = 16 * 1024 * 1024
/** Bytes on the wire for one answer: framing is many times its content, and silence kept alive by comments is nothing but framing. */
const MAX_STREAM_BYTES = 16 * MAX_ANSWER_CHARS
const MAX_TOOL_CALLS = 512

/** Reads one streamed chat completion. */
export interface CompletionReader {
  /** Takes the next bytes. Throws a `ModelError` for an error event, for what is not JSON, and above the caps. */
  write: (bytes: Buffer) => void
  /** `[DONE]` was read: whatever happens to the connection now, the answer stands. */
  isDone: () => boolean
  /** The complete answer, once the stream has ended. Throws a `ModelError` when it was not complete or holds nothing; with the usage, if any was sent. */
  answer: () => ModelAnswer
  /** A `finish_reason` was read: the answer is complete, even if the connection then breaks. */
  isFinished: () => boolean
  usage: () => TokenUsage | null
}

interface MergedCall { index: number, id: string, name: string, arguments: string }

// What a chunk may hold. All of it is optional, and nothing here is believed before it is looked at: other people's servers wrote it.
interface Chunk { error?: unknown, object?: unknown, usage?: unknown, choices?: unknown }
interface Choice { index?: unknown, delta?: { content?: unknown, refusal?: unknown, tool_calls?: unknown } | null, finish_reason?: unknown }
interface CallDelta { index?: unknown, id?: unknown, function?: { name?: unknown, arguments?: unknown } | null }

/** For one answer. `onText` is handed each piece of text as it is read. */
export function completionReader (onText: (text: string) => void): CompletionReader {
  const decoder = new StringDecoder('utf8')
  let bytesRead = 0
  let line = '' // the beginning of a line whose end has not arrived
  let data: string | null = null // of the event being read; several `data:` lines are one event
  let done = false

  let text = ''
  let refusal: string | null = null
  let finishReason: string | null = null
  let usage: TokenUsage | null = null
  let size = 0
  const calls: MergedCall[] = []

  function write (bytes: Buffer) {
    bytesRead += bytes.length
    if (bytesRead > MAX_STREAM_BYTES) throw tooLarge(`more than ${MAX_STREAM_BYTES} bytes`)
    const piece = decoder.write(bytes)
    let start = 0
    for (let end = piece.indexOf('\n'); end !== -1; end = piece.indexOf('\n', start)) {
      readLine(line + piece.slice(start, end))
      line = ''
      start = end + 1
    }
    line += piece.slice(start)
    if (line.length > MAX_ANSWER_CHARS) throw tooLarge(`a line of more than ${MAX_ANSWER_CHARS} characters`)
  }

  function readLine (raw: string) {
    const content = raw.endsWith('\r') ? raw.slice(0, -1) : raw
    if (content === '') {
      if (data !== null) readEvent(data)
      data = null
    } else if (content.startsWith('data:')) {
      const value = content.slice(content[5] === ' ' ? 6 : 5)
      data = data === null ? value : `${data}\n${value}`
    }
  }

  function readEvent (event: string) {
    if (done) return
    if (event.startsWith('[DONE]')) {
      done = true
      return
    }
    const chunk = parseChunk(event)
    if (chunk.error != null) throw streamError(chunk.error, usage)
    if (chunk.object === 'error') throw streamError(chunk, usage)
    if (chunk.usage != null) usage = tokenUsage(chunk.usage) ?? usage
    if (Array.isArray(chunk.choices)) for (const choice of chunk.choices) readChoice(choice as Choice | null)
  }

  function parseChunk (event: string): Chunk {
    let chunk: unknown
    try {
      chunk = JSON.parse(event)
    } catch {
      throw malformed('a chunk is not JSON')
    }
    if (typeof chunk !== 'object' || chunk === null) throw malformed('a chunk is not an object')
    return chunk
  }

  function readChoice (choice: Choice | null) {
    if (choice == null || (choice.index ?? 0) !== 0) return // `n` above 1: only the first is an answer
    const { delta } = choice
    if (delta != null) {
      const { content } = delta
      if (typeof content === 'string' && content !== '') {
        grow(content)
        text += content
        onText(content)
      }
      if (typeof delta.refusal === 'string' && delta.refusal !== '') {
        grow(delta.refusal)
        refusal = (refusal ?? '') + delta.refusal
      }
      if (Array.isArray(delta.tool_calls)) for (const part of delta.tool_calls) mergeCall(part as CallDelta | null)
    }
    if (typeof choice.finish_reason === 'string' && choice.finish_reason !== '') finishReason = choice.finish_reason
  }

  function mergeCall (delta: CallDelta | null) {
    if (delta == null) throw malformed('a tool call is not an object')
    const id = string(delta.id)
    const name = string(delta.function?.name)
    const args = string(delta.function?.arguments)
    grow(id, name, args)

    const index = typeof delta.index === 'number' ? delta.index : null
    let call = index !== null ? calls.findLast((one) => one.index === index)
      : id !== '' ? calls.findLast((one) => one.id === id)
        : calls.at(-1)
    // A name where one was complete is another call: some servers give every parallel call index 0, some no index, some the same id (FAULTS M9).
    if (call !== undefined && name !== '' && isAnother(call, id, args)) call = undefined
    if (call === undefined) {
      call = { index: index ?? calls.length, id, name: '', arguments: '' }
      if (calls.push(call) > MAX_TOOL_CALLS) throw tooLarge(`more than ${MAX_TOOL_CALLS} tool calls`)
    }
    if (call.id === '') call.id = id
    if (name !== call.name) call.name += name // the whole name in the first part; some servers repeat it, none is known to split it unevenly
    call.arguments += args
  }

  function string (value: unknown): string {
    if (value == null) return ''
    if (typeof value !== 'string') throw malformed('a part of a tool call is not a string')
    return value
  }

  function grow (...pieces: string[]) {
    for (const piece of pieces) size += piece.length
    if (size > MAX_ANSWER_CHARS) throw tooLarge(`more than ${MAX_ANSWER_CHARS} characters`)
  }

  function answer (): ModelAnswer {
    if (finishReason === null) throw modelError('provider_truncated', ['no finish_reason'], { usage })
    if (finishReason === 'content_filter') throw modelError('content_filter', ['finish_reason content_filter'], { usage })
    if (finishReason === 'error') throw modelError('provider_unavailable', ['finish_reason error'], { usage })
    if (calls.some((call) => call.name === '')) throw malformed('a tool call without a name')
    // Cut at `length` before the first word is an answer all the same: the next attempt would be cut at the same place.
    if (text === '' && refusal === null && calls.length === 0 && finishReason !== 'length') throw malformed('neither text nor tool calls')
    return {
      text,
      refusal,
      finish_reason: finishReason,
      tool_calls: calls.sort((a, b) => a.index - b.index).map(({ id, name, arguments: args }) => ({ id, name, arguments: args })),
      usage
    }
  }

  function malformed (what: string) {
    return modelError('provider_malformed', [what], { usage })
  }

  // The same request would most likely bring the same flood, and each one is paid for.
  function tooLarge (what: string) {
    return modelError('provider_malformed', [what], { usage, retryable: false })
  }

  return { write, answer, isDone: () => done, isFinished: () => finishReason !== null, usage: () => usage }
}

/** Whether a part with a name begins another call than the one that stands in its place. */
function isAnother (call: MergedCall, id: string, args: string): boolean {
  if (id !== '' && call.id !== '' && id !== call.id) return true
  if (args === '') return false
  try {
    JSON.parse(call.arguments)
    return true
  } catch {
    return false
  }
}

function tokenUsage (value: unknown): TokenUsage | null {
  if (typeof value !== 'object' || value === null) return null
  const { prompt_tokens: input, completion_tokens: output, total_tokens: total } = value as Record<string, unknown>
  if (!isCount(input) || !isCount(output)) return null
  return { input_tokens: input, output_tokens: output, total_tokens: isCount(total) ? total : input + output }
}

function isCount (value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0
}
