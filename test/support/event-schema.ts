import { Ajv, type ValidateFunction } from 'ajv'
import { default as addFormats } from 'ajv-formats'
import type { Event } from '../../src/core/event.js'
import { events } from '../../src/schemas/event.js'

const ajv = new Ajv({ strict: false, allErrors: true })
addFormats.default(ajv)

const checks = new Map<string, { validate: ValidateFunction, fields: Set<string> }>(Object.entries(events).map(([type, schema]) => {
  return [type, { validate: ajv.compile(schema), fields: new Set(Object.keys(schema.properties)) }]
}))

/** Where an event is not what `openapi.yaml` says of its type: clients are generated from that. */
export function schemaFaults (event: Event): string[] {
  const check = checks.get(event.type)
  if (check === undefined) return ['there is no such type']
  const undocumented = Object.keys(event).filter((field) => !check.fields.has(field)).map((field) => `${field} is in no schema`)
  return check.validate(event) ? undocumented : [...undocumented, ajv.errorsText(check.validate.errors)]
}
