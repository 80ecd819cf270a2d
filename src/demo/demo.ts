/**
 * `npm run demo`: one real run, drawn while it happens. The service is the one `npm start` starts (HTTP, Redis, BullMQ, the openai
 * client), in this process; this file is its client. Exit code 0 when the run completed and what was stored is in order.
 */
import { constants } from 'node:os'
import type { WriteStream } from 'node:tty'
import { chart } from './chart.js'
import { createClient, type Client, type StreamedEvent } from './client.js'
import { createLiveView } from './live-view.js'
import { createPlainView } from './plain-view.js'
import type { DemoService } from './service.js'
import { createStory, type Story } from './story.js'
import { printable, wrap } from './text.js'
import { faults, readBack, totals } from './totals.js'
import { HANGING, type View } from './view.js'

const INPUT = 'Fetch the characters, then two of the related locations. Then find out who else belongs there.'
const INTERRUPT = 'Only the mountains, please.'

/** For real models: the scripted one does this by itself. */
const INSTRUCTIONS = 'You explore a small API with the tools you have. Say in one short sentence what you do next. '
  + 'Call several tools at once whenever none needs the result of another. Follow the url of a character with http_fetch. '
  + 'Look at single characters and at single locations, not only at the list. Answer at the end in three sentences.'

/** The run may take this long; a slow provider is no failure. Milliseconds. */
const RUN_TIMEOUT_MS = 180_000

/** With this many characters, what a model writes is its answer rather than an announcement of calls. */
const LONG_TEXT = 240

interface Run { id: string, conversation_id: string, status: string, output: unknown, error: { message: string } | null, usage: { llm_calls: number } }

/** The demo did not do what it shows. The message is one sentence and a next step. */
class DemoError extends Error {}

const terminal = process.stdout as WriteStream
const story = createStory()
const view: View = terminal.isTTY && !process.env.NO_COLOR && process.env.TERM !== 'dumb' ? createLiveView(terminal, story) : createPlainView(terminal, story)

const stop = new AbortController()
let firstSignal = Infinity
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => {
    // Ctrl-C comes several times at once: from the terminal, from npm and from tsx. Who presses it again later does not want to wait.
    if (performance.now() - firstSignal > 1000) process.exit(128 + constants.signals[signal])
    firstSignal = Math.min(firstSignal, performance.now())
    stop.abort(signal)
  })
}
// Whoever reads us has seen enough.
process.stdout.on('error', () => stop.abort('SIGPIPE'))

const closers: (() => unknown)[] = []
let service: DemoService | undefined
try {
  await demo()
} catch (error) {
  view.end()
  if (!stop.signal.aborted) complain(error as Error)
  else if (stop.signal.reason !== 'SIGPIPE') view.print(['Stopped.'])
  if (stop.signal.aborted) process.exitCode = 128 + constants.signals[stop.signal.reason as 'SIGINT']
}
for (const close of closers.reverse()) {
  try {
    await close()
  } catch (error) {
    complain(error as Error)
  }
}
// After a failure something half-started may still be waited for.
if (process.exitCode !== undefined) process.exit()

async function demo (): Promise<void> {
  const { strong, quiet, turn: accent } = view.palette
  view.print(['', `${strong('Interlock')}  one run on the whole service, drawn while it happens`, quiet('Starting HTTP API, worker and Redis …')])
  // The imports alone take a second or two: by now there is something to read.
  const { startService } = await import('./service.js')
  service = await startService(closers, (line) => view.print([line]))
  const client = createClient(service.url, stop.signal)
  const body = await request(client, service)
  view.print([
    ...hanging('service', `API and worker on ${service.url}, on ${service.redis}`),
    ...hanging('tools', `${body.tools.map((tool) => tool.name).join(', ')}, on a sample API at ${service.sampleUrl}`),
    ...hanging('model', service.provider === null
      ? 'no OPENAI_API_KEY, so the built-in scripted model answers, behind the OpenAI protocol'
      : `${body.model} of ${service.provider}`)
  ])
  const run = await client.post<Run>('/runs', body)
  view.print([...hanging('run', `POST /runs → ${run.id}`), ...hanging('input', `“${INPUT}”`), ''])
  const { streamed, reactionMs } = await follow(client, run)
  view.end()

  const ended = await client.get<Run>(`/runs/${run.id}`)
  const kept = await readBack(client, run.id, run.conversation_id)
  if (process.env.REDIS_URL) await client.remove(`/conversations/${run.conversation_id}`)
  const span = Math.max(1, (story.to ?? Date.now()) - story.from)
  view.print([...chart(story, { width: view.width(), span, now: story.from + span, palette: view.palette }), ''])
  if (ended.status !== 'completed') {
    throw new DemoError(ended.error === null ? `The run is ${ended.status}: run the demo again, perhaps with another model.` : `The run failed: ${ended.error.message}`)
  }
  view.print(hanging('answer', printable(String(ended.output)), accent))
  view.print(['', ...totals(story, { llmCalls: ended.usage.llm_calls, reactionMs, kept }).map(([name, what]) => `${strong(name.padEnd(13))}${what}`), ''])
  const wrong = faults(kept, streamed, reactionMs === null ? null : INTERRUPT)
  if (wrong.length > 0) throw new DemoError(`What was stored is not in order: ${wrong.join('; ')}. This is a bug: please report it with the output above.`)
}

/** Reads the stream of a run to its end, and posts the message once there is something to interrupt. */
async function follow (client: Client, { id }: Run): Promise<{ streamed: string[], reactionMs: number | null }> {
  const streamed: string[] = []
  let posted: Promise<number> | undefined
  let next: { turn: number, at: number } | undefined
  for await (const { event, json } of client.stream(`/runs/${id}/events`)) {
    if (event.seq !== undefined) streamed.push(json)
    story.take(event)
    view.show(event)
    if (posted === undefined && isTimeToInterrupt(story, event)) {
      const sent = performance.now()
      posted = client.post(`/runs/${id}/messages`, { content: INTERRUPT, mode: 'interrupt' }).then(() => sent)
      posted.catch(() => { /* looked at below */ })
      next = { turn: event.turn + 1, at: 0 }
    }
    if (event.type === 'turn.started' && event.turn === next?.turn) next.at = performance.now()
  }
  // The run may have ended in the very moment: then the message was refused, and nothing was interrupted.
  const sent = await posted?.catch(() => undefined)
  return { streamed, reactionMs: sent === undefined || !next?.at ? null : next.at - sent }
}

/**
 * Not before the model knows a location. Best in the middle of a batch, as soon as its first result is there: what is settled stays, the rest is
 * cut. A model that never calls several tools from then on is interrupted in its answer.
 */
function isTimeToInterrupt (story: Story, event: StreamedEvent): boolean {
  const calls = story.calls()
  const place = calls.find((call) => call.label.startsWith('get_location') && call.state === 'completed')
  if (place === undefined || event.turn <= place.turn) return false
  if (event.type === 'turn.delta') return story.text.length > LONG_TEXT
  return event.type === 'tool.completed' && calls.some((call) => call.turn === event.turn && call.state === 'running')
}

/** The body of `POST /runs`. */
async function request (client: Client, { sampleUrl, model, provider }: DemoService) {
  const id = { type: 'object', properties: { id: { type: 'integer' } }, required: ['id'], additionalProperties: false }
  const tool = (name: string, path: string, description: string, parameters?: object) => (
    { kind: 'http', name, method: 'GET', url: `${sampleUrl}${path}`, effects: 'read', description, ...(parameters && { parameters }) })
  return {
    input: INPUT,
    instructions: INSTRUCTIONS,
    model: model ?? (provider === null ? 'scripted' : await onlyModel(client, provider)),
    tools: [
      tool('list_characters', '/characters', 'Lists all characters with the ids of the locations they belong to.'),
      tool('get_character', '/characters', 'One character by its id.', id),
      tool('get_location', '/locations', 'One location by its id: name, region, population.', id),
      { kind: 'builtin', name: 'http_fetch' }
    ],
    limits: { run_timeout_ms: RUN_TIMEOUT_MS },
    metadata: { made_by: 'demo' }
  }
}

/** OpenAI has a default model; a server of one's own often has just one, and then needs no OPENAI_MODEL. */
async function onlyModel (client: Client, provider: string): Promise<string> {
  const { data } = await client.get<{ data: { id: string, default: boolean }[] }>('/models')
  const only = data.find((model) => model.default) ?? (data.length === 1 ? data[0] : undefined)
  if (only !== undefined) return only.id
  const known = data.slice(0, 8).map((model) => model.id).join(', ')
  throw new DemoError(`Which model of ${provider} shall answer? Set OPENAI_MODEL${known === '' ? '' : `, for example to one of: ${known}`}.`)
}

/** Wrapped text behind its heading. */
function hanging (heading: string, said: string, paint = view.palette.quiet): string[] {
  return wrap(said, view.width() - HANGING.length).map((line, i) => `${i === 0 ? paint(heading.padEnd(HANGING.length)) : HANGING}${line}`)
}

function complain (error: Error): void {
  process.exitCode = 1
  const asks = error instanceof DemoError || error.name === 'ConfigError' || error.name === 'StartError'
  console.error(asks ? error.message : `The demo failed: ${error.message}. Run it again; if it fails again, please report it with these lines.`)
  if (!asks) for (const line of service?.complaints.slice(-5) ?? []) console.error(line)
}
