/** The oldest Redis whose commands suffice (RESP3, `GETDEL`, `XAUTOCLAIM`), and the oldest that BullMQ does not warn about. */
export const oldestVersion = '6.2'

/** Whether a version such as `7.0.15` is at least `oldestVersion`. Valkey gives the version of Redis it is compatible with, 7.2 or later. */
export function isUsable (version: string): boolean {
  const [major = 0, minor = 0] = version.split('.').map(Number)
  return major > 6 || (major === 6 && minor >= 2)
}
