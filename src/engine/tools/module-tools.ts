import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import type { Static, TSchema } from 'typebox'
import { Value } from 'typebox/value'
import { ModuleTool } from '../../core/tool.js'
import { cut } from './json.js'
import { NO_ARGUMENTS, schemaFaults } from './parameters.js'
import type { ToolContext } from './tool.js'

/** The arguments' type follows from a TypeBox schema; a plain JSON Schema gives an object of unknown values. */
type Arguments<Schema> = Schema extends { '~kind': string } ? Static<Schema & TSchema> : Record<string, unknown>

/** A tool as its author writes it, in a file of the server's tools folder. */
export interface ToolSource<Schema extends TSchema = TSchema> {
  /** The name runs and the model call it by: letters, digits, `_`, `-`, at most 64. */
  name: string
  /** Tells the model what the tool does and when to use it. */
  description?: string
  /** TypeBox or JSON Schema of the arguments, an object schema. Default: no arguments. */
  parameters?: Schema
  /** Default `write`: after the death of a worker a started call is not run again, unless the tool is idempotent. */
  effects?: 'read' | 'write'
  /** Whether a call may be run twice with the effect of once. Default false. */
  idempotent?: boolean
  /** Milliseconds until a call is aborted. Default: the run's `limits.tool_timeout_ms`. */
  timeout_ms?: number
  /** `spread` gives each call to whichever worker is free. Default `local`. */
  placement?: 'local' | 'spread'
  /**
   * Runs one call; arguments have been validated. Returns any JSON value, or a promise of one; nothing counts as null. What it
   * throws fails this call alone, and the model is told the error's message, so say what to do about it and no secrets. Heed
   * `context.signal`: after an abort the result is refused, whatever it is.
   */
  run (args: Arguments<Schema>, context: ToolContext): unknown
}

/** A tool this server has: builtin or module. */
export interface ServerTool {
  name: string
  description: string
  parameters: Record<string, unknown>
  effects: 'read' | 'write'
  idempotent: boolean
  timeout_ms: number | null
  placement: 'local' | 'spread'
  run (args: Record<string, unknown>, context: ToolContext): unknown
}

/** Gives a tool of the tools folder its types. Does nothing at run time: what is wrong with a tool is found when the folder is loaded. */
export function defineTool<const Schema extends TSchema> (source: ToolSource<Schema>): ToolSource<Schema> {
  return source
}

/** Checks a tool and fills in its defaults. Throws a TypeError that says what is wrong with it. */
export function serverTool (source: ToolSource): ServerTool {
  const { description = '', parameters, run, ...rest } = source
  if (typeof description !== 'string' || description.length > 4096) throw new TypeError('description must be text of at most 4096 characters')
  if (typeof run !== 'function') throw new TypeError('run must be a function')
  const [problem] = Value.Errors(ModuleTool, { kind: 'module', ...rest })
  if (problem !== undefined) {
    const what = problem.schemaPath.endsWith('/additionalProperties') ? 'is nothing a tool can have' : problem.message
    throw new TypeError(`${problem.instancePath.slice(1) || 'the tool'} ${what}`)
  }
  // Through JSON, because TypeBox schemas carry more than their JSON Schema.
  const schema = parameters === undefined ? NO_ARGUMENTS : JSON.parse(JSON.stringify(parameters)) as Record<string, unknown>
  const [fault] = schemaFaults(schema)
  if (fault !== undefined) throw new TypeError(`parameters${fault.pointer} ${fault.detail}`)
  return {
    name: source.name,
    description,
    parameters: schema,
    effects: source.effects ?? 'write',
    idempotent: source.idempotent ?? false,
    timeout_ms: source.timeout_ms ?? null,
    placement: source.placement ?? 'local',
    run: run.bind(source)
  }
}

/**
 * Imports every .js, .mjs and .ts file of a folder (no subfolders), in the order of their names; each exports by default a tool, or an
 * array of tools. Throws one sentence that names the file: nothing of a tools folder is ever skipped in silence. TypeScript needs a loader such
 * as tsx, or a Node that strips types.
 */
export async function loadModuleTools (dir: string): Promise<ServerTool[]> {
  const names = await readdir(dir).catch((error: unknown) => {
    throw new Error(`the tools folder ${dir} cannot be read (${codeOf(error)})`, { cause: error })
  })
  const tools = new Map<string, { tool: ServerTool, file: string }>()
  for (const file of names.sort()) {
    if (!/\.(js|mjs|ts)$/.test(file) || file.endsWith('.d.ts')) continue
    for (const tool of await loadFile(dir, file)) {
      const earlier = tools.get(tool.name)
      if (earlier !== undefined) throw new Error(`the tools folder has two tools named ${tool.name}: in ${earlier.file} and in ${file}`)
      tools.set(tool.name, { tool, file })
    }
  }
  return [...tools.values()].map(({ tool }) => tool)
}

async function loadFile (dir: string, file: string): Promise<ServerTool[]> {
  try {
    const exported = (await import(pathToFileURL(join(dir, file)).href) as { default?: unknown }).default
    const sources = (Array.isArray(exported) ? exported : [exported]) as unknown[]
    return sources.map((source) => {
      if (typeof source !== 'object' || source === null) throw new TypeError('its default export must be a tool or an array of tools')
      return serverTool(source as ToolSource)
    })
  } catch (error) {
    const reason = codeOf(error) === 'ERR_UNKNOWN_FILE_EXTENSION'
      ? 'TypeScript needs a loader such as tsx, or compile it to .js'
      : error instanceof Error ? cut(error.message.split('\n')[0] ?? '', 300) : 'it threw something that is not an error'
    throw new Error(`the tool file ${file} cannot be used: ${reason}`, { cause: error })
  }
}

function codeOf (error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : 'unknown error'
}
