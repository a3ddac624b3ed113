// Package lpmos is the domain of LPMOS, which provisions bare-metal servers:
// its types, the table of legal task transitions, validation, digests and
// signatures. It knows nothing of etcd, HTTP or disks and imports only the
// standard library, because the agent that runs in RAM on a blank machine
// links it too.
//
// Desired state flows down (Task → Plan → Approval → Order → Permit), observed
// state flows up (Hardware → Progress → Result → Receipt), and only the
// orchestrator decides. The normative text is docs/contract.md.
//
// All types are plain values; nothing here is safe for concurrent mutation and
// nothing here blocks.
package lpmos
