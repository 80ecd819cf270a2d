import type { Static, TObject } from 'typebox'
import type { NewMessage, StartRun } from '../core/command.js'
import { Limits, ToolPolicy } from '../core/run.js'
import type { RunTool, ToolDefinition } from '../core/tool.js'
import { blockedUrl, validationFailed, type FieldError } from '../errors.js'
import type { Tools } from '../engine/tools/tool.js'
import type { CreateRun } from '../schemas/run.js'
import type { Context } from './context.js'
import type { StoredRun } from './run-view.js'

/** Providers take no more. */
const MAX_TOOLS = 128

/** Fills in the defaults that stand in the schema: the one place they are written down. */
function withDefaults<T extends TObject> (schema: T, given: object | undefined): Static<T> {
  const defaults = Object.entries(schema.properties).map(([name, property]) => [name, (property as { default?: unknown }).default])
  return { ...Object.fromEntries(defaults), ...given } as Static<T>
}

export type RunRequest = Pick<StartRun, 'due_at' | 'models' | 'limits' | 'policy' | 'metadata' | 'on_active_run' | 'messages' | 'input' | 'spec'>

/** Checks what a schema cannot, and completes a request with its defaults. Throws `validation_failed` with every fault found. */
export async function prepareRun ({ tools, ids, clock, defaultModel, parallelTools }: Context, body: CreateRun): Promise<RunRequest> {
  const faults: FieldError[] = []
  const model = body.model ?? defaultModel
  if (model === null) faults.push({ pointer: '/model', detail: 'required: this server has no default model (OPENAI_MODEL)' })

  const replaces = body.on_active_run === 'interrupt' || body.on_active_run === 'rollback'
  if (replaces && body.after_seconds) faults.push({ pointer: '/on_active_run', detail: 'a run that starts later can only "queue" or "reject"' })

  const limits = withDefaults(Limits, body.limits)
  const given = withDefaults(ToolPolicy, body.tool_policy)
  const policy = { ...given, parallel: given.parallel && parallelTools }
  const declared = offered(body.tools ?? [], policy.final_answer_tool)
  faults.push(...await toolFaults(tools, declared, policy.final_answer_tool))
  const { tools: expanded, faults: unknown } = faults.length > 0 ? { tools: [], faults: [] } : await tools.expand(declared, MAX_TOOLS)
  faults.push(...unknown.map((fault) => ({ ...fault, pointer: `/tools${fault.pointer}` })))
  if (faults.length === 0) faults.push(...choiceFaults(body, expanded))
  const blocked = faults.filter((fault) => 'code' in fault)
  if (blocked.length > 0 && blocked.length === faults.length) throw blockedUrl(blocked.map(({ pointer, detail }) => ({ pointer, detail })))
  if (faults.length > 0 || model === null) throw validationFailed(faults.map(({ pointer, detail }) => ({ pointer, detail })))

  const inputs = typeof body.input === 'string' ? [{ role: 'user' as const, content: body.input }] : body.input
  const metadata = body.metadata ?? {}
  const stored: StoredRun = { instructions: body.instructions ?? null, model_options: body.model_options ?? {}, tools: expanded, model, metadata }
  return {
    due_at: body.after_seconds ? clock.now() + body.after_seconds * 1000 : null,
    models: [model, ...body.fallback_models ?? []],
    limits,
    policy,
    metadata,
    on_active_run: body.on_active_run ?? 'queue',
    messages: inputs.map(({ role, content }): NewMessage => ({ id: `msg_${ids.next()}`, role, content })),
    input: body.input,
    spec: JSON.stringify(stored)
  }
}

/** The tools of a run: those it declares, and the final-answer tool it names. */
function offered (declared: ToolDefinition[], finalAnswer: string | null): ToolDefinition[] {
  if (finalAnswer === null || declared.some((tool) => tool.name === finalAnswer)) return declared
  return [...declared, { kind: 'builtin', name: 'final_answer' }]
}

async function toolFaults (tools: Tools, declared: ToolDefinition[], finalAnswer: string | null): Promise<FieldError[]> {
  const names = new Set<string>()
  const faults: FieldError[] = []
  for (const [i, tool] of declared.entries()) {
    if (names.has(tool.name)) faults.push({ pointer: `/tools/${i}/name`, detail: `there is another tool named "${tool.name}"` })
    names.add(tool.name)
    // It stands for the tools of a server, and would keep the builtin tool of that name from being offered.
    if (tool.kind === 'mcp' && tool.name === finalAnswer) faults.push({ pointer: `/tools/${i}/name`, detail: 'is that of the final answer\'s tool, and this is a server with tools of its own names: choose another' })
    for (const fault of await tools.check(tool)) faults.push({ ...fault, pointer: `/tools/${i}${fault.pointer}` })
  }
  return faults
}

function choiceFaults ({ model_options: options }: CreateRun, declared: RunTool[]): FieldError[] {
  const choice = options?.tool_choice
  const pointer = '/model_options/tool_choice'
  if (choice === undefined || choice === 'none') return []
  if (declared.length === 0) return [{ pointer, detail: 'only allowed with tools' }]
  if (typeof choice === 'object' && !declared.some((tool) => tool.name === choice.function.name)) {
    return [{ pointer: `${pointer}/function/name`, detail: 'names a tool the run does not have' }]
  }
  return []
}
