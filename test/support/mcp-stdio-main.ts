import { Server } from '@modelcontextprotocol/sdk/server/index.js'
import { StdioServerTransport } from '@modelcontextprotocol/sdk/server/stdio.js'
import { CallToolRequestSchema, ListToolsRequestSchema } from '@modelcontextprotocol/sdk/types.js'

// An MCP server on standard input and output: `hold` waits for its cancellation, `seen` says what was cancelled, `chatter` writes
// what is no message, `flood` answers with that many characters.
const cancelled: string[] = []
const server = new Server({ name: 'stdio', version: '1' }, { capabilities: { tools: {} } })
server.setRequestHandler(ListToolsRequestSchema, () => ({ tools: [] }))
server.setRequestHandler(CallToolRequestSchema, async ({ params: { name, arguments: args = {} } }, { signal, requestId, sendNotification, _meta }) => {
  const text = (value: string) => ({ content: [{ type: 'text' as const, text: value }] })
  switch (name) {
    case 'hold':
      await sendNotification({ method: 'notifications/progress', params: { progressToken: _meta?.progressToken ?? '', progress: 0, message: 'holding' } })
      await new Promise((resolve) => signal.addEventListener('abort', resolve))
      cancelled.push(`${requestId} ${String(signal.reason)}`)
      return text('too late')
    case 'seen': return text(cancelled.join('\n'))
    case 'chatter':
      process.stdout.write('not a message\n{"half": \n')
      return text('said')
    case 'flood': return text('x'.repeat(Number(args.chars)))
    default: throw new Error('no such tool')
  }
})
await server.connect(new StdioServerTransport())
