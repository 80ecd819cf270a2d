import { APIConnectionError, APIConnectionTimeoutError, APIError } from 'openai'
import { ModelError, type ModelErrorCode, type TokenUsage } from './model.js'

/** What each code says and advises. The sentence takes its details in brackets, so that every message has the same shape. */
const SAYS: Record<ModelErrorCode, [sentence: string, nextStep: string, retryable: boolean]> = {
  provider_rate_limited: ['The provider limits the rate or the quota of requests', 'Wait, raise the limit or the quota with the provider, or make fewer LLM calls at once.', true],
  provider_unavailable: ['The provider failed to answer', 'Try again later or name fallback_models.', true],
  provider_timeout: ['The provider took too long', 'Try again later or name fallback_models.', true],
  provider_connection: ['The connection to the provider failed', 'Check the network and OPENAI_BASE_URL.', true],
  provider_truncated: ['The provider\'s answer ended before it was complete', 'Try again.', true],
  provider_malformed: ['The provider\'s answer could not be read', 'Try again or use another model.', true],
  provider_bad_request: ['The provider refused the request', 'Check model_options, the tools\' schemas and OPENAI_BASE_URL against what the provider accepts.', false],
  provider_unauthorized: ['The provider refused the credentials', 'Check OPENAI_API_KEY, its permissions and its credit.', false],
  provider_model_not_found: ['The provider does not know the model or the address', 'Check the model\'s name and OPENAI_BASE_URL.', false],
  context_length_exceeded: ['The conversation is longer than the model accepts', 'Start a new conversation, shorten the messages or the tools\' results, or use a model with a longer context.', false],
  content_filter: ['The provider\'s content filter stopped the answer', 'Change the message it objects to.', false]
}

interface Facts { retryable?: boolean, retryAfterMs?: number | null, status?: number | null, usage?: TokenUsage | null }

/**
 * A `ModelError` with the message its code has. `details` stand in it as they are: plain words and numbers only, nothing a provider wrote freely.
 * There is never a `cause`: the client's errors quote the provider, which may quote the request or the key, and loggers print causes.
 */
export function modelError (code: ModelErrorCode, details: (string | number | null)[], facts: Facts = {}): ModelError {
  const [sentence, nextStep, retryable] = SAYS[code]
  const known = details.filter((detail) => detail !== null)
  return new ModelError(code, `${sentence}${known.length === 0 ? '' : ` (${known.join(', ')})`}. ${nextStep}`, { retryable, ...facts })
}

/** Why the openai client rejected before a stream began. */
export function requestError (thrown: unknown, timeoutMs: number): ModelError {
  if (thrown instanceof APIConnectionTimeoutError) return modelError('provider_timeout', [`no response within ${timeoutMs} ms`])
  if (thrown instanceof APIConnectionError) return modelError('provider_connection', [systemCode(thrown)])
  if (thrown instanceof APIError && typeof thrown.status === 'number') {
    const { status, error } = thrown
    return modelError(classify(status, error), [status, shortCode(error)], { status, retryAfterMs: retryAfterMs(thrown.headers) })
  }
  // Never sent: a header or a body that cannot be encoded.
  return modelError('provider_bad_request', ['it could not be sent'])
}

/** An error event in the middle of a stream. Some servers put an HTTP status in its `code`, which then decides; else a later attempt may succeed. */
export function streamError (error: unknown, usage: TokenUsage | null): ModelError {
  const code = field(error, 'code')
  const status = typeof code === 'number' && code >= 400 && code <= 599 ? code : null
  return modelError(classify(status, error), ['inside the stream', status, shortCode(error)], { status, usage })
}

function classify (status: number | null, error: unknown): ModelErrorCode {
  const said = [field(error, 'code'), field(error, 'type'), field(field(error, 'innererror'), 'code')].map(text).join(' ')
  if (status === null || status === 400 || status === 413 || status === 422) {
    // Compatible servers without the code say it in words only.
    const inWords = /maximum context length|context (window|size)|prompt is too long/i
    if (said.includes('context_length') || inWords.test(text(field(error, 'message')))) return 'context_length_exceeded'
    if (/content_filter|content_policy|ResponsibleAIPolicyViolation/.test(said)) return 'content_filter'
  }
  switch (status) {
    case 401: case 402: case 403: return 'provider_unauthorized'
    case 404: return 'provider_model_not_found'
    case 408: return 'provider_timeout'
    case 409: return 'provider_unavailable'
    case 429: return 'provider_rate_limited'
    case null: return /rate_limit|insufficient_quota/.test(said) ? 'provider_rate_limited' : 'provider_unavailable'
    default: return status >= 500 ? 'provider_unavailable' : 'provider_bad_request'
  }
}

/** Milliseconds the provider asks us to wait: `retry-after-ms`, else `Retry-After` in seconds or as an HTTP date; null when neither says. */
export function retryAfterMs (headers: Headers | undefined, now = Date.now()): number | null {
  const header = headers?.get('retry-after')
  const ms = [number(headers?.get('retry-after-ms')), number(header) * 1000, Date.parse(header ?? '') - now].find(Number.isFinite)
  return ms === undefined ? null : Math.max(0, ms)
}

function number (value: string | null | undefined): number {
  return value != null && /^\s*-?\d+(\.\d+)?\s*$/.test(value) ? Number(value) : NaN
}

/** The provider's code or type when it is a plain word: letters and underscores hold no key and no message. */
function shortCode (error: unknown): string | null {
  return [field(error, 'code'), field(error, 'type')].map(text).find((word) => /^[a-z][a-z_]{2,47}$/.test(word)) ?? null
}

/** `ECONNREFUSED`, `UND_ERR_SOCKET` and the like: the innermost code of a chain of causes. */
function systemCode (thrown: Error): string | null {
  let code: string | null = null
  for (let cause: unknown = thrown; cause instanceof Error; cause = cause.cause) {
    const own = text(field(cause, 'code'))
    if (/^[A-Z][A-Z_]{2,47}$/.test(own)) code = own
  }
  return code
}

function field (value: unknown, name: string): unknown {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>)[name] : undefined
}

function text (value: unknown): string {
  return typeof value === 'string' ? value : ''
}
