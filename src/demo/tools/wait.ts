import { setTimeout as sleep } from 'node:timers/promises'
import { Type } from 'typebox'
import { defineTool } from '../../engine/tools/module-tools.js'

/** For trying things out: takes its time, and stops when it is told to. `INTERLOCK_TOOLS_DIR=src/demo/tools` offers it. */
export default defineTool({
  name: 'wait',
  description: 'Waits that many seconds.',
  effects: 'read',
  parameters: Type.Object({ seconds: Type.Number({ minimum: 0, maximum: 3600 }) }, { additionalProperties: false }),
  async run ({ seconds }, { signal }) {
    await sleep(seconds * 1000, undefined, { signal })
    return `waited ${seconds} s`
  }
})
