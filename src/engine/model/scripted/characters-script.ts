import type { AnsweredCall, ScriptedAnswer, ScriptedCall } from './script.js'

interface Character { id: number, name: string, location_ids: number[], url?: string }
interface Location { id: number, name: string, region: string, population: number }

/** Everything the tool results said so far, and the region that the newest message narrows it down to. */
interface Knowledge { characters: Character[], locations: Location[], failures: string[], results: number, region: string | null }

interface Step { says: (known: Knowledge) => string, calls: (known: Knowledge) => ScriptedCall[] }

/**
 * The demo: fetch the characters, then two of the related locations, then who else belongs there. Each step is drawn from what the tools really
 * returned, so an interrupt, a failed call or other data lead to another conversation; whoever names a region in mid-run gets that region alone.
 * A call that was made before is never made again, so it always ends.
 */
export function charactersScript (answered: AnsweredCall[], tools: string[], asked: string): ScriptedAnswer {
  const known = learn(answered, asked)
  const made = new Set(answered.map((call) => `${call.name} ${call.arguments}`))
  for (const { says, calls } of known.region === null ? STEPS : NARROWED_STEPS) {
    const wanted = calls(known).filter((call) => tools.includes(call.name) && !made.has(`${call.name} ${call.arguments}`))
    if (wanted.length > 0) return { text: says(known), calls: wanted }
  }
  return { text: summary(known), calls: [] }
}

const STEPS: Step[] = [
  {
    says: () => 'I begin with the list of all characters.',
    calls: () => [call('list_characters', {})]
  },
  {
    says: (known) => `The list has ${known.characters.length} characters. I look at ${names(firstThree(known))} at the same time.`,
    calls: (known) => firstThree(known).map(({ id }) => call('get_character', { id }))
  },
  {
    says: (known) => `They are connected to ${locationsOf(firstThree(known)).length} locations. I fetch the two that matter most to them, both at once.`,
    calls: (known) => twoLocations(known).map((id) => call('get_location', { id }))
  },
  {
    says: (known) => `So much for ${names(known.locations)}. Next, who else belongs there? I follow the links of ${names(neighbours(known))}.`,
    calls: (known) => neighbours(known).flatMap(({ url }) => url === undefined ? [] : call('http_fetch', { url }))
  },
  {
    says: () => 'They are at home elsewhere too. For comparison I fetch two of those places.',
    calls: (known) => comparisons(known).map((id) => call('get_location', { id }))
  }
]

const NARROWED_STEPS: Step[] = [
  {
    says: ({ region }) => `Only ${region} from here on. I look up every place I do not know yet, all at once.`,
    calls: (known) => unknownPlaces(known).map((id) => call('get_location', { id }))
  },
  {
    says: (known) => `In ${known.region} lie ${names(narrowed(known))}. I look at everybody there whom I have not met.`,
    calls: (known) => residents(known, narrowed(known)).map(({ id }) => call('get_character', { id }))
  }
]

function call (name: string, args: Record<string, unknown>): ScriptedCall {
  return { name, arguments: JSON.stringify(args) }
}

const firstThree = ({ characters }: Knowledge): Character[] => characters.slice(0, 3)

/** Location ids by how many of these characters have them, then by id. */
function locationsOf (characters: Character[]): number[] {
  const counts = new Map<number, number>()
  for (const id of characters.flatMap((one) => one.location_ids)) counts.set(id, (counts.get(id) ?? 0) + 1)
  return [...counts].sort(([a, n], [b, m]) => m - n || a - b).map(([id]) => id)
}

const twoLocations = (known: Knowledge): number[] => locationsOf(firstThree(known)).slice(0, 2)

function neighbours (known: Knowledge): Character[] {
  const places = twoLocations(known)
  return known.characters.slice(3).filter((one) => one.location_ids.some((id) => places.includes(id))).slice(0, 3)
}

const comparisons = (known: Knowledge): number[] => locationsOf(neighbours(known)).filter((id) => !twoLocations(known).includes(id)).slice(0, 2)

const unknownPlaces = ({ characters, locations }: Knowledge): number[] =>
  locationsOf(characters).filter((id) => !locations.some((place) => place.id === id)).sort((a, b) => a - b)

const narrowed = ({ locations, region }: Knowledge): Location[] => locations.filter((place) => place.region === region)

const residents = ({ characters }: Knowledge, places: Location[]): Character[] =>
  characters.filter((one) => places.some(({ id }) => one.location_ids.includes(id)))

function summary (known: Knowledge): string {
  const { characters, locations, failures, region } = known
  const main = region === null ? locations.filter(({ id }) => twoLocations(known).includes(id)) : narrowed(known)
  const others = region === null ? locations.filter((one) => !main.includes(one)) : []
  const parts = [
    characters.length === 0 ? 'The list of characters could not be read.'
      : region === null ? `There are ${characters.length} characters: ${names(characters)}.`
        : `Of the ${characters.length} characters ${residents(known, main).length} belong to ${region}: ${names(residents(known, main))}.`,
    ...main.map((place) => {
      const people = residents(known, [place])
      const who = people.length === 0 ? 'none of the characters belongs there'
        : `${people.length === 1 ? 'one of the characters belongs' : `${people.length} of the characters belong`} there: ${names(people)}`
      return `${place.name} lies in ${place.region} and has ${place.population} inhabitants; ${who}.`
    }),
    others.length === 0 ? '' : `For comparison: ${others.map((place) => `${place.name} in ${place.region} has ${place.population}`).join(', ')}.`,
    failures.length === 0 ? '' : `Not everything worked: ${failures.join('; ')}.`,
    `(Put together from ${known.results} tool results by the built-in scripted model, which is a small program and not a language model.)`
  ]
  return parts.filter((part) => part !== '').join(' ')
}

function names (things: { name: string }[]): string {
  const all = things.map(({ name }) => name)
  return all.length < 2 ? all.join('') : `${all.slice(0, -1).join(', ')} and ${all.at(-1)}`
}

function learn (answered: AnsweredCall[], asked: string): Knowledge {
  const characters = new Map<number, Character>()
  const locations = new Map<number, Location>()
  const failures: string[] = []
  for (const { name, arguments: args, result } of answered) {
    const found = [...records(parse(result))]
    for (const record of found) {
      if (isCharacter(record)) characters.set(record.id, { ...characters.get(record.id), ...record })
      if (isLocation(record)) locations.set(record.id, record)
    }
    if (!found.some((record) => isCharacter(record) || isLocation(record))) failures.push(`${name} ${args} brought nothing readable`)
  }
  const regions = [...new Set([...locations.values()].map((place) => place.region))]
  const region = regions.find((one) => asked.toLowerCase().includes(one.toLowerCase())) ?? null
  return { characters: [...characters.values()], locations: [...locations.values()], failures, results: answered.length, region }
}

/** All objects in a value, at any depth a tool's wrapping may have; a JSON text inside it is looked into as well. */
function* records (value: unknown, depth = 0): Generator<Record<string, unknown>> {
  if (depth > 6) return
  if (typeof value === 'string' && value.startsWith('{')) yield* records(parse(value), depth + 1)
  if (typeof value !== 'object' || value === null) return
  if (!Array.isArray(value)) yield value as Record<string, unknown>
  for (const inner of Object.values(value)) yield* records(inner, depth + 1)
}

function parse (text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

function isCharacter (record: object): record is Character {
  const { id, name, location_ids: places } = record as Partial<Character>
  return typeof id === 'number' && typeof name === 'string' && Array.isArray(places) && places.every((place) => typeof place === 'number')
}

function isLocation (record: object): record is Location {
  const { id, name, region, population } = record as Partial<Location>
  return typeof id === 'number' && typeof name === 'string' && typeof region === 'string' && typeof population === 'number'
}
