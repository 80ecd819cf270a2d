import { charactersScript } from './characters-script.js'

/** What the scripted model looks at of a chat completion request. */
export interface ScriptedRequest {
  model: string
  messages: ScriptedMessage[]
  tools?: { function?: { name?: string } }[]
  tool_choice?: unknown
  parallel_tool_calls?: boolean
}

export interface ScriptedMessage {
  role: string
  content?: unknown
  tool_calls?: { id: string, function: { name: string, arguments: string } }[]
  tool_call_id?: string
}

export interface ScriptedCall { name: string, arguments: string }
export interface ScriptedAnswer { text: string, calls: ScriptedCall[] }

/** A tool call of the conversation with the text that came back for it. */
export interface AnsweredCall { name: string, arguments: string, result: string }

const MAX_QUOTE = 500

/**
 * Decides the whole answer from the request alone, so the same conversation always continues the same way:
 * - lines `call <tool> {json}` in the newest user text become one turn of parallel calls, and what they return is quoted after that;
 * - a run that offers `list_characters` gets the demo, see `charactersScript`;
 * - anything else is echoed, with how to get a real model.
 */
export function scriptedAnswer (request: ScriptedRequest): ScriptedAnswer {
  const { messages } = request
  const tools = request.tool_choice === 'none' ? [] : (request.tools ?? []).flatMap((tool) => tool.function?.name ?? [])
  const lastUser = messages.findLastIndex((message) => message.role === 'user')
  const since = answeredCalls(messages.slice(lastUser + 1))
  const asked = newestUserText(messages, lastUser)
  const orders = callOrders(asked, tools)

  if (orders.length > 0 && tools.length > 0) return obey(orders, since, request)
  if (tools.includes('list_characters')) {
    const answer = charactersScript(answeredCalls(messages), tools, asked)
    return { ...answer, calls: firstOnly(answer.calls, request) }
  }
  return { text: introduction(asked, tools), calls: [] }
}

function obey (orders: ScriptedCall[], since: AnsweredCall[], request: ScriptedRequest): ScriptedAnswer {
  const calls = firstOnly(orders.slice(since.length), request)
  if (calls.length > 0) {
    return { text: calls.length === 1 ? 'One call, as you asked.' : `${calls.length} calls at once, as you asked.`, calls }
  }
  const lines = since.map(({ name, result }) => `- ${name} returned ${quote(result)}`)
  return { text: `${since.length === 1 ? 'The call' : `All ${since.length} calls`} came back:\n${lines.join('\n')}`, calls: [] }
}

function firstOnly (calls: ScriptedCall[], { parallel_tool_calls: parallel }: ScriptedRequest): ScriptedCall[] {
  return parallel === false ? calls.slice(0, 1) : calls
}

/**
 * The tool name and the text after it exactly as written: a wrong name or broken JSON is the run's to answer, and worth trying. A line without arguments
 * counts only for an offered tool, so that "call me" stays a sentence.
 */
function callOrders (text: string, tools: string[]): ScriptedCall[] {
  const lines = [...text.matchAll(/^[ \t]*call[ \t]+([\w-]+)[ \t]*(\{.*)?$/gm)].map(([, name = '', args = '']) => ({ name, arguments: args.trim() }))
  return lines.filter((call) => call.arguments !== '' || tools.includes(call.name)).map((call) => ({ ...call, arguments: call.arguments || '{}' }))
}

/** Messages that were delivered together are read together. */
function newestUserText (messages: ScriptedMessage[], last: number): string {
  const texts: string[] = []
  for (let i = last; messages[i]?.role === 'user'; i--) texts.unshift(plainText(messages[i]?.content))
  return texts.join('\n')
}

function answeredCalls (messages: ScriptedMessage[]): AnsweredCall[] {
  const results = new Map(messages.flatMap((message) => message.role === 'tool' ? [[message.tool_call_id, plainText(message.content)]] : []))
  return messages.flatMap((message) => message.tool_calls ?? [])
    .map((call) => ({ name: call.function.name, arguments: call.function.arguments, result: results.get(call.id) ?? '' }))
}

function plainText (content: unknown): string {
  if (typeof content === 'string') return content
  if (!Array.isArray(content)) return ''
  return content.map((part: { text?: unknown } | null) => typeof part?.text === 'string' ? part.text : '').join('')
}

function introduction (asked: string, tools: string[]): string {
  const example = tools.length === 0 ? '' : ` This run offers ${tools.join(', ')}: a line such as "call ${tools[0]} {}" makes me call a tool, several lines several tools at once.`
  return 'This is the built-in scripted model, a small program and not a language model, because no OPENAI_API_KEY is set. '
    + `You wrote: ${quote(asked)}.${example} `
    + 'For real answers set OPENAI_API_KEY (and OPENAI_MODEL, if it shall be another than the default), for a provider other than OpenAI also OPENAI_BASE_URL, and start again.'
}

function quote (text: string): string {
  return JSON.stringify(text.length > MAX_QUOTE ? `${text.slice(0, MAX_QUOTE)}…` : text)
}
