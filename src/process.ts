import { setTimeout as sleep } from 'node:timers/promises'
import closeWithGrace from 'close-with-grace'
import { pino, type Logger } from 'pino'
import { buildApp } from './app.js'
import { ConfigError, loadConfig, type Config } from './config.js'
import { errorFacts } from './error-facts.js'
import { openInstance, StartError, type Roles } from './instance.js'

/** What a person starts in a terminal is printed for one. Errors are told without the values they carry, whoever logs them. */
function createLog (config: Config): Logger {
  const redact = { paths: ['*.authorization', '*.apiKey', 'req.headers.authorization'], censor: '[redacted]' }
  const pretty = process.stdout.isTTY ? { transport: { target: 'pino-pretty', options: { ignore: 'pid,hostname', translateTime: 'HH:MM:ss.l' } } } : {}
  return pino({ level: config.logLevel, redact, serializers: { err: (error: unknown) => error instanceof Error ? errorFacts(error) : error }, ...pretty })
}

/**
 * Runs one process until it is told to end: listens at once, works when Redis is there, drains on SIGTERM and SIGINT, exits 0; told a
 * second time, it ends at once. What only the operator can mend is one sentence on stderr and exit code 1.
 */
export async function runProcess (roles: Roles & { api: boolean }): Promise<void> {
  try {
    const config = loadConfig()
    const log = createLog(config)
    const instance = await openInstance(config, roles, log)
    const port = roles.api ? config.http.port : config.http.workerPort
    const app = await buildApp({
      services: instance.services,
      config: { apiKeys: config.http.apiKeys, host: config.http.host },
      logger: log,
      ...(!roles.api && { routes: 'operations' as const })
    })
    // From here on a signal finds somebody who gives back what has been taken; work is taken when nothing can fail any more.
    let isBroken = false
    const onSecondSignal = (signal: string) => log.warn({ signal }, 'told a second time: ending at once; what runs is taken up when its signs of life have lapsed')
    const { close } = closeWithGrace({ delay: config.graceMs + 10_000, logger: log, onSecondSignal }, async ({ err: error }) => {
      if (error !== undefined) log.fatal({ err: error }, 'ending after an unexpected error')
      // At once: while requests are still answered, no new work is taken. Whoever does not take an answer is not waited for longer than work is.
      await Promise.all([Promise.race([app.close(), sleep(config.graceMs)]), instance.drain()])
      await instance.stop()
      if (isBroken) process.exit(1)
    })
    instance.broken.then(() => {
      isBroken = true
      return close()
    }, () => { /* it never rejects */ })
    const address = await app.listen({ host: config.http.host, port }).catch((error: NodeJS.ErrnoException) => {
      throw cannotListen(error, config.http.host, roles.api ? 'PORT' : 'INTERLOCK_WORKER_PORT', port)
    })
    log.info({ address, roles }, 'listening')
    if (await instance.start()) log.info({ address }, 'ready')
  } catch (error) {
    if (!(error instanceof ConfigError || error instanceof StartError)) throw error
    process.stderr.write(`${error.message}\n`)
    process.exit(1)
  }
}

/** Why an address cannot be listened on, and what to do about it. */
function cannotListen (error: NodeJS.ErrnoException, host: string, setting: string, port: number): Error {
  switch (error.code) {
    case 'EADDRINUSE': return new StartError(`${setting} is ${port}, which another process listens on: end that one, or set another ${setting}.`)
    case 'EACCES': return new StartError(`${setting} is ${port}, which this user may not listen on: set ${setting} to one above 1023.`)
    case 'EADDRNOTAVAIL':
    case 'ENOTFOUND': return new StartError(`HOST is ${host}, which is no address of this machine: set HOST to one of its addresses, such as 127.0.0.1.`)
    default: return error
  }
}
