import { readFileSync } from 'node:fs'
import { isIP, isIPv6 } from 'node:net'
import { parseJson } from './json.js'
import { ToolError } from './tool.js'

/**
 * Values only the operator knows. A client's tool names one in a header as `{{secret.NAME}}`; the value is put in when the request is
 * made and is never stored with a run.
 */
export interface Secrets {
  /** What is wrong with a header value for this URL; null when nothing is. */
  fault: (value: string, url: URL) => string | null
  /** The header value with its secrets put in. Throws a ToolError `http_error` when it has a fault. */
  fill: (value: string, url: URL) => string
  /**
   * Any text or JSON value with every secret's value replaced by `[secret NAME]`: a server may echo what it was sent. Found are values
   * as they are and as JSON and URLs write them; not what was encoded otherwise or cut on the way.
   */
  redact: <T>(value: T) => T
}

interface Secret { value: string, hosts: Host[] }

interface Host {
  /** As `URL` writes it; of a wildcard what follows the asterisk. */
  name: string
  wildcard: boolean
  /** '': any. */
  port: string
  /** May be called by http too. */
  plain: boolean
}

const NAME = /^[A-Za-z0-9_-]{1,64}$/
const REFERENCE = /\{\{secret\.([A-Za-z0-9_-]{1,64})\}\}/g
/** What was surely meant to be one. */
const MISSPELT = /\{\{\s*secret/i
/** Visible ASCII, blanks inside, as headers hold it. A shorter value would turn up by chance and be cut out of what tools say; a longer one fits no header. */
const VALUE = /^(?=.{8,4096}$)[\x21-\x7e][\x20-\x7e]*[\x21-\x7e]$/
const HOST = /^(https?:\/\/)?(\*)?([^:/?#@*\s]+|\[[^\]/]+\])(?::(\d{1,5}))?$/

/**
 * Reads `INTERLOCK_SECRETS`: JSON text, or the path of a JSON file, of `{NAME: {value, hosts}}`. A host is a name, all names below a
 * domain as `*.crm.example`, or an IP address, each with `:port` if only one port is meant. The URL must be https, unless the host
 * stands there with `http://` before it. Undefined: there are no secrets.
 *
 * @throws Error with one sentence for the operator, which holds no value.
 */
export function openSecrets (setting: string | undefined): Secrets {
  const secrets = setting === undefined ? new Map<string, Secret>() : read(setting)
  // The longest first: a value may hold a shorter one.
  const marks = [...secrets].sort(([, a], [, b]) => b.value.length - a.value.length)
    .map(([name, { value }]) => ({ pattern: new RegExp(spellings(value), 'g'), mark: `[secret ${name}]` }))

  function fault (value: string, url: URL): string | null {
    for (const [, name = ''] of value.matchAll(REFERENCE)) {
      const secret = secrets.get(name)
      if (secret === undefined) return `names the secret ${name}, which this server does not have; its operator sets INTERLOCK_SECRETS`
      if (!secret.hosts.some((host) => permits(host, url))) return `names the secret ${name}, which INTERLOCK_SECRETS does not let go to ${url.origin}`
    }
    return MISSPELT.test(value.replace(REFERENCE, '')) ? 'means a secret, but does not name it as {{secret.NAME}}' : null
  }

  return {
    fault,

    fill (value, url) {
      // It was checked when the run was posted; another process may have done that, or this one with other secrets.
      const found = fault(value, url)
      if (found !== null) throw new ToolError('http_error', `the request was not made: a header ${found}`)
      return value.replace(REFERENCE, (_, name: string) => secrets.get(name)?.value ?? '')
    },

    redact<T> (value: T): T {
      if (marks.length === 0) return value
      // Most answers hold none: to know that, their text is looked through as one, which is faster than each of its strings.
      const written = typeof value === 'string' ? value : JSON.stringify(value) ?? ''
      const found = marks.filter(({ pattern }) => written.search(pattern) !== -1)
      if (found.length === 0) return value
      const text = (item: string): string => found.reduce((left, { pattern, mark }) => left.replace(pattern, mark), item)
      const json = (item: unknown): unknown => {
        if (typeof item === 'string') return text(item)
        if (Array.isArray(item)) return item.map(json)
        if (typeof item === 'object' && item !== null) return Object.fromEntries(Object.entries(item).map(([key, child]) => [text(key), json(child)]))
        // A number can be what the secret's digits were read as.
        return typeof item === 'number' && text(String(item)) !== String(item) ? text(String(item)) : item
      }
      return json(value) as T
    }
  }
}

function read (setting: string): Map<string, Secret> {
  const fail = (fault: string): Error => new Error(`INTERLOCK_SECRETS ${fault}; it must be JSON like {"CRM_TOKEN": {"value": "…", "hosts": ["api.crm.example"]}}, or the path of a file with that.`)
  const secrets = new Map<string, Secret>()
  for (const [index, [name, entry]] of Object.entries(parse(setting, fail)).entries()) {
    // A name that is none may be a value in the wrong place.
    if (!NAME.test(name)) throw fail(`has an entry, number ${index + 1}, whose name is not 1 to 64 of A-Z, a-z, 0-9, _ and -`)
    const { value, hosts, ...others } = isObject(entry) ? entry : {}
    if (typeof value !== 'string' || !Array.isArray(hosts) || Object.keys(others).length > 0) throw fail(`has an entry ${name} that is not an object of "value" and "hosts"`)
    if (!VALUE.test(value)) throw fail(`has a value of ${name} that is not 8 to 4096 visible ASCII characters, as a header needs`)
    if (hosts.length === 0) throw fail(`names no hosts that ${name} may be sent to`)
    secrets.set(name, {
      value,
      hosts: hosts.map((host, place) => {
        const parsed = parseHost(host)
        if (parsed === null) throw fail(`has hosts of ${name} of which number ${place + 1} is not a name, *.name or IP address, with or without :port and http://`)
        return parsed
      })
    })
  }
  return secrets
}

function parse (setting: string, fail: (fault: string) => Error): Record<string, unknown> {
  let text = setting.trim()
  if (!text.startsWith('{')) {
    try {
      text = readFileSync(text, 'utf8')
    } catch (error) {
      throw fail(`is neither a JSON object nor a file that can be read (${(error as NodeJS.ErrnoException).code ?? 'no code'})`)
    }
  }
  try {
    const entries = parseJson(text.trim())
    if (isObject(entries)) return entries
  } catch {
    // The error may quote a character of a value.
  }
  throw fail('is not a JSON object')
}

function isObject (value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function parseHost (text: unknown): Host | null {
  if (typeof text !== 'string') return null
  const [, scheme, asterisk, name = '', port = ''] = HOST.exec(isIPv6(text) ? `[${text}]` : text) ?? []
  const wildcard = asterisk !== undefined
  if (name === '' || Number(port || 1) < 1 || Number(port) > 65_535 || wildcard !== name.startsWith('.')) return null
  const bare = wildcard ? name.slice(1) : name
  if (!URL.canParse(`http://${bare}`)) return null
  const host = hostOf(new URL(`http://${bare}`))
  if (wildcard && isIP(host) !== 0) return null
  return { name: wildcard ? `.${host}` : host, wildcard, port: port && String(Number(port)), plain: scheme === 'http://' }
}

function permits (host: Host, url: URL): boolean {
  const name = hostOf(url)
  const port = url.port || (url.protocol === 'https:' ? '443' : '80')
  return (url.protocol === 'https:' || (host.plain && url.protocol === 'http:')) &&
    (host.wildcard ? name.endsWith(host.name) : name === host.name) &&
    (host.port === '' || host.port === port)
}

function hostOf (url: URL): string {
  return url.hostname.replace(/^\[(.*)\]$/, '$1').replace(/\.$/, '')
}

/** A pattern for a value as it is, and as JSON or a URL write it; there a backslash must be doubled: with a choice, a run of them would take for ever. */
function spellings (value: string): string {
  const hex = (char: string): string => char.charCodeAt(0).toString(16).padStart(2, '0')
  const written = [...value].map((char) => {
    if (/\w/.test(char)) return char
    const either = hex(char).replace(/[a-f]/, (digit) => `[${digit}${digit.toUpperCase()}]`)
    return `(?:%${either}|\\\\u00${either}|${char === '\\' ? '\\\\\\\\' : `\\\\?\\x${hex(char)}`})`
  })
  return `${written.join('')}|${[...value].map((char) => `\\x${hex(char)}`).join('')}`
}
