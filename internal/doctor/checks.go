package doctor

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/store"
)

// Bounds of what is well.
const (
	skewWarn = 3 * time.Second // the Date header counts whole seconds
	skewFail = time.Minute

	expiryWarn = 30 * 24 * time.Hour

	// A root filesystem image has about 1 GB, and etcd needs room to compact.
	diskFail = 1 << 30
	diskWarn = 10 << 30

	etcdSlow = 100 * time.Millisecond
)

// JudgePlane says whether the control plane can be used. err is what asking
// whether it is ready came to, took how long it took.
func JudgePlane(server string, err error, took time.Duration) Result {
	const check = "control plane"
	switch {
	case err == nil:
		return ok(check, "%s is ready (%d ms)", server, took.Milliseconds())
	case isCertificateError(err):
		return Result{check, Fail, "its certificate is not trusted: " + err.Error(), "see the check of tls"}
	case errors.Is(err, lpmos.ErrUnavailable) && strings.Contains(err.Error(), "no control plane answers"):
		return Result{check, Fail, "nothing answers at " + server, "start it (lpmos up, or control-plane), or name another with --server"}
	case errors.Is(err, lpmos.ErrUnavailable):
		return Result{check, Fail, "it runs, but is not ready: " + err.Error(), "look at its log and at etcd; it answers again by itself"}
	}
	return Result{check, Fail, "it cannot be asked: " + err.Error(), "is --server the address of a control plane?"}
}

func isCertificateError(err error) bool {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	return errors.As(err, &unknown) || errors.As(err, &host) || errors.As(err, &invalid)
}

// JudgeRegions says which data centres are there. now is for how long they are
// gone.
func JudgeRegions(regions []lpmos.Region, err error, now time.Time) []Result {
	const check = "regions"
	if err != nil {
		return []Result{Skipped(check, "the control plane did not say", "see the check of the control plane")}
	}
	if len(regions) == 0 {
		return []Result{{check, Warn, "no region has registered, so no machine can be installed", "start one: regional-client --help, or lpmos up"}}
	}
	var out []Result
	for _, r := range regions {
		name := "region " + r.ID
		if r.Status == "online" {
			what := ""
			if c := r.Capabilities; c != nil {
				what = fmt.Sprintf(": %s, version %s, DHCP %s", c.Hostname, c.Version, c.DHCP)
			}
			out = append(out, ok(name, "online%s", what))
			if c := r.Capabilities; c != nil {
				for _, a := range c.ForeignNow(now) {
					out = append(out, Result{name, Fail, "another DHCP server answers on its network: " + a.String(),
						"find it by the switch's table of addresses and turn it off: machines may boot what it tells them"})
				}
			}
			continue
		}
		since := ""
		if !r.Since.IsZero() {
			since = fmt.Sprintf(" for %s", now.Sub(r.Since).Round(time.Second))
		}
		out = append(out, Result{name, Fail, "offline" + since + ": its machines cannot boot or report", "look at the log of the regional client there, and at its connection to etcd"})
	}
	return out
}

// JudgeSkew compares our clock with the control plane's. date is the Date
// header of an answer, which was asked for at sent and came at received.
func JudgeSkew(date string, sent, received time.Time) Result {
	const check = "clock"
	theirs, err := time.Parse(time.RFC1123, date)
	if err != nil {
		return Skipped(check, "the control plane did not say what time it has", "")
	}
	// The header cuts the fraction off: on average it is half a second behind.
	skew := sent.Add(received.Sub(sent) / 2).Sub(theirs.Add(500 * time.Millisecond))
	off := skew.Abs().Round(time.Second)
	word := "ahead of"
	if skew < 0 {
		word = "behind"
	}
	switch {
	case skew.Abs() >= skewFail:
		return Result{check, Fail, fmt.Sprintf("this clock is %s %s the control plane's", off, word), "set the wrong one, and let NTP keep both (timedatectl set-ntp true)"}
	case skew.Abs() >= skewWarn:
		return Result{check, Warn, fmt.Sprintf("this clock is %s %s the control plane's", off, word), "let NTP keep both (timedatectl set-ntp true)"}
	}
	return ok(check, "the control plane has the same time")
}

// JudgeOwnClock says whether this host's clock can be believed: a dead battery
// shows in the year, and synced tells whether the kernel knows of a time
// source that keeps it.
func JudgeOwnClock(now time.Time, synced bool, err error) Result {
	const check = "own clock"
	switch {
	case now.Year() < 2025 || now.Year() > 2100:
		return Result{check, Fail, "it says " + now.UTC().Format(time.DateOnly), "set it: certificates and orders are judged by it (timedatectl set-ntp true)"}
	case err != nil:
		return ok(check, "it says %s", now.UTC().Format("2006-01-02 15:04 UTC"))
	case !synced:
		return Result{check, Warn, "nothing keeps it right, as far as the kernel knows", "let NTP keep it (timedatectl set-ntp true, or chrony); in a container the host's counts"}
	}
	return ok(check, "it says %s and is kept by a time source", now.UTC().Format("2006-01-02 15:04 UTC"))
}

// JudgeTLS says whether clients can trust the control plane at server. chain is
// what it presented, its own certificate first; nil with err when there was
// none. roots may be nil for the system's.
func JudgeTLS(server *url.URL, chain []*x509.Certificate, err error, roots *x509.CertPool, now time.Time) Result {
	const check = "tls"
	host := server.Hostname()
	if server.Scheme != "https" {
		if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
			return ok(check, "plain HTTP, which never leaves this host")
		}
		return Result{check, Warn, "plain HTTP to another host: anyone on the path can read and approve", "give the control plane --tls-cert and --tls-key, and use https://"}
	}
	if err != nil || len(chain) == 0 {
		return Skipped(check, fmt.Sprintf("no certificate was presented: %v", err), "see the check of the control plane")
	}
	leaf := chain[0]
	inter := x509.NewCertPool()
	for _, c := range chain[1:] {
		inter.AddCert(c)
	}
	_, verr := leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: inter, CurrentTime: now})
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	left := leaf.NotAfter.Sub(now)
	switch {
	case now.After(leaf.NotAfter):
		return Result{check, Fail, "the certificate expired on " + leaf.NotAfter.UTC().Format(time.DateOnly), "renew it and restart the control plane"}
	case now.Before(leaf.NotBefore):
		return Result{check, Fail, "the certificate is valid only from " + leaf.NotBefore.UTC().Format(time.DateOnly), "is this host's clock right?"}
	case errors.As(verr, &name):
		return Result{check, Fail, fmt.Sprintf("the certificate is for %s, not for %s", names(leaf), host), "use one of its names as --server, or have it issued for this one"}
	case errors.As(verr, &unknown):
		return Result{check, Fail, "the certificate's authority is not known here: " + leaf.Issuer.String(), "add the authority to this host's trust store, and have the server send the whole chain"}
	case verr != nil:
		return Result{check, Fail, "the certificate is not valid: " + verr.Error(), "have it issued anew"}
	case left < expiryWarn:
		return Result{check, Warn, fmt.Sprintf("the certificate expires in %d days", int(left.Hours()/24)), "renew it"}
	}
	return ok(check, "the certificate for %s is valid until %s", host, leaf.NotAfter.UTC().Format(time.DateOnly))
}

// JudgeCertificate says whether a certificate that LPMOS renews by itself is
// being renewed: less than a fifth of its life left means that it is not.
func JudgeCertificate(what, path string, c *x509.Certificate, err error, now time.Time) Result {
	check := "certificate of " + what
	if err != nil {
		return Result{check, Warn, "it cannot be read: " + err.Error(), "run this as the user that the service runs as"}
	}
	until := c.NotAfter.UTC().Format(time.DateOnly)
	switch {
	case now.After(c.NotAfter) && strings.HasPrefix(c.Subject.CommonName, "lpmos-region-"):
		return Result{check, Fail, path + " expired on " + until, "enroll the region again: lpmos region enroll"}
	case now.After(c.NotAfter):
		return Result{check, Fail, path + " expired on " + until, "restart the control plane, which makes another"}
	case c.NotAfter.Sub(now) < c.NotAfter.Sub(c.NotBefore)/5:
		return Result{check, Warn, path + " is good until " + until + " and should have been renewed", "look at the service's log for what keeps it from that"}
	}
	return ok(check, "good until %s, and renewed before", until)
}

func names(c *x509.Certificate) string {
	all := c.DNSNames
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	if len(all) == 0 {
		return "no name at all"
	}
	return strings.Join(all, ", ")
}

// JudgeDisk says whether there is room where path is, or will be.
func JudgeDisk(what, path string, free, total int64, err error) Result {
	check := "disk for " + what
	switch {
	case err != nil:
		return Result{check, Warn, fmt.Sprintf("its size cannot be read: %v", err), "choose a directory that can be written"}
	case free < diskFail:
		return Result{check, Fail, fmt.Sprintf("%s has %s left of %s", path, lpmos.FormatBytes(free), lpmos.FormatBytes(total)), "make room, or choose another directory: a full disk stops the store"}
	case free < diskWarn:
		return Result{check, Warn, fmt.Sprintf("%s has %s left of %s", path, lpmos.FormatBytes(free), lpmos.FormatBytes(total)), "make room: an image has about 1 GB"}
	}
	return ok(check, "%s has %s left of %s", path, lpmos.FormatBytes(free), lpmos.FormatBytes(total))
}

// JudgeEtcd says how the store's servers are.
func JudgeEtcd(members []store.Member) []Result {
	var out []Result
	for _, m := range members {
		out = append(out, judgeMember(m))
	}
	return out
}

func judgeMember(m store.Member) Result {
	const check = "etcd"
	size := lpmos.FormatBytes(m.DBBytes)
	if m.QuotaBytes > 0 {
		size += " of " + lpmos.FormatBytes(m.QuotaBytes)
	}
	switch {
	case m.Err != nil:
		return Result{check, Fail, m.Endpoint + " does not answer: " + m.Err.Error(), "is it running, and are --etcd-endpoints and certificates right?"}
	case !m.Supported:
		return Result{check, Fail, m.Endpoint + " has version " + m.Version + ", which LPMOS refuses", "upgrade it to " + store.Floors + " or newer: older ones have authorization bypasses"}
	case len(m.Alarms) > 0:
		return Result{check, Fail, m.Endpoint + " raises " + strings.Join(m.Alarms, ", ") + ", and refuses writes", "NOSPACE: etcdctl compact, defrag, then alarm disarm; CORRUPT: replace the member"}
	case !m.HasLeader:
		return Result{check, Fail, m.Endpoint + " has no quorum: it cannot read or write", "start the other members"}
	case m.QuotaBytes > 0 && m.DBBytes*10 > m.QuotaBytes*8:
		todo := "raise --quota-backend-bytes"
		if m.DBInUseBytes*2 < m.DBBytes {
			todo = "etcdctl defrag: " + lpmos.FormatBytes(m.DBBytes-m.DBInUseBytes) + " of it are free"
		}
		return Result{check, Warn, "the database of " + m.Endpoint + " is nearly full: " + size, todo}
	case m.Learner:
		return Result{check, Warn, m.Endpoint + " is a learner, which has no vote", "promote it: etcdctl member promote"}
	case m.Took > etcdSlow:
		return Result{check, Warn, fmt.Sprintf("%s answers slowly: %d ms", m.Endpoint, m.Took.Milliseconds()), "give it a fast disk of its own and a near network"}
	}
	return ok(check, "%s is healthy: version %s, database %s", m.Endpoint, m.Version, size)
}

// JudgeTools says whether the lab can run: err is lab.FindTools's, kvm whether
// /dev/kvm can be used.
func JudgeTools(err error, kvm bool) []Result {
	const check = "lab tools"
	var out []Result
	if err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			todo := "apt-get install qemu-system-x86 ovmf iproute2"
			if strings.HasPrefix(line, "not root") {
				todo = "run the lab as root"
			}
			out = append(out, Result{check, Fail, line, todo})
		}
	} else {
		out = append(out, ok(check, "QEMU, UEFI firmware and ip are there"))
	}
	if !kvm {
		return append(out, Result{"lab speed", Warn, "/dev/kvm cannot be used: machines are emulated, ten times slower", "load kvm_intel or kvm_amd, or allow nested virtualization"})
	}
	return append(out, ok("lab speed", "/dev/kvm can be used"))
}
