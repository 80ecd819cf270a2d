import { once } from 'node:events'
import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

export interface SampleApi {
  url: string
  port: number
  /** Cuts what is under way. Twice is fine. */
  close: () => Promise<void>
}

interface Character { id: number, name: string, location_ids: number[] }
interface Location { id: number, name: string, region: string, population: number }

/** Each answer takes the milliseconds beside it, always the same: different enough that one sees which calls ran at the same time. */
const LIST_MS = 420

const characters: [Character, ms: number][] = [
  [{ id: 1, name: 'Ada Thornwell', location_ids: [1, 2] }, 380],
  [{ id: 2, name: 'Bram Okoro', location_ids: [2, 3] }, 840],
  [{ id: 3, name: 'Cleo Vance', location_ids: [2, 1] }, 560],
  [{ id: 4, name: 'Dario Finch', location_ids: [1, 5] }, 280],
  [{ id: 5, name: 'Edda Moss', location_ids: [4] }, 450],
  [{ id: 6, name: 'Felix Quill', location_ids: [2, 4] }, 900],
  [{ id: 7, name: 'Greta Sand', location_ids: [3, 1] }, 820]
]

const locations: [Location, ms: number][] = [
  [{ id: 1, name: 'Gullhaven', region: 'the lowlands', population: 2140 }, 520],
  [{ id: 2, name: 'Stonemere', region: 'the mountains', population: 310 }, 700],
  [{ id: 3, name: 'Reedmarket', region: 'the marshes', population: 870 }, 330],
  [{ id: 4, name: 'Hawk Pass', region: 'the mountains', population: 45 }, 620],
  [{ id: 5, name: 'Willowgate', region: 'the lowlands', population: 5600 }, 840]
]

/**
 * The API that the demo's tools talk to, on a free loopback port: `GET /characters`, `/characters/:id` and `/locations/:id`. An id may
 * also come as `?id=`, which is how an http tool with GET sends its arguments. People and places are made up.
 */
export async function startSampleApi (): Promise<SampleApi> {
  const server = createServer((request, response) => {
    const { pathname, searchParams } = new URL(request.url ?? '/', 'http://sample')
    const [, collection, inPath] = pathname.split('/')
    const id = inPath ?? searchParams.get('id')
    const found = request.method === 'GET' ? find(collection ?? '', id, `http://${request.headers.host}`) : null
    const [body, ms] = found ?? [{ error: 'there is no such thing' }, 0]
    const timer = setTimeout(() => answer(response, found === null ? 404 : 200, body), ms)
    response.once('close', () => clearTimeout(timer))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  return {
    url: `http://127.0.0.1:${port}`,
    port,
    close: () => new Promise((resolve) => {
      server.close(() => resolve())
      server.closeAllConnections()
    })
  }
}

function find (collection: string, id: string | null, origin: string): [body: unknown, ms: number] | null {
  const linked = (one: Character) => ({ ...one, url: `${origin}/characters/${one.id}` })
  if (collection === 'characters' && id === null) return [{ characters: characters.map(([one]) => linked(one)) }, LIST_MS]
  if (collection === 'characters') {
    const found = characters.find(([one]) => String(one.id) === id)
    return found === undefined ? null : [linked(found[0]), found[1]]
  }
  return collection === 'locations' ? locations.find(([one]) => String(one.id) === id) ?? null : null
}

function answer (response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body))
}
