/** A gate that a test holds. */
export interface Latch { opened: Promise<void>, open: () => void }

export function latch (): Latch {
  let open = () => {}
  const opened = new Promise<void>((resolve) => { open = resolve })
  return { opened, open: () => open() }
}

/** Milliseconds, or until a test opens the latch. */
export type Pause = number | Latch

/**
 * - `end`: properly.
 * - `fin`: the connection is closed in the middle of the response.
 * - `rst`: the connection is reset.
 * - `stall`: nothing more is sent and the connection stays open until the client goes.
 */
export type Ending = 'end' | 'fin' | 'rst' | 'stall'

/** What the model server sends for one request. Made by the functions below; one reply may be sent any number of times. */
export interface Reply {
  status: number
  headers: Record<string, string>
  /** Before the headers. */
  before: Pause[]
  /** Bytes to write and pauses between them. One event of a stream is one part. */
  parts: (Buffer | Pause)[]
  ending: Ending
  /** For a request that does not ask for a stream. */
  completion: Buffer | null
  /** All parts in one, when there is nothing to wait for. */
  whole: Buffer | null
}

export interface ReplyCall {
  /** Default `call_1`, `call_2`, … within the answer. */
  id?: string
  name: string
  /** An object is encoded; a string is sent as it is, valid or not. */
  arguments: Record<string, unknown> | string
}

export interface Answer {
  /** As one piece, or as these pieces. */
  text?: string | string[]
  refusal?: string
  /** Parallel calls: each is announced in one event, then their arguments come in turns. */
  calls?: ReplyCall[]
  /** Characters of the arguments in each event; default 8. */
  fragment?: number
  /** Default `tool_calls` with calls, else `stop`. Null: none is sent. */
  finish?: string | null
  /** Prompt and completion tokens; default 10 and 5. Null: none are sent. */
  usage?: [prompt: number, completion: number] | null
}

/** A complete answer, the way OpenAI sends one. */
export function answer ({ text = [], refusal, calls = [], fragment = 8, finish, usage }: Answer): Reply {
  const pieces = typeof text === 'string' ? [text] : text
  const made = calls.map((call, index) => ({
    index,
    id: call.id ?? `call_${index + 1}`,
    type: 'function',
    function: { name: call.name, arguments: typeof call.arguments === 'string' ? call.arguments : JSON.stringify(call.arguments) }
  }))
  const deltas: object[] = [{ role: 'assistant', content: pieces.length > 0 ? '' : null, refusal: null }]
  for (const content of pieces) deltas.push({ content })
  if (refusal !== undefined) deltas.push({ refusal })
  for (const call of made) deltas.push({ tool_calls: [{ ...call, function: { name: call.function.name, arguments: '' } }] })
  const longest = Math.max(0, ...made.map((call) => call.function.arguments.length))
  for (let from = 0; from < longest; from += fragment) {
    for (const { index, function: { arguments: args } } of made) {
      if (from < args.length) deltas.push({ tool_calls: [{ index, function: { arguments: args.slice(from, from + fragment) } }] })
    }
  }
  const message = {
    role: 'assistant',
    content: pieces.length > 0 ? pieces.join('') : null,
    refusal: refusal ?? null,
    ...(made.length > 0 && { tool_calls: made.map(({ index: _, ...call }) => call) })
  }
  return stream(deltas, { finish: finish === undefined ? (made.length > 0 ? 'tool_calls' : 'stop') : finish, usage, message })
}

/** Text and nothing else. */
export const say = (text: string | string[]): Reply => answer({ text })

/** Parallel tool calls and nothing else. */
export const call = (...calls: ReplyCall[]): Reply => answer({ calls })

/** These deltas in this order, for servers that do not send them as OpenAI does. The finish, the usage and `[DONE]` follow, one part each. */
export function stream (deltas: object[], { finish = 'stop', usage = [10, 5], message }: Pick<Answer, 'finish' | 'usage'> & { message?: object } = {}): Reply {
  const events = deltas.map((delta) => chunk({ choices: [{ index: 0, delta, finish_reason: null }] }))
  if (finish !== null) events.push(chunk({ choices: [{ index: 0, delta: {}, finish_reason: finish }] }))
  const counted = usage === null ? undefined : { prompt_tokens: usage[0], completion_tokens: usage[1], total_tokens: usage[0] + usage[1] }
  if (counted !== undefined) events.push(chunk({ choices: [], usage: counted }))
  const completion = message === undefined ? null
    : Buffer.from(JSON.stringify({ ...HEAD, object: 'chat.completion', choices: [{ index: 0, message, finish_reason: finish }], usage: counted }))
  return events200([...events, '[DONE]'], completion)
}

/** These events, whatever they hold: JSON or not. */
export function events (...data: (string | object)[]): Reply {
  return events200(data.map((one) => typeof one === 'string' ? one : JSON.stringify(one)), null)
}

/** An HTTP error with OpenAI's body. `retryAfter` is the header as it is sent. */
export function status (code: number, { message = 'The server had an error', type = 'server_error', errorCode = null, retryAfter, headers = {} }: {
  message?: string, type?: string, errorCode?: string | null, retryAfter?: string | number, headers?: Record<string, string>
} = {}): Reply {
  const body = Buffer.from(JSON.stringify({ error: { message, type, param: null, code: errorCode } }))
  return sealed({
    status: code,
    headers: { 'content-type': 'application/json', ...(retryAfter !== undefined && { 'retry-after': String(retryAfter) }), ...headers },
    before: [],
    parts: [body],
    ending: 'end',
    completion: body
  })
}

/** Waits before the headers. */
export const delayed = (reply: Reply, pause: Pause): Reply => sealed({ ...reply, before: [...reply.before, pause] })

/** Waits after `n` parts of the stream; 0: after the headers. Negative counts from the end, as in `slice`. */
export const heldAt = (reply: Reply, n: number, pause: Pause): Reply =>
  sealed({ ...reply, parts: [...reply.parts.slice(0, n), pause, ...reply.parts.slice(n)] })

/** Waits before each part of the stream. */
export const paced = (reply: Reply, ms: number): Reply => sealed({ ...reply, parts: reply.parts.flatMap((part) => [ms, part]) })

/** Sends only the first `n` parts (negative: all but the last) and then ends in another way. */
export const cut = (reply: Reply, n: number, ending: Ending): Reply => sealed({ ...reply, parts: reply.parts.slice(0, n), ending })

/** Sends only the first `n` bytes, wherever that is. */
export function cutBytes (reply: Reply, n: number, ending: Ending): Reply {
  const bytes = Buffer.concat(reply.parts.filter((part) => Buffer.isBuffer(part))).subarray(0, n)
  return sealed({ ...reply, parts: [bytes], ending })
}

const HEAD = { id: 'chatcmpl-test', created: 1_700_000_000, model: 'test' }

function chunk (fields: object): string {
  return JSON.stringify({ ...HEAD, object: 'chat.completion.chunk', ...fields })
}

function events200 (data: string[], completion: Buffer | null): Reply {
  const parts = data.map((event) => Buffer.from(`data: ${event}\n\n`))
  return sealed({ status: 200, headers: { 'content-type': 'text/event-stream' }, before: [], parts, ending: 'end', completion })
}

function sealed (reply: Omit<Reply, 'whole'>): Reply {
  const bytes = reply.parts.filter((part) => Buffer.isBuffer(part))
  const whole = reply.ending === 'end' && bytes.length === reply.parts.length ? Buffer.concat(bytes) : null
  return { ...reply, whole }
}
