// Package agent is the workflow of a machine that booted the agent into RAM:
// report, wait for approval, verify it, ask for the permit, install, tell the
// result, and reboot when the region has understood it.
//
// It decides nothing about the task and never trusts its region with more than
// the order of events: plan, approval and permit are verified with the control
// plane's public keys against the machine as it is at that moment
// (lpmos.Verifier). Everything that touches the world is given to New.
//
// The region may restart at any point. Every question is repeated until it is
// answered; an installation that has begun goes on without the region for as
// long as it needs nothing of it.
//
// An Agent serves one boot and one call of Run.
package agent
