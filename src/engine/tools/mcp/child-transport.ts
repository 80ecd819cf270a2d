import { setTimeout as delay } from 'node:timers/promises'
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js'

/** A grandchild that holds the pipes open can keep the end of a process from being seen. */
const GONE_MS = 1_000

/** A server process, spoken to by its standard input and output. `close` resolves when the process is gone: by itself, or else after SIGTERM or SIGKILL. */
export class ChildTransport extends StdioClientTransport {
  #gone: Promise<void> = Promise.resolve()
  #closing: Promise<void> | null = null

  override async start (): Promise<void> {
    await super.start()
    this.#gone = new Promise((resolve) => {
      const tell = this.onclose
      this.onclose = () => {
        tell?.()
        resolve()
      }
    })
  }

  override close (): Promise<void> {
    this.#closing ??= super.close().then(() => Promise.race([this.#gone, delay(GONE_MS, undefined, { ref: false })]))
    return this.#closing
  }
}
