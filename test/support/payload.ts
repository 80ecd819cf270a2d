/** Why a provider would refuse a chat completion request. */
export interface PayloadFault {
  /** `schema` for a wrong shape, else the pairing rule: see `pairing`. */
  rule: 'schema' | `P${number}`
  /** Where, as providers write it: `messages[2].tool_calls[0].id`. */
  at: string
  /** OpenAI's own wording where OpenAI refuses it. */
  message: string
}

type Fields = Record<string, unknown>

/**
 * All faults of a chat completion request; empty when it is valid. The shape comes first: the rules about pairing only make sense on top of it.
 *
 * Stricter than OpenAI where other providers are: unknown fields, arguments that are not a JSON object, a used id, a finished assistant message at the end.
 */
export function checkPayload (payload: unknown): PayloadFault[] {
  const faults = shape(payload)
  return faults.length > 0 ? faults : pairing(payload as Payload)
}

/** The first message of `previous` that `next` has lost or changed; null when history was only added to. */
export function changedMessage (previous: { messages: unknown[] }, next: { messages: unknown[] }): number | null {
  const at = previous.messages.findIndex((message, i) => JSON.stringify(message) !== JSON.stringify(next.messages[i]))
  return at === -1 ? null : at
}

// --- Shape ---------------------------------------------------------------------------------------------------------------------------

const TOP_LEVEL = new Set(('audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens messages metadata modalities model '
  + 'moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key prompt_cache_options prompt_cache_retention reasoning_effort response_format '
  + 'safety_identifier seed service_tier stop store stream stream_options temperature tool_choice tools top_logprobs top_p user verbosity web_search_options').split(' '))

const MESSAGE_FIELDS: Record<string, string[]> = {
  system: ['role', 'content', 'name'],
  developer: ['role', 'content', 'name'],
  user: ['role', 'content', 'name'],
  assistant: ['role', 'content', 'name', 'refusal', 'audio', 'tool_calls', 'function_call'],
  tool: ['role', 'content', 'tool_call_id']
}

const PART_TYPES: Record<string, string[]> = {
  system: ['text'],
  developer: ['text'],
  user: ['text', 'image_url', 'input_audio', 'file'],
  assistant: ['text', 'refusal'],
  tool: ['text']
}

const NAME = /^[a-zA-Z0-9_-]{1,64}$/
/** OpenAI refuses longer ids of tool calls. */
const MAX_CALL_ID = 40

function shape (payload: unknown): PayloadFault[] {
  const faults: PayloadFault[] = []
  const wrong = (at: string, message: string) => { faults.push({ rule: 'schema', at, message }) }
  const type = (at: string, value: unknown, wanted: string) => wrong(at, `Invalid type for '${at}': expected ${wanted}, but got ${named(value)} instead.`)
  const missing = (at: string) => wrong(at, `Missing required parameter: '${at}'.`)
  const onlyFields = (at: string, value: Fields, allowed: string[]) => {
    for (const key of Object.keys(value)) if (!allowed.includes(key)) wrong(at, `Unknown parameter: '${at}.${key}'.`)
  }
  const optional = (at: string, value: unknown, wanted: 'string' | 'boolean' | 'number' | 'object') => {
    if (value === undefined || value === null) return
    if (wanted === 'object' ? !isObject(value) : typeof value !== wanted) type(at, value, wanted === 'object' ? 'an object' : `a ${wanted}`)
  }

  if (!isObject(payload)) {
    wrong('', 'We could not parse the JSON body of your request.')
    return faults
  }
  for (const key of Object.keys(payload)) if (!TOP_LEVEL.has(key)) wrong(key, `Unrecognized request argument supplied: ${key}`)
  if (typeof payload.model !== 'string' || payload.model === '') wrong('model', 'you must provide a model parameter')
  for (const key of ['temperature', 'top_p', 'presence_penalty', 'frequency_penalty', 'max_tokens', 'max_completion_tokens', 'seed', 'n']) optional(key, payload[key], 'number')
  for (const key of ['stream', 'store', 'logprobs']) optional(key, payload[key], 'boolean')
  for (const key of ['stream_options', 'metadata']) optional(key, payload[key], 'object')
  for (const key of ['user', 'reasoning_effort', 'service_tier', 'verbosity']) optional(key, payload[key], 'string')
  if (isObject(payload.stream_options)) optional('stream_options.include_usage', payload.stream_options.include_usage, 'boolean')
  if (isObject(payload.metadata)) for (const [key, value] of Object.entries(payload.metadata)) if (typeof value !== 'string') type(`metadata.${key}`, value, 'a string')
  const { parallel_tool_calls: parallel, response_format: format } = payload
  if (parallel !== undefined && typeof parallel !== 'boolean') type('parallel_tool_calls', parallel, 'a boolean')
  if (format !== undefined && (!isObject(format) || !['text', 'json_object', 'json_schema'].includes(format.type as string))) {
    wrong('response_format', 'Invalid value for \'response_format\': its type must be \'text\', \'json_object\' or \'json_schema\'.')
  }
  toolChoice(payload.tool_choice)
  if (payload.tools !== undefined) each('tools', payload.tools, tool)
  if (payload.messages === undefined) missing('messages')
  else each('messages', payload.messages, message)
  if (Array.isArray(payload.messages) && payload.messages.length === 0) wrong('messages', '[] is too short - \'messages\'')
  return faults

  function toolChoice (choice: unknown) {
    if (choice === undefined || ['none', 'auto', 'required'].includes(choice as string)) return
    if (!isObject(choice) || typeof choice.type !== 'string') wrong('tool_choice', 'Invalid value for \'tool_choice\': supported values are \'none\', \'auto\', \'required\' and an object.')
  }

  function each (at: string, list: unknown, check: (at: string, item: Fields) => void) {
    if (!Array.isArray(list)) return type(at, list, 'an array of objects')
    for (const [i, item] of list.entries()) {
      if (isObject(item)) check(`${at}[${i}]`, item)
      else type(`${at}[${i}]`, item, 'an object')
    }
  }

  function ofFunction (at: string, item: Fields): Fields | null {
    if (item.type !== 'function') wrong(`${at}.type`, `Invalid value for '${at}.type': supported values are: 'function'.`)
    if (isObject(item.function)) return item.function
    missing(`${at}.function`)
    return null
  }

  function tool (at: string, item: Fields) {
    onlyFields(at, item, ['type', 'function'])
    const described = ofFunction(at, item)
    if (described === null) return
    onlyFields(`${at}.function`, described, ['name', 'description', 'parameters', 'strict'])
    name(`${at}.function.name`, described.name)
    const { description, parameters } = described
    if (description !== undefined && typeof description !== 'string') type(`${at}.function.description`, description, 'a string')
    if (parameters !== undefined && !isObject(parameters)) type(`${at}.function.parameters`, parameters, 'an object')
    optional(`${at}.function.strict`, described.strict, 'boolean')
  }

  function name (at: string, value: unknown) {
    if (value === undefined) missing(at)
    else if (typeof value !== 'string' || !NAME.test(value)) wrong(at, `Invalid '${at}': string does not match pattern. Expected a string that matches the pattern '^[a-zA-Z0-9_-]+$'.`)
  }

  function message (at: string, value: Fields) {
    const role = String(value.role)
    const allowed = MESSAGE_FIELDS[role]
    if (allowed === undefined) return wrong(`${at}.role`, `Invalid value: '${role}'. Supported values are: 'system', 'assistant', 'user', 'tool', and 'developer'.`)
    onlyFields(at, value, allowed)
    optional(`${at}.name`, value.name, 'string')
    content(`${at}.content`, role, value.content)
    if (role === 'tool') {
      if (value.tool_call_id === undefined) missing(`${at}.tool_call_id`)
      else callId(`${at}.tool_call_id`, value.tool_call_id)
    }
    if (role === 'assistant') {
      optional(`${at}.refusal`, value.refusal, 'string')
      if (value.tool_calls !== undefined) each(`${at}.tool_calls`, value.tool_calls, toolCall)
    }
  }

  function content (at: string, role: string, value: unknown) {
    if (typeof value === 'string') return
    if (value === null || value === undefined) {
      // Whether an assistant message may go without is a matter of its tool calls: P8.
      if (role !== 'assistant') wrong(at, `Invalid value for 'content': expected a string, got ${named(value)}.`)
      return
    }
    if (!Array.isArray(value)) return type(at, value, 'one of a string or array of objects')
    if (value.length === 0) wrong(at, `[] is too short - '${at}'`)
    for (const [i, part] of value.entries()) {
      const partType = isObject(part) ? part.type : undefined
      if (typeof partType !== 'string' || !PART_TYPES[role]?.includes(partType)) wrong(`${at}[${i}].type`, `Invalid value for '${at}[${i}].type': supported values are: ${PART_TYPES[role]?.join(', ')}.`)
      else if (!isObject(part) || part[partType] === undefined) missing(`${at}[${i}].${partType}`)
      else if (partType === 'text' || partType === 'refusal' ? typeof part[partType] !== 'string' : !isObject(part[partType])) {
        type(`${at}[${i}].${partType}`, part[partType], partType === 'text' ? 'a string' : 'an object')
      }
    }
  }

  function toolCall (at: string, call: Fields) {
    onlyFields(at, call, ['id', 'type', 'function'])
    callId(`${at}.id`, call.id)
    const called = ofFunction(at, call)
    if (called === null) return
    onlyFields(`${at}.function`, called, ['name', 'arguments'])
    name(`${at}.function.name`, called.name)
    if (typeof called.arguments !== 'string') type(`${at}.function.arguments`, called.arguments, 'a string')
  }

  function callId (at: string, id: unknown) {
    if (typeof id !== 'string') return type(at, id, 'a string')
    if (id === '') wrong(at, `Invalid '${at}': empty string. Expected a string with minimum length 1, but got an empty string instead.`)
    if (id.length > MAX_CALL_ID) wrong(at, `Invalid '${at}': string too long. Expected a string with maximum length ${MAX_CALL_ID}, but got a string with length ${id.length} instead.`)
  }
}

function isObject (value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function named (value: unknown): string {
  if (value === null || value === undefined) return 'null'
  if (Array.isArray(value)) return 'an array'
  return typeof value === 'object' ? 'an object' : `a ${typeof value}`
}

// --- Pairing -------------------------------------------------------------------------------------------------------------------------

interface Payload {
  messages: {
    role: string
    content?: unknown
    refusal?: unknown
    audio?: unknown
    tool_call_id?: string
    tool_calls?: { id: string, function: { name: string, arguments: string } }[]
  }[]
  tools?: { function: { name: string } }[]
  tool_choice?: string | { function?: { name?: string } }
  parallel_tool_calls?: boolean
  stream?: boolean
  stream_options?: unknown
}

/**
 * What a schema cannot say:
 * P1 tools are 1 to 128 · P2 their names differ · P3 no tool option without tools · P4 `tool_choice` names an offered tool ·
 * P5 `stream_options` only when streaming · P6 a tool message answers a call of the assistant message before it, once ·
 * P7 every call is answered before anything else follows · P8 an assistant message says or calls something · P9 call ids are used once ·
 * P10 arguments are a JSON object · P11 the last message leaves something to answer · P12 every string is well-formed Unicode.
 */
function pairing (payload: Payload): PayloadFault[] {
  const faults: PayloadFault[] = []
  const wrong = (rule: PayloadFault['rule'], at: string, message: string) => { faults.push({ rule, at, message }) }

  const names = new Set<string>()
  if (payload.tools === undefined) {
    if (payload.tool_choice !== undefined && payload.tool_choice !== 'none') wrong('P3', 'tool_choice', 'Invalid value for \'tool_choice\': \'tool_choice\' is only allowed when \'tools\' are specified.')
    if (payload.parallel_tool_calls !== undefined) wrong('P3', 'parallel_tool_calls', 'Invalid value for \'parallel_tool_calls\': \'parallel_tool_calls\' is only allowed when \'tools\' are specified.')
  } else {
    const { length } = payload.tools
    if (length === 0) wrong('P1', 'tools', '[] is too short - \'tools\'')
    if (length > 128) wrong('P1', 'tools', `Invalid 'tools': array too long. Expected an array with maximum length 128, but got an array with length ${length} instead.`)
    for (const [i, { function: { name } }] of payload.tools.entries()) {
      if (names.has(name)) wrong('P2', `tools[${i}].function.name`, 'Tool names must be unique.')
      names.add(name)
    }
    const wanted = typeof payload.tool_choice === 'object' ? payload.tool_choice.function?.name : undefined
    if (wanted !== undefined && !names.has(wanted)) wrong('P4', 'tool_choice', `Tool choice 'function:${wanted}' not found in 'tools' parameter.`)
  }
  if (payload.stream_options != null && payload.stream !== true) wrong('P5', 'stream_options', 'The \'stream_options\' parameter is only allowed when \'stream\' is enabled.')

  const used = new Set<string>()
  const open = new Set<string>() // calls of the latest assistant message without an answer
  let opener = ''
  const closeBatch = () => {
    if (open.size > 0) wrong('P7', opener, `An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. The following tool_call_ids did not have response messages: ${[...open].join(', ')}`)
    open.clear()
  }
  for (const [i, message] of payload.messages.entries()) {
    const at = `messages[${i}]`
    if (message.role === 'tool') {
      if (!open.delete(message.tool_call_id ?? '')) wrong('P6', at, 'Invalid parameter: messages with role \'tool\' must be a response to a preceeding message with \'tool_calls\'.')
      continue
    }
    closeBatch()
    if (message.role !== 'assistant') continue
    if (message.tool_calls === undefined) {
      if (message.content == null && message.refusal == null && message.audio == null) wrong('P8', at, 'Invalid value for \'content\': expected a string, got null.')
      continue
    }
    if (message.tool_calls.length === 0) wrong('P8', `${at}.tool_calls`, `[] is too short - '${at}.tool_calls'`)
    opener = at
    for (const [j, call] of message.tool_calls.entries()) {
      const here = `${at}.tool_calls[${j}]`
      if (used.has(call.id)) wrong('P9', `${here}.id`, `Duplicate value for 'tool_call_id' of ${call.id}.`)
      used.add(call.id)
      open.add(call.id)
      if (!isJsonObject(call.function.arguments)) wrong('P10', `${here}.function.arguments`, `Invalid '${here}.function.arguments': expected a JSON object.`)
    }
  }
  closeBatch()
  const last = payload.messages.at(-1)
  if (last?.role === 'assistant' && last.tool_calls === undefined) wrong('P11', `messages[${payload.messages.length - 1}]`, 'The last message must not be a finished assistant message: there is nothing to answer.')
  if (!isWellFormed(payload)) wrong('P12', '', 'We could not parse the JSON body of your request: it holds a lone surrogate.')
  return faults
}

function isJsonObject (text: string): boolean {
  try {
    return isObject(JSON.parse(text))
  } catch {
    return false
  }
}

function isWellFormed (value: unknown): boolean {
  // Node has the method, TypeScript's ES2023 library does not know it yet.
  if (typeof value === 'string') return (value as string & { isWellFormed: () => boolean }).isWellFormed()
  if (typeof value !== 'object' || value === null) return true
  for (const [key, inner] of Object.entries(value)) if (!isWellFormed(key) || !isWellFormed(inner)) return false
  return true
}
