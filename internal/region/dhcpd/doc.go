// Package dhcpd answers DHCP (RFC 2131, 2132, 3046, 3396, 4578, PXE 2.1) for
// machines that boot from the network: as the network's DHCP server, or beside
// another one as a PXE proxy that gives boot files and never an address.
//
// What a machine boots is decided elsewhere (the Decider); this package gives
// addresses, keeps leases on disk and moves packets. A packet is handled by one
// function without I/O; Run is the loop around it. Leases are written and synced
// before the client hears of them, several packets to one sync.
//
// Clients are told apart by hardware address only, not by client identifier
// (option 61): firmware, iPXE and operating systems each make up an identifier
// of their own, and a machine must keep one address through all of them because
// its agent's credential is bound to it.
//
// A Server's lookups and Stats may be called concurrently with Run.
package dhcpd
