/** What the demo reads of an event; a client needs to know no more than it uses. `turn.delta` has no `seq` and no `time`. */
export interface StreamedEvent {
  type: string
  seq?: number
  time: string
  turn: number
  caused_by: number[]
  call_id: string
  name: string
  arguments: Record<string, unknown>
  duration_ms: number
  tool_calls: unknown[]
  offset: number
  text: string
  message_id: string
  content: string
  mode: string
  error: { message: string } | null
  reason: string
  delay_ms: number
  counts: { completed: number, failed: number, cancelled: number }
}

/** An event with the text it came as: the same on every read. */
export interface Received { event: StreamedEvent, json: string }

export interface Client {
  get: <T>(path: string) => Promise<T>
  text: (path: string) => Promise<string>
  post: <T>(path: string, body: unknown) => Promise<T>
  remove: (path: string) => Promise<void>
  /** The events of a stream, until the server ends it. */
  stream: (path: string) => AsyncGenerator<Received>
}

/** The HTTP API as any client would use it. Every request fails when `signal` fires. */
export function createClient (url: string, signal: AbortSignal): Client {
  async function send (method: string, path: string, accept: string, body?: unknown): Promise<Response> {
    const response = await fetch(url + path, {
      method,
      signal,
      headers: { accept, ...(body !== undefined && { 'content-type': 'application/json' }) },
      ...(body !== undefined && { body: JSON.stringify(body) })
    })
    if (!response.ok) throw new Error(`${method} ${path} was answered ${response.status}: ${problem(await response.text())}`)
    return response
  }
  const json = 'application/json'
  const text = async (path: string) => (await send('GET', path, json)).text()

  return {
    text,
    get: async <T>(path: string) => JSON.parse(await text(path)) as T,
    post: async <T>(path: string, body: unknown) => await (await send('POST', path, json, body)).json() as T,
    remove: async (path) => { await (await send('DELETE', path, json)).arrayBuffer() },
    async* stream (path) {
      const { body } = await send('GET', path, 'text/event-stream')
      let rest = ''
      for await (const piece of (body as ReadableStream<Uint8Array>).pipeThrough(new TextDecoderStream())) {
        const frames = (rest + piece).split('\n\n')
        rest = frames.pop() ?? ''
        for (const frame of frames) {
          const data = frame.split('\n').find((line) => line.startsWith('data: '))?.slice('data: '.length)
          if (data !== undefined) yield { event: JSON.parse(data) as StreamedEvent, json: data }
        }
      }
    }
  }
}

/** The sentence of a problem (RFC 9457), with what it says of single fields. */
function problem (body: string): string {
  try {
    const { detail, errors = [] } = JSON.parse(body) as { detail: string, errors?: { pointer: string, detail: string }[] }
    return [detail, ...errors.map((error) => `${error.pointer} ${error.detail}`)].join(' ')
  } catch {
    return body.slice(0, 200)
  }
}
