/** The id of an event's entry in its stream, `<seq>-<epoch - 1>`, taken apart. */
export function readEntryId (id: string): { seq: number, epoch: number } {
  const dash = id.indexOf('-')
  return { seq: Number(id.slice(0, dash)), epoch: Number(id.slice(dash + 1)) + 1 }
}
