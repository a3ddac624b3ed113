// Package agentserver is the region's side of the agent API: it gives every
// boot of a machine a credential of its own and carries what agents report up
// to the store, and orders, approvals and permits down to them
// (docs/contract.md, §§3 and 6; api/agent.yaml; errors are RFC 9457).
//
// # Who may speak
//
// A boot script carries a nonce; the nonce, fetched once from the address it
// was given to, becomes an initramfs segment (cpio, "newc") with a random
// credential. Credentials are kept as SHA-256 only and are bound to the
// machine's address. The first report registers a key that the agent made in
// RAM, proved by the TLS connection; from then on the credential without that
// key is refused and raises an alarm.
//
// Until the permit to write is granted the newest boot wins and older ones are
// refused. From then on the boot that holds the permit keeps it until a newer
// one speaks. An older boot that speaks after a newer one has, before the permit
// or after it, is a second machine, and the task is quarantined.
//
// # What survives
//
// Everything that was answered stands in the store first; what a Server holds
// in memory is a cache of it. A process may be killed between any two calls:
// the next one takes the same nonces, credentials and tokens. Three things
// stay in memory only and cost little: the credentials of machines without a
// task (they boot again), how much log an attempt has sent, and the credential
// of the boot before the newest.
//
// A Server may be used concurrently. It never imports the store.
package agentserver
