package web

import (
	"cmp"
	"net/http"
	"net/url"
	"strings"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

// machineStateWords are the states of a machine, as operators know them.
var machineStateWords = map[lpmos.MachineState]string{
	lpmos.MachineDiscovered: "Discovered", lpmos.MachineReady: "Ready", lpmos.MachineAllocated: "Allocated", lpmos.MachineInspecting: "Inspecting",
	lpmos.MachinePendingApproval: "Awaiting approval", lpmos.MachineDeploying: "Deploying", lpmos.MachineDeployed: "Deployed", lpmos.MachineFailed: "Failed",
}

// machineLook is the status whose color and icon a state has.
var machineLook = map[lpmos.MachineState]lpmos.Status{
	lpmos.MachineDiscovered: lpmos.Pending, lpmos.MachineReady: lpmos.Pending, lpmos.MachineAllocated: lpmos.Approved, lpmos.MachineInspecting: lpmos.Verifying,
	lpmos.MachinePendingApproval: lpmos.AwaitingApproval, lpmos.MachineDeploying: lpmos.Installing, lpmos.MachineDeployed: lpmos.Completed, lpmos.MachineFailed: lpmos.Failed,
}

// machineRow is a machine in a list.
type machineRow struct {
	lpmos.Machine
	Name  string // host name, or "unnamed"
	Named bool
	Look  lpmos.Status
	Word  string
	Maker string // and model
	Cores string
	RAM   string
	Disks string
	Seen  string // "18 min"; "" when it never booted the agent
	Link  string
	Run   *run // of its install, if one runs
}

func (w *Web) newMachineRow(m lpmos.Machine) machineRow {
	m.OS = w.systemOf(m)
	r := machineRow{
		Machine: m, Name: m.Hostname, Named: m.Hostname != "", Look: machineLook[m.State], Word: w.machineWord(m),
		Maker: strings.TrimSpace(m.Manufacturer + " " + m.Model), Cores: "–", RAM: "–", Disks: "–", Link: "/machines/" + m.MAC.String(),
	}
	if !r.Named {
		r.Name = w.T("unnamed")
	}
	if m.Cores > 0 {
		r.Cores = w.N(m.Cores, "1 core", "%s cores")
	}
	if m.MemoryBytes > 0 {
		r.RAM = w.gib(m.MemoryBytes)
	}
	if m.DiskCount > 0 {
		r.Disks = w.N(m.DiskCount, "1 disk", "%s disks")
	}
	if !m.LastSeen.IsZero() {
		r.Seen = w.age(w.cfg.Now().Sub(m.LastSeen))
	}
	if m.State == lpmos.MachineDeploying {
		if t, ok := w.reader.Task(m.TaskID); ok {
			_, r.Run = w.now(t, api.Summary{})
		}
	}
	return r
}

// systemOf names what a machine has, as the list of images does.
func (w *Web) systemOf(m lpmos.Machine) string {
	if os, version, ok := strings.Cut(m.OS, " "); ok {
		return imageTitle(w.reader.Images(), os, version, "")
	}
	return m.OS
}

func (s *tongue) machineWord(m lpmos.Machine) string {
	word := s.T(machineStateWords[m.State])
	if m.State == lpmos.MachineDeployed && !m.Verified {
		return s.T("%s (not verified)", word)
	}
	return word
}

type machinesView struct {
	Views   []view
	Rows    []machineRow
	Total   int
	Query   string
	State   lpmos.MachineState
	Region  string
	Regions []lpmos.Region
	Next    string
	First   bool
	Empty   bool // there is no machine at all
	Finds   bool // some region discovers unknown machines
	Chooser chooser
	Own     ownViews
	Command string
	Export  string // address of all that matches, as CSV; "" where that is nothing
}

// machineQuery reads what a list of machines is to show.
func machineQuery(q url.Values) api.MachineQuery {
	out := api.MachineQuery{Text: strings.TrimSpace(lpmos.Shorten(q.Get("q"), 256)), State: lpmos.MachineState(q.Get("state")), RegionID: q.Get("region_id"), Limit: 100, Cursor: q.Get("cursor")}
	if !out.State.Valid() {
		out.State = ""
	}
	return out
}

func (w *Web) machineList(rw http.ResponseWriter, r *http.Request) {
	rev, q := w.rev(), machineQuery(r.URL.Query())
	v := machinesView{Query: q.Text, State: q.State, Region: q.RegionID, Regions: w.reader.Regions(), First: q.Cursor == "", Chooser: w.columns(r, "machines")}
	for _, reg := range v.Regions {
		v.Finds = v.Finds || reg.Capabilities != nil && reg.Capabilities.Unknown == "discover"
	}
	address := func(state lpmos.MachineState, cursor string) string {
		u := url.Values{}
		for name, value := range map[string]string{"state": string(state), "q": v.Query, "region_id": v.Region, "cursor": cursor} {
			if value != "" {
				u.Set(name, value)
			}
		}
		if len(u) == 0 {
			return "/machines"
		}
		return "/machines?" + u.Encode()
	}
	v.Own = w.ownViews(r, "machines", address(v.State, ""))
	found := w.reader.Machines(q)
	if v.Total = found.Total; v.Total > 0 {
		v.Export = strings.Replace(address(v.State, ""), "/machines", "/machines/export", 1)
	}
	all := 0
	for _, n := range found.Counts {
		all += n
	}
	v.Empty = all == 0 && v.Query == "" && v.Region == ""
	v.Views = append(v.Views, view{Label: w.T("All"), Link: address("", ""), Count: all, Current: v.State == ""})
	for _, s := range []lpmos.MachineState{
		lpmos.MachinePendingApproval, lpmos.MachineDiscovered, lpmos.MachineReady, lpmos.MachineAllocated, lpmos.MachineInspecting, lpmos.MachineDeploying, lpmos.MachineDeployed, lpmos.MachineFailed,
	} {
		n := found.Counts[s]
		v.Views = append(v.Views, view{Label: w.T(machineStateWords[s]), Link: address(s, ""), Count: n, Current: v.State == s, Warn: s == lpmos.MachinePendingApproval && n > 0})
	}
	for _, m := range found.Machines {
		v.Rows = append(v.Rows, w.newMachineRow(m))
	}
	if found.NextCursor != "" {
		v.Next = address(v.State, found.NextCursor)
	}
	v.Command = "lpmos machine list"
	if v.State != "" {
		v.Command += " --state " + string(v.State)
	}
	if lpmos.ValidRegionID(v.Region) {
		v.Command += " --region " + v.Region
	}
	if v.Query != "" {
		v.Command += " -- " + shellQuoted(v.Query)
	}
	w.show(rw, r, http.StatusOK, "machines", page{Title: w.T("Machines"), Nav: "machines", Watch: "all", Rev: rev, Body: v})
}

// delta is one line of what changed.
type delta struct {
	Kind string // head, gone, new: the CSS
	Sign string
	What string
	Text string
}

// componentWords and fieldWords name what lpmos.Difference is about.
var componentWords = map[string]string{
	lpmos.ComponentSystem: "System", lpmos.ComponentBoard: "Board", lpmos.ComponentChassis: "Chassis", lpmos.ComponentFirmware: "Firmware",
	lpmos.ComponentCPU: "Processor", lpmos.ComponentMemory: "Memory", lpmos.ComponentDisk: "Disk", lpmos.ComponentNIC: "Network port", lpmos.ComponentTPM: "TPM",
}

var fieldWords = map[string]string{
	"manufacturer": "maker", "model": "model", "serial": "serial number", "uuid": "UUID", "asset_tag": "asset tag", "version": "version", "date": "date",
	"boot_mode": "boots by", "secure_boot": "Secure Boot", "architecture": "architecture", "sockets": "sockets", "cores": "cores", "threads": "threads",
	"size": "size", "wwn": "WWN", "firmware": "firmware", "transport": "connection", "sector_bytes": "sector size", "read_only": "read only",
	"link": "link status", "driver": "driver", "pci": "PCI address", "endorsement_key": "endorsement key",
}

// deltaWords are values that are words.
var deltaWords = map[string]string{"down": "no link", "up": "link", "on": "on", "off": "off", "yes": "yes", "no": "no"}

// differs names what is different: "Disk S0 size".
func (s *tongue) differs(d lpmos.Difference) string {
	what := s.T(cmp.Or(componentWords[d.Component], d.Component))
	if d.Item != "" {
		what += " " + d.Item
	}
	if d.Field == "" {
		return what
	}
	if !s.chinese() || d.Item != "" {
		what += " "
	}
	return what + s.T(cmp.Or(fieldWords[d.Field], d.Field))
}

// deltas are differences, the old line above the new one.
func (s *tongue) deltas(differences []lpmos.Difference) []delta {
	value := func(v string) string {
		if word, ok := deltaWords[v]; ok {
			return s.T(word)
		}
		return cmp.Or(v, s.T("unknown"))
	}
	var out []delta
	for _, d := range differences {
		what := s.differs(d)
		if d.Field != "" || d.Before != "" {
			out = append(out, delta{"gone", "−", what, value(d.Before)})
		}
		if d.Field != "" || d.After != "" {
			out = append(out, delta{"new", "+", what, value(d.After)})
		}
	}
	return out
}

type machinePage struct {
	machineRow
	Headline string
	Lead     string
	HW       *machineView
	Before   *machineView // as it was last seen before
	Was      lpmos.Sighting
	Changes  []delta
	History  []machineTaskRow
	Addrs    []string
	Create   string // address of the form for a task, "" where one is live
	LiveTask string
	Command  string
}

type machineTaskRow struct {
	lpmos.MachineTask
	Word string
	OS   string
}

func (w *Web) machine(rw http.ResponseWriter, r *http.Request) {
	rev := w.rev()
	mac, err := lpmos.ParseMAC(r.PathValue("mac"))
	m, ok := lpmos.Machine{}, false
	if err == nil {
		m, ok = w.reader.Machine(mac)
	}
	if !ok {
		w.showProblem(rw, r, problem{Status: http.StatusNotFound, Icon: "search", Title: w.T("There is no such machine"),
			Text: w.T("No machine with the address %s ever booted the agent, and no task is for it.", lpmos.Shorten(r.PathValue("mac"), 40)), Link: "/machines", LinkLabel: w.T("All machines")})
		return
	}
	row := w.newMachineRow(m)
	v := machinePage{machineRow: row, HW: w.newMachine(lpmos.Task{Hardware: m.Hardware, TPM: m.TPM}), Changes: w.deltas(m.Differences), Command: "lpmos machine show " + m.MAC.String()}
	v.Headline = m.Hostname
	if !row.Named {
		v.Headline = cmp.Or(strings.TrimSpace(row.Maker+" "+m.Serial), m.MAC.String())
	}
	v.Lead = w.machineLead(m)
	if m.Previous != nil {
		v.Before, v.Was = w.newMachine(lpmos.Task{Hardware: m.Previous.Hardware, TPM: m.TPM}), *m.Previous
	}
	for _, x := range m.MACs {
		v.Addrs = append(v.Addrs, x.String())
	}
	images := w.reader.Images()
	for _, t := range m.Tasks {
		word := w.statusWord(t.Status)
		if t.Status == lpmos.Completed && !t.Verified {
			word = w.T("%s (not verified)", word)
		}
		v.History = append(v.History, machineTaskRow{t, word, imageTitle(images, t.OSType, t.OSVersion, "")})
		if t.Status.Live() {
			v.LiveTask = t.TaskID
		}
	}
	if v.LiveTask == "" {
		v.Create = "/tasks/create?" + url.Values{"target_mac": {m.MAC.String()}, "region_id": {m.RegionID}}.Encode()
	}
	watch := "all"
	w.show(rw, r, http.StatusOK, "machine", page{Title: v.Headline, Nav: "machines", Watch: watch, Rev: rev, Body: v})
}

// machineLead says what a state means for the person who looks.
func (s *tongue) machineLead(m lpmos.Machine) string {
	switch m.State {
	case lpmos.MachineDiscovered:
		return s.T("It booted the agent and no task was ever made for it. Its disks are untouched.")
	case lpmos.MachineReady:
		return s.T("No task wants it now.")
	case lpmos.MachineAllocated:
		return s.T("A task waits for it to boot from the network.")
	case lpmos.MachineInspecting:
		return s.T("The agent runs on it and looks at its hardware.")
	case lpmos.MachinePendingApproval:
		return s.T("A person decides about its plan. Nothing was erased.")
	case lpmos.MachineDeploying:
		return s.T("It is being installed.")
	case lpmos.MachineDeployed:
		if !m.Verified {
			return s.T("Everything was written; its task did not ask to see the system running.")
		}
		return s.T("Its own system booted from its disk and called home.")
	case lpmos.MachineFailed:
		return s.T("Its last task failed.")
	}
	return ""
}
