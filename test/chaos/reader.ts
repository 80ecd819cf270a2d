import { request, type IncomingMessage } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { createParser } from 'eventsource-parser'
import type { Random } from '../simulation/random.js'
import type { Frame } from '../support/client.js'

/** What came by one connection of a reader; `after`: the id of the event it had last, "0" for none. */
export interface Segment { path: string, after: string, frames: Frame[] }

export interface Reading {
  path: string
  random: Random
  urls: () => string[]
  segments: Segment[]
  over: () => boolean
}

/** Reads a stream to its end with many connections: each is left after a while, and the next one, to any API process, goes on behind the last event. */
export async function readAlong ({ path, random, urls, segments, over }: Reading): Promise<void> {
  let cursor = '0'
  while (!over()) {
    const url = random.pick(urls())
    if (url === undefined) {
      await sleep(100)
      continue
    }
    const segment: Segment = { path, after: cursor, frames: [] }
    const status = await connect(url, segment, random, over).catch(() => null)
    if (segment.frames.length > 0) segments.push(segment)
    cursor = segment.frames.findLast(({ id }) => id !== null)?.id ?? cursor
    // 204: everything has been read. 404: it was deleted.
    if (status === 204 || status === 404) return
    await sleep(random.int(0, 200))
  }
}

/** One connection, left after up to three seconds. Resolves with the status of the answer when it is over. */
function connect (url: string, segment: Segment, random: Random, over: () => boolean): Promise<number> {
  const parse = random.chance(0.5) ? official(segment.frames) : own(segment.frames)
  const header = random.chance(0.5)
  const leave = AbortSignal.timeout(random.int(50, 3000))
  return new Promise((resolve, reject) => {
    const sent = request(`${url}${segment.path}${header || segment.after === '0' ? '' : `?after=${segment.after}`}`, {
      agent: false, signal: leave, headers: { accept: 'text/event-stream', ...(header && segment.after !== '0' && { 'last-event-id': segment.after }) }
    }, (response: IncomingMessage) => {
      response.setEncoding('utf8')
      const streams = response.statusCode === 200
      response.on('data', (text: string) => { if (streams) parse(text) })
      response.on('error', () => { /* `close` follows */ })
      const looking = setInterval(() => { if (over()) response.destroy() }, 100)
      response.once('close', () => {
        clearInterval(looking)
        resolve(response.statusCode ?? 0)
      })
    })
    sent.on('error', reject)
    sent.end()
  })
}

type Parse = (text: string) => void

function official (frames: Frame[]): Parse {
  const parser = createParser({ onEvent: ({ id, event, data }) => { frames.push({ id: id ?? null, event: event ?? 'message', data }) } })
  return (text) => parser.feed(text)
}

/** Written after the standard and nothing else, so that two who read the same bytes must come to the same frames. Ends of line: CRLF, LF, CR. */
function own (frames: Frame[]): Parse {
  let rest = ''
  let fields: Record<string, string[]> = {}
  return (text) => {
    const lines = (rest + text).split(/\r\n|\n|\r(?!$)/)
    rest = lines.pop() ?? ''
    for (const line of lines) {
      if (line !== '') {
        const [, name = '', value = ''] = /^([^:]*):? ?(.*)$/s.exec(line) ?? []
        ;(fields[name] ??= []).push(value)
        continue
      }
      if (fields.data !== undefined) frames.push({ id: fields.id?.at(-1) ?? null, event: fields.event?.at(-1) ?? 'message', data: fields.data.join('\n') })
      fields = {}
    }
  }
}
