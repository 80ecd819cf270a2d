import { Ajv, type ErrorObject, type ValidateFunction } from 'ajv'
import addFormats from 'ajv-formats'
import type { FastifySchemaCompiler } from 'fastify'
import { notFound, validationFailed, type FieldError } from '../errors.js'
import { explicit } from './union.js'

/**
 * How requests are validated. Bodies: nothing is coerced, removed or filled in (defaults are the services' business, who read them from
 * the same schemas). Query and headers are text: what the schema calls an integer, a boolean or a list is read from it, exactly, and
 * defaults are filled in. Path parameters: what does not match names nothing, so it is 404.
 */
export const validatorCompiler: FastifySchemaCompiler<TextSchema> = ({ schema, httpPart }) => {
  if (httpPart === 'body') return checked(schema, (errors) => validationFailed(errors))
  if (httpPart === 'params') return checked(schema, () => notFound(nounOf(Object.keys(schema.properties ?? {}).at(-1))))
  const place = httpPart === 'headers' ? 'header' : 'query'
  const check = checked(schema, (errors) => validationFailed(errors.map((error) => ({ in: place, ...error }))))
  return (data) => {
    const value = fromText(schema, data as Record<string, unknown>)
    const answer = check(value)
    return answer === true ? { value } : answer
  }
}

interface TextSchema {
  properties?: Record<string, { type?: string, default?: unknown }>
}

const MAX_ERRORS = 20
/** Values of a body up to which every error is looked for; above, the first one has to do: a large wrong body must not cost much. */
const MAX_VALUES = 10_000

const options = {
  strict: true, strictTypes: false, strictRequired: false, allowUnionTypes: true,
  useDefaults: false, removeAdditional: false, coerceTypes: false,
  // Half of the time that compiling takes, and nothing that a request of ours would notice: a process is to answer soon after it was started.
  code: { optimize: false }
} as const
const first = compiler({})
const all = compiler({ allErrors: true })

/** Compiles schemas, each once, however often an app is built of them. */
function compiler (over: object): (schema: object) => ValidateFunction {
  const ajv = addFormats.default(new Ajv({ ...options, ...over }))
  const known = new Map<string, ValidateFunction>()
  return (schema) => {
    const text = JSON.stringify(schema)
    const validate = known.get(text) ?? ajv.compile(schema)
    known.set(text, validate)
    return validate
  }
}

function checked (schema: TextSchema, problem: (errors: FieldError[]) => Error) {
  const meaning = explicit(schema) as object
  const accepts = first(meaning)
  let explains: ValidateFunction | null = null
  return (data: unknown): true | { error: Error } => {
    if (accepts(data)) return true
    let { errors } = accepts
    if (isSmall(data)) {
      explains ??= all(meaning)
      if (!explains(data)) errors = explains.errors
    }
    return { error: problem(fieldErrors(errors ?? [])) }
  }
}

function isSmall (data: unknown): boolean {
  let left = MAX_VALUES
  const walk = (value: unknown): boolean => --left > 0 && (typeof value !== 'object' || value === null || Object.values(value).every(walk))
  return walk(data)
}

const nounOf = (parameter = 'address') => parameter.replace('_id', '') as Parameters<typeof notFound>[0]

/** Reads what is not a string from text. What cannot be read stays as it is, and fails validation. */
function fromText (schema: TextSchema, data: Record<string, unknown>): Record<string, unknown> {
  const value: Record<string, unknown> = { ...data }
  for (const [name, { type, default: preset }] of Object.entries(schema.properties ?? {})) {
    const text = value[name]
    if (text === undefined) {
      if (preset !== undefined) value[name] = preset
    } else if (type === 'integer' && typeof text === 'string' && /^\d{1,16}$/.test(text)) {
      value[name] = Number(text)
    } else if (type === 'boolean' && TRUTHS.indexOf(text) >= 0) {
      value[name] = TRUTHS.indexOf(text) > 1
    } else if (type === 'array') {
      value[name] = [text].flat().flatMap((item) => typeof item === 'string' ? item.split(',') : [item])
    }
  }
  return value
}

const TRUTHS: unknown[] = ['0', 'false', '1', 'true']

function fieldErrors (errors: ErrorObject[]): FieldError[] {
  const found = new Map<string, FieldError>()
  for (const error of errors) {
    // The two say only that another error, which is listed too, made something larger fail.
    if (error.keyword === 'if' || error.keyword === 'propertyNames') continue
    const field = fieldError(error)
    if (!found.has(field.pointer)) found.set(field.pointer, field)
    if (found.size === MAX_ERRORS) break
  }
  return [...found.values()]
}

function fieldError (error: ErrorObject): FieldError {
  const { instancePath, keyword, params, propertyName } = error
  const at = (name: string) => `${instancePath}/${name.slice(0, 100).replaceAll('~', '~0').replaceAll('/', '~1')}`
  if (propertyName !== undefined) return { pointer: at(propertyName), detail: `this name is not allowed here: it ${says(error)}` }
  if (keyword === 'additionalProperties') return { pointer: at(params['additionalProperty'] as string), detail: 'unknown field' }
  if (keyword === 'required') return { pointer: at(params['missingProperty'] as string), detail: 'is required' }
  return { pointer: instancePath, detail: says(error) }
}

/** What a value must be. Never repeats the value: it may be a secret. */
function says ({ keyword, params, message }: ErrorObject): string {
  const limit = params['limit'] as number
  switch (keyword) {
    case 'type': return `must be ${[params['type']].flat().map((type) => NOUNS[type as string]).join(' or ')}`
    case 'enum': return `must be one of ${(params['allowedValues'] as unknown[]).map((value) => JSON.stringify(value)).join(', ')}`
    case 'const': return `must be ${JSON.stringify(params['allowedValue'])}`
    case 'minimum': return `must be ${limit} or more`
    case 'maximum': return `must be ${limit} or less`
    case 'minLength': return limit === 1 ? 'must not be empty' : `must have ${limit} or more characters`
    case 'maxLength': return `must have ${limit} or fewer characters`
    case 'minItems': return limit === 1 ? 'must not be empty' : `must have ${limit} or more items`
    case 'maxItems': return `must have ${limit} or fewer items`
    case 'maxProperties': return `must have ${limit} or fewer fields`
    case 'pattern': return `must match ${String(params['pattern'])}`
    case 'format': return `must be a valid ${String(params['format'])}`
    default: return message ?? 'is not valid'
  }
}

const NOUNS: Record<string, string> = { string: 'a string', number: 'a number', integer: 'an integer', boolean: 'true or false', object: 'an object', array: 'an array', null: 'null' }
