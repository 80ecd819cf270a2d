/*
 * The fault matrix (docs/fault-matrix.md), F80 to F86: what can become of an event stream, its reader and the process between them.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { createParser } from 'eventsource-parser'
import root, { type Test } from 'tap'
import type { Event } from '../../src/core/event.js'
import { createClient, type Client } from '../support/client.js'
import { API, repeats, WORKER } from '../support/death.js'
import { answer, call, delayed, latch, say } from '../support/model-reply.js'
import { begin } from '../support/schedule-http.js'
import { many } from '../support/tool-calls.js'
import { story } from '../support/world.js'

root.setTimeout(600_000)

const range = (n: number) => Array.from({ length: n }, (_, i) => i)

/** Asks for a stream over a bare socket, on which nothing is read until somebody does. */
async function rawReader (t: Test, url: string, path: string): Promise<Socket> {
  const { hostname, port } = new URL(url)
  const socket = connect(Number(port), hostname).pause()
  t.teardown(() => socket.destroy())
  socket.on('error', () => { /* it is cut off */ })
  await new Promise((resolve) => socket.once('connect', resolve))
  socket.write(`GET ${path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n`)
  return socket
}

/** Resident memory of a process, in bytes. Linux tells it. */
const memory = (pid: number): number => Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) * 1024

story('F80: readers cut again and again at random, each time at another process, while events are made: every event once, the same bytes, for each', async (t, { model, service, tool, watch }) => {
  const [one, two] = (await Promise.all([service(), service(API)])).map(({ url }) => watch(createClient(url, { patient: true }))) as [Client, Client]
  const turns = 20
  model.otherwise(({ n }) => delayed(n <= turns ? call(...many(3, 'echo', (i) => ({ value: i }), `${n}c`)) : say('done'), 30))
  const readers = repeats(5)
  const run = await one.start({ input: 'conv:a', tools: [tool('echo')], limits: { max_turns: turns + 1 } })
  let cuts = 0
  const seen = await Promise.all(range(readers).map(async (reader) => {
    const frames: string[] = []
    for (let after = 0; ;) {
      const client = cuts++ % 2 === reader % 2 ? one : two
      const stream = await client.open(`/runs/${run.id}/events`, { lastEventId: String(after) }).catch(() => null)
      // 204: there is nothing behind the terminal event.
      if (stream === null) return frames
      const wanted = 1 + Math.floor(Math.random() * 12)
      await Promise.race([stream.count(wanted).catch(() => { /* it ended before */ }), stream.ended])
      // What came beyond is thrown away, as by a reader that is cut off in the middle of a chunk.
      const read = stream.frames.filter((frame) => frame.id !== null).slice(0, wanted)
      stream.close()
      await stream.ended
      frames.push(...read.map(({ data }) => data))
      after = (JSON.parse(frames.at(-1) ?? '{"seq":0}') as Event).seq
    }
  }))
  const log = (await two.log({ run: run.id })).map((event) => JSON.stringify(event))
  for (const [reader, frames] of seen.entries()) t.same(frames, log, `reader ${reader}`)
  t.ok(cuts > 5 * readers, `${cuts} connections`)
})

story('F83: readers that stop, half-open or one byte at a time: memory stays bounded, others are served meanwhile, and whoever comes back misses nothing', async (t, { model, service, process, tool, watch }) => {
  const [api] = await Promise.all([process('api'), service(WORKER)])
  const client = watch(createClient(api.url, { patient: true }))
  const gate = latch()
  // Some ten megabytes of events.
  const calls = [...many(20, 'bomb', () => ({ bytes: 500_000 })), { id: 'end', name: 'final_answer', arguments: { answer: 'done' } }]
  model.script('conv:a', [delayed(answer({ calls, fragment: 1000 }), gate)])
  model.script('conv:b', [say('meanwhile')])
  const run = await client.start({ input: 'conv:a', tools: [tool('bomb')], tool_policy: { final_answer_tool: 'final_answer' }, limits: { max_result_chars: 1_000_000 } })
  const path = `/runs/${run.id}/events`
  const dead = await Promise.all(range(30).map(() => rawReader(t, api.url, path)))
  const slow = await rawReader(t, api.url, path)
  const dripping = setInterval(() => slow.read(1), 10)
  const alive = await client.follow(run)
  await alive.event('turn.started')
  const before = memory(api.pid)
  gate.open()
  await alive.ended
  t.equal((await client.finish({ input: 'conv:b' })).run.output, 'meanwhile')
  const grown = memory(api.pid) - before
  // One event and what sockets hold for each, where all that was told would be 300 megabytes.
  t.ok(grown < 150_000_000, `${Math.round(grown / 1e6)} MB for ${dead.length + 1} readers`)
  clearInterval(dripping)
  for (const socket of [...dead, slow]) socket.destroy()
  const again = await client.follow(run, 3)
  await again.ended
  t.same(again.events().map(({ seq }) => seq), alive.events().slice(3).map(({ seq }) => seq))
}, { except: ['deltas'], long: true })

const noLimits = spawnSync('prlimit', ['--version']).status === 0 ? false : 'prlimit (util-linux) sets the limit of a process that runs, and is not on this machine'

if (noLimits !== false) {
  void root.test('F84: more streams than file descriptors', { skip: noLimits }, async () => { /* see above */ })
} else {
  story('F84: more readers than the process may have file descriptors: those it has are served, the others are refused, and it accepts again', async (t, { model, service, process }) => {
    const [api] = await Promise.all([process('api'), service(WORKER)])
    const gate = latch()
    model.script('conv:a', [delayed(say('done'), gate)])
    const { run, stream } = await begin(api.client, { input: 'conv:a' })
    await stream.event('turn.started')
    execFileSync('prlimit', ['--pid', String(api.pid), '--nofile=120:120'])
    const sockets = await Promise.all(range(300).map(() => rawReader(t, api.url, `/runs/${run.id}/events`).catch(() => null)))
    const got = sockets.map((socket) => {
      let text = ''
      let closed = socket === null
      socket?.on('data', (chunk: Buffer) => { text += chunk.toString() })
      socket?.on('close', () => { closed = true })
      socket?.resume()
      return { text: () => text, closed: () => closed }
    })
    const served = () => got.filter((one) => one.text().includes('turn.started')).length
    // Each of them is served, or refused, or waits to be accepted; nobody who is served is disturbed.
    while (served() < 50) await sleep(20)
    t.ok(served() < 120)
    for (const socket of sockets.slice(150)) socket?.destroy()
    gate.open()
    await stream.ended
    t.equal(stream.types().at(-1), 'run.completed', 'a stream that was there goes on')
    for (const socket of sockets) socket?.destroy()
    // It accepts again: for all who come now there is room.
    model.script('conv:b', [say('after')])
    t.equal((await api.client.finish({ input: 'conv:b' })).run.output, 'after')
    t.equal(api.stderr(), '')
  })
}

story('F85: an API process killed in the middle of a frame: half of it is nothing, and whoever comes back has all of it', async (t, { model, service, process, tool }) => {
  const [doomed, other] = await Promise.all([process('api'), service()])
  // Twenty megabytes of events, more than sockets hold.
  const calls = [...many(32, 'bomb', () => ({ bytes: 600_000 })), { id: 'end', name: 'final_answer', arguments: { answer: 'done' } }]
  model.script('conv:a', [answer({ calls, fragment: 1000 })])
  const { run } = await other.client.finish({ input: 'conv:a', tools: [tool('bomb')], tool_policy: { final_answer_tool: 'final_answer' }, limits: { max_result_chars: 1_000_000 } })
  const socket = await rawReader(t, doomed.url, `/runs/${run.id}/events`)
  let text = ''
  let dead = false
  socket.on('data', (chunk: Buffer) => {
    text += chunk.toString()
    // It reads the first bytes of a large frame, and no more before the process is dead.
    if (!dead && text.includes('bomb')) socket.pause()
  })
  socket.resume()
  while (!text.includes('bomb')) await sleep(5)
  await doomed.kill()
  dead = true
  const closed = new Promise((resolve) => socket.once('close', resolve))
  socket.resume()
  await closed
  const frames: { id: string, data: string }[] = []
  const parser = createParser({ onEvent: ({ id, data }) => { frames.push({ id: id ?? '', data }) } })
  parser.feed(text.slice(text.indexOf('\r\n\r\n') + 4).replace(/(?<=\n|^)[0-9a-f]+\r\n|\r\n/g, ''))
  const whole = await other.client.log({ run: run.id })
  const last = Number(frames.at(-1)?.id)
  t.ok(last < whole.length, `it had ${last} of ${whole.length} whole events`)
  t.same(frames.map(({ data }) => data), whole.slice(0, last).map((event) => JSON.stringify(event)), 'no part of a frame is taken for an event')
  const rest = await other.client.open(`/runs/${run.id}/events`, { lastEventId: String(last) })
  await rest.ended
  t.same(rest.events().map(({ seq }) => seq), whole.slice(last).map(({ seq }) => seq))
}, { long: true })
