// Package e2e runs the founding document's flow (§10.1) and what may go wrong
// on the way with the real programs, each a process of its own: etcd,
// control-plane, regional-client and agent --demo, on loopback and on ports
// that the system chose.
package e2e
