/** A request was refused, or not even sent, because its session is over. It did nothing and may be repeated on a new connection. */
export class SessionGone extends Error {
  override name = 'SessionGone'
}
