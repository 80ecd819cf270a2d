import { lookup as lookupAddresses } from 'node:dns/promises'
import { isIP, isIPv6, type LookupFunction } from 'node:net'
import ipaddr from 'ipaddr.js'
import { Agent, buildConnector, type Dispatcher } from 'undici'

const CONNECT_TIMEOUT_MS = 10_000

export interface Address { address: string, family: number }
export type Resolve = (hostname: string) => Promise<Address[]>

/** A connection that was not made because of where it led. The message is safe to show: it names no address, so it cannot be used to map a network. */
export class BlockedAddressError extends Error {
  override name = 'BlockedAddressError'
  constructor () {
    super('the URL leads to a private or reserved address; the operator can permit it by INTERLOCK_ALLOWED_TOOL_HOSTS')
  }
}

/** Where tools may connect to. */
export interface Egress {
  /** Why a URL must not be called, by its text alone: no DNS. Null when nothing speaks against it, which is not yet a permission to connect. */
  refusal: (url: URL) => string | null
  /** Makes connections only to permitted addresses: judged is the very address that is connected to, for every connection. */
  dispatcher: Dispatcher
  close: () => Promise<void>
}

/**
 * Tools may connect to public addresses, and to what `allowedHosts` names: a host, an IP address or a CIDR block, the first two with
 * `:port` if only one port is meant. Throws on an entry that is none of these.
 *
 * The name is judged after it was resolved, and the socket gets the judged addresses only: a name that answers differently the second
 * time (DNS rebinding), or a redirect, gains nothing. An IP in the URL never passes a resolver, so it is judged on its own; `URL` has
 * by then turned decimal, octal, hexadecimal and full-width spellings into the usual one. FAULTS S4.
 */
export function openEgress (options: { allowedHosts: string[], resolve?: Resolve }): Egress {
  const allowed = parseAllowedHosts(options.allowedHosts)
  const resolve = options.resolve ?? ((hostname) => lookupAddresses(hostname, { all: true }))
  const permits = (address: string, port: number): boolean => isPublic(address) || allowed.address(address, port)

  const connect: buildConnector.connector = (target, callback) => {
    const host = target.hostname.replace(/\.$/, '')
    const port = Number(target.port) || (target.protocol === 'https:' ? 443 : 80)
    const anyAddress = allowed.name(host, port)
    if (isIP(host) !== 0 && !anyAddress && !permits(host, port)) {
      callback(new BlockedAddressError(), null)
      return
    }
    const lookup: LookupFunction = (hostname, { all }, done) => {
      resolve(hostname).then((found) => {
        const usable = anyAddress ? found : found.filter(({ address }) => permits(address, port))
        const first = usable[0]
        if (first === undefined) throw new BlockedAddressError()
        return { usable, first }
      }).then(
        ({ usable, first }) => { if (all) done(null, usable); else done(null, first.address, first.family) },
        (error: Error) => { done(error, '') }
      )
    }
    // One connector per connection, because only here is the port known to the lookup. It costs the reuse of TLS sessions,
    // which kept-alive connections seldom need.
    buildConnector({ timeout: CONNECT_TIMEOUT_MS, lookup, maxCachedSessions: 0 })(target, callback)
  }

  // The call's own deadline is the only limit on waiting: a tool may take a day. Undici's 4 s of keep-alive stay: a request
  // sent down a connection that the server is just closing fails, and a `write` must not be sent twice.
  const agent = new Agent({ connect, headersTimeout: 0, bodyTimeout: 0 })

  return {
    refusal (url) {
      if (url.protocol !== 'http:' && url.protocol !== 'https:') return 'only http and https URLs can be called'
      if (url.username !== '' || url.password !== '') return 'a URL must not hold credentials: send them in a header'
      const host = hostOf(url)
      const port = Number(url.port) || (url.protocol === 'https:' ? 443 : 80)
      if (allowed.name(host, port)) return null
      const local = host === 'localhost' || host.endsWith('.localhost')
      const addresses = isIP(host) !== 0 ? [host] : local ? ['127.0.0.1', '::1'] : null
      return addresses === null || addresses.some((address) => permits(address, port)) ? null : new BlockedAddressError().message
    },
    dispatcher: agent,
    close: () => agent.destroy()
  }
}

function hostOf (url: URL): string {
  return url.hostname.replace(/^\[(.*)\]$/, '$1').replace(/\.$/, '')
}

/** Azure's virtual public address: it answers as the host's metadata service on every virtual network. */
const AZURE_METADATA = '168.63.129.16'

/**
 * Whether an address is one of the public internet's. Of IPv6 only global unicast (2000::/3) without its special blocks counts, which
 * leaves out the forms that carry an IPv4 address inside (::127.0.0.1, 6to4, Teredo, NAT64); a mapped one is judged as the IPv4 address it is.
 */
function isPublic (text: string): boolean {
  if (!ipaddr.isValid(text)) return false
  const address = ipaddr.process(text)
  if (address.range() !== 'unicast') return false
  return address.kind() === 'ipv4' ? address.toString() !== AZURE_METADATA : (address.toByteArray()[0] ?? 0) >> 5 === 1
}

interface AllowedHosts {
  name: (host: string, port: number) => boolean
  address: (address: string, port: number) => boolean
}

function parseAllowedHosts (entries: string[]): AllowedHosts {
  const names = new Set<string>()
  const blocks: { block: [ipaddr.IPv4 | ipaddr.IPv6, number], port: number | null }[] = []

  for (const entry of entries) {
    const bad = new Error(`INTERLOCK_ALLOWED_TOOL_HOSTS: ${JSON.stringify(entry)} is not a host, host:port, IP address or CIDR block`)
    if (entry.includes('/')) {
      if (!ipaddr.isValidCIDR(entry)) throw bad
      blocks.push({ block: ipaddr.parseCIDR(entry), port: null })
      continue
    }
    const [, name = '', port] = /^(\[.*\]|[^:]*)(?::(\d{1,5}))?$/.exec(isIPv6(entry) ? `[${entry}]` : entry) ?? []
    if (name === '' || /[\s@?#\\]/.test(name) || !URL.canParse(`http://${name}`)) throw bad
    if (port !== undefined && (Number(port) < 1 || Number(port) > 65_535)) throw bad
    const host = hostOf(new URL(`http://${name}`))
    if (isIP(host) !== 0) {
      const address = ipaddr.process(host)
      blocks.push({ block: [address, address.kind() === 'ipv4' ? 32 : 128], port: port === undefined ? null : Number(port) })
    } else {
      if (!/^[a-z0-9._-]+$/.test(host)) throw bad
      names.add(port === undefined ? host : `${host}:${Number(port)}`)
    }
  }

  return {
    name: (host, port) => names.has(host) || names.has(`${host}:${port}`),
    address (text, port) {
      if (!ipaddr.isValid(text)) return false
      const address = ipaddr.process(text)
      return blocks.some(({ block, port: only }) => (only === null || only === port) && address.kind() === block[0].kind() && address.match(block))
    }
  }
}
