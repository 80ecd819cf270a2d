import { Agent, request, type IncomingMessage } from 'node:http'

/** Connections are kept: what is measured is the service, not TCP. */
const agent = new Agent({ keepAlive: true, maxSockets: Infinity })

export interface Seen {
  /** Milliseconds from the first byte sent. */
  first_event: number
  end: number
  terminal: string
  events: { type: string, at: number }[]
}

export interface Watch {
  /** The run is accepted; `location` is its path. */
  onOpen?: (location: string) => void
  onEvent?: (type: string) => void
}

/** Posts a run and reads its event stream to the end. The cheapest client that can be: it looks for `event:` lines. */
export function run (origin: string, body: object, { onOpen, onEvent }: Watch = {}): Promise<Seen> {
  const payload = JSON.stringify(body)
  const started = performance.now()
  return new Promise((resolve, reject) => {
    const sent = request(`${origin}/runs`, {
      method: 'POST', agent, headers: { 'content-type': 'application/json', accept: 'text/event-stream', 'content-length': Buffer.byteLength(payload) }
    }, (response: IncomingMessage) => {
      if (response.statusCode !== 201) {
        response.resume()
        return reject(new Error(`POST /runs answered ${response.statusCode}`))
      }
      onOpen?.(response.headers.location ?? '')
      const events: Seen['events'] = []
      let rest = ''
      response.setEncoding('utf8')
      response.on('data', (text: string) => {
        const at = performance.now() - started
        const lines = (rest + text).split('\n')
        rest = lines.pop() ?? ''
        for (const line of lines) {
          if (!line.startsWith('event: ')) continue
          events.push({ type: line.slice(7), at })
          onEvent?.(line.slice(7))
        }
      })
      response.on('error', reject)
      response.on('end', () => {
        resolve({ first_event: events[0]?.at ?? NaN, end: performance.now() - started, terminal: events.at(-1)?.type ?? 'none', events })
      })
    })
    sent.on('error', reject)
    sent.end(payload)
  })
}

/** Posts JSON on a kept connection, and resolves once it was answered well. */
export function post (url: string, body: object): Promise<void> {
  return new Promise((resolve, reject) => {
    const sent = request(url, { method: 'POST', agent, headers: { 'content-type': 'application/json' } }, (response) => {
      response.resume()
      response.on('end', () => {
        if ((response.statusCode ?? 500) < 300) resolve()
        else reject(new Error(`POST ${url} answered ${response.statusCode}`))
      })
    })
    sent.on('error', reject)
    sent.end(JSON.stringify(body))
  })
}
