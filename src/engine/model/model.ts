import type { ChatCompletionMessageParam, ChatCompletionTool } from 'openai/resources/chat/completions'

/** Tokens of one LLM call, as the provider reported them. */
export interface TokenUsage { input_tokens: number, output_tokens: number, total_tokens: number }

/** One LLM call, complete: nothing about it is looked up later. */
export interface ModelRequest {
  model: string
  messages: ChatCompletionMessageParam[]
  /** Absent when the run has no tools: providers refuse an empty list. */
  tools?: ChatCompletionTool[]
  /** Sent only together with `tools`. */
  parallel_tool_calls?: boolean
  /** The run's `model_options`, passed through. What this request sets itself wins over them, and `tool_choice` goes only together with `tools`. */
  options: Record<string, unknown>
  /** `<run id>.<turn>.<attempt>`; sent as `X-Client-Request-Id`, so that a provider's log can be joined with ours. */
  request_id: string
}

/**
 * A tool call as the model wrote it. `arguments` is the raw text: nothing here repairs or parses it (FAULTS M4). `id` may be empty or repeated (FAULTS M9);
 * `name` is never empty, but may be anything else.
 */
export interface ModelToolCall { id: string, name: string, arguments: string }

/** A complete answer: it had a `finish_reason`, or it is not an answer (FAULTS M5). It holds text, a refusal or calls, unless it was cut by `length`. */
export interface ModelAnswer {
  text: string
  refusal: string | null
  /** `stop`, `tool_calls`, `length` (then the last call's arguments may be cut, and there may be no text at all) or a word of the provider's own. */
  finish_reason: string
  /** At most 512. A `stop` with calls and a `tool_calls` without are both in use: what counts is this list. */
  tool_calls: ModelToolCall[]
  usage: TokenUsage | null
}

/** Who hears an answer while it comes. */
export interface ModelListener {
  /** Aborting closes the connection to the provider; `complete` then rejects with the signal's reason. */
  signal: AbortSignal
  /** Each piece of text as it arrives, in order. Must not throw. */
  onText: (text: string) => void
}

/** The one thing Interlock needs from a language model. */
export interface Model {
  /** Resolves with a complete answer, rejects with a `ModelError` or with the abort's reason. Makes exactly one request. */
  complete: (request: ModelRequest, listener: ModelListener) => Promise<ModelAnswer>
}

export type ModelErrorCode =
  | 'provider_rate_limited' | 'provider_unavailable' | 'provider_timeout' | 'provider_connection'
  | 'provider_truncated' | 'provider_malformed'
  | 'provider_bad_request' | 'provider_unauthorized' | 'provider_model_not_found'
  | 'context_length_exceeded' | 'content_filter' // of the messages, or as the answer's finish_reason

/** Why an LLM call gave no answer. `message` is one sentence and a next step, free of secrets, safe to show. */
export class ModelError extends Error {
  override name = 'ModelError'
  readonly code: ModelErrorCode
  /** Whether the same request may succeed later. 4xx other than 408, 409 and 429 may not. */
  readonly retryable: boolean
  /** What the provider's `Retry-After` asked for, in milliseconds; null when it did not say. */
  readonly retryAfterMs: number | null
  /** HTTP status, when there was one. */
  readonly status: number | null
  /** Tokens of the failed call, when the provider reported them: wasted calls are paid for too. */
  readonly usage: TokenUsage | null

  constructor (code: ModelErrorCode, message: string, facts: {
    retryable: boolean, retryAfterMs?: number | null, status?: number | null, usage?: TokenUsage | null, cause?: unknown
  }) {
    super(message, { cause: facts.cause })
    this.code = code
    this.retryable = facts.retryable
    this.retryAfterMs = facts.retryAfterMs ?? null
    this.status = facts.status ?? null
    this.usage = facts.usage ?? null
  }
}
