/**
 * What a client is told when something does not work: RFC 9457 problems, the codes of API.md "Errors". Services throw a
 * `ProblemError`, the errors plugin answers with `toProblem`. One table maps a code to its status; nothing else knows statuses.
 */

/** `status`, `title`, and whether the same request may succeed later without being changed. */
const table = {
  malformed_json: [400, 'The request body is not acceptable JSON', false],
  bad_request: [400, 'The request is not acceptable HTTP', false],
  unauthorized: [401, 'A valid API key is needed', false],
  forbidden: [403, 'This is not allowed', false],
  not_found: [404, 'There is no such thing', false],
  method_not_allowed: [405, 'This address does not take that method', false],
  not_acceptable: [406, 'None of the accepted media types is on offer', false],
  request_timeout: [408, 'The request did not arrive in time', true],
  run_active: [409, 'A run is active on the conversation', true],
  run_ended: [409, 'The run has ended', false],
  suspension_resolved: [409, 'The suspension is resolved', false],
  message_delivered: [409, 'The message does not wait any more', false],
  call_settled: [409, 'The call is settled', false],
  not_repairable: [409, 'That does not fit what the conversation is doing', false],
  conversation_exists: [409, 'The conversation exists already', false],
  idempotency_in_progress: [409, 'The first request with this key is under way', true],
  version_conflict: [409, 'The conversation has changed meanwhile', true],
  events_trimmed: [410, 'The events asked for are no longer kept', false],
  payload_too_large: [413, 'The request body is too large', false],
  uri_too_long: [414, 'The address is too long', false],
  unsupported_media_type: [415, 'Only JSON is accepted', false],
  validation_failed: [422, 'The request is not valid', false],
  plan_cycle: [422, 'The plan has a cycle', false],
  idempotency_mismatch: [422, 'The key was used with another request', false],
  blocked_url: [422, 'The URL may not be called', false],
  rate_limited: [429, 'Too many requests', true],
  queue_full: [429, 'The queue is full', true],
  too_many_streams: [429, 'Too many open streams', true],
  headers_too_large: [431, 'The request headers are too large', false],
  internal: [500, 'Something went wrong here', false],
  unavailable: [503, 'The service cannot work right now', true]
} as const satisfies Record<string, readonly [status: number, title: string, retryable: boolean]>

export type ProblemCode = keyof typeof table
export const problemCodes = Object.keys(table) as ProblemCode[]

/** HTTP status of a code. */
export const statusOf = (code: ProblemCode): number => table[code][0]

/** One thing wrong with a request. `pointer` is a JSON pointer into the body (`/tools/0/url`), or into what `in` names (`/after`). */
export interface FieldError { in?: 'query' | 'header', pointer: string, detail: string }

/** What a problem may carry beside its text; each becomes a member of the answer. */
export interface ProblemFacts {
  errors?: FieldError[]
  /** Whole seconds; sent as `Retry-After` too. */
  retry_after_s?: number
  /** What stands in the way, for 409s. */
  run_ids?: string[]
  call_ids?: string[]
  run_id?: string
  conversation_id?: string
  suspension_id?: string
  message_id?: string
  /** The oldest `seq` that is still kept. */
  first_seq?: number
  /** The cycle's items in order, and the dependency whose removal breaks it. */
  path?: string[]
  suggestion?: { item: string, dependency: string }
  /** Methods the address takes; sent as `Allow`. */
  allow?: string[]
  /** What a process that is not ready looked at, and how it is. */
  checks?: Record<string, string>
  /** Bytes or entries, whatever was exceeded. */
  limit?: number
}

/** The body of an `application/problem+json` answer. */
export interface Problem extends ProblemFacts {
  type: string
  title: string
  status: number
  detail: string
  instance?: string
  code: ProblemCode
  retryable: boolean
}

/** An error a client may see. `message` becomes `detail`: one sentence and a next step, free of secrets, message text and internals. */
export class ProblemError extends Error {
  override name = 'ProblemError'
  readonly code: ProblemCode
  readonly status: number
  readonly title: string
  readonly retryable: boolean
  readonly facts: ProblemFacts

  constructor (code: ProblemCode, detail: string, facts: ProblemFacts = {}, options?: ErrorOptions) {
    super(detail, options)
    this.code = code
    ;[this.status, this.title, this.retryable] = table[code]
    this.facts = facts
  }
}

/** The answer's body. `instance` names this one occurrence; it is the request id of the log. */
export const toProblem = (error: ProblemError, requestId?: string): Problem => ({
  type: `urn:interlock:problem:${error.code}`,
  title: error.title,
  status: error.status,
  detail: error.message,
  ...(requestId === undefined ? {} : { instance: `urn:interlock:request:${requestId}` }),
  code: error.code,
  retryable: error.retryable,
  ...error.facts
})

export const malformedJson = (detail: string) => new ProblemError('malformed_json', detail)
export const badRequest = (detail: string) => new ProblemError('bad_request', detail)
export const unauthorized = (detail = 'Send an API key of this server as "Authorization: Bearer <key>".') => new ProblemError('unauthorized', detail)
export const forbidden = (detail: string) => new ProblemError('forbidden', detail)
/** Also for what belongs to another tenant: same words, so that nobody learns that it exists. */
export const notFound = (what: 'run' | 'conversation' | 'call' | 'call that waits for an output' | 'call that waits for a decision' | 'message' | 'suspension' | 'orphan' | 'address') => new ProblemError('not_found', `There is no such ${what} here: check the id, and that it was not deleted.`)
export const methodNotAllowed = (allow: string[]) => new ProblemError('method_not_allowed', `This address takes ${allow.join(', ')}.`, { allow })
export const notAcceptable = (offers: string[]) => new ProblemError('not_acceptable', `Accept one of ${offers.join(', ')}.`)
export const requestTimeout = () => new ProblemError('request_timeout', 'The request took too long to arrive. Send it again on a new connection.')
export const runActive = (runIds: string[]) => new ProblemError('run_active', 'Wait until the runs named here have ended, cancel them, or let this one wait with on_active_run "queue".', { run_ids: runIds })
export const runEnded = (runId: string, conversationId: string) => new ProblemError('run_ended', 'Post a new run to its conversation instead.', { run_id: runId, conversation_id: conversationId })
export const messageDelivered = (messageId: string) => new ProblemError('message_delivered', 'It has been delivered, superseded or withdrawn; its events say which.', { message_id: messageId })
/** `how` says who was first. */
export const suspensionResolved = (suspensionId: string, how: string, callIds: string[]) => new ProblemError('suspension_resolved', `It is over (${how}). Read the run for what it waits for now.`, { suspension_id: suspensionId, call_ids: callIds })
/** `how` is said of the calls. */
export const callSettled = (how: string, callIds: string[]) => new ProblemError('call_settled', `${callIds.join(', ')}: ${how}.`, { call_ids: callIds })
/** `advice` says what would fit. */
export const notRepairable = (advice: string, runIds: string[]) => new ProblemError('not_repairable', advice, { run_ids: runIds })
export const conversationExists = (conversationId: string) => new ProblemError('conversation_exists', 'Choose another id, or post a run to this conversation if it is yours.', { conversation_id: conversationId })
export const idempotencyInProgress = () => new ProblemError('idempotency_in_progress', 'The first request with this Idempotency-Key has no answer yet. Send it again a little later.', { retry_after_s: 1 })
export const versionConflict = () => new ProblemError('version_conflict', 'Others kept changing the conversation at the same moment. Send the request again.', { retry_after_s: 1 })
export const eventsTrimmed = (firstSeq: number) => new ProblemError('events_trimmed', `Events before ${firstSeq} are no longer kept. Read the conversation and its messages, then go on from there.`, { first_seq: firstSeq })
/** `limit` in bytes. */
export const payloadTooLarge = (limit: number) => new ProblemError('payload_too_large', `A body here may have ${limit} bytes.`, { limit })
export const uriTooLong = () => new ProblemError('uri_too_long', 'Shorten the path or a part of it.')
export const headersTooLarge = () => new ProblemError('headers_too_large', 'Send fewer or shorter headers.')
export const unsupportedMediaType = () => new ProblemError('unsupported_media_type', 'Send the body as "Content-Type: application/json", in UTF-8, without a content encoding.')
export const validationFailed = (errors: FieldError[]) => new ProblemError('validation_failed',
  errors.length === 1 ? 'One field is wrong; "errors" says which.' : `${errors.length} fields are wrong; "errors" lists them.`, { errors })
export const noCursor = () => validationFailed([
  { in: 'query', pointer: '/cursor', detail: 'is no cursor of this list: send a next_cursor back unchanged, with the same filters' }
])
/** `path` lists the items of the cycle; dropping `suggestion` breaks it. */
export const planCycle = (path: string[], suggestion: { item: string, dependency: string }) => new ProblemError('plan_cycle',
  `The items ${path.join(' → ')} wait for each other. Drop the dependency of ${suggestion.item} on ${suggestion.dependency}.`, { path, suggestion })
export const idempotencyMismatch = () => new ProblemError('idempotency_mismatch', 'This Idempotency-Key belongs to a request with another address or body. Use a new key.')
export const blockedUrl = (errors: FieldError[]) => new ProblemError('blocked_url', 'A URL leads to a private, loopback, link-local or metadata address. The operator can allow hosts with INTERLOCK_ALLOWED_TOOL_HOSTS.', { errors })
export const rateLimited = (retryAfterSeconds: number) => new ProblemError('rate_limited', 'Slow down and send it again later.', { retry_after_s: retryAfterSeconds })
/** `limit` is what fits. Nothing of the request was accepted. */
export const queueFull = (limit: number) => new ProblemError('queue_full', `No more than ${limit} may wait. Send it again once some have been taken.`, { limit, retry_after_s: 1 })
export const tooManyStreams = (retryAfterSeconds: number) => new ProblemError('too_many_streams', 'Close streams that are no longer read, or read pages with "Accept: application/json".', { retry_after_s: retryAfterSeconds })
/** The request changed nothing, or nobody knows whether it did: repeat it with the same Idempotency-Key. */
export const unavailable = (options?: ErrorOptions) => new ProblemError('unavailable', 'Something this service needs does not answer. Send the request again, with the same Idempotency-Key if it has one.', { retry_after_s: 1 }, options)
export const internal = (options?: ErrorOptions) => new ProblemError('internal', 'The error was logged under the id in "instance": tell it to the operator of this server.', {}, options)
