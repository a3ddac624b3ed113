// Package inventory finds out what a machine is made of and what is on its
// disks. It only ever reads.
//
// Collect turns /proc and /sys into a lpmos.Hardware. Both are taken as fs.FS
// that can read symbolic links, because sysfs keeps most facts behind them:
// os.Root is that for the real trees (its links cannot leave the tree), and
// fstest.MapFS for those of the tests.
//
// Probe looks for partition tables and superblocks in anything that can be read
// at an offset. An Inspector does that to the block devices of the running
// machine: it makes the kernel refuse writes to the disk first (BLKROSET), then
// probes, then mounts what can be mounted, read-only and without replaying a
// journal, to see which operating system it is.
//
// Everything found was written by others, so every reader is bounded, a file
// or device that cannot be read leaves its facts empty, and all text is cleaned
// by Clean. The result is a function of the machine and the bytes on its disks:
// two looks at an unchanged machine are equal but for link state and speed,
// because approvals are bound to digests over it.
package inventory
