// Package netboot decides what a machine's firmware is offered: which boot file
// (RFC 2132 option 67, RFC 4578 architectures), and which iPXE script.
//
// Every decision is a pure function of the question and of an in-memory view of
// the region's boot index, so DHCP answers at once and through an outage of the
// store. Nothing here does I/O, and everything may be called concurrently.
//
// The rules, from the safest: a region whose view is not synced gives no boot
// file at all, never "local"; a machine nobody knows is left alone, unless the
// region is told to discover; a known machine boots what its entry says.
//
// Scripts contain only values from [A-Za-z0-9._:/@%+=,-], because iPXE expands
// ${} and executes && and ||. They never end in a shell and never fall off
// their end.
package netboot
