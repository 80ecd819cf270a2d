interface Json { [key: string]: unknown }

/**
 * An OpenAPI document that says everything once: schemas with a title stand under `components.schemas`, problem answers under
 * `components.responses`, and all else refers to them. Throws when two different ones would have the same name.
 */
export function withComponents (document: object): object {
  const schemas = new Map<string, string>()
  const responses = new Map<string, string>()

  function hoist (known: Map<string, string>, place: string, name: string, part: Json): Json {
    const text = JSON.stringify(part)
    if ((known.get(name) ?? text) !== text) throw new Error(`two ${place} are called ${name}`)
    known.set(name, text)
    return { $ref: `#/components/${place}/${name}` }
  }

  function referring (value: unknown, name = ''): unknown {
    if (Array.isArray(value)) return value.map((part) => referring(part))
    if (typeof value !== 'object' || value === null) return value
    // What is data stays as it is; as a copy, because YAML would write a second mention of one object as an alias.
    const copy = Object.fromEntries(Object.entries(value).map(([key, part]) => [key, DATA.has(key) ? structuredClone(part) : referring(part, key)]))
    if (isProblem(copy)) return hoist(responses, 'responses', `Problem${name}`, copy)
    // A title that is text belongs to a schema; else it is a property of that name.
    const { title, ...schema } = copy
    return typeof title === 'string' ? hoist(schemas, 'schemas', title, schema) : copy
  }

  const { info, paths, components = {}, ...rest } = document as { info: Json, paths: Json, components?: Json }
  const said = referring(sorted(paths))
  return { ...rest, info, paths: said, components: { ...components, schemas: parsed(schemas), responses: parsed(responses) } }
}

/** Keywords whose value is data. */
const DATA = new Set(['example', 'examples', 'default', 'enum', 'const'])

const isProblem = (part: Json): boolean => Object.keys((part['content'] ?? {}) as Json).join() === 'application/problem+json'

const parsed = (known: Map<string, string>): Json => sorted(Object.fromEntries([...known].map(([name, text]) => [name, JSON.parse(text) as unknown])))

const sorted = (object: Json): Json => Object.fromEntries(Object.entries(object).sort(([a], [b]) => a < b ? -1 : 1))
