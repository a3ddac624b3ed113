package pid1

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/tier"
)

// TestDHCPAgainstDnsmasq runs client and server in two network namespaces with
// a cable between them: the packet socket, the ioctls, and a renewal over UDP
// on the configured interface.
func TestDHCPAgainstDnsmasq(t *testing.T) {
	if os.Getuid() != 0 {
		tier.Missing(t, "root", "not root")
	}
	for _, tool := range []string{"/usr/sbin/ip", "/usr/sbin/dnsmasq"} {
		if _, err := os.Stat(tool); err != nil {
			tier.Missing(t, "root", err.Error())
		}
	}
	ip := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("/usr/sbin/ip", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	cns, sns := fmt.Sprintf("lpmos-pid1-c%d", os.Getpid()), fmt.Sprintf("lpmos-pid1-s%d", os.Getpid())
	for _, ns := range []string{cns, sns} {
		if out, err := exec.Command("/usr/sbin/ip", "netns", "add", ns).CombinedOutput(); err != nil {
			tier.Missing(t, "root", "make a network namespace: "+string(out))
		}
		t.Cleanup(func() { exec.Command("/usr/sbin/ip", "netns", "del", ns).Run() })
	}
	ip("-n", cns, "link", "add", "nic0", "address", testMAC.String(), "type", "veth", "peer", "name", "srv0", "netns", sns)
	ip("-n", sns, "addr", "add", "10.77.0.1/24", "dev", "srv0")
	ip("-n", sns, "link", "set", "srv0", "up")
	ip("-n", sns, "link", "set", "lo", "up")

	dnsmasq := exec.Command("/usr/sbin/ip", "netns", "exec", sns, "/usr/sbin/dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null",
		"--port=0", "--interface=srv0", "--bind-interfaces", "--no-ping", "--leasefile-ro", "--pid-file=", "--log-facility=-", "--user=root",
		"--dhcp-range=10.77.0.50,10.77.0.59,255.255.255.0,2m", "--dhcp-option=3,10.77.0.1", "--dhcp-option=26,1400", "--dhcp-option=6,10.77.0.1")
	var said strings.Builder
	dnsmasq.Stdout, dnsmasq.Stderr = &said, &said
	if err := dnsmasq.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		dnsmasq.Process.Kill()
		dnsmasq.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	})

	// The thread goes into the client's namespace and never comes back, so it
	// ends with this goroutine.
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			f, err := os.Open("/run/netns/" + cns)
			if err != nil {
				return err
			}
			defer f.Close()
			if _, _, errno := syscall.RawSyscall(sysSetns, f.Fd(), syscall.CLONE_NEWNET, 0); errno != 0 {
				return fmt.Errorf("enter the namespace: %w", errno)
			}
			return talk(t, ip, cns)
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func talk(t *testing.T, ip func(...string) string, ns string) error {
	if err := errors.Join(linkUp("lo"), linkUp("nic0")); err != nil {
		return err
	}
	i := iface{"nic0", testMAC}
	first, err := dhcpOn(t.Context(), i, 20*time.Second, quiet)
	if err != nil {
		return err
	}
	if !netip.MustParsePrefix("10.77.0.0/24").Contains(first.Address.Addr()) || first.Address.Bits() != 24 || first.Lifetime != 2*time.Minute ||
		first.Interface != "nic0" || first.MTU != 1400 || first.Server != server {
		t.Errorf("lease = %+v", first)
	}
	again, err := dhcpOn(t.Context(), i, 20*time.Second, quiet)
	if err != nil || again.Address != first.Address {
		t.Errorf("a second acquisition = %s, %v; want the same address %s", again.Address, err, first.Address)
	}
	// Twice, as after a lease was lost: what is there already is no error.
	if err := errors.Join(configure(first), configure(first)); err != nil {
		return err
	}
	if out := ip("-n", ns, "-4", "addr", "show", "nic0"); !strings.Contains(out, "inet "+first.Address.String()) || !strings.Contains(out, "mtu 1400") {
		t.Errorf("address:\n%s", out)
	}
	if out := ip("-n", ns, "route"); !strings.Contains(out, "default via 10.77.0.1 dev nic0") || strings.Count(out, "\n") != 2 {
		t.Errorf("routes:\n%s", out)
	}
	u, err := openUDPSocket(t.Context(), "nic0")
	if err != nil {
		return err
	}
	defer u.Close()
	c := &client{mac: testMAC, t: u, log: quiet, wait: 5 * time.Second}
	for _, to := range []netip.Addr{first.Server, {}} { // at T1, at T2
		next, err := c.renew(t.Context(), first, to)
		if err != nil || next.Address != first.Address || !next.Since.After(first.Since) {
			t.Errorf("renew at %v = %+v, %v", to, next, err)
		}
	}
	if err := addRoute("nic0", Route{To: netip.MustParsePrefix("10.99.0.0/16")}); err != nil {
		t.Errorf("route on the link: %v", err)
	}
	// A router outside of the network needs a route of its own first.
	far := first
	far.Routes = []Route{{netip.MustParsePrefix("10.100.0.0/16"), netip.MustParseAddr("10.77.9.9")}}
	if err := configure(far); err != nil {
		t.Errorf("a router outside of the network: %v", err)
	}
	if out := ip("-n", ns, "route"); !strings.Contains(out, "10.100.0.0/16 via 10.77.9.9") {
		t.Errorf("routes:\n%s", out)
	}
	_, err = dhcpOn(t.Context(), iface{"nic9", lpmos.MustMAC("02:00:00:00:00:09")}, time.Second, quiet)
	if err == nil {
		t.Error("an interface that is not there gets a lease")
	}
	return nil
}
