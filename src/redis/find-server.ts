import { execFile } from 'node:child_process'
import { accessSync, constants } from 'node:fs'
import { delimiter, join } from 'node:path'
import { promisify } from 'node:util'
import { isUsable } from './version.js'

export interface Server {
  bin: string
  version: string
}

/** Where Homebrew, MacPorts, snap and source builds put a server when PATH does not say so. */
const usualFolders = [
  '/usr/bin', '/usr/local/bin', '/opt/homebrew/bin', '/opt/homebrew/opt/valkey/bin', '/opt/homebrew/opt/redis/bin',
  '/home/linuxbrew/.linuxbrew/bin', '/opt/local/bin', '/snap/bin'
]

/** The folders a server is looked for in: `first`, then PATH, then the usual ones. */
export function serverFolders (first: string): string[] {
  return [...new Set([first, ...(process.env.PATH ?? '').split(delimiter).filter(Boolean), ...usualFolders])]
}

/** The first valkey-server, else the first redis-server, that runs here and is recent enough. */
export async function findServer (folders: string[]): Promise<Server | undefined> {
  for (const name of ['valkey-server', 'redis-server']) {
    for (const folder of folders) {
      const server = await probeServer(join(folder, name))
      if (server) return server
    }
  }
  return undefined
}

/** Asks a binary for its version: one for another processor or C library is there, but does not run. */
export async function probeServer (bin: string): Promise<Server | undefined> {
  try {
    accessSync(bin, constants.X_OK)
    const { stdout } = await promisify(execFile)(bin, ['--version'], { timeout: 10_000 })
    const version = /\bv=(\d+\.\d+\.\d+)/.exec(stdout)?.[1]
    return version !== undefined && isUsable(version) ? { bin, version } : undefined
  } catch {
    return undefined
  }
}
