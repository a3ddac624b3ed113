package lpmos

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Receipt is what the installed system said of itself when it called home.
// Nothing in it is more than a claim of that system; see Compare for what is
// made of it. What could not be found is empty.
type Receipt struct {
	BootMode   string    `json:"boot_mode"`
	SecureBoot *bool     `json:"secure_boot,omitempty"` // nil where the firmware has no such notion
	OS         string    `json:"os"`                    // PRETTY_NAME of os-release
	OSID       string    `json:"os_id,omitempty"`       // its ID, "debian"
	OSVersion  string    `json:"os_version,omitempty"`  // its VERSION_ID, "12"
	Kernel     string    `json:"kernel"`
	KernelArgs string    `json:"kernel_args,omitempty"` // the whole command line
	Hostname   string    `json:"hostname"`
	MachineID  string    `json:"machine_id,omitempty"`
	RootDisk   DiskRef   `json:"root_disk"`
	RootFSUUID string    `json:"root_fs_uuid"`
	Mounts     []Mount   `json:"mounts,omitempty"` // of block devices
	Addresses  []string  `json:"addresses,omitempty"`
	Timezone   string    `json:"timezone,omitempty"`    // "UTC" where none is set or its data is not there
	TimeSynced *bool     `json:"time_synced,omitempty"` // whether the kernel's clock follows another
	Users      []string  `json:"users,omitempty"`       // accounts of people: with numbers from 1000 on
	HostKeys   []HostKey `json:"host_keys,omitempty"`
	CloudInit  string    `json:"cloud_init,omitempty"` // "done", "error", "running", "disabled"; empty where it is not
	// CloudInitErrors are its first ones.
	CloudInitErrors []string  `json:"cloud_init_errors,omitempty"`
	FailedUnits     []string  `json:"failed_units,omitempty"` // of systemd; nil also where it is not
	UptimeSec       int64     `json:"uptime_sec"`
	At              time.Time `json:"at,omitzero"` // when the region received it
}

// Mount is a mounted block device.
type Mount struct {
	Path string `json:"path"`
	FS   string `json:"fs"`
}

// HostKey is a public key of the system's SSH server.
type HostKey struct {
	Type        string `json:"type"`        // "ssh-ed25519"
	Key         string `json:"key"`         // in base64, as known_hosts has it
	Fingerprint string `json:"fingerprint"` // "SHA256:…", as ssh shows it
}

// Bounds of a receipt's lists.
const (
	MaxReceiptList = 64
	MaxHostKeys    = 8
)

// ParseHostKey reads one line of a public key file, without its comment.
func ParseHostKey(line string) (HostKey, error) {
	f := strings.Fields(line)
	bad := func(problem string) (HostKey, error) {
		return HostKey{}, &InvalidError{Field: "host_keys", Problem: problem, Value: line}
	}
	if len(f) < 2 || len(line) > 4<<10 || !ValidSSHKey(f[0]+" "+f[1]) {
		return bad("holds what is not a public key")
	}
	raw, err := base64.StdEncoding.DecodeString(f[1])
	if err != nil || len(raw) < 4+len(f[0]) || string(raw[4:4+len(f[0])]) != f[0] {
		return bad("holds a key that is not of the type it says")
	}
	sum := sha256.Sum256(raw)
	return HostKey{Type: f[0], Key: f[1], Fingerprint: "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])}, nil
}

// KnownHosts are the lines that let ssh know the system by its name and by its
// addresses, one for each key.
func (r *Receipt) KnownHosts() []string {
	var names []string
	if ValidHostname(r.Hostname) {
		names = append(names, r.Hostname)
	}
	for _, a := range r.Addresses {
		if p, err := netip.ParsePrefix(a); err == nil {
			names = append(names, p.Addr().String())
		}
	}
	if len(names) == 0 {
		return nil
	}
	var out []string
	for _, k := range r.HostKeys {
		out = append(out, strings.Join(names, ",")+" "+k.Type+" "+k.Key)
	}
	return out
}

// Check says what is wrong with a receipt that came from outside. Text in it
// may be anything; lists are bounded, and keys are what they say they are.
func (r *Receipt) Check() error {
	bad := func(field, problem string) error { return &InvalidError{Field: "receipt." + field, Problem: problem} }
	if r.RootFSUUID == "" {
		return bad("root_fs_uuid", "is missing")
	}
	for _, l := range []struct {
		field string
		n     int
	}{
		{"addresses", len(r.Addresses)}, {"mounts", len(r.Mounts)}, {"users", len(r.Users)}, {"failed_units", len(r.FailedUnits)}, {"cloud_init_errors", len(r.CloudInitErrors)},
	} {
		if l.n > MaxReceiptList {
			return bad(l.field, "holds more than 64")
		}
	}
	if len(r.HostKeys) > MaxHostKeys {
		return bad("host_keys", "holds more than 8")
	}
	for _, k := range r.HostKeys {
		if is, err := ParseHostKey(k.Type + " " + k.Key); err != nil || is != k {
			return bad("host_keys", "holds what is not a public key with its fingerprint")
		}
	}
	return nil
}

// Drift is one thing that is not in the installed system as the plan had it.
type Drift struct {
	What    string `json:"what"` // "address", "time zone", "user ops": for people, English
	Planned string `json:"planned"`
	Found   string `json:"found"` // "missing" where there is nothing
}

func (d Drift) String() string { return d.What + ": planned " + d.Planned + ", found " + d.Found }

// DriftNames are what drifted, for a line that has little room: "address,
// time zone".
func DriftNames(ds []Drift) string {
	var out []string
	for _, d := range ds {
		if !slices.Contains(out, d.What) {
			out = append(out, d.What)
		}
	}
	return strings.Join(out, ", ")
}

const missing = "missing"

// knownOS are the IDs that distributions have in os-release. An image may have
// any name; one that is called as a distribution is, is held to it.
var knownOS = []string{"almalinux", "centos", "debian", "fedora", "opensuse-leap", "rhel", "rocky", "sles", "ubuntu"}

// Compare holds a receipt against the plan and what was known of the machine
// (nil when that is not known), in a fixed order. It is a pure function: the
// same receipt is the same drift. That the root filesystem is the one that was
// made is not part of it: a receipt of another is none of this task's.
func (p *Plan) Compare(r *Receipt, h *Hardware) []Drift {
	var out []Drift
	differ := func(what, planned, found string) {
		if planned == found {
			return
		}
		if found == "" {
			found = missing
		}
		out = append(out, Drift{what, Shorten(planned, 200), Shorten(found, 200)})
	}
	e := &p.Effect
	differ("boot mode", e.BootMode, r.BootMode)
	if h != nil && h.SecureBoot != nil && *h.SecureBoot {
		if r.SecureBoot == nil || !*r.SecureBoot {
			differ("Secure Boot", "on", "off")
		}
	}
	if slices.Contains(knownOS, e.Image.OS) && r.OSID != "" {
		differ("operating system", e.Image.OS, r.OSID)
		// An image may be a variant of its version: "12-storage".
		version, _, _ := strings.Cut(e.Image.Version, "-")
		if r.OSID == e.Image.OS && r.OSVersion != version && !strings.HasPrefix(r.OSVersion, version+".") {
			differ("version", e.Image.Version, r.OSVersion)
		}
	}
	differ("host name", e.Hostname, r.Hostname)
	if r.RootDisk != (DiskRef{}) && !e.RunsFrom(r.RootDisk) {
		differ("disk", e.Target.String(), r.RootDisk.String())
	}
	mounts := map[string]string{}
	for _, m := range r.Mounts {
		mounts[m.Path] = m.FS
	}
	planned := e.Filesystems()
	if esp, ok := e.Partition("esp"); ok {
		planned = append(planned, PlannedFS{FS: esp.FS, Mount: esp.Mount})
	}
	for _, fs := range planned {
		if strings.HasPrefix(fs.Mount, "/") && len(r.Mounts) > 0 {
			differ("mount "+fs.Mount, fs.FS, mounts[fs.Mount])
		}
	}
	s := e.System
	if s == nil {
		return out
	}
	for _, a := range s.Network.Static() {
		if !slices.Contains(r.Addresses, a) {
			differ("address", a, addressLike(a, r.Addresses))
		}
	}
	if s.Timezone != "" {
		differ("time zone", s.Timezone, r.Timezone)
	}
	if len(s.NTP) > 0 && r.TimeSynced != nil && !*r.TimeSynced {
		differ("time", "follows "+strings.Join(s.NTP, ", "), "not synchronized")
	}
	for _, u := range s.Users {
		if !slices.Contains(r.Users, u.Name) {
			differ("user "+u.Name, "an account", "")
		}
	}
	have := strings.Fields(r.KernelArgs)
	for _, a := range s.Kernel {
		if len(have) > 0 && !slices.Contains(have, a) {
			name, _, _ := strings.Cut(a, "=")
			found := ""
			for _, w := range have {
				if n, _, _ := strings.Cut(w, "="); n == name {
					found = w
				}
			}
			differ("kernel argument", a, found)
		}
	}
	if r.CloudInit == "error" {
		differ("cloud-init", "done", strings.Join(append([]string{"error"}, r.CloudInitErrors...), ": "))
	}
	if slices.Contains(r.FailedUnits, FirstBootUnit) {
		differ("first-boot scripts", "run", "failed")
	}
	return out
}

// Promised is the receipt of a system that is as the plan has it, for machines
// that only play at being installed.
func (e *Effect) Promised() Receipt {
	r := Receipt{BootMode: e.BootMode, Hostname: e.Hostname, RootDisk: e.Target, KernelArgs: e.KernelArgs}
	// What the plan did not make has a root filesystem that nobody knows before.
	fs, _ := e.Root()
	r.RootFSUUID = cmp.Or(fs.UUID, e.BootID)
	if s := e.System; s != nil {
		r.Addresses, r.Timezone, r.Users = s.Network.Static(), s.Timezone, s.userNames()
	}
	return r
}

// addressLike is the address of the same host with another prefix length, ""
// if there is none.
func addressLike(planned string, found []string) string {
	p, err := netip.ParsePrefix(planned)
	for _, f := range found {
		if q, ferr := netip.ParsePrefix(f); err == nil && ferr == nil && q.Addr() == p.Addr() {
			return f
		}
	}
	return ""
}

// DriftSentence is how an event tells of drift, "" without any.
func DriftSentence(ds []Drift) string {
	if len(ds) == 0 {
		return ""
	}
	var list []string
	for _, d := range ds[:min(len(ds), 5)] {
		list = append(list, d.String())
	}
	more := ""
	if len(ds) > 5 {
		more = fmt.Sprintf("; and %d more", len(ds)-5)
	}
	return "Not all is as planned: " + strings.Join(list, "; ") + more + "."
}
