import { setImmediate } from 'node:timers/promises'
import { toUSVString } from 'node:util'
import { Ajv, type ErrorObject, type Options, type ValidateFunction } from 'ajv'
import { Ajv2020 } from 'ajv/dist/2020.js'
import { fullFormats } from 'ajv-formats/dist/formats.js'
import { DeadlineExceeded, within } from './deadline.js'
import { referencesIn } from '../../core/references.js'
import { cut, exceeds, parseJson } from './json.js'
import { ToolError, type ToolFault } from './tool.js'

/**
 * JSON Schemas of arguments come from clients and are hostile until shown otherwise (FAULTS S9). Four things are bounded:
 *
 * - **Size**: ajv takes about 2 ms per KB to compile a schema, and blocks for it. It is compiled once, in an ajv of its own, so that one
 *   client's `$id` can neither collide with another's nor be referred to, and so that it is freed when the cache lets go of it.
 * - **Reach**: `$ref` stays inside the schema. `$async` is refused, because a validator that answers with a promise says yes to all.
 * - **Patterns**: whether a regular expression runs away cannot be read off it by a simple rule that spares the ordinary ones (those that
 *   zod writes for e-mail addresses have repetitions inside repetitions). So each is tried, under a deadline, on the repetitive strings
 *   that make the well-known bad shapes explode, and refused if it does.
 * - **Time**: whatever slips through (other patterns, `uniqueItems` over many objects, references that double at each level) meets a
 *   deadline when arguments are checked; the call fails, and for a minute all calls with that schema fail unchecked.
 */
const MAX_SCHEMA_CHARS = 32_768
const MAX_SCHEMA_DEPTH = 32
const MAX_PATTERNS = 100
const MAX_PATTERN_CHARS = 1_000
const COMPILE_MS = 500
/** Processor time for all patterns of a schema. Far above what ordinary ones take: that a machine is slow must not make them look bad. */
const PATTERN_TRIAL_MS = 40
const VALIDATE_MS = 100
const PENALTY_MS = 60_000

/** Arguments of a megabyte are a model in a loop, not a call (FAULTS F15). */
const MAX_ARGUMENT_CHARS = 1_000_000
const MAX_CACHED = 500
const MAX_PROBLEMS = 5
const MAX_PROBLEM_CHARS = 200

/** What a tool without declared parameters takes. */
export const NO_ARGUMENTS: Record<string, unknown> = { type: 'object', properties: {}, additionalProperties: false }

const options: Options = {
  strict: false, allErrors: true, validateSchema: false, meta: false, logger: false, ownProperties: true,
  // Nothing but checking: without inlining and optimising a schema compiles three times as fast.
  inlineRefs: false, code: { optimize: false },
  formats: fullFormats
}
const metaOptions: Options = { strict: false, logger: false, formats: fullFormats }

/** JSON Schema dialects: how to tell from `$schema`, how to compile, and the dialect's own schema, compiled at the first use. */
const dialects = [
  {
    uri: /^https?:\/\/json-schema\.org\/draft\/2020-12\/schema#?$/,
    compiler: () => new Ajv2020(options),
    meta: once(() => new Ajv2020(metaOptions).getSchema('https://json-schema.org/draft/2020-12/schema'))
  },
  {
    uri: /^https?:\/\/json-schema\.org\/draft-07\/schema#?$/,
    compiler: () => new Ajv(options),
    meta: once(() => new Ajv(metaOptions).getSchema('http://json-schema.org/draft-07/schema'))
  }
]

type Schema = Record<string, unknown>

/**
 * What is wrong with a JSON Schema of arguments, pointers below the schema; empty when nothing is. Accepted: an object schema of draft
 * 2020-12 (also without `$schema`) or draft-07. Blocks for some 50 ms at most, unless the schema is good enough to be compiled.
 */
export function schemaFaults (schema: unknown): ToolFault[] {
  const compiled = examine(schema)
  return Array.isArray(compiled) ? compiled : []
}

interface Compiled {
  validate: ValidateFunction
  /** Checking may take more than one step per node of the schema and of the data. */
  costly: boolean
  chars: number
}

interface CacheEntry extends Compiled {
  /** Until then, by the process's clock, nothing is checked: the last time it ran away. */
  refusedUntil: number
}

function examine (schema: unknown): ToolFault[] | Compiled {
  if (typeof schema !== 'object' || schema === null || Array.isArray(schema)) return [{ pointer: '', detail: 'must be a JSON Schema object' }]
  const broken = sizeFault(schema)
  if (broken !== null) return [broken]
  if (!('type' in schema) || schema.type !== 'object') return [{ pointer: '/type', detail: 'must be "object": arguments are always an object' }]

  const dialect = '$schema' in schema ? dialects.find(({ uri }) => uri.test(String(schema.$schema))) : dialects[0]
  if (dialect === undefined) return [{ pointer: '/$schema', detail: 'must be JSON Schema draft 2020-12 or draft-07' }]

  const found = survey(schema as Schema)
  if (found.faults.length === 0) found.faults.push(...patternFaults(found.patterns))
  if (found.faults.length > 0) return found.faults.slice(0, MAX_PROBLEMS)

  const meta = dialect.meta()
  if (meta === undefined) throw new Error('ajv lost its meta-schema')
  if (meta(schema) !== true) {
    return (meta.errors ?? []).slice(0, MAX_PROBLEMS).map(({ instancePath, message }) => ({ pointer: cut(instancePath, 200), detail: message ?? 'is not valid' }))
  }
  try {
    const validate = within(COMPILE_MS, () => dialect.compiler().compile(schema))
    return { validate, costly: found.costly, chars: JSON.stringify(schema).length }
  } catch (error) {
    const reason = error instanceof DeadlineExceeded ? 'is too large to be compiled' : 'cannot be compiled'
    return [{ pointer: '', detail: error instanceof Error && 'missingRef' in error ? `refers to something that is not in it: ${cut(String(error.missingRef), 100)}` : reason }]
  }
}

function sizeFault (schema: unknown): ToolFault | null {
  const broken = exceeds(schema, { depth: MAX_SCHEMA_DEPTH, chars: MAX_SCHEMA_CHARS })
  if (broken === null) return null
  return { pointer: '', detail: broken === 'chars' ? `is longer than ${MAX_SCHEMA_CHARS} characters` : `is nested deeper than ${MAX_SCHEMA_DEPTH} levels` }
}

/** Keywords whose keys are names and whose values are schemas; and keywords that hold data, which is no business of ours. */
const MAPS = new Set(['properties', 'patternProperties', '$defs', 'definitions', 'dependentSchemas', 'dependencies'])
const DATA = new Set(['enum', 'const', 'default', 'examples'])

interface Pattern { pattern: string, pointer: string }
interface Survey { faults: ToolFault[], patterns: Pattern[], costly: boolean }

/** Whether a pointer leads to what is no schema, and was not looked at as one. A property may have the name of such a keyword. */
function leadsIntoData (reference: string): boolean {
  let inMap = false
  for (const segment of reference.split('/').slice(1)) {
    const name = decodeURIComponent(segment.replace(/%(?![0-9a-f]{2})/gi, '%25')).replaceAll('~1', '/').replaceAll('~0', '~')
    if (!inMap && DATA.has(name)) return true
    inMap = !inMap && MAPS.has(name)
  }
  return false
}

/** Walks the keywords of a schema. Its depth and size are known to be bounded. */
function survey (schema: Schema): Survey {
  const found: Survey = { faults: [], patterns: [], costly: false }
  const walk = (node: unknown, pointer: string, map: string | null): void => {
    if (Array.isArray(node)) {
      node.forEach((child, index) => walk(child, `${pointer}/${index}`, null))
      return
    }
    if (typeof node !== 'object' || node === null) return
    for (const [key, value] of Object.entries(node)) {
      const at = `${pointer}/${key.replaceAll('~', '~0').replaceAll('/', '~1')}`
      if (key === '__proto__') found.faults.push({ pointer: at, detail: 'this name is not accepted' })
      if (map === 'patternProperties') found.patterns.push({ pattern: key, pointer: at })
      if (map !== null) {
        walk(value, at, null)
        continue
      }
      if (key === '$ref' || key === '$dynamicRef' || key === '$recursiveRef') {
        found.costly = true
        if (typeof value !== 'string' || !value.startsWith('#')) found.faults.push({ pointer: at, detail: 'must refer to a part of this schema (#...)' })
        else if (leadsIntoData(value)) found.faults.push({ pointer: at, detail: 'must refer to a schema, not into the data of enum, const, default or examples' })
      } else if (key === '$async') {
        found.faults.push({ pointer: at, detail: 'is not accepted' })
      } else if (key === 'pattern' && typeof value === 'string') {
        found.patterns.push({ pattern: value, pointer: at })
      } else if (key === 'format' || key === 'uniqueItems') {
        found.costly = true
      }
      if (!DATA.has(key)) walk(value, at, MAPS.has(key) ? key : null)
    }
  }
  walk(schema, '', null)
  if (found.patterns.length > 0) found.costly = true
  return found
}

function patternFaults (patterns: Pattern[]): ToolFault[] {
  if (patterns.length > MAX_PATTERNS) return [{ pointer: '', detail: `has more than ${MAX_PATTERNS} patterns` }]
  const faults: ToolFault[] = []
  const expressions: { expression: RegExp, pointer: string }[] = []
  for (const { pattern, pointer } of patterns) {
    if (pattern.length > MAX_PATTERN_CHARS) {
      faults.push({ pointer, detail: `is a pattern of more than ${MAX_PATTERN_CHARS} characters` })
      continue
    }
    try {
      expressions.push({ expression: new RegExp(pattern, 'u'), pointer })
    } catch {
      faults.push({ pointer, detail: 'is not an ECMAScript regular expression (with the flag u)' })
    }
  }
  if (faults.length > 0 || expressions.length === 0) return faults

  let tried = ''
  const trial = (): void => {
    for (const { expression, pointer } of expressions) {
      tried = pointer
      const letters = [...'a0 ', ...expression.source].slice(0, 30)
      // Some run away on words alone: those that are written in them.
      const words = (expression.source.match(/\w{2,12}/g) ?? []).slice(0, 10)
      for (const part of new Set([...letters, ...words])) expression.test(`${part.repeat(40)}\u0000`)
    }
  }
  try {
    within(PATTERN_TRIAL_MS, trial)
    return []
  } catch (error) {
    if (!(error instanceof DeadlineExceeded)) throw error
    return [{ pointer: tried, detail: 'is a pattern that can take for ever: avoid repetitions inside repetitions' }]
  }
}

/** Checks tools' schemas, and against them what a model wrote. */
export interface Parameters {
  /** As `schemaFaults`. One compilation per turn of the event loop, so that a request with many schemas holds up nobody else. */
  check: (schema: Schema) => Promise<ToolFault[]>
  /**
   * The arguments, parsed and valid, never repaired. Throws a ToolError `invalid_arguments` that tells the model what to mend, without
   * repeating what it wrote. No text at all counts as `{}`: that is how many models call a tool without arguments.
   */
  parse: (schema: Schema, raw: string) => Record<string, unknown>
  /** Checks arguments at hand, as `parse` does those that refer to no other call: with references in them they are not complete yet. */
  validate: (schema: Schema, args: Record<string, unknown>) => void
}

/** Validators are kept for the last 500 different schemas. */
export function openParameters (): Parameters {
  const cache = new Map<string, CacheEntry>()

  const cached = (text: string): CacheEntry | undefined => {
    const entry = cache.get(text)
    if (entry === undefined) return undefined
    // To the young end, so that the oldest key is the one that was not used for longest.
    cache.delete(text)
    cache.set(text, entry)
    return entry
  }
  const compile = (schema: Schema, text: string): ToolFault[] | CacheEntry => {
    const fresh = examine(schema)
    if (Array.isArray(fresh)) return fresh
    const entry = { ...fresh, refusedUntil: 0 }
    cache.set(text, entry)
    const [oldest] = cache.keys()
    if (cache.size > MAX_CACHED && oldest !== undefined) cache.delete(oldest)
    return entry
  }

  function validate (schema: Schema, args: Record<string, unknown>, chars: number): void {
    const text = JSON.stringify(schema)
    const entry = cached(text) ?? compile(schema, text)
    if (Array.isArray(entry)) {
      throw new ToolError('invalid_arguments', `The tool's parameters are not a schema that can be checked: ${entry[0]?.pointer} ${entry[0]?.detail}`)
    }
    if (performance.now() < entry.refusedUntil) throw unchecked('it takes too long')
    try {
      // Without costly keywords every node of the schema meets every node of the data at most once. The deadline costs 0.1 ms: spare it the small ones.
      const valid = entry.costly || entry.chars * chars > 1_000_000
        ? within(VALIDATE_MS, () => entry.validate(args))
        : entry.validate(args)
      if (valid) return
    } catch (error) {
      if (!(error instanceof DeadlineExceeded)) throw unchecked('the schema is at fault')
      entry.refusedUntil = performance.now() + PENALTY_MS
      throw unchecked('it takes too long')
    }
    throw new ToolError('invalid_arguments', describe(entry.validate.errors ?? []))
  }

  return {
    async check (schema) {
      // Before it becomes a key: the text of a schema that is too large is not even written.
      const broken = sizeFault(schema)
      if (broken !== null) return [broken]
      const text = JSON.stringify(schema)
      if (cached(text) !== undefined) return []
      await setImmediate()
      const compiled = compile(schema, text)
      return Array.isArray(compiled) ? compiled : []
    },

    parse (schema, raw) {
      if (raw.length > MAX_ARGUMENT_CHARS) throw new ToolError('invalid_arguments', `The arguments are longer than ${MAX_ARGUMENT_CHARS} characters.`)
      const args = parseArguments(raw)
      if (referencesIn(args).length === 0) validate(schema, args, raw.length)
      return args
    },

    validate: (schema, args) => validate(schema, args, JSON.stringify(args).length)
  }
}

function unchecked (reason: string): ToolError {
  return new ToolError('invalid_arguments', `The arguments cannot be checked against the tool's parameters: ${reason}.`)
}

function parseArguments (raw: string): Record<string, unknown> {
  let args: unknown
  try {
    args = raw.trim() === '' ? {} : parseJson(raw)
  } catch (error) {
    throw new ToolError('invalid_arguments', `The arguments are not valid JSON: ${cut(error instanceof Error ? error.message : '', MAX_PROBLEM_CHARS)}.`)
  }
  if (typeof args !== 'object' || args === null || Array.isArray(args)) {
    throw new ToolError('invalid_arguments', `The arguments must be a JSON object, not ${args === null ? 'null' : Array.isArray(args) ? 'an array' : `a ${typeof args}`}.`)
  }
  return args as Record<string, unknown>
}

function describe (errors: ErrorObject[]): string {
  const problems = errors.slice(0, MAX_PROBLEMS).map((error) => toUSVString(cut(problem(error), MAX_PROBLEM_CHARS)))
  const more = errors.length > MAX_PROBLEMS ? `; and ${errors.length - MAX_PROBLEMS} more` : ''
  return `The arguments do not fit the tool's parameters: ${problems.join('; ')}${more}.`
}

function problem ({ keyword, instancePath, params, message }: ErrorObject<string, Record<string, unknown>>): string {
  const where = instancePath === '' ? 'the arguments' : cut(instancePath, 100)
  switch (keyword) {
    case 'additionalProperties': return `${where} must not have the property ${JSON.stringify(params.additionalProperty)}`
    case 'unevaluatedProperties': return `${where} must not have the property ${JSON.stringify(params.unevaluatedProperty)}`
    case 'enum': return `${where} must be one of ${JSON.stringify(params.allowedValues)}`
    case 'const': return `${where} must be ${JSON.stringify(params.allowedValue)}`
    default: return `${where} ${message ?? 'is not valid'}`
  }
}

function once<T> (make: () => T): () => T {
  let made: { value: T } | null = null
  return () => (made ??= { value: make() }).value
}
