import OpenAI from 'openai'
import type { ChatCompletionCreateParamsStreaming, ChatCompletionToolChoiceOption } from 'openai/resources/chat/completions'
import { completionReader } from './completion-reader.js'
import { fifoSlots } from './fifo-slots.js'
import { ModelError, type Model, type ModelAnswer, type ModelListener, type ModelRequest } from './model.js'
import { modelError, requestError } from './provider-error.js'
import { requestFetch, StreamedResponse } from './request-fetch.js'

export interface OpenAIModelOptions {
  apiKey: string
  /** Up to and including the version, such as `https://api.openai.com/v1`. */
  baseUrl: string
  /** Milliseconds from sending a request to its response headers. Default 120,000: some providers hold them back until the first token. */
  timeoutMs?: number
  /** Milliseconds of silence within a stream after which it counts as dead (FAULTS M12). Default 120,000: a model that reasons can be silent for long. */
  idleMs?: number
  /** LLM calls in flight at once, for all conversations together; the rest wait in order of arrival. Default 0: no limit. */
  concurrency?: number
}

/** How long a server may keep a connection open after `[DONE]` before we close it, in milliseconds. */
const LINGER_MS = 1000

/**
 * A `Model` on any provider that speaks the OpenAI chat completions protocol.
 *
 * The openai client makes the request (URL, credentials, headers, timeout, its error classes) and nothing is retried here: the run decides that. The stream
 * is read by `completionReader` and not by the client, whose reader costs more time than all the rest of a call, has no upper bound,
 * and takes a cut or aborted stream for a finished one.
 */
export function openaiModel ({ apiKey, baseUrl, timeoutMs = 120_000, idleMs = 120_000, concurrency = 0 }: OpenAIModelOptions): Model {
  const client = new OpenAI({ apiKey, baseURL: baseUrl, maxRetries: 0, timeout: timeoutMs, logLevel: 'off', fetch: requestFetch() })
  const slots = concurrency > 0 ? fifoSlots(concurrency) : null

  async function complete (request: ModelRequest, listener: ModelListener): Promise<ModelAnswer> {
    listener.signal.throwIfAborted()
    if (slots === null) return await call(request, listener)
    await slots.take(listener.signal)
    try {
      return await call(request, listener)
    } finally {
      slots.release()
    }
  }

  async function call (request: ModelRequest, { signal, onText }: ModelListener): Promise<ModelAnswer> {
    const reader = completionReader(onText)
    const connection = new AbortController()
    const abort = () => connection.abort(signal.reason)
    signal.addEventListener('abort', abort, { once: true })
    let silence: NodeJS.Timeout | undefined
    try {
      const chunks = await open(request, connection.signal)
      silence = setTimeout(() => connection.abort(modelError('provider_timeout', [`silent for ${idleMs} ms`], { usage: reader.usage() })), idleMs)
      for await (const chunk of chunks) {
        silence.refresh()
        reader.write(chunk)
        if (reader.isDone()) {
          clearTimeout(silence)
          silence = setTimeout(abort, LINGER_MS)
        }
      }
    } catch (thrown) {
      const error: unknown = connection.signal.reason ?? thrown // the client throws an error of its own when we break off
      // A connection that broke is no error yet: after a finish_reason nothing can spoil the answer, and before it `answer` says that it was cut.
      if (!isBroken(error) && !(error instanceof ModelError && reader.isFinished())) throw error
    } finally {
      clearTimeout(silence)
      signal.removeEventListener('abort', abort)
    }
    // Also when the stream seemed to end by itself: an abort ends it, and half an answer must not pass for one.
    signal.throwIfAborted()
    return reader.answer()
  }

  async function open (request: ModelRequest, signal: AbortSignal): Promise<AsyncIterable<Buffer>> {
    const headers = { 'X-Client-Request-Id': request.request_id }
    try {
      const response = await client.chat.completions.create(body(request), { signal, headers }).asResponse()
      if (response instanceof StreamedResponse) return response.chunks
    } catch (error) {
      throw requestError(error, timeoutMs)
    }
    throw new TypeError('the openai client did not use the fetch it was given')
  }

  return { complete }
}

/** System, HTTP and abort errors have a code; a mistake in our own code has none and must not pass for a cut stream. */
function isBroken (error: unknown): boolean {
  return error instanceof Error && !(error instanceof ModelError) && 'code' in error
}

/** What is sent: the run's options cannot touch what Interlock decides, and no tool option goes without tools (FAULTS M2). */
function body ({ model, messages, tools, parallel_tool_calls: parallel, options }: ModelRequest): ChatCompletionCreateParamsStreaming {
  const hasTools = tools !== undefined && tools.length > 0
  // What is undefined is not sent.
  return {
    ...options,
    model,
    messages,
    tools: hasTools ? tools : undefined,
    tool_choice: hasTools ? options.tool_choice as ChatCompletionToolChoiceOption : undefined,
    parallel_tool_calls: hasTools ? parallel : undefined,
    stream: true,
    stream_options: { include_usage: true }
  }
}
