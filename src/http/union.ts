interface Schema { [keyword: string]: unknown }

/**
 * The same schema, said so that a validator can tell what is wrong. A union becomes "one of these types" and, per type, "if it is one,
 * then this". Of several object forms the one is meant that has the value of the property which tells them apart (`kind`, `role`,
 * `type`). So a wrong field is reported once, as that form's. Records are closed, see `closedRecords`.
 */
export const explicit = (schema: unknown): unknown => rebuild(schema, (part) => union(closed(part)))

/**
 * A record, which TypeBox writes as one `patternProperties`, says `propertyNames` instead: names that do not match are refused, not let
 * through unseen.
 */
export const closedRecords = (schema: unknown): unknown => rebuild(schema, closed)

/** Keywords whose value is data, and keywords whose value maps names to schemas. */
const DATA = new Set(['const', 'enum', 'default', 'examples', 'example'])
const NAMED = new Set(['properties', 'patternProperties'])

/** Applies `change` to a schema and all schemas in it, innermost first. */
function rebuild (schema: unknown, change: (schema: Schema) => Schema): unknown {
  if (Array.isArray(schema)) return schema.map((part) => rebuild(part, change))
  if (!isObject(schema)) return schema
  return change(mapValues(schema, (value, keyword) => {
    if (DATA.has(keyword)) return value
    return NAMED.has(keyword) ? mapValues(value as Schema, (part) => rebuild(part, change)) : rebuild(value, change)
  }))
}

const isObject = (value: unknown): value is Schema => typeof value === 'object' && value !== null

const mapValues = (object: Schema, change: (value: unknown, key: string) => unknown): Schema =>
  Object.fromEntries(Object.entries(object).map(([key, value]) => [key, change(value, key)]))

function closed (schema: Schema): Schema {
  const { patternProperties, ...rest } = schema
  const [entry, ...more] = Object.entries((patternProperties ?? {}) as Schema)
  if (entry === undefined || more.length > 0 || rest['additionalProperties'] !== undefined) return schema
  return { ...rest, propertyNames: { pattern: entry[0] }, additionalProperties: entry[1] }
}

function union (schema: Schema): Schema {
  const { anyOf, ...rest } = schema
  if (!Array.isArray(anyOf)) return schema
  const forms = new Map<string, Schema[]>()
  for (const form of anyOf as Schema[]) {
    for (const type of typesOf(form)) forms.set(type, [...forms.get(type) ?? [], form])
  }
  return { ...rest, type: [...forms.keys()], allOf: [...forms].map(([type, those]) => ({ if: { type }, then: oneOf(those) })) }
}

/** JSON types a form accepts; a form that accepts any has no business in a union. */
function typesOf (form: Schema): string[] {
  if (Array.isArray(form['type'])) return form['type']
  if (typeof form['type'] === 'string') return [form['type']]
  return [...new Set((form['enum'] as unknown[]).map((value) => value === null ? 'null' : typeof value))]
}

function oneOf (forms: Schema[]): Schema {
  const [first, ...others] = forms as [Schema, ...Schema[]]
  if (others.length === 0) return first
  const property = (form: Schema, name: string) => ((form['properties'] ?? {}) as Record<string, Schema>)[name]?.['const']
  const tag = ((first['required'] ?? []) as string[]).find((name) => forms.every((form) => property(form, name) !== undefined))
  if (tag === undefined) return { anyOf: forms }
  return {
    required: [tag],
    properties: { [tag]: { enum: forms.map((form) => property(form, tag)) } },
    allOf: forms.map((form) => ({ if: { properties: { [tag]: { const: property(form, tag) } }, required: [tag] }, then: form }))
  }
}
