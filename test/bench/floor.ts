import OpenAI from 'openai'
import type { ChatCompletionMessageParam, ChatCompletionTool } from 'openai/resources/chat/completions'

/**
 * The loop everybody writes first: the openai client, streaming, tools called in the same process, nothing stored. What it takes is what
 * the model and the client cost; the rest of our time is ours.
 */
export function floorLoop (origin: string, stream: boolean): (input: string, tool: { name: string, run: (i: number) => unknown }) => Promise<number> {
  const client = new OpenAI({ baseURL: `${origin}/v1`, apiKey: 'none', maxRetries: 0, logLevel: 'off' })
  return async (input, tool) => {
    const started = performance.now()
    const messages: ChatCompletionMessageParam[] = [{ role: 'user', content: input }]
    const tools: ChatCompletionTool[] = [{ type: 'function', function: { name: tool.name, parameters: { type: 'object', properties: { i: { type: 'integer' } } } } }]
    for (;;) {
      const { text, calls } = stream ? await streamed(messages, tools) : await whole(messages, tools)
      if (calls.length === 0) return performance.now() - started
      messages.push({ role: 'assistant', content: text || null, tool_calls: calls.map(({ id, name, args }) => ({ id, type: 'function', function: { name, arguments: args } })) })
      const results = await Promise.all(calls.map(async ({ args }) => JSON.stringify(await tool.run((JSON.parse(args) as { i: number }).i))))
      results.forEach((content, k) => messages.push({ role: 'tool', tool_call_id: calls[k]?.id ?? '', content }))
    }
  }

  async function streamed (messages: ChatCompletionMessageParam[], tools: ChatCompletionTool[]) {
    const chunks = await client.chat.completions.create({ model: 'floor', messages, tools, stream: true, stream_options: { include_usage: true } })
    const calls: { id: string, name: string, args: string }[] = []
    let text = ''
    for await (const { choices: [choice] } of chunks) {
      text += choice?.delta.content ?? ''
      for (const delta of choice?.delta.tool_calls ?? []) {
        const call = calls[delta.index] ??= { id: '', name: '', args: '' }
        call.id ||= delta.id ?? ''
        call.name += delta.function?.name ?? ''
        call.args += delta.function?.arguments ?? ''
      }
    }
    return { text, calls }
  }

  async function whole (messages: ChatCompletionMessageParam[], tools: ChatCompletionTool[]) {
    const { choices: [choice] } = await client.chat.completions.create({ model: 'floor', messages, tools })
    const calls = (choice?.message.tool_calls ?? []).flatMap((call) => call.type === 'function' ? [{ id: call.id, name: call.function.name, args: call.function.arguments }] : [])
    return { text: choice?.message.content ?? '', calls }
  }
}
