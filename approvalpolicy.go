package lpmos

import (
	"fmt"
	"slices"
	"time"
)

// ApprovalPolicy says what it takes to approve, beside the role: it stands in
// config/global and is compared in the transaction that approves. What is
// approved already stays so when it changes. Its zero value asks for nothing.
type ApprovalPolicy struct {
	Rules []ApprovalRule `json:"rules"`
	// Labels name groups of machines that rules speak of. A machine is listed by
	// any of its MAC addresses or by its UUID, in either byte order.
	Labels map[string][]string `json:"labels"`
}

// ApprovalRule concerns the tasks for which all of its conditions hold; one
// without conditions concerns all. Where several concern a task, it takes what
// the strictest of them says, point by point.
type ApprovalRule struct {
	Regions    []string `json:"regions,omitempty"`     // any of these; none: every region
	Labels     []string `json:"labels,omitempty"`      // any of these; none: every machine
	ErasesData bool     `json:"erases_data,omitempty"` // only plans that erase data which was found

	Approvers     int  `json:"approvers,omitempty"`      // different people; 0 is 1
	NotCreator    bool `json:"not_creator,omitempty"`    // none of them asked for the task
	ReauthMinutes int  `json:"reauth_minutes,omitempty"` // each proved who they are within so many; 0: not asked
	// AllowTokens lets an API token approve without its user's password where
	// ReauthMinutes is asked for.
	AllowTokens bool `json:"allow_tokens,omitempty"`
}

// ApprovalNeeds is what a policy asks of the approval of one task.
type ApprovalNeeds struct {
	Approvers     int  `json:"approvers"` // at least 1
	NotCreator    bool `json:"not_creator,omitempty"`
	ReauthMinutes int  `json:"reauth_minutes,omitempty"`
	AllowTokens   bool `json:"allow_tokens,omitempty"` // only with ReauthMinutes
}

// Consent is one person's approval of a plan. One that waits for a second
// person's binds nobody yet.
type Consent struct {
	By             string    `json:"by"`
	At             time.Time `json:"at"`
	Notes          string    `json:"notes,omitempty"`
	PlanDigest     string    `json:"plan_digest"`
	HardwareDigest string    `json:"hardware_digest"`
	// AgentKey is the key whose words they compared with the console, if they did.
	AgentKey string `json:"agent_key,omitempty"`
}

// Bounds of a policy.
const (
	maxRules     = 100
	maxApprovers = 5
	maxLabelled  = 10_000 // machines, of all labels
	maxReauth    = 12 * 60
)

// Normalize spells everything in the one way and checks it.
func (p ApprovalPolicy) Normalize() (ApprovalPolicy, error) {
	if len(p.Rules) > maxRules {
		return p, &InvalidError{Field: "rules", Problem: fmt.Sprintf("are more than %d", maxRules)}
	}
	labels, n := map[string][]string{}, 0
	for name, machines := range p.Labels {
		if !ValidName(name) {
			return p, &InvalidError{Field: "labels", Problem: "has a name that is not of lower-case letters, digits, dot, hyphen and underscore", Value: name}
		}
		list, err := machineNames("labels", machines)
		if err != nil {
			return p, err
		}
		if n += len(list); n > maxLabelled {
			return p, &InvalidError{Field: "labels", Problem: fmt.Sprintf("name more than %d machines", maxLabelled)}
		}
		labels[name] = list
	}
	rules := make([]ApprovalRule, 0, len(p.Rules))
	for i, r := range p.Rules {
		bad := func(problem, value string) error {
			return &InvalidError{Field: "rules", Problem: fmt.Sprintf("has in rule %d %s", i+1, problem), Value: value}
		}
		for _, id := range r.Regions {
			if !ValidRegionID(id) {
				return p, bad("what is not a region id", id)
			}
		}
		for _, name := range r.Labels {
			// A rule for a label that is misspelled would hold for nothing.
			if _, ok := labels[name]; !ok {
				return p, bad("a label that is not defined: list its machines first", name)
			}
		}
		switch {
		case r.Approvers < 0 || r.Approvers > maxApprovers:
			return p, bad(fmt.Sprintf("a number of approvers that is not from 1 to %d", maxApprovers), fmt.Sprint(r.Approvers))
		case r.ReauthMinutes < 0 || r.ReauthMinutes > maxReauth:
			return p, bad(fmt.Sprintf("minutes that are not from 1 to %d", maxReauth), fmt.Sprint(r.ReauthMinutes))
		case r.AllowTokens && r.ReauthMinutes == 0:
			return p, bad("tokens allowed without the confirmation they would be spared", "")
		case r.Approvers < 2 && !r.NotCreator && r.ReauthMinutes == 0:
			return p, bad("nothing that it asks for: two approvers, another than who asked, or a confirmation", "")
		}
		r.Regions, r.Labels = sortedSet(r.Regions), sortedSet(r.Labels)
		if r.Approvers == 1 {
			r.Approvers = 0
		}
		rules = append(rules, r)
	}
	p.Rules, p.Labels = rules, labels
	return p, nil
}

// Tag is Limits.Tag of a policy.
func (p ApprovalPolicy) Tag() string {
	p.Rules = append([]ApprovalRule{}, p.Rules...)
	if p.Labels == nil {
		p.Labels = map[string][]string{}
	}
	return DigestOf(p)
}

func sortedSet(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return slices.Compact(s)
}

// For is what all rules that concern a task ask for together.
func (p ApprovalPolicy) For(t *Task) ApprovalNeeds {
	n := ApprovalNeeds{Approvers: 1}
	labels := p.LabelsOf(t)
	for _, r := range p.Rules {
		switch {
		case len(r.Regions) > 0 && !slices.Contains(r.Regions, t.RegionID),
			len(r.Labels) > 0 && !slices.ContainsFunc(r.Labels, func(l string) bool { return slices.Contains(labels, l) }),
			r.ErasesData && (t.Plan == nil || !t.Plan.ErasesData()):
			continue
		}
		n.Approvers = max(n.Approvers, r.Approvers)
		n.NotCreator = n.NotCreator || r.NotCreator
		if r.ReauthMinutes > 0 {
			if n.ReauthMinutes == 0 {
				n.ReauthMinutes, n.AllowTokens = r.ReauthMinutes, true
			}
			n.ReauthMinutes = min(n.ReauthMinutes, r.ReauthMinutes)
			n.AllowTokens = n.AllowTokens && r.AllowTokens
		}
	}
	return n
}

// LabelsOf are the labels of a task's machine, by name.
func (p ApprovalPolicy) LabelsOf(t *Task) []string {
	names := append([]string{t.TargetMAC.String()}, UUIDSpellings(t.ClaimUUID)...)
	for _, m := range t.Claims {
		names = append(names, m.String())
	}
	if h := t.Hardware; h != nil {
		for _, m := range h.MACs() {
			names = append(names, m.String())
		}
		names = append(names, UUIDSpellings(h.System.UUID)...)
	}
	var out []string
	for label, machines := range p.Labels {
		if slices.ContainsFunc(machines, func(m string) bool { return slices.Contains(names, m) }) {
			out = append(out, label)
		}
	}
	slices.Sort(out)
	return out
}

// Plain reports whether n asks for nothing beyond the role.
func (n ApprovalNeeds) Plain() bool { return n == ApprovalNeeds{Approvers: 1} }

// ApprovalBar is why somebody whose role allows it may not approve a task.
type ApprovalBar string

// The bars; "" stands for none.
const (
	BarNobody  ApprovalBar = "nobody"  // not a user: a program of the host, or anybody without a login
	BarCreator ApprovalBar = "creator" // they asked for the task
	BarGiven   ApprovalBar = "given"   // they approved already; the next has to be another person
)

// Bar says why by may not approve t. user reports whether by is a user.
func (n ApprovalNeeds) Bar(t *Task, by string, user bool) ApprovalBar {
	switch {
	case !user && (n.NotCreator || n.Approvers > 1):
		return BarNobody
	case n.NotCreator && t.CreatedBy == by:
		return BarCreator
	case n.Approvers > 1 && slices.ContainsFunc(t.Standing(), func(c Consent) bool { return c.By == by }):
		return BarGiven
	}
	return ""
}

// Standing are the approvals of the plan as it is, which a further one adds to.
func (t *Task) Standing() []Consent {
	return slices.DeleteFunc(slices.Clone(t.Approvals), func(c Consent) bool {
		return t.Plan == nil || c.PlanDigest != t.Plan.Digest || c.HardwareDigest != t.Plan.HardwareDigest
	})
}
