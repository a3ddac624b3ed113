package lpmos

import (
	"crypto/rand"
	"encoding/hex"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Status is where a task stands in its life. See Transitions for how it moves.
type Status string

// The nine statuses of a task.
const (
	Pending          Status = "pending"           // the machine has not reported yet
	AwaitingApproval Status = "awaiting_approval" // hardware is in, a plan is made, a person decides
	Approved         Status = "approved"          // decided; nothing has been written
	Installing       Status = "installing"        // the wipe permit is granted
	Verifying        Status = "verifying"         // the result is in; the machine boots its own disk
	Completed        Status = "completed"         // the installed system called home
	Failed           Status = "failed"
	Rejected         Status = "rejected"
	Canceled         Status = "canceled"
)

// Statuses lists all, in the order of a task's life.
var Statuses = []Status{Pending, AwaitingApproval, Approved, Installing, Verifying, Completed, Failed, Rejected, Canceled}

// Valid reports whether s is one of the nine.
func (s Status) Valid() bool { return slices.Contains(Statuses, s) }

// Live reports whether a task in s owns its machine.
func (s Status) Live() bool {
	switch s {
	case Pending, AwaitingApproval, Approved, Installing, Verifying:
		return true
	}
	return false
}

// Cause is why a task moved. There is exactly one transition per cause.
type Cause string

// The causes, each named for what happened in the world.
const (
	CauseCreated          Cause = "created"
	CauseHardwareReported Cause = "hardware_reported"
	CausePlanChanged      Cause = "plan_changed"   // hardware or disks differ from what was planned for
	CauseApprovalGiven    Cause = "approval_given" // one of several people approved
	CauseApproved         Cause = "approved"
	CauseRejected         Cause = "rejected"
	CauseCanceled         Cause = "canceled"
	CauseApprovalExpired  Cause = "approval_expired"
	CausePermitGranted    Cause = "permit_granted"
	CauseNextAttempt      Cause = "next_attempt"
	CauseResultReported   Cause = "result_reported"
	CauseNotVerified      Cause = "result_taken" // everything is written, and nobody asked for more
	CauseCalledHome       Cause = "called_home"
	CauseFailed           Cause = "failed"
	CauseDeadline         Cause = "deadline_passed"
	CauseAlarm            Cause = "alarm" // somebody should look; the task goes on
	CauseRetried          Cause = "retried"
)

// transitions is the one table of legal moves: from → cause → to.
var transitions = map[Status]map[Cause]Status{
	"": {CauseCreated: Pending},
	Pending: {
		CauseHardwareReported: AwaitingApproval, CauseCanceled: Canceled,
		CauseFailed: Failed, CauseDeadline: Failed, CauseAlarm: Pending,
	},
	AwaitingApproval: {
		CausePlanChanged: AwaitingApproval, CauseApprovalGiven: AwaitingApproval, CauseApproved: Approved, CauseRejected: Rejected,
		CauseCanceled: Canceled, CauseFailed: Failed, CauseDeadline: Failed, CauseAlarm: AwaitingApproval,
	},
	Approved: {
		CausePermitGranted: Installing, CausePlanChanged: AwaitingApproval, CauseApprovalExpired: AwaitingApproval,
		CauseCanceled: Canceled, CauseFailed: Failed, CauseAlarm: Approved,
	},
	Installing: {
		CauseResultReported: Verifying, CauseNotVerified: Completed, CauseNextAttempt: Installing,
		CauseFailed: Failed, CauseDeadline: Failed, CauseAlarm: Installing,
	},
	Verifying: {CauseCalledHome: Completed, CauseFailed: Failed, CauseDeadline: Failed, CauseAlarm: Verifying},
	// A receipt that comes after the verify deadline still completes the task;
	// the orchestrator checks that the failure was that one and that no newer
	// task owns the machine.
	Failed: {CauseRetried: Pending, CauseCalledHome: Completed},
}

// Next is where a task in s goes for a cause. A move that is not in the table
// is a *ConflictError that says what the task is doing instead.
func (s Status) Next(c Cause) (Status, error) {
	if to, ok := transitions[s][c]; ok {
		return to, nil
	}
	return "", &ConflictError{Status: s, Problem: "the task " + s.phrase() + "; it cannot be " + strings.ReplaceAll(string(c), "_", " ") + " now"}
}

// Allows reports whether the cause is legal in s.
func (s Status) Allows(c Cause) bool { _, ok := transitions[s][c]; return ok }

func (s Status) phrase() string {
	switch s {
	case Pending:
		return "waits for its machine to report"
	case AwaitingApproval:
		return "waits for approval"
	case Approved:
		return "is approved"
	case Installing:
		return "is installing, erasing has begun"
	case Verifying:
		return "is installed and waits for the machine's own system to report"
	case Completed, Failed, Rejected, Canceled:
		return "has ended (" + string(s) + ")"
	}
	return "does not exist"
}

// Spec is what a person asks for.
type Spec struct {
	RegionID  string   `json:"region_id"`
	TargetMAC MAC      `json:"target_mac"` // of any NIC of the machine
	OSType    string   `json:"os_type"`
	OSVersion string   `json:"os_version"`
	Arch      string   `json:"arch,omitempty"`     // GOARCH spelling; empty means amd64
	Hostname  string   `json:"hostname,omitempty"` // RFC 1123 label or name; empty means "machine-" and the end of the MAC
	SSHKeys   []string `json:"ssh_keys,omitempty"` // authorized_keys lines without options
	// TargetDisk picks the disk when there are several; nil means the only
	// disk that can be installed on, or the smallest that is large enough.
	TargetDisk *DiskRef `json:"target_disk,omitempty"`
	Notes      string   `json:"notes,omitempty"`
	// Secrets are values that only the agent of an approved attempt may see. They
	// are taken out and sealed when the task is created, and encode as "redacted".
	Secrets map[string]Secret `json:"secrets,omitempty"`
	// Profile fills what is not said here. As given it is "web" or "web@3"; a
	// task has the version that was taken.
	Profile string `json:"profile,omitempty"`
	// HostnamePattern makes the host name out of what the machine reports; see
	// ExpandHostname. It is empty where the host name was said.
	HostnamePattern string `json:"hostname_pattern,omitempty"`
	// Verify false completes the task when everything is written, without
	// waiting for the installed system to call home. nil is true.
	Verify *bool `json:"verify,omitempty"`
	// Template names what is rendered into the installed system, like Profile.
	Template string `json:"template,omitempty"`
	// Addresses and Gateways are this machine's own, for the interface that its
	// profile leaves to tasks, or else for its first one.
	Addresses []string `json:"addresses,omitempty"` // with their prefix length: "192.0.2.10/24"
	Gateways  []string `json:"gateways,omitempty"`
	// Layout divides the disks; nil is the plain one, or the profile's.
	Layout *Layout `json:"layout,omitempty"`
}

// Limits on what a Spec may hold.
const (
	MaxSSHKeys    = 64
	MaxNotesBytes = 2 << 10
)

// Task is everything known about one request to install one machine.
type Task struct {
	ID string `json:"task_id"`
	Spec
	Status    Status    `json:"status"`
	Attempt   int       `json:"attempt"` // 1 for the first
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by,omitempty"`
	BatchID   string    `json:"batch_id,omitempty"` // of the batch it was created in
	UpdatedAt time.Time `json:"updated_at"`
	Found     *Found    `json:"found,omitempty"` // Hardware in short; lists carry it, too
	Hardware  *Hardware `json:"hardware,omitempty"`
	Plan      *Plan     `json:"plan,omitempty"`
	Approval  *Approval `json:"approval,omitempty"`
	// Approvals are those of several people that were given so far.
	Approvals []Consent `json:"approvals,omitempty"`
	Progress  *Progress `json:"progress,omitempty"`
	Error     *Failure  `json:"error,omitempty"`
	Receipt   *Receipt  `json:"receipt,omitempty"`
	LogTail   []string  `json:"log_tail,omitempty"` // the last lines of the agent's log
	// TemplateText is the template as it was when the task was created.
	TemplateText *TaskTemplate `json:"template_text,omitempty"`
	// Setup is the configuration of its profile as it was then.
	Setup *Setup `json:"system,omitempty"`
	// Drift is what of the installed system is not as planned.
	Drift []Drift `json:"drift,omitempty"`
	// HardwareAt is when Hardware was reported.
	HardwareAt time.Time `json:"hardware_at,omitzero"`
	// Previous is this machine as it was last seen before it reported for this
	// task, and Differences what changed since; both are of one task's page only.
	Previous    *Sighting    `json:"previous,omitempty"`
	Differences []Difference `json:"differences,omitempty"`
	Claims      []MAC        `json:"claims,omitempty"` // all addresses of the machine, once reported
	ClaimUUID   string       `json:"claim_uuid,omitempty"`
	// Committed is the secrets the task was given: names and commitments.
	Committed []PlannedSecret `json:"committed_secrets,omitempty"`
	// TPM is the one that the machine's credentials are wrapped for, nil when the
	// machine was never approved with one.
	TPM *TPMBinding `json:"tpm,omitempty"`
	// AgentKey is the key of the agent that answers for the machine now.
	AgentKey *AgentIdentity `json:"agent_key,omitempty"`
	// Alarm is the newest thing a person should look at, of this attempt.
	Alarm *Alarm `json:"alarm,omitempty"`
	// PermitWait says why an approved machine that asked to write may not yet.
	PermitWait *PermitWait `json:"permit_wait,omitempty"`
	// ApprovalNeeds is what the approval of a task that waits for it takes, nil
	// when it takes nothing but the role.
	ApprovalNeeds *ApprovalNeeds `json:"approval_needs,omitempty"`
	Rev           int64          `json:"rev"` // of the store, when this was newest
}

// AgentIdentity is an agent's key as people compare it.
type AgentIdentity struct {
	Fingerprint string    `json:"fingerprint"` // "sha256:…"
	Words       string    `json:"words"`       // the same on the machine's console, see KeyWords
	BootSeq     int64     `json:"boot_seq"`    // of the boot that made it, counted by the region
	BootedAt    time.Time `json:"booted_at"`
}

// PermitWait is a place in the queue for a permit to write.
type PermitWait struct {
	Reason string `json:"reason"` // WaitRate, WaitStop, WaitLock
	Before int    `json:"before"` // how many of the region are served first
}

// Why a permit is not given at once.
const (
	WaitRate = "rate"    // the region's limit of permits a minute
	WaitStop = "stopped" // the emergency stop
	WaitLock = "locked"  // the machine is locked
)

// Failure is why a task failed and what a person can do about it.
type Failure struct {
	Stage    Stage     `json:"stage,omitempty"` // "" when nothing had been written
	Code     string    `json:"code"`            // stable, for programs: disk_missing, image_corrupt, verify_deadline …
	Cause    string    `json:"cause"`           // a sentence
	NextStep string    `json:"next_step"`       // a sentence
	Evidence string    `json:"evidence,omitempty"`
	Attempt  int       `json:"attempt"`
	At       time.Time `json:"at"`
}

var (
	taskIDRE   = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	regionIDRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)
	hostnameRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
	sshKeyRE   = regexp.MustCompile(`^(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-ssh-ed25519@openssh\.com|sk-ecdsa-sha2-nistp256@openssh\.com) [A-Za-z0-9+/]+={0,3}( [!-~]+){0,4}$`)
)

// NewTaskID makes a random UUID (RFC 9562, version 4).
func NewTaskID() string {
	var b [16]byte
	rand.Read(b[:])
	return formatUUID(b, 4)
}

func formatUUID(b [16]byte, version byte) string {
	b[6] = b[6]&0x0f | version<<4
	b[8] = b[8]&0x3f | 0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// ValidTaskID reports whether s may name a task, and so become part of a key.
func ValidTaskID(s string) bool { return taskIDRE.MatchString(s) }

// ValidRegionID reports whether s may name a region, and so become part of a key.
func ValidRegionID(s string) bool { return regionIDRE.MatchString(s) }

// ValidHostname reports whether s is a lower-case host name (RFC 1123).
func ValidHostname(s string) bool { return len(s) <= 253 && hostnameRE.MatchString(s) }

// ValidSSHKey reports whether s is one public key as authorized_keys has it,
// without options, on one line.
func ValidSSHKey(s string) bool { return len(s) <= 12<<10 && sshKeyRE.MatchString(s) }

// Normalize fills what may be left out and checks the rest. Whether the region
// and the image exist is the orchestrator's to say.
func (s Spec) Normalize() (Spec, error) {
	if !ValidRegionID(s.RegionID) {
		return s, &InvalidError{Field: "region_id", Problem: "is not a region id (lower-case letters, digits and inner hyphens, at most 32)", Value: s.RegionID}
	}
	if s.TargetMAC.IsZero() {
		return s, &InvalidError{Field: "target_mac", Problem: "is missing"}
	}
	if !ValidName(s.OSType) {
		return s, &InvalidError{Field: "os_type", Problem: "is not a name such as debian", Value: s.OSType}
	}
	if !ValidName(s.OSVersion) {
		return s, &InvalidError{Field: "os_version", Problem: "is not a version such as 12", Value: s.OSVersion}
	}
	if s.Arch == "" {
		s.Arch = "amd64"
	}
	if s.Arch != "amd64" && s.Arch != "arm64" {
		return s, &InvalidError{Field: "arch", Problem: "is neither amd64 nor arm64", Value: s.Arch}
	}
	if s.Hostname != "" {
		s.HostnamePattern = "" // what was said outright wins
	}
	if s.HostnamePattern != "" {
		if err := ValidateHostnamePattern(s.HostnamePattern); err != nil {
			return s, err
		}
	}
	for _, ref := range []struct{ field, v string }{{"profile", s.Profile}, {"template", s.Template}} {
		if ref.v != "" {
			if _, _, err := ParseRef(ref.field, ref.v); err != nil {
				return s, err
			}
		}
	}
	if s.Hostname == "" {
		s.Hostname = "machine-" + hex.EncodeToString(s.TargetMAC[3:])
	}
	if !ValidHostname(s.Hostname) {
		return s, &InvalidError{Field: "hostname", Problem: "is not a host name (lower-case letters, digits, inner hyphens)", Value: s.Hostname}
	}
	if err := checkSSHKeys(s.SSHKeys); err != nil {
		return s, err
	}
	if len(s.Notes) > MaxNotesBytes {
		return s, &InvalidError{Field: "notes", Problem: "is longer than 2 KiB"}
	}
	if err := s.Layout.Validate(); err != nil {
		return s, err
	}
	if p, given := s.Secrets[SecretDisk]; given {
		if err := checkPassphrase(p); err != nil {
			return s, err
		}
	}
	var err error
	if s.Addresses, s.Gateways, err = checkAddresses(s.Addresses, s.Gateways); err != nil {
		return s, err
	}
	if d := s.TargetDisk; d != nil && (d.SizeBytes <= 0 || d.Serial == "" && d.WWN == "" && d.Path == "") {
		return s, &InvalidError{Field: "target_disk", Problem: "needs size_bytes and a serial or wwn (or, for a disk that has neither, its path)"}
	}
	return s, nil
}

// RequirePassphrase is an error when disks are to be encrypted and there is no
// passphrase for them.
func (s Spec) RequirePassphrase() error {
	if s.Layout.Encrypted() && s.Secrets[SecretDisk].IsZero() {
		return &InvalidError{Field: "secrets." + SecretDisk, Problem: "is missing: the layout " + s.Layout.Name() + " is encrypted"}
	}
	return nil
}

func checkSSHKeys(keys []string) error {
	if len(keys) > MaxSSHKeys {
		return &InvalidError{Field: "ssh_keys", Problem: "holds more than 64 keys"}
	}
	for _, k := range keys {
		if !ValidSSHKey(k) {
			return &InvalidError{Field: "ssh_keys", Problem: "holds a line that is not one public key without options", Value: k}
		}
	}
	return nil
}

// WantsVerification reports whether the task completes only when the installed
// system has called home.
func (s Spec) WantsVerification() bool { return s.Verify == nil || *s.Verify }

// Verified reports whether the installed system was seen running. A completed
// task that is not verified was asked not to wait for that.
func (t *Task) Verified() bool { return t.Status == Completed && t.Receipt != nil }
