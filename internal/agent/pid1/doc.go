// Package pid1 is what the agent does between the kernel and its workflow when
// it is /init of an initramfs: kernel filesystems, console, modules, devices,
// network, and the way out.
//
// There are two processes. Process 1 is a supervisor: it mounts what everything
// needs, starts the same binary again as the worker, waits for every process it
// is given, and restarts the machine 30 seconds after the worker ended, however
// it ended. So neither a panic in any goroutine nor the kernel's memory killer
// becomes a kernel panic, and nobody takes the wait status of the worker's
// children away: orphans go to process 1, commands belong to the worker.
//
// The same binary is also the kernel's modprobe (/proc/sys/kernel/modprobe), so
// that a mount finds its filesystem and ext4 its checksum without any list.
//
// A program that is /init begins with
//
//	if pid1.Booted() {
//		pid1.Main(opts, run)
//	}
//
// The DHCP client follows RFC 2131, 2132 and 3442. It sends no client
// identifier, as most firmware does, so that servers which count leases by
// hardware address give the agent the address its firmware had.
package pid1
