import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { scriptedAnswer, type ScriptedAnswer, type ScriptedRequest } from './script.js'

export interface ScriptedModel {
  /** For the openai client: ends in `/v1`. Any API key and any model name will do. */
  baseUrl: string
  /** Ends what is being streamed. Twice is fine. */
  close: () => Promise<void>
}

/** Bytes of the largest request that is read. */
const MAX_BODY = 64 * 1024 * 1024

/**
 * Starts the model that answers when there is no API key: a server on a free loopback port that speaks the OpenAI wire protocol, so
 * that the client, the streaming and the errors are the ones a real provider would meet. What it says is decided in `script.ts`.
 *
 * `pieceMs`: pause between two streamed pieces in milliseconds; default 20, a readable pace. 0 sends everything at once.
 */
export async function startScriptedModel ({ pieceMs = 20 }: { pieceMs?: number } = {}): Promise<ScriptedModel> {
  const server = createServer((request, response) => {
    answer(request, response, pieceMs).catch(() => response.destroy())
  })
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(0, '127.0.0.1', resolve)
  })
  const { port } = server.address() as AddressInfo
  return {
    baseUrl: `http://127.0.0.1:${port}/v1`,
    close: () => new Promise((resolve) => {
      server.close(() => resolve())
      server.closeAllConnections()
    })
  }
}

async function answer (request: IncomingMessage, response: ServerResponse, pieceMs: number): Promise<void> {
  const { pathname } = new URL(request.url ?? '/', 'http://loopback')
  if (request.method === 'GET' && pathname === '/v1/models') {
    return json(response, 200, { object: 'list', data: [{ id: 'scripted', object: 'model', created: 0, owned_by: 'interlock' }] })
  }
  if (request.method !== 'POST' || pathname !== '/v1/chat/completions') return fail(response, 404, 'Unknown request URL.', 'unknown_url')

  const body = await read(request)
  if (body === null) return fail(response.setHeader('connection', 'close'), 413, 'The request is too large.', 'request_too_large')
  const asked = parse(body)
  if (asked === null) return fail(response, 400, 'The body is not a chat completion request: it needs `model` and a non-empty `messages`.', 'invalid_request')

  const said = scriptedAnswer(asked)
  // Counted in characters, four to a token: this model has no tokenizer, and a demo without any usage would hide that part.
  const prompt = Math.ceil(body.length / 4)
  const completion = Math.ceil((said.text.length + JSON.stringify(said.calls).length) / 4)
  const usage = { prompt_tokens: prompt, completion_tokens: completion, total_tokens: prompt + completion }
  const firstId = asked.messages.flatMap((message) => message.tool_calls ?? []).length + 1
  const calls = said.calls.map((call, i) => ({ index: i, id: `call_${firstId + i}`, type: 'function', function: call }))
  const head = { id: `chatcmpl-scripted-${asked.messages.length}`, created: Math.floor(Date.now() / 1000), model: asked.model }
  const finishReason = calls.length > 0 ? 'tool_calls' : 'stop'

  if (asked.stream !== true) {
    const message = { role: 'assistant', content: said.text, ...(calls.length > 0 && { tool_calls: calls.map(({ index: _, ...call }) => call) }) }
    return json(response, 200, { ...head, object: 'chat.completion', choices: [{ index: 0, message, finish_reason: finishReason }], usage })
  }

  const gone = new AbortController()
  response.once('close', () => gone.abort())
  response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' })
  const chunk = (choices: unknown[], rest = {}) => response.write(`data: ${JSON.stringify({ ...head, object: 'chat.completion.chunk', choices, ...rest })}\n\n`)
  for (const delta of deltas(said, calls)) {
    chunk([{ index: 0, delta, finish_reason: null }])
    if (pieceMs > 0) await sleep(pieceMs, undefined, { signal: gone.signal })
  }
  chunk([{ index: 0, delta: {}, finish_reason: finishReason }])
  if (asked.stream_options?.include_usage === true) chunk([], { usage })
  response.end('data: [DONE]\n\n')
}

/** Text word by word, then the calls the way providers send parallel ones: each is announced, then their arguments come in turns. */
function* deltas (said: ScriptedAnswer, calls: { index: number, function: { name: string, arguments: string } }[]): Generator<object> {
  yield { role: 'assistant', content: '' }
  for (const [content] of said.text.matchAll(/\s*\S+/g)) yield { content }
  for (const call of calls) yield { tool_calls: [{ ...call, function: { name: call.function.name, arguments: '' } }] }
  const pieces = calls.map((call) => call.function.arguments.match(/[^]{1,12}/gu) ?? [])
  for (let i = 0; pieces.some((of) => i < of.length); i++) {
    for (const [index, of] of pieces.entries()) if (of[i] !== undefined) yield { tool_calls: [{ index, function: { arguments: of[i] } }] }
  }
}

async function read (request: IncomingMessage): Promise<string | null> {
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    size += chunk.length
    if (size > MAX_BODY) return null
    chunks.push(chunk)
  }
  return Buffer.concat(chunks).toString('utf8')
}

function parse (body: string): (ScriptedRequest & { stream?: unknown, stream_options?: { include_usage?: unknown } | null }) | null {
  try {
    const request = JSON.parse(body)
    const usable = typeof request?.model === 'string' && Array.isArray(request.messages) && request.messages.length > 0
      && request.messages.every((message: { role?: unknown } | null) => typeof message?.role === 'string')
    return usable ? request : null
  } catch {
    return null
  }
}

function json (response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body))
}

function fail (response: ServerResponse, status: number, message: string, code: string): void {
  json(response, status, { error: { message, type: 'invalid_request_error', param: null, code } })
}
