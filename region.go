package lpmos

import (
	"net/netip"
	"slices"
	"time"
)

// Region is one data centre.
type Region struct {
	ID           string        `json:"region_id"`
	Status       string        `json:"status"` // "online" while its heartbeat lease lives, else "offline"
	Since        time.Time     `json:"since,omitzero"`
	Capabilities *Capabilities `json:"capabilities,omitempty"`
	Rev          int64         `json:"rev"`
}

// Capabilities is what a region says of itself when it starts, and, in Stock, as
// it goes on.
type Capabilities struct {
	Version   string    `json:"version"`
	Hostname  string    `json:"hostname"`
	DHCP      string    `json:"dhcp"` // off, proxy, server
	BootURL   string    `json:"boot_url"`
	AgentURL  string    `json:"agent_url"`
	Unknown   string    `json:"unknown_machines"` // ignore, discover
	StartedAt time.Time `json:"started_at"`
	// Fetcher is the SHA-256 of what the region shows to fetch blobs from a
	// control plane, made anew at each start. The control plane never shows it.
	Fetcher string `json:"fetcher,omitempty"`
	// Own is the host the region runs on, which is never installed.
	Own Host `json:"own,omitzero"`
	// Stock is nil where the control plane's own files are read.
	Stock *Stock `json:"stock,omitempty"`
	// ForeignDHCP are other DHCP servers that answered on the region's network
	// though it hands out the addresses there itself, newest first.
	ForeignDHCP []ForeignDHCP `json:"foreign_dhcp,omitempty"`
}

// ForeignDHCP is a DHCP server that is not the region's.
type ForeignDHCP struct {
	Address netip.Addr `json:"address"`
	SeenAt  time.Time  `json:"seen_at"` // last; told anew every ten minutes
}

// foreignKept and maxForeign bound what is remembered of foreign DHCP servers.
const (
	foreignKept = 24 * time.Hour
	maxForeign  = 16
)

// SawDHCP notes a foreign DHCP server and forgets those that are long gone.
func (c *Capabilities) SawDHCP(a netip.Addr, now time.Time) {
	seen := []ForeignDHCP{{a, now}}
	for _, f := range c.ForeignDHCP {
		if f.Address != a && now.Sub(f.SeenAt) < foreignKept && len(seen) < maxForeign {
			seen = append(seen, f)
		}
	}
	c.ForeignDHCP = seen
}

// foreignNow is how long a foreign DHCP server counts as being there after it
// was seen: it is told anew three times in that time.
const foreignNow = 30 * time.Minute

// ForeignNow are the foreign DHCP servers that were seen lately.
func (c *Capabilities) ForeignNow(now time.Time) []netip.Addr {
	var out []netip.Addr
	for _, f := range c.ForeignDHCP {
		if now.Sub(f.SeenAt) < foreignNow {
			out = append(out, f.Address)
		}
	}
	return out
}

// Stock is what a region's cache of files holds.
type Stock struct {
	Files    int      `json:"files"`
	Bytes    int64    `json:"bytes"`
	MaxBytes int64    `json:"max_bytes"`
	Digests  []string `json:"digests,omitempty"` // of the files used last, at most MaxStockDigests, sorted
}

// MaxStockDigests bounds Stock.Digests.
const MaxStockDigests = 256

// Holds reports whether the file with a digest ("sha256:…") is among those named.
func (s *Stock) Holds(digest string) bool {
	bare, err := TrimDigest(digest)
	return s != nil && err == nil && slices.Contains(s.Digests, bare)
}

// Host names a computer by what its hardware report would say of it.
type Host struct {
	Hostname string `json:"hostname,omitempty"`
	MACs     []MAC  `json:"macs,omitempty"`
	UUID     string `json:"uuid,omitempty"` // SMBIOS; "" when it cannot be read
}

// Order is what the control plane wants of a region for one task. It is durable
// and is removed when the task ends.
type Order struct {
	Spec
	TaskID   string    `json:"task_id"`
	Status   Status    `json:"status"`
	Attempt  int       `json:"attempt"`
	Macs     []MAC     `json:"macs"` // every address of the machine that is known
	Plan     *Plan     `json:"plan,omitempty"`
	Approval *Approval `json:"approval,omitempty"`
	Permit   *Permit   `json:"permit,omitempty"`
	// TPM is what credentials for the machine are wrapped for, nil for none.
	TPM *TPM `json:"tpm,omitempty"`
}

// BootEntry says how a machine is to boot when it asks. It is the only source
// of boot decisions and survives its task.
type BootEntry struct {
	MAC     MAC        `json:"mac"`
	Action  string     `json:"action"` // BootAgent or BootLocal
	TaskID  string     `json:"task_id,omitempty"`
	Address netip.Addr `json:"address,omitzero"` // fixed address for the DHCP server, if any
	Disk    *BootDisk  `json:"disk,omitempty"`   // the disk to boot; nil lets the firmware's first disk decide
}

// The actions of a BootEntry.
const (
	BootAgent = "agent"
	BootLocal = "local"
)

// BootDisk names an installed system by identifiers that no other has.
type BootDisk struct {
	RootUUID string `json:"root_uuid"` // of the root filesystem
	ESPUUID  string `json:"esp_uuid"`  // XXXX-XXXX, of the EFI system partition
	BootMode string `json:"boot_mode"` // "bios" or "uefi"
}

// AgentRecord is what a region remembers of the agent that runs for a task's
// attempt: which boot may speak, and what it may still do. Secrets are kept as
// SHA-256 only.
type AgentRecord struct {
	TaskID        string    `json:"task_id"`
	Attempt       int       `json:"attempt"`
	BootSeq       int64     `json:"boot_seq"`
	BootMAC       MAC       `json:"boot_mac"`
	UUID          string    `json:"uuid,omitempty"` // SMBIOS, as iPXE sent it
	Address       string    `json:"address"`        // the machine's, the credential is bound to it
	Credential    string    `json:"credential"`     // "sha256:…"
	Callhome      string    `json:"callhome,omitempty"`
	Used          bool      `json:"used"` // the agent of this boot has spoken
	BootedAt      time.Time `json:"booted_at"`
	Quarantined   string    `json:"quarantined,omitempty"` // why, when two agents claimed the same permit
	HardwareKnown bool      `json:"hardware_known,omitempty"`
	// Key is what the agent of this boot registered with its first report. From
	// then on the credential counts only together with a TLS connection that
	// proved possession of it.
	Key *AgentPublic `json:"key,omitempty"`
	// Alarm is the newest thing about this attempt's agents that a person should
	// know of and that did not stop the task.
	Alarm *Alarm `json:"alarm,omitempty"`

	// Older are earlier boots whose credentials are still recognised, newest
	// first, and Holder is the BootSeq of the one among them that holds the
	// permit until this boot speaks; 0 means none does.
	Older  []AgentBoot `json:"older,omitempty"`
	Holder int64       `json:"holder,omitempty"`
}

// AgentBoot is an earlier start of the agent: what a region must know of it to
// let the holder of a permit go on, and to tell a revoked credential from one
// that never was.
type AgentBoot struct {
	Attempt    int       `json:"attempt"`
	BootSeq    int64     `json:"boot_seq"`
	BootMAC    MAC       `json:"boot_mac"`
	UUID       string    `json:"uuid,omitempty"`
	Address    string    `json:"address"`
	Credential string    `json:"credential"` // "sha256:…"
	Used       bool      `json:"used"`
	BootedAt   time.Time `json:"booted_at"`

	Key *AgentPublic `json:"key,omitempty"`
}

// Alarm is something that should not happen and that a person should look at.
type Alarm struct {
	Code    string    `json:"code"`    // stable: credential_stolen, key_changed …
	Message string    `json:"message"` // a sentence
	Address string    `json:"address,omitempty"`
	Count   int       `json:"count"` // how often, in this attempt
	At      time.Time `json:"at"`    // of the newest
}

// PermitRequest travels up when an agent is about to write.
type PermitRequest struct {
	TaskID         string    `json:"task_id"`
	Attempt        int       `json:"attempt"` // the attempt the agent wants to begin
	Nonce          string    `json:"nonce"`
	PlanDigest     string    `json:"plan_digest"`
	HardwareDigest string    `json:"hardware_digest"`
	BootSeq        int64     `json:"boot_seq"`
	At             time.Time `json:"at"` // when it was first asked
	// AgentKey is the key the boot registered.
	AgentKey *AgentPublic `json:"agent_key,omitempty"`
}

// Result is how an attempt ended, as the agent tells it.
type Result struct {
	TaskID  string   `json:"task_id"`
	Attempt int      `json:"attempt"`
	OK      bool     `json:"ok"`
	Failure *Failure `json:"failure,omitempty"` // when not OK
	// Written reports whether anything was written to a disk.
	Written bool `json:"written"`
}

// Discovered is a machine without a task that booted the agent.
type Discovered struct {
	MAC      MAC       `json:"mac"`
	Hardware *Hardware `json:"hardware,omitempty"`
	Address  string    `json:"address"`
	SeenAt   time.Time `json:"seen_at"`
}
