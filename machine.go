package lpmos

import "time"

// MachineState is where a machine stands, in the words operators know from
// other systems. It is derived from its tasks and from what was seen of it; a
// task has a Status instead.
type MachineState string

// The states of a machine.
const (
	MachineDiscovered      MachineState = "discovered"       // it booted the agent, and no task was ever made for it
	MachineReady           MachineState = "ready"            // known, with no task that wants it and no system of ours on it
	MachineAllocated       MachineState = "allocated"        // a task waits for it to boot
	MachineInspecting      MachineState = "inspecting"       // the agent runs on it for a task and has not reported yet
	MachinePendingApproval MachineState = "pending_approval" // a person decides about its plan
	MachineDeploying       MachineState = "deploying"        // approved, until it is done
	MachineDeployed        MachineState = "deployed"         // a system of ours is on it
	MachineFailed          MachineState = "failed"           // its last task failed
)

// MachineStates lists all, in the order of a machine's life.
var MachineStates = []MachineState{
	MachineDiscovered, MachineReady, MachineAllocated, MachineInspecting, MachinePendingApproval, MachineDeploying, MachineDeployed, MachineFailed,
}

// Valid reports whether s is one of them.
func (s MachineState) Valid() bool {
	for _, known := range MachineStates {
		if s == known {
			return true
		}
	}
	return false
}

// Machine is one server: one set of addresses, whichever it boots from. In the
// store it is what the machine last reported, without what follows LastSeen;
// a list leaves out Hardware and what follows TaskCount.
type Machine struct {
	MAC      MAC       `json:"mac"` // the lowest of its addresses
	MACs     []MAC     `json:"macs,omitempty"`
	UUID     string    `json:"uuid,omitempty"`
	RegionID string    `json:"region_id"`
	TaskID   string    `json:"task_id,omitempty"` // live, or the last
	Hardware *Hardware `json:"hardware,omitempty"`
	LastSeen time.Time `json:"last_seen,omitzero"` // zero when it never booted the agent

	State        MachineState `json:"state,omitempty"`
	Hostname     string       `json:"hostname,omitempty"` // of the live or last task
	OS           string       `json:"os,omitempty"`       // "debian 12", of the live or last task
	Verified     bool         `json:"verified,omitempty"` // deployed, and the system was seen running
	Address      string       `json:"address,omitempty"`  // it last had, when known
	Manufacturer string       `json:"manufacturer,omitempty"`
	Model        string       `json:"model,omitempty"`
	Serial       string       `json:"serial,omitempty"`
	Arch         string       `json:"arch,omitempty"`
	Cores        int          `json:"cores,omitempty"`
	MemoryBytes  int64        `json:"memory_bytes,omitempty"`
	DiskCount    int          `json:"disk_count,omitempty"` // without removable ones
	DiskBytes    int64        `json:"disk_bytes,omitempty"`
	TaskCount    int          `json:"task_count,omitempty"`
	Lock         *Lock        `json:"lock,omitempty"` // no task may be created for it
	TPM          *TPMBinding  `json:"tpm,omitempty"`  // it had when it was first approved with one

	HardwareAt  time.Time     `json:"hardware_at,omitzero"`
	Tasks       []MachineTask `json:"tasks,omitempty"`    // newest first
	Previous    *Sighting     `json:"previous,omitempty"` // before Hardware was reported
	Differences []Difference  `json:"differences,omitempty"`
}

// MachineTask is a task in the history of a machine.
type MachineTask struct {
	TaskID    string    `json:"task_id"`
	Status    Status    `json:"status"`
	Verified  bool      `json:"verified,omitempty"`
	Hostname  string    `json:"hostname"`
	OSType    string    `json:"os_type"`
	OSVersion string    `json:"os_version"`
	Attempt   int       `json:"attempt"`
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by,omitempty"`
	UpdatedAt time.Time `json:"updated_at"`
}
