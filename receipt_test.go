package lpmos_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lpmos/lpmos"
)

const hostKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJtRsVIW4YbLgZEn0pPxYTKz0pJb7aJGJJ2vS7T5zjNn"

// matching is a receipt of a system that is as planned.
func matching(p *lpmos.Plan) lpmos.Receipt {
	r := p.Effect.Promised()
	r.OSID, r.OSVersion, r.RootFSUUID = "debian", "12", "x"
	r.Mounts = []lpmos.Mount{{Path: "/", FS: "ext4"}, {Path: "/boot/efi", FS: "vfat"}}
	r.KernelArgs = "root=UUID=x ro " + p.Effect.KernelArgs + " console=ttyS0"
	r.TimeSynced = new(true)
	r.CloudInit = "done"
	return r
}

func TestCompareNamesWhatDrifted(t *testing.T) {
	p := configured(nil)
	secure := server()
	secure.SecureBoot = new(true)
	for _, tt := range []struct {
		name string
		edit func(*lpmos.Receipt)
		h    *lpmos.Hardware
		want []lpmos.Drift
	}{
		{"nothing", func(*lpmos.Receipt) {}, server(), nil},
		{"an address that is not there", func(r *lpmos.Receipt) { r.Addresses = []string{"10.0.2.15/24", "2001:db8::10/64", "203.0.113.2/31"} }, nil,
			[]lpmos.Drift{{What: "address", Planned: "192.0.2.10/24", Found: "missing"}}},
		{"an address with another prefix length", func(r *lpmos.Receipt) { r.Addresses[0] = "192.0.2.10/16" }, nil,
			[]lpmos.Drift{{What: "address", Planned: "192.0.2.10/24", Found: "192.0.2.10/16"}}},
		{"another system", func(r *lpmos.Receipt) { r.OSID, r.OSVersion = "ubuntu", "24.04" }, nil, []lpmos.Drift{{What: "operating system", Planned: "debian", Found: "ubuntu"}}},
		{"another version", func(r *lpmos.Receipt) { r.OSVersion = "13" }, nil, []lpmos.Drift{{What: "version", Planned: "12", Found: "13"}}},
		{"a minor version", func(r *lpmos.Receipt) { r.OSVersion = "12.4" }, nil, nil},
		{"boot mode, name, zone", func(r *lpmos.Receipt) { r.BootMode, r.Hostname, r.Timezone = "bios", "localhost", "UTC" }, nil,
			[]lpmos.Drift{{What: "boot mode", Planned: "uefi", Found: "bios"}, {What: "host name", Planned: "web-01", Found: "localhost"}, {What: "time zone", Planned: "Europe/Berlin", Found: "UTC"}}},
		{"another disk", func(r *lpmos.Receipt) { r.RootDisk.Serial = "N0" }, nil,
			[]lpmos.Drift{{What: "disk", Planned: p.Effect.Target.String(), Found: lpmos.DiskRef{Serial: "N0", WWN: p.Effect.Target.WWN, SizeBytes: p.Effect.Target.SizeBytes}.String()}}},
		{"a mount that is not there", func(r *lpmos.Receipt) { r.Mounts = r.Mounts[:1] }, nil, []lpmos.Drift{{What: "mount /boot/efi", Planned: "vfat", Found: "missing"}}},
		{"a user that is not there", func(r *lpmos.Receipt) { r.Users = []string{"ops"} }, nil, []lpmos.Drift{{What: "user app", Planned: "an account", Found: "missing"}}},
		{"a kernel argument of another value", func(r *lpmos.Receipt) { r.KernelArgs = "ro mitigations=off net.ifnames=0" }, nil, []lpmos.Drift{{What: "kernel argument", Planned: "mitigations=auto", Found: "mitigations=off"}}},
		{"a clock by itself", func(r *lpmos.Receipt) { r.TimeSynced = new(false) }, nil, []lpmos.Drift{{What: "time", Planned: "follows ntp.example.net, 192.0.2.123", Found: "not synchronized"}}},
		{"cloud-init with errors", func(r *lpmos.Receipt) { r.CloudInit, r.CloudInitErrors = "error", []string{"('timezone', …)"} }, nil, []lpmos.Drift{{What: "cloud-init", Planned: "done", Found: "error: ('timezone', …)"}}},
		{"a script that failed", func(r *lpmos.Receipt) { r.FailedUnits = []string{"x.service", lpmos.FirstBootUnit} }, nil, []lpmos.Drift{{What: "first-boot scripts", Planned: "run", Found: "failed"}}},
		{"Secure Boot turned off", func(r *lpmos.Receipt) { r.SecureBoot = new(false) }, secure, []lpmos.Drift{{What: "Secure Boot", Planned: "on", Found: "off"}}},
		{"what an older agent does not say", func(r *lpmos.Receipt) { r.Mounts, r.KernelArgs, r.OSID, r.TimeSynced = nil, "", "", nil }, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := matching(&p)
			tt.edit(&r)
			if diff := cmp.Diff(tt.want, p.Compare(&r, tt.h)); diff != "" {
				t.Errorf("Compare (-want +got):\n%s", diff)
			}
		})
	}
	// A disk without a name of its own has the path that each kernel gives it.
	nameless := configured(nil)
	nameless.Effect.Target = lpmos.DiskRef{Path: "/dev/sda", SizeBytes: 480 * gb}
	for found, drift := range map[lpmos.DiskRef]bool{
		{Path: "/dev/sdb", SizeBytes: 480 * gb}: false,
		{Path: "/dev/sda", SizeBytes: 481 * gb}: true,
		{Serial: "S", SizeBytes: 480 * gb}:      true,
		{WWN: "naa.1", SizeBytes: 480 * gb}:     true,
	} {
		r := matching(&nameless)
		r.RootDisk = found
		if got := nameless.Compare(&r, nil); (len(got) > 0) != drift {
			t.Errorf("drift of a system on %s: %v", found, got)
		}
	}
	// Without a profile, only what every installation has is compared.
	bare := lpmos.NewPlan(task(), server(), image())
	r := bare.Effect.Promised()
	r.Addresses, r.Timezone = []string{"10.0.2.15/24"}, "Asia/Tokyo"
	if got := bare.Compare(&r, nil); got != nil {
		t.Errorf("drift of a plan that says nothing: %v", got)
	}
	// An image may be a variant of a version.
	p.Effect.Image.Version = "12-storage"
	r = matching(&p)
	if got := p.Compare(&r, nil); got != nil {
		t.Errorf("drift of a variant of Debian 12: %v", got)
	}
	r.OSVersion = "1"
	if got := p.Compare(&r, nil); len(got) != 1 {
		t.Errorf("drift of a variant of Debian 12 that calls itself 1: %v; want its version", got)
	}
}

func TestDriftInWords(t *testing.T) {
	ds := []lpmos.Drift{{What: "address", Planned: "a", Found: "missing"}, {What: "address", Planned: "b", Found: "missing"}, {What: "time zone", Planned: "c", Found: "d"}}
	if got := lpmos.DriftNames(ds); got != "address, time zone" {
		t.Errorf("names %q", got)
	}
	if got := lpmos.DriftSentence(append(ds, ds...)); !strings.HasSuffix(got, "; and 1 more.") || !strings.HasPrefix(got, "Not all is as planned: address: planned a, found missing; ") {
		t.Errorf("sentence %q", got)
	}
}

func TestHostKeys(t *testing.T) {
	k, err := lpmos.ParseHostKey(hostKey + " root@web-01\n")
	if err != nil || k.Type != "ssh-ed25519" || !strings.HasPrefix(k.Fingerprint, "SHA256:") || len(k.Fingerprint) != 50 {
		t.Fatalf("ParseHostKey = %+v, %v", k, err)
	}
	r := lpmos.Receipt{Hostname: "web-01", Addresses: []string{"192.0.2.10/24", "2001:db8::10/64"}, HostKeys: []lpmos.HostKey{k}, RootFSUUID: "x"}
	if got := r.KnownHosts(); len(got) != 1 || got[0] != "web-01,192.0.2.10,2001:db8::10 "+hostKey {
		t.Errorf("known_hosts %q", got)
	}
	if err := r.Check(); err != nil {
		t.Error(err)
	}
	// A host name with a comma would be a host of its own.
	r.Hostname = "a,github.com"
	if got := r.KnownHosts(); strings.Contains(strings.Join(got, ""), "github") {
		t.Errorf("known_hosts %q", got)
	}
	r.HostKeys[0].Fingerprint = "SHA256:forged"
	if err := r.Check(); err == nil {
		t.Error("a fingerprint of another key was taken")
	}
	for _, bad := range []string{"", "ssh-ed25519", "ssh-rsa " + strings.Fields(hostKey)[1], "ssh-ed25519 AAAA", "ssh-ed25519 $(x)"} {
		if k, err := lpmos.ParseHostKey(bad); err == nil {
			t.Errorf("ParseHostKey(%q) = %+v", bad, k)
		}
	}
}

// FuzzReceipt holds whatever an installed system says of itself to what is made
// of it.
func FuzzReceipt(f *testing.F) {
	p := configured(nil)
	r := matching(&p)
	k, _ := lpmos.ParseHostKey(hostKey)
	r.HostKeys = []lpmos.HostKey{k}
	f.Add(lpmos.CanonicalJSON(r))
	f.Add([]byte(`{"boot_mode":"\u0000","root_fs_uuid":"x","addresses":["%"],"hostname":"a\nb"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var r lpmos.Receipt
		if lpmos.UnmarshalJSON(body, &r) != nil || r.Check() != nil {
			return
		}
		drift := p.Compare(&r, server())
		if lpmos.DigestOf(drift) != lpmos.DigestOf(p.Compare(&r, server())) {
			t.Fatal("the same receipt drifts otherwise the second time")
		}
		for _, d := range drift {
			if d.What == "" || d.Planned == d.Found || len(d.Found) > 220 {
				t.Fatalf("drift %+v", d)
			}
		}
		for _, l := range r.KnownHosts() {
			if strings.ContainsAny(l, "\n\x00") || len(strings.Fields(l)) != 3 {
				t.Fatalf("known_hosts line %q", l)
			}
		}
		_ = lpmos.DriftSentence(drift)
	})
}
