// Package lab runs real virtual machines on a private bridge: QEMU with plain
// emulation (TCG), the firmware, DHCP broadcasts and disks of real machines,
// and nothing that the host's own network can see. `lpmos lab`, the VM tests,
// the fault tests and the benchmarks are built on it. It gives a network,
// machines and consoles and knows nothing of LPMOS's services.
//
// # Network
//
// A Network is a network namespace without a name, held by one operating
// system thread of this process. Bridge and taps live in it. Code reaches it
// through [Network.Do], [Network.Listen], [Network.ListenPacket],
// [Network.DialContext] (a socket stays in the namespace in which it was made,
// whoever uses it later) and [Network.StartCommand]; everything else in the
// process stays on the host's network. Because only that thread, its children
// and open sockets hold the namespace, the kernel removes it with all links
// when the process ends, however it ends: there is no name in /run/netns to
// be left behind, and so nothing to sweep up after a crash.
//
// The same thread starts every subprocess, with SIGKILL as parent-death
// signal. That signal comes when the *thread* that forked ends (prctl(2),
// PR_SET_PDEATHSIG), so a thread of Go's pool would kill machines at random
// and this one does it exactly when it should: at Close, or when the process
// is gone, kill -9 included.
//
// # Machines
//
// A [Machine] keeps its disks and its NVRAM over power cuts and resets. Its
// serial console is a file and a stream ([Console]); its power history is a
// sequence of [Event], taken from QEMU's machine protocol (QMP), so that a
// caller can time a reboot without guessing from the console.
//
// All exported methods may be called concurrently. Needs root
// (CAP_SYS_ADMIN and CAP_NET_ADMIN), Linux, and the programs and firmware
// that [FindTools] names.
package lab
