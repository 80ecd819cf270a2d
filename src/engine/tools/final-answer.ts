import { Type } from 'typebox'
import { defineTool, serverTool } from './module-tools.js'

/** The builtin `final_answer`: its output is the answer, any JSON value. That it ends the run is the engine's doing (`tool_policy.final_answer_tool`). */
export const finalAnswer = serverTool(defineTool({
  name: 'final_answer',
  description: 'Gives the final answer and ends the work. Call it once, when nothing else is left to do.',
  effects: 'read',
  idempotent: true,
  parameters: Type.Object({
    answer: Type.Unknown({ description: 'The answer: text, or any JSON value.' })
  }, { additionalProperties: false }),
  run: ({ answer }) => answer
}))
