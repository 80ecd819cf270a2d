/** Longest time a request may wait for a run to end, in seconds. */
const MAX_WAIT_S = 600

/** Seconds a `Prefer` header asks to wait (RFC 7240, 4.3), capped; null when it asks for no such thing. Preferences not understood are ignored. */
export function waitOf (prefer: string | string[] | undefined): number | null {
  const seconds = /(?:^|[,;])\s*wait\s*=\s*"?(\d{1,9})"?\s*(?:$|[,;])/i.exec([prefer ?? ''].flat().join(','))?.[1]
  return seconds === undefined ? null : Math.min(Number(seconds), MAX_WAIT_S)
}
