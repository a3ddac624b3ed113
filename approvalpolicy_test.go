package lpmos_test

import (
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lpmos/lpmos"
)

func TestApprovalPolicyNormalizes(t *testing.T) {
	p, err := lpmos.ApprovalPolicy{
		Rules:  []lpmos.ApprovalRule{{Regions: []string{"dc2", "dc1", "dc2"}, Labels: []string{"production"}, Approvers: 2}, {Approvers: 1, NotCreator: true}},
		Labels: map[string][]string{"production": {"52-54-00-AA-BB-01", "4C4C4544-0035-4A10-8058-B7C04F4E3332", "52:54:00:aa:bb:01"}},
	}.Normalize()
	want := lpmos.ApprovalPolicy{
		Rules:  []lpmos.ApprovalRule{{Regions: []string{"dc1", "dc2"}, Labels: []string{"production"}, Approvers: 2}, {NotCreator: true}},
		Labels: map[string][]string{"production": {"4c4c4544-0035-4a10-8058-b7c04f4e3332", "52:54:00:aa:bb:01"}},
	}
	if err != nil || cmp.Diff(want, p) != "" {
		t.Errorf("Normalize = %+v, %v; want %+v", p, err, want)
	}
	for name, bad := range map[string]lpmos.ApprovalPolicy{
		"asks for nothing":      {Rules: []lpmos.ApprovalRule{{Regions: []string{"dc1"}}}},
		"one approver":          {Rules: []lpmos.ApprovalRule{{Approvers: 1}}},
		"six approvers":         {Rules: []lpmos.ApprovalRule{{Approvers: 6}}},
		"negative approvers":    {Rules: []lpmos.ApprovalRule{{Approvers: -1, NotCreator: true}}},
		"no region":             {Rules: []lpmos.ApprovalRule{{Regions: []string{"DC 1"}, Approvers: 2}}},
		"a label nobody has":    {Rules: []lpmos.ApprovalRule{{Labels: []string{"prodution"}, Approvers: 2}}, Labels: map[string][]string{"production": {"52:54:00:aa:bb:01"}}},
		"a label with a slash":  {Labels: map[string][]string{"a/b": {"52:54:00:aa:bb:01"}}},
		"a machine with a name": {Labels: map[string][]string{"production": {"web-01"}}},
		"minutes of a day":      {Rules: []lpmos.ApprovalRule{{ReauthMinutes: 1440}}},
		"tokens for nothing":    {Rules: []lpmos.ApprovalRule{{Approvers: 2, AllowTokens: true}}},
	} {
		if _, err := bad.Normalize(); !isInvalid(err) {
			t.Errorf("Normalize of a policy with %s = %v; want an InvalidError", name, err)
		}
	}
}

func isInvalid(err error) bool { _, ok := errors.AsType[*lpmos.InvalidError](err); return ok }

func TestApprovalPolicyTakesTheStrictest(t *testing.T) {
	p := lpmos.ApprovalPolicy{
		Rules: []lpmos.ApprovalRule{
			{Regions: []string{"dc1"}, Approvers: 2},
			{Labels: []string{"production"}, NotCreator: true, ReauthMinutes: 30, AllowTokens: true},
			{ErasesData: true, Approvers: 3, ReauthMinutes: 5},
		},
		Labels: map[string][]string{"production": {"52:54:00:aa:bb:02"}, "by-uuid": {"4c4c4544-0035-4a10-8058-b7c04f4e3332"}},
	}
	data := &lpmos.Plan{Observed: []lpmos.ObservedDisk{{Disk: lpmos.DiskRef{Serial: "x"}, Content: used("db")}}, Effect: lpmos.Effect{Target: lpmos.DiskRef{Serial: "x"}}, Hazards: []string{"ext4"}}
	for name, tt := range map[string]struct {
		task lpmos.Task
		want lpmos.ApprovalNeeds
	}{
		"nothing concerns it":             {lpmos.Task{Spec: lpmos.Spec{RegionID: "dc2"}}, lpmos.ApprovalNeeds{Approvers: 1}},
		"its region":                      {lpmos.Task{Spec: lpmos.Spec{RegionID: "dc1"}}, lpmos.ApprovalNeeds{Approvers: 2}},
		"the label of another of its MAC": {lpmos.Task{Spec: lpmos.Spec{RegionID: "dc2"}, Claims: []lpmos.MAC{lpmos.MustMAC("52:54:00:aa:bb:02")}}, lpmos.ApprovalNeeds{Approvers: 1, NotCreator: true, ReauthMinutes: 30, AllowTokens: true}},
		"all of it":                       {lpmos.Task{Spec: lpmos.Spec{RegionID: "dc1"}, Plan: data, Claims: []lpmos.MAC{lpmos.MustMAC("52:54:00:aa:bb:02")}}, lpmos.ApprovalNeeds{Approvers: 3, NotCreator: true, ReauthMinutes: 5}},
	} {
		if got := p.For(&tt.task); got != tt.want {
			t.Errorf("%s: For = %+v; want %+v", name, got, tt.want)
		}
	}
	named := lpmos.Task{Hardware: &lpmos.Hardware{System: lpmos.System{UUID: "4C4C4544-0035-4A10-8058-B7C04F4E3332"}}}
	swapped := lpmos.Task{ClaimUUID: "44454c4c-3500-104a-8058-b7c04f4e3332"}
	for _, task := range []*lpmos.Task{&named, &swapped} {
		if got := p.LabelsOf(task); len(got) != 1 || got[0] != "by-uuid" {
			t.Errorf("LabelsOf a machine by its UUID = %v", got)
		}
	}
	if !(lpmos.ApprovalPolicy{}).For(&named).Plain() {
		t.Error("a policy without rules asks for something")
	}
}

func TestApprovalBars(t *testing.T) {
	plan := &lpmos.Plan{Digest: "sha256:1", HardwareDigest: "sha256:2"}
	task := &lpmos.Task{CreatedBy: "olga", Plan: plan, Approvals: []lpmos.Consent{{By: "anna", PlanDigest: "sha256:1", HardwareDigest: "sha256:2"}, {By: "ben", PlanDigest: "sha256:0", HardwareDigest: "sha256:2"}}}
	two := lpmos.ApprovalNeeds{Approvers: 2, NotCreator: true}
	for _, tt := range []struct {
		needs lpmos.ApprovalNeeds
		by    string
		user  bool
		want  lpmos.ApprovalBar
	}{
		{two, "olga", true, lpmos.BarCreator}, {two, "anna", true, lpmos.BarGiven}, {two, "ben", true, ""}, {two, "carl", true, ""}, {two, "local", false, lpmos.BarNobody},
		{lpmos.ApprovalNeeds{Approvers: 1}, "olga", true, ""}, {lpmos.ApprovalNeeds{Approvers: 1}, "local", false, ""}, {lpmos.ApprovalNeeds{Approvers: 1}, "anna", true, ""},
	} {
		if got := tt.needs.Bar(task, tt.by, tt.user); got != tt.want {
			t.Errorf("%+v bars %s (user %v) for %q; want %q", tt.needs, tt.by, tt.user, got, tt.want)
		}
	}
}

// Who approved is signed: a region can neither take one of two away nor put
// another name there.
func TestApprovalSignatureCoversAllApprovers(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	a := lpmos.Approval{TaskID: lpmos.NewTaskID(), Approved: true, By: "ben", At: at, PlanDigest: "sha256:1", HardwareDigest: "sha256:2",
		Approvers: []lpmos.Consent{{By: "anna", At: at, PlanDigest: "sha256:1", HardwareDigest: "sha256:2"}, {By: "ben", At: at, PlanDigest: "sha256:1", HardwareDigest: "sha256:2"}}}
	a.Sign(key)
	if err := a.Verify([]ed25519.PublicKey{pub}); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*lpmos.Approval){
		"without one of them": func(a *lpmos.Approval) { a.Approvers = a.Approvers[1:] },
		"without all":         func(a *lpmos.Approval) { a.Approvers = nil },
		"with another name":   func(a *lpmos.Approval) { a.Approvers[0].By = "carl" },
	} {
		b := a
		b.Approvers = append([]lpmos.Consent(nil), a.Approvers...)
		change(&b)
		if err := b.Verify([]ed25519.PublicKey{pub}); !errors.Is(err, lpmos.ErrSignature) {
			t.Errorf("an approval %s verifies: %v", name, err)
		}
	}
	if !strings.Contains(string(lpmos.CanonicalJSON(a)), `"approvers"`) {
		t.Error("the approvers are not in what is signed")
	}
}
