// Package tftpd is a read-only TFTP server for boot firmware: RFC 1350 with the
// option extension (RFC 2347), blksize (RFC 2348), tsize and timeout (RFC 2349)
// and windowsize (RFC 7440).
//
// Only octet mode and read requests are served; that is all PXE firmware and
// iPXE use. Writes are refused with error 2 (access violation). Names are flat:
// what is served is a handful of boot files, so no name ever becomes a path.
//
// A Server runs up to MaxTransfers transfers at once, each on a socket of its
// own. A transfer ends when its file is sent, when its client sends an error, is
// silent for 10 seconds, or when the context given to Serve ends.
package tftpd
