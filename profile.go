package lpmos

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Profile is what many tasks ask for alike. A task that names one takes from it
// what it does not say itself, at the moment it is created: changing a profile
// changes no task that exists.
type Profile struct {
	Name        string   `json:"name"`    // as ValidName has it
	Version     int      `json:"version"` // 1 for the first; each change makes the next
	Description string   `json:"description,omitempty"`
	OSType      string   `json:"os_type,omitempty"`
	OSVersion   string   `json:"os_version,omitempty"`
	Arch        string   `json:"arch,omitempty"`
	Hostname    string   `json:"hostname_pattern,omitempty"` // see ExpandHostname
	SSHKeys     []string `json:"ssh_keys,omitempty"`
	// Verify is whether a task waits for the installed system to call home; nil
	// is yes.
	Verify   *bool  `json:"verify,omitempty"`
	Notes    string `json:"notes,omitempty"`    // of each task
	Template string `json:"template,omitempty"` // name of a template
	// System is how the installed system is configured.
	System *Setup  `json:"system,omitempty"`
	Layout *Layout `json:"layout,omitempty"` // nil is the plain one
	// Sealed is the password hashes of System's accounts, which the control plane
	// alone can open. It is stored and not shown.
	Sealed    string    `json:"sealed,omitempty"`
	CreatedAt time.Time `json:"created_at,omitzero"`
	UpdatedAt time.Time `json:"updated_at,omitzero"`
	UpdatedBy string    `json:"updated_by,omitempty"`
}

// Ref is "web@3", which names this version and no other.
func (p Profile) Ref() string { return p.Name + "@" + strconv.Itoa(p.Version) }

// Normalize checks a profile as it was given. Whether its image and its
// template exist is the orchestrator's to say.
func (p Profile) Normalize() (Profile, error) {
	if !ValidName(p.Name) {
		return p, &InvalidError{Field: "name", Problem: "is not a name (lower-case letters, digits, inner . _ -, at most 64)", Value: p.Name}
	}
	if len(p.Description) > MaxNotesBytes {
		return p, &InvalidError{Field: "description", Problem: "is longer than 2 KiB"}
	}
	if p.OSType != "" || p.OSVersion != "" {
		if !ValidName(p.OSType) {
			return p, &InvalidError{Field: "os_type", Problem: "is not a name such as debian", Value: p.OSType}
		}
		if !ValidName(p.OSVersion) {
			return p, &InvalidError{Field: "os_version", Problem: "is not a version such as 12", Value: p.OSVersion}
		}
		p.Arch = cmp.Or(p.Arch, "amd64")
	}
	if p.Arch != "" && p.Arch != "amd64" && p.Arch != "arm64" {
		return p, &InvalidError{Field: "arch", Problem: "is neither amd64 nor arm64", Value: p.Arch}
	}
	if p.Hostname != "" {
		if err := ValidateHostnamePattern(p.Hostname); err != nil {
			return p, err
		}
	}
	if err := checkSSHKeys(p.SSHKeys); err != nil {
		return p, err
	}
	if len(p.Notes) > MaxNotesBytes {
		return p, &InvalidError{Field: "notes", Problem: "is longer than 2 KiB"}
	}
	if p.Template != "" && !ValidName(p.Template) {
		return p, &InvalidError{Field: "template", Problem: "is not the name of a template", Value: p.Template}
	}
	if p.System != nil {
		s, err := p.System.Normalize()
		if err != nil {
			return p, err
		}
		if p.System = &s; s.Empty() {
			p.System = nil
		}
	}
	return p, p.Layout.Validate()
}

// Apply fills what s does not say from the profile and notes which version did.
func (p Profile) Apply(s Spec) Spec {
	s.Profile = p.Ref()
	if s.OSType == "" && s.OSVersion == "" {
		s.OSType, s.OSVersion, s.Arch = p.OSType, p.OSVersion, cmp.Or(s.Arch, p.Arch)
	}
	if s.Hostname == "" && s.HostnamePattern == "" {
		s.HostnamePattern = p.Hostname
	}
	if len(s.SSHKeys) == 0 {
		s.SSHKeys = slices.Clone(p.SSHKeys)
	}
	if s.Verify == nil {
		s.Verify = p.Verify
	}
	s.Layout = cmp.Or(s.Layout, p.Layout)
	s.Notes, s.Template = cmp.Or(s.Notes, p.Notes), cmp.Or(s.Template, p.Template)
	return s
}

// ParseRef takes "web" or "web@3" apart; version is 0 when none is named.
func ParseRef(field, ref string) (name string, version int, err error) {
	name, v, versioned := strings.Cut(ref, "@")
	if versioned {
		version, err = strconv.Atoi(v)
	}
	if err != nil || versioned && (version < 1 || v != strconv.Itoa(version)) || !ValidName(name) {
		return "", 0, &InvalidError{Field: field, Problem: "is neither a name nor name@version", Value: ref}
	}
	return name, version, nil
}

// The kinds of Template. Only what is applied to a machine is a kind.
const (
	TemplateUserData    = "user-data"   // for cloud-init, in the image's NoCloud seed
	TemplatePreseed     = "preseed"     // lines for Debian's installer
	TemplateKickstart   = "kickstart"   // commands and sections for Anaconda
	TemplateAutoinstall = "autoinstall" // sections for Ubuntu's installer, as a JSON object
)

// TemplateKinds lists them.
var TemplateKinds = append([]string{TemplateUserData}, answerKinds...)

// userDataHeads are how user-data may begin: otherwise cloud-init ignores it.
var userDataHeads = []string{"#cloud-config", "#!", "#include", "#cloud-boothook", "Content-Type: multipart/", "MIME-Version:"}

// Template is text that is written into installed systems, or added to the
// answers of an installer, with the machine's facts put in. It is rendered when a task's plan is made and stands, rendered,
// in the plan: it is read before it is approved, and it is no place for
// secrets.
type Template struct {
	Name        string    `json:"name"`
	Version     int       `json:"version"`
	Kind        string    `json:"kind"`
	Description string    `json:"description,omitempty"`
	Text        string    `json:"text"`
	CreatedAt   time.Time `json:"created_at,omitzero"`
	UpdatedAt   time.Time `json:"updated_at,omitzero"`
	UpdatedBy   string    `json:"updated_by,omitempty"`
}

// Ref is "web@3", which names this version and no other.
func (t Template) Ref() string { return t.Name + "@" + strconv.Itoa(t.Version) }

// Normalize checks a template as it was given.
func (t Template) Normalize() (Template, error) {
	if !ValidName(t.Name) {
		return t, &InvalidError{Field: "name", Problem: "is not a name (lower-case letters, digits, inner . _ -, at most 64)", Value: t.Name}
	}
	if !slices.Contains(TemplateKinds, t.Kind) {
		return t, &InvalidError{Field: "kind", Problem: "is not one of " + strings.Join(TemplateKinds, ", "), Value: t.Kind}
	}
	if len(t.Description) > MaxNotesBytes {
		return t, &InvalidError{Field: "description", Problem: "is longer than 2 KiB"}
	}
	if _, err := parseTemplate(t.Text); err != nil {
		return t, err
	}
	if t.Kind == TemplateUserData {
		return t, checkUserData(t.Text)
	}
	// The grammar of the others is that of what they give for a machine.
	_, err := t.Pinned().Render(SampleFacts())
	return t, err
}

func checkUserData(text string) error {
	if !slices.ContainsFunc(userDataHeads, func(head string) bool { return strings.HasPrefix(text, head) }) {
		return &InvalidError{Field: "text", Problem: "does not begin as user-data does (#cloud-config, #!, #include …), so cloud-init would ignore it"}
	}
	return nil
}

// Pinned is the template as a task keeps it.
func (t Template) Pinned() *TaskTemplate { return &TaskTemplate{t.Name, t.Version, t.Kind, t.Text} }

// TaskTemplate is the template a task was created with: what becomes of the
// template afterwards does not change the task.
type TaskTemplate struct {
	Name    string `json:"name"`
	Version int    `json:"version"`
	Kind    string `json:"kind"`
	Text    string `json:"text"`
}

// Ref is "web@3".
func (t TaskTemplate) Ref() string { return t.Name + "@" + strconv.Itoa(t.Version) }

// Render is what a machine would get.
func (t TaskTemplate) Render(f Facts) (string, error) {
	text, err := RenderTemplate(t.Text, f)
	if err != nil {
		return "", err
	}
	return text, checkAnswers(t.Kind, text)
}

// SampleFacts are those of a machine that does not exist, for a preview.
func SampleFacts() Facts {
	t := &Task{ID: "00000000-0000-4000-8000-000000000000", Spec: Spec{
		RegionID: "dc1", TargetMAC: MAC{0x00, 0x1a, 0x2b, 0x3c, 0x4d, 0x5e}, OSType: "debian", OSVersion: "12", Arch: "amd64", Hostname: "web-01",
		SSHKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAISample sample"}, Profile: "sample@1",
	}}
	return FactsOf(t, &Hardware{
		BootMode: "uefi", System: System{Manufacturer: "Acme", Product: "R1", Serial: "SN12345", UUID: "4c4c4544-0035-4a10-8058-b7c04f4e3332"},
		Chassis: Chassis{AssetTag: "A-0042"}, NICs: []NIC{{Name: "eno1", MAC: t.TargetMAC}},
	})
}
