import { Type, type Static } from 'typebox'
import { problemCodes } from '../errors.js'

export const FieldError = Type.Object({
  in: Type.Optional(Type.Enum(['query', 'header'], { description: 'Where the pointer points into. Absent: the body.' })),
  pointer: Type.String({ description: 'JSON pointer (RFC 6901).', examples: ['/tools/0/url'] }),
  detail: Type.String({ examples: ['is required'] })
}, { title: 'FieldError' })

/** RFC 9457, with the members Interlock adds. */
export const Problem = Type.Object({
  type: Type.String({ format: 'uri', description: '`urn:interlock:problem:` and the code.' }),
  title: Type.String(),
  status: Type.Integer({ minimum: 400, maximum: 599 }),
  detail: Type.String({ description: 'What happened and what to do, for a person.' }),
  instance: Type.Optional(Type.String({ description: '`urn:interlock:request:` and the id of the request in the log.' })),
  code: Type.Enum(problemCodes, { description: 'For programs: stable.' }),
  retryable: Type.Boolean({ description: 'Whether the same request may succeed later without being changed.' }),
  errors: Type.Optional(Type.Array(FieldError, { description: 'What is wrong with the request, field by field.' })),
  retry_after_s: Type.Optional(Type.Integer({ description: 'As the header `Retry-After` says.' }))
}, {
  additionalProperties: true,
  title: 'Problem',
  description: 'RFC 9457. A request that is refused (4xx) changes nothing, except that `call_settled` for `tool_outputs` keeps what came too late among the orphans. After a 5xx it may have been done: repeat it with the same `Idempotency-Key`. A 409 has the blocking ids as further members: `run_ids`, `call_ids`, `run_id`, `conversation_id`, `suspension_id`.',
  examples: [{
    type: 'urn:interlock:problem:validation_failed',
    title: 'The request is not valid',
    status: 422,
    detail: 'One field is wrong; "errors" says which.',
    instance: 'urn:interlock:request:01KAG6XN3Q8V5T2M7R4C9B1DZH',
    code: 'validation_failed',
    retryable: false,
    errors: [{ pointer: '/input', detail: 'is required' }]
  }]
})
export type Problem = Static<typeof Problem>
