package doctor

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Port is one that LPMOS listens on.
type Port struct {
	Network string // tcp, udp
	Number  uint16
	For     string // what, for people
	Flag    string // that moves or ends the need for it
	// Needed is whether it will be used as this host is meant to run; one that
	// is not may be anybody's.
	Needed bool
}

// Ports are the standard ones; dhcp is off, proxy or server.
func Ports(dhcp string) []Port {
	return []Port{
		{"udp", 67, "DHCP", "--dhcp=off", dhcp != "off"},
		{"udp", 69, "TFTP", "--tftp-addr", dhcp != "off"},
		{"udp", 4011, "PXE boot server", "--dhcp=off", dhcp != "off"},
		{"tcp", 8080, "web interface and API", "--listen-addr", true},
		{"tcp", 8081, "HTTP boot", "--boot-addr", true},
		{"tcp", 8443, "agent API", "--agent-addr", true},
	}
}

// ours are the names of our own programs, as /proc/*/comm has them.
var ours = []string{"lpmos", "control-plane", "regional-client"}

// socket is a listening socket.
type socket struct {
	addr  netip.AddrPort
	inode string
}

// CheckPorts looks in proc, which is /proc, for who listens on each port. It
// binds nothing, and so needs no rights; only the names of other people's
// processes do.
func CheckPorts(proc fs.FS, ports []Port) []Result {
	sockets := map[string][]socket{}
	for _, network := range []string{"tcp", "udp"} {
		for _, version := range []string{"", "6"} {
			found, err := listening(proc, network, version)
			if err != nil && (version == "" || !errors.Is(err, fs.ErrNotExist)) { // no IPv6 is no fault
				return []Result{Skipped("ports", "open ports could not be read: "+err.Error(), "run this where /proc is mounted")}
			}
			sockets[network] = append(sockets[network], found...)
		}
	}
	var out []Result
	owners := processes(proc)
	for _, p := range ports {
		out = append(out, judgePort(p, sockets[p.Network], owners))
	}
	return out
}

func judgePort(p Port, sockets []socket, owners map[string]process) Result {
	name := fmt.Sprintf("port %d/%s", p.Number, p.Network)
	i := slices.IndexFunc(sockets, func(s socket) bool { return s.addr.Port() == p.Number })
	if i < 0 {
		return ok(name, "free, for %s", p.For)
	}
	s := sockets[i]
	owner, known := owners[s.inode]
	switch {
	case known && slices.Contains(ours, owner.name):
		return ok(name, "%s (process %d) serves %s on it", owner.name, owner.pid, p.For)
	case !p.Needed:
		return ok(name, "in use by %s, and not needed with --dhcp=off", owner)
	case !known:
		return Result{name, Warn, "another program listens on " + s.addr.String() + "; whose it is only root can see", "run lpmos doctor as root; if it is not LPMOS, stop it or choose another address with " + p.Flag}
	}
	return Result{name, Fail, fmt.Sprintf("%s listens on %s, and %s needs it", owner, s.addr, p.For), fmt.Sprintf("stop it, or do without with %s", p.Flag)}
}

// process is one that holds a socket.
type process struct {
	pid  int
	name string
}

func (p process) String() string {
	if p.pid == 0 {
		return "another program"
	}
	return fmt.Sprintf("%s (process %d)", p.name, p.pid)
}

// tcpListen and udpOpen are states in /proc/net/tcp and udp: listening, and
// bound without a peer (Linux, include/net/tcp_states.h).
const (
	tcpListen = "0A"
	udpOpen   = "07"
)

// listening reads /proc/net/tcp and its like (Linux,
// Documentation/networking/proc_net_tcp.rst).
func listening(proc fs.FS, network, version string) ([]socket, error) {
	b, err := fs.ReadFile(proc, "net/"+network+version)
	if errors.Is(err, fs.ErrNotExist) {
		// net is a link to self/net, which an fs.FS on /proc cannot always follow.
		b, err = fs.ReadFile(proc, "self/net/"+network+version)
	}
	if err != nil {
		return nil, err
	}
	state := tcpListen
	if network == "udp" {
		state = udpOpen
	}
	var out []socket
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 10 || f[3] != state {
			continue
		}
		addr, err := procAddr(f[1])
		if err != nil {
			continue // the heading
		}
		out = append(out, socket{addr, f[9]})
	}
	return out, lines.Err()
}

// procAddr reads "0100007F:1F90": an address as 32-bit words of the host's byte
// order, which is little-endian on every machine LPMOS runs on, and a port.
func procAddr(s string) (netip.AddrPort, error) {
	host, port, found := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	if err != nil || !found || len(b)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("%q is not an address", s)
	}
	for i := 0; i < len(b); i += 4 {
		slices.Reverse(b[i : i+4])
	}
	addr, valid := netip.AddrFromSlice(b)
	n, err := strconv.ParseUint(port, 16, 16)
	if !valid || err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is not an address", s)
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), nil
}

// processes finds who holds which socket, by inode, as far as we may see.
func processes(proc fs.FS) map[string]process {
	out := map[string]process{}
	entries, err := fs.ReadDir(proc, ".")
	if err != nil {
		return out
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		fds, err := fs.ReadDir(proc, e.Name()+"/fd")
		if err != nil {
			continue // ended meanwhile, or not ours to see
		}
		var name string
		for _, fd := range fds {
			target, err := fs.ReadLink(proc, e.Name()+"/fd/"+fd.Name())
			inode, isSocket := strings.CutPrefix(target, "socket:[")
			if err != nil || !isSocket {
				continue
			}
			if name == "" {
				comm, err := fs.ReadFile(proc, e.Name()+"/comm")
				if err != nil {
					break
				}
				name = strings.TrimSpace(string(comm))
			}
			out[strings.TrimSuffix(inode, "]")] = process{pid, name}
		}
	}
	return out
}
