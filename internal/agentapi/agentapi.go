// Package agentapi is the wire between an agent and its region: the paths, the
// bodies and the boot configuration. Both sides link it, so it is standard
// library only; api/agent.yaml is the same in OpenAPI.
//
// Every request carries "Authorization: Bearer" and the credential of the boot
// (or, for Booted, the call-home token). Report registers the agent's key, which
// the TLS connection must prove (a client certificate over it, self-signed);
// from then on the credential counts only on connections that prove that key. Errors are application/problem+json
// (RFC 9457). All requests may be repeated: a late or doubled one changes
// nothing.
package agentapi

import (
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/tpm"
)

// Paths of the agent API. PathApproval is followed by the machine's MAC.
const (
	PathReport   = "/api/v1/agent/report"
	PathProgress = "/api/v1/agent/progress"
	PathApproval = "/api/v1/agent/approval/"
	PathLogs     = "/api/v1/agent/logs"
	PathPermit   = "/api/v1/agent/permit"
	PathResult   = "/api/v1/agent/result"
	PathBooted   = "/api/v1/agent/booted"
)

// Paths of the boot listener (plain HTTP).
const (
	PathBootScript = "/boot.ipxe"     // ?mac=…&uuid=…&platform=…&arch=…
	PathSegment    = "/boot/segment/" // + nonce: a cpio (newc) with BootConfigPath
	PathBlobs      = "/blobs/"        // + 64 hex digits
)

// BootConfigPath is where the boot configuration stands in the initramfs, and
// SiteConfigPath what the control plane put beside it when the boot image was
// published.
const (
	BootConfigPath = "/lpmos/boot.json"
	SiteConfigPath = "/lpmos/site.json"
)

// SiteConfig is the site segment of the boot image. It is the same for every
// machine, made by the control plane and named by digest in the boot image: what
// an agent trusts does not come from its region.
type SiteConfig struct {
	Keys [][]byte `json:"keys"` // the control plane's Ed25519 public keys
}

// Limits of request bodies, in bytes.
const (
	MaxReportBytes = 1 << 20
	MaxBodyBytes   = 256 << 10
	MaxLogLines    = 256 // in one request
)

// MaxWait is the longest a long poll waits before it answers "not yet".
const MaxWait = 30 * time.Second

// BootConfig is what one boot of one machine is told, in an initramfs segment
// of its own.
type BootConfig struct {
	RegionID   string    `json:"region_id"`
	AgentURL   string    `json:"agent_url"`   // https://10.77.0.1:8443
	ServerName string    `json:"server_name"` // agent.{region}.lpmos, whatever the address is
	CA         string    `json:"ca"`          // PEM; the only authority that is trusted
	BootURL    string    `json:"boot_url"`    // http://10.77.0.1:8081, for blobs by digest
	TaskID     string    `json:"task_id,omitempty"`
	Attempt    int       `json:"attempt,omitempty"`
	BootSeq    int64     `json:"boot_seq"`
	BootMAC    lpmos.MAC `json:"boot_mac"`
	Credential string    `json:"credential,omitempty"` // 64 hex digits
	Time       time.Time `json:"time"`                 // the region's, when it served this
	Callhome   string    `json:"callhome_url,omitempty"`
	// Wrapped stands in place of Credential for a machine that was approved with
	// a TPM: its 32 bytes, for that TPM alone. Plea is what an agent that cannot
	// unwrap it asks with, which is never granted and always told: 64 hex digits.
	Wrapped *tpm.Wrapped `json:"wrapped,omitempty"`
	Plea    string       `json:"plea,omitempty"`

	// Keys are those of the SiteConfig; a region cannot say them. Key is the one
	// the agent made for this boot.
	Keys [][]byte        `json:"-"`
	Key  *lpmos.AgentKey `json:"-"`
}

// Report is the founding document's hardware report.
type Report struct {
	MACAddress lpmos.MAC       `json:"mac_address"`
	Hardware   *lpmos.Hardware `json:"hardware"`
	// AgentKey is the key this boot made; it is registered with the first report.
	AgentKey *lpmos.AgentPublic `json:"agent_key,omitempty"`
}

// ReportAnswer says what the region makes of a machine.
type ReportAnswer struct {
	TaskID  string       `json:"task_id,omitempty"` // "" when no task wants this machine
	Status  lpmos.Status `json:"status,omitempty"`
	Attempt int          `json:"attempt,omitempty"`
}

// Progress is the founding document's progress report.
type Progress struct {
	MACAddress lpmos.MAC              `json:"mac_address"`
	TaskID     string                 `json:"task_id"`
	Attempt    int                    `json:"attempt"`
	Stage      lpmos.Stage            `json:"stage"`
	Percentage int                    `json:"percentage"`
	Message    string                 `json:"message"`
	Details    *lpmos.ProgressDetails `json:"details,omitempty"`
}

// Approval answers GET PathApproval{mac}?wait=30s. It comes at once when there
// is something to do or the task has ended, and otherwise when the wait is
// over, with Approved false and Status saying what is waited for.
type Approval struct {
	Approved bool            `json:"approved"`
	TaskID   string          `json:"task_id,omitempty"`
	Status   lpmos.Status    `json:"status,omitempty"`
	Attempt  int             `json:"attempt,omitempty"` // that the order stands at
	Plan     *lpmos.Plan     `json:"plan,omitempty"`
	Decision *lpmos.Approval `json:"decision,omitempty"` // signed
}

// Logs carries lines of the agent's log. First is the number of the first line
// since the attempt began, counted from 0: lines already stored are skipped.
type Logs struct {
	MACAddress lpmos.MAC `json:"mac_address"`
	TaskID     string    `json:"task_id"`
	Attempt    int       `json:"attempt"`
	First      int       `json:"first"`
	Lines      []string  `json:"lines"`
}

// PermitRequest asks to be allowed to write; it is answered when the control
// plane has decided, or with neither Permit nor Refused when ?wait= is over.
type PermitRequest struct {
	MACAddress     lpmos.MAC `json:"mac_address"`
	TaskID         string    `json:"task_id"`
	Nonce          string    `json:"nonce"` // 64 hex digits, new for every boot
	PlanDigest     string    `json:"plan_digest"`
	HardwareDigest string    `json:"hardware_digest"`
}

// PermitAnswer holds the signed permit and the token for the call home, which
// is valid from now on in place of any earlier one.
type PermitAnswer struct {
	Permit        *lpmos.Permit `json:"permit,omitempty"`
	Secrets       []byte        `json:"secrets,omitempty"` // sealed to the agent's key, see lpmos.SecretContext
	CallhomeToken string        `json:"callhome_token,omitempty"`
	Refused       string        `json:"refused,omitempty"` // a sentence: the task was canceled, …
}

// Result reports how the attempt ended. It is answered when the region has seen
// what the control plane made of it, or when ?wait= is over.
type Result struct {
	MACAddress lpmos.MAC      `json:"mac_address"`
	TaskID     string         `json:"task_id"`
	Attempt    int            `json:"attempt"`
	OK         bool           `json:"ok"`
	Failure    *lpmos.Failure `json:"failure,omitempty"`
	Written    bool           `json:"written"`
}

// ResultAnswer tells the agent whether it may reboot: it may once Status is
// verifying (or the task has ended).
type ResultAnswer struct {
	Status lpmos.Status `json:"status"`
}

// Booted is the call home of the installed system, with the call-home token as
// its credential.
type Booted struct {
	MACAddress lpmos.MAC     `json:"mac_address"`
	TaskID     string        `json:"task_id"`
	Attempt    int           `json:"attempt"`
	Receipt    lpmos.Receipt `json:"receipt"`
}

// CallhomeConfig is the file the agent leaves in the installed system, mode
// 0600, for `agent callhome`.
type CallhomeConfig struct {
	URLs       []string  `json:"urls"` // tried in order
	ServerName string    `json:"server_name"`
	CA         string    `json:"ca"`
	Token      string    `json:"token"`
	TaskID     string    `json:"task_id"`
	Attempt    int       `json:"attempt"`
	MAC        lpmos.MAC `json:"mac"`
	RootUUID   string    `json:"root_uuid"`
	// AwaitTime has the report wait a little for the clock to follow the plan's
	// time servers.
	AwaitTime bool `json:"await_time,omitempty"`
}

// Problem is an RFC 9457 body.
type Problem struct {
	Type   string `json:"type,omitempty"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
}
