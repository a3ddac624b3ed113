package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"

	"github.com/lpmos/lpmos"
)

// PeerLink is the name a Peer's interface has inside the peer.
const PeerLink = "eth0"

// Peer is a computer on a bridge that is no virtual machine: a network
// namespace of its own with one interface. What its processes can do to the
// others on the bridge is what a machine there can: send any frame under any
// address. It lives until Close, or as long as this process.
type Peer struct {
	ns  *namespace
	net *Network
}

// NewPeer plugs a peer into a bridge; no bridge means the first. The address is
// the peer's own, none when it is not valid.
func (n *Network) NewPeer(ctx context.Context, bridge string, mac lpmos.MAC, address netip.Prefix) (*Peer, error) {
	if bridge == "" {
		bridge = n.bridges[0]
	}
	n.mu.Lock()
	port := fmt.Sprintf("peer%d", n.taps)
	n.taps++
	n.mu.Unlock()
	ns, err := newNamespace()
	if err != nil {
		return nil, fmt.Errorf("make peer: %w", err)
	}
	p := &Peer{ns: ns, net: n}
	// The namespace has no name; iproute2 takes a path for one.
	err = n.ip(ctx,
		"link add "+port+" type veth peer name "+PeerLink+" netns "+ns.path,
		"link set "+port+" master "+bridge+" up")
	if err == nil {
		err = p.ip(ctx, "link set lo up")
	}
	if err == nil {
		err = p.Become(ctx, mac, address)
	}
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("make peer: %w", err)
	}
	return p, nil
}

// Become changes the peer's hardware and IPv4 address. Connections it has are
// lost.
func (p *Peer) Become(ctx context.Context, mac lpmos.MAC, address netip.Prefix) error {
	batch := []string{
		"link set " + PeerLink + " down",
		"addr flush dev " + PeerLink,
		"link set " + PeerLink + " address " + mac.String() + " up",
	}
	if address.IsValid() {
		batch = append(batch, "addr add "+address.String()+" dev "+PeerLink)
	}
	return p.ip(ctx, batch...)
}

// ip runs iproute2 commands inside the peer.
func (p *Peer) ip(ctx context.Context, batch ...string) error {
	return runIP(ctx, p.net.tools.IP, p.ns, batch)
}

// Do is Network.Do inside the peer.
func (p *Peer) Do(f func() error) error { return p.ns.do(f) }

// DialContext connects from the peer; it fits http.Transport.DialContext.
func (p *Peer) DialContext(ctx context.Context, network, address string) (c net.Conn, err error) {
	err = p.Do(func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// StartCommand is cmd.Start inside the peer. The process is killed when the
// peer is closed or this process ends. The caller calls cmd.Wait.
func (p *Peer) StartCommand(cmd *exec.Cmd) error { return p.ns.start(cmd) }

// Close pulls the peer's cable and kills what it started.
func (p *Peer) Close() error {
	err := p.ip(context.Background(), "link del "+PeerLink)
	if errors.Is(err, errClosed) {
		err = nil
	}
	p.ns.close()
	return err
}
