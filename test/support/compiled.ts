import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import type typescript from 'typescript'

const root = join(import.meta.dirname, '../..')
let folder: string | undefined

/**
 * The folder of the service as JavaScript: what `npm test` has built (`INTERLOCK_TEST_DIST`), or a copy made once for this test file. A process
 * starts from it in half the time that a TypeScript loader takes, and it is what runs in production.
 */
export function compiled (): string {
  folder ??= process.env.INTERLOCK_TEST_DIST ?? compile()
  return folder
}

/** Strips the types and checks nothing. The copy lies inside the project, so that dependencies resolve as they do for the real one. */
function compile (): string {
  mkdirSync(join(root, '.cache'), { recursive: true })
  // Only now: loading it takes longer than most of the files that might need it.
  const ts = createRequire(import.meta.url)('typescript') as typeof typescript
  const out = mkdtempSync(join(root, '.cache/service-'))
  process.once('exit', () => rmSync(out, { recursive: true, force: true }))
  for (const dir of ['src', 'routes', 'plugins']) {
    for (const name of readdirSync(join(root, dir), { recursive: true, encoding: 'utf8' })) {
      const from = join(root, dir, name)
      const to = join(out, dir, name)
      mkdirSync(dirname(to), { recursive: true })
      if (name.endsWith('.ts')) {
        const options = { target: ts.ScriptTarget.ES2023, module: ts.ModuleKind.ESNext, verbatimModuleSyntax: true }
        writeFileSync(to.replace(/ts$/, 'js'), ts.transpileModule(readFileSync(from, 'utf8'), { compilerOptions: options }).outputText)
      } else if (/\.(lua|json)$/.test(name)) {
        copyFileSync(from, to)
      }
    }
  }
  copyFileSync(join(root, 'package.json'), join(out, 'package.json'))
  return out
}
