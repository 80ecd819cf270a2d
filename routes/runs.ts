import { Type, type FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyReply } from 'fastify'
import { notAcceptable } from '../src/errors.js'
import { preferred } from '../src/http/accept.js'
import { fromCursor, toCursor } from '../src/http/cursor.js'
import { waitOf } from '../src/http/prefer.js'
import { CONVERSATION_ID } from '../src/schemas/ids.js'
import { page, pageQuery } from '../src/schemas/page.js'
import { idempotencyKey, json, locationHeader, postHeaders, problems, query, replayedHeader, runParams, streamContent } from '../src/schemas/request.js'
import { CreateRun, Run } from '../src/schemas/run.js'
import { RunStatus } from '../src/core/run.js'
import type { Caller, StoredEvent } from '../src/services/services.js'

const tags = ['Runs']

/** Bytes: seed texts and instructions can be long. */
const BODY_LIMIT = 8_388_608

const METADATA = 'metadata.'

/** Runs: create, read, list, cancel. */
export default (async (app) => {
  const { runs, events } = app.services

  app.post('/runs', {
    bodyLimit: BODY_LIMIT,
    schema: {
      operationId: 'createRun',
      summary: 'Create a run',
      description: 'On a new conversation, or on the one named. Answers at once; with `Prefer: wait=N` when the run has ended or N seconds are over; with `Accept: text/event-stream` with the stream of the run.',
      tags,
      headers: Type.Object({
        ...idempotencyKey,
        prefer: Type.Optional(Type.String({ description: '`wait=N`: wait up to N seconds, 600 at most.', examples: ['wait=30'] }))
      }),
      body: CreateRun,
      response: {
        200: json('The run has ended, within the time of `Prefer: wait`.', Run, { ...locationHeader, ...replayedHeader, 'Preference-Applied': { type: 'string' } }),
        201: { description: 'The run is stored, and will be worked on.', headers: { ...locationHeader, ...replayedHeader }, content: { 'application/json': { schema: Run }, ...streamContent } },
        202: json('The time of `Prefer: wait` is over and the run is not.', Run, { ...locationHeader, ...replayedHeader, 'Preference-Applied': { type: 'string' } }),
        ...problems(404, 406, 409, 413, 415, 422, 429)
      }
    }
  }, async (request, reply) => {
    const type = preferred(request.headers.accept, ['application/json', 'text/event-stream'])
    if (type === undefined) throw notAcceptable(['application/json', 'text/event-stream'])
    if (type === 'text/event-stream') app.checkStreamRoom()
    let head: StoredEvent[] = []
    const answer = await request.once(async (caller) => {
      const { run, events: begun } = await runs.create(caller, request.body)
      head = begun
      return { code: 201, headers: { location: `/runs/${run.id}` }, body: JSON.stringify(run) }
    })
    const wait = waitOf(request.headers.prefer)
    if (type === 'application/json' && wait === null) return reply.answer(answer)

    // From here on a repeat with the same key does the same: what is kept is that the run was created, not how long somebody watched it.
    const created = JSON.parse(answer.body) as Run
    reply.headers(answer.headers)
    if (answer.replayed) reply.header('idempotency-replayed', 'true')
    if (type === 'text/event-stream') return reply.stream(answer.code, (signal) => events.live(request.caller, { run_id: created.id, conversation_id: created.conversation_id }, { after: { seq: 0, epoch: 1 }, head, signal }))
    const run = await waited(reply, request.caller, created, wait as number)
    return reply.code(run.ended_at === null ? 202 : 200).header('preference-applied', `wait=${wait}`).send(run)
  })

  /** The run once it has ended or the time is over; as it was created when nobody is left to wait for it. */
  async function waited (reply: FastifyReply, caller: Caller, created: Run, seconds: number): Promise<Run> {
    if (reply.raw.closed || app.closing.aborted) return created
    // Nothing moves on the connection while we wait, which is no reason to close it.
    reply.raw.on('timeout', () => {})
    return await new Promise((resolve, reject) => {
      const leave = () => resolve(created)
      reply.raw.once('close', leave)
      app.closing.addEventListener('abort', leave, { once: true })
      runs.wait(caller, created.id, seconds * 1000).then(resolve, reject).finally(() => app.closing.removeEventListener('abort', leave))
    })
  }

  app.get('/runs', {
    schema: {
      operationId: 'listRuns',
      summary: 'List runs',
      description: 'Newest first.',
      tags,
      querystring: Type.Object({
        status: Type.Optional(Type.Array(RunStatus, { maxItems: 7, description: 'One of these; several by comma, or by naming it again.' })),
        conversation_id: Type.Optional(Type.String({ pattern: CONVERSATION_ID })),
        ...pageQuery
      }, { additionalProperties: false, patternProperties: { '^metadata\\.[a-zA-Z0-9_.-]{1,64}$': { type: 'string', maxLength: 512 } } }),
      response: { 200: json('A page of runs.', page(Run, 'RunPage')), ...problems(422) }
    }
  }, async ({ caller, query }) => {
    const { cursor, limit, ...filters } = query
    const metadata = Object.fromEntries(Object.entries(filters)
      .filter(([name]) => name.startsWith(METADATA))
      .map(([name, value]) => [name.slice(METADATA.length), value as string]))
    const scope = ['runs', caller.tenant, JSON.stringify(Object.entries(filters).sort())]
    const found = await runs.list(caller, {
      ...(query.status === undefined ? {} : { status: query.status }),
      ...(query.conversation_id === undefined ? {} : { conversation_id: query.conversation_id }),
      ...(Object.keys(metadata).length === 0 ? {} : { metadata }),
      cursor: fromCursor(scope, cursor),
      limit
    })
    return { data: found.data, next_cursor: toCursor(scope, found.next_cursor) }
  })

  app.get('/runs/:run_id', {
    schema: { operationId: 'getRun', summary: 'Read a run', tags, params: runParams, response: { 200: json('The run.', Run), ...problems(404) } }
  }, ({ caller, params }) => runs.get(caller, params.run_id))

  app.post('/runs/:run_id/cancel', {
    schema: {
      operationId: 'cancelRun',
      summary: 'Stop a run',
      description: 'Stops it at once; the conversation can be used again right away. A run that has ended is answered as it is.',
      tags,
      params: runParams,
      headers: postHeaders,
      querystring: query({ wait: Type.Boolean({ default: false, description: '`1`: answer when nothing of its turn runs any more, also a call with `cancellable: false`; after 15 s at the latest.' }) }),
      response: { 200: json('The run.', Run, replayedHeader), ...problems(404, 409, 415, 422) }
    }
  }, async (request, reply) => {
    const { run_id: runId } = request.params
    return reply.answer(await request.once(async (caller) => {
      const run = await runs.cancel(caller, runId, { wait: request.query.wait })
      return { code: 200, headers: {}, body: JSON.stringify(run) }
    }))
  })
}) satisfies FastifyPluginAsyncTypebox
