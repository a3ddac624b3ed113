package lpmos_test

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
)

var causes = []lpmos.Cause{
	lpmos.CauseCreated, lpmos.CauseHardwareReported, lpmos.CausePlanChanged, lpmos.CauseApproved, lpmos.CauseRejected,
	lpmos.CauseCanceled, lpmos.CauseApprovalExpired, lpmos.CausePermitGranted, lpmos.CauseNextAttempt, lpmos.CauseResultReported, lpmos.CauseNotVerified,
	lpmos.CauseCalledHome, lpmos.CauseFailed, lpmos.CauseDeadline, lpmos.CauseRetried,
}

// legal is contract §2 once more, by hand: what is not here must be refused.
const legal = `
	 -created-> pending
	pending -hardware_reported-> awaiting_approval
	pending -canceled-> canceled
	pending -failed-> failed
	pending -deadline_passed-> failed
	awaiting_approval -plan_changed-> awaiting_approval
	awaiting_approval -approved-> approved
	awaiting_approval -rejected-> rejected
	awaiting_approval -canceled-> canceled
	awaiting_approval -failed-> failed
	awaiting_approval -deadline_passed-> failed
	approved -permit_granted-> installing
	approved -plan_changed-> awaiting_approval
	approved -approval_expired-> awaiting_approval
	approved -canceled-> canceled
	approved -failed-> failed
	installing -result_reported-> verifying
	installing -result_taken-> completed
	installing -next_attempt-> installing
	installing -failed-> failed
	installing -deadline_passed-> failed
	verifying -called_home-> completed
	verifying -failed-> failed
	verifying -deadline_passed-> failed
	failed -retried-> pending
	failed -called_home-> completed
`

func TestNext(t *testing.T) {
	var want []string
	for line := range strings.Lines(legal) {
		if line = strings.Trim(line, "\t\n"); line != "" {
			want = append(want, line)
		}
	}
	var got []string
	for _, from := range append([]lpmos.Status{""}, lpmos.Statuses...) {
		for _, c := range causes {
			to, err := from.Next(c)
			if from.Allows(c) != (err == nil) {
				t.Errorf("%q allows %s = %v, but Next says %v", from, c, from.Allows(c), err)
			}
			if err == nil {
				got = append(got, fmt.Sprintf("%s -%s-> %s", from, c, to))
				continue
			}
			var conflict *lpmos.ConflictError
			if !errors.As(err, &conflict) || !errors.Is(err, lpmos.ErrConflict) || conflict.Status != from || to != "" {
				t.Errorf("%q.Next(%s) = %q, %#v; want a ConflictError with the status", from, c, to, err)
			}
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("legal moves are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Once erasing has begun nobody can pretend that it had not.
func TestNoCancelAfterThePermit(t *testing.T) {
	for _, s := range []lpmos.Status{lpmos.Installing, lpmos.Verifying, lpmos.Completed} {
		for _, c := range []lpmos.Cause{lpmos.CauseCanceled, lpmos.CauseRejected, lpmos.CauseRetried, lpmos.CausePlanChanged} {
			if s.Allows(c) {
				t.Errorf("%s allows %s", s, c)
			}
		}
	}
	_, err := lpmos.Installing.Next(lpmos.CauseCanceled)
	if want := "erasing has begun"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("cancel while installing = %v; want %q in it", err, want)
	}
}

func TestLive(t *testing.T) {
	for _, s := range lpmos.Statuses {
		ended := slices.Contains([]lpmos.Status{lpmos.Completed, lpmos.Failed, lpmos.Rejected, lpmos.Canceled}, s)
		if s.Live() == ended || !s.Valid() {
			t.Errorf("%s: live %v, valid %v", s, s.Live(), s.Valid())
		}
	}
	if lpmos.Status("").Valid() || lpmos.Status("PENDING").Valid() || lpmos.Status("").Live() {
		t.Error("something that is no status is valid or live")
	}
}

func goodSpec() lpmos.Spec {
	return lpmos.Spec{RegionID: "dc1", TargetMAC: lpmos.MustMAC("52:54:00:ab:cd:ef"), OSType: "debian", OSVersion: "12"}
}

const edKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJd7rnkCAJoEHhQJ0c0zU6g1pn0bY0a1m4JvQwGm0pJ"

func TestNormalize(t *testing.T) {
	s, err := goodSpec().Normalize()
	if err != nil || s.Arch != "amd64" || s.Hostname != "machine-abcdef" {
		t.Errorf("Normalize = %+v, %v; want amd64 and machine-abcdef filled in", s, err)
	}
	again, err := s.Normalize()
	if err != nil || lpmos.DigestOf(again) != lpmos.DigestOf(s) {
		t.Errorf("Normalize twice = %+v, %v; want no change", again, err)
	}
	for name, tt := range map[string]struct {
		field string
		edit  func(*lpmos.Spec)
	}{
		"no region":              {"region_id", func(s *lpmos.Spec) { s.RegionID = "" }},
		"a path as region":       {"region_id", func(s *lpmos.Spec) { s.RegionID = "dc1/../dc2" }},
		"no MAC":                 {"target_mac", func(s *lpmos.Spec) { s.TargetMAC = lpmos.MAC{} }},
		"a path as system":       {"os_type", func(s *lpmos.Spec) { s.OSType = "../../etc/shadow" }},
		"capitals as system":     {"os_type", func(s *lpmos.Spec) { s.OSType = "A" }},
		"a path as version":      {"os_version", func(s *lpmos.Spec) { s.OSVersion = "12/../../x" }},
		"a dot as version":       {"os_version", func(s *lpmos.Spec) { s.OSVersion = "." }},
		"another architecture":   {"arch", func(s *lpmos.Spec) { s.Arch = "riscv64" }},
		"host with a space":      {"hostname", func(s *lpmos.Spec) { s.Hostname = "a b" }},
		"host with U+202E":       {"hostname", func(s *lpmos.Spec) { s.Hostname = "a\u202eb" }},
		"host with markup":       {"hostname", func(s *lpmos.Spec) { s.Hostname = "<script>" }},
		"host with a newline":    {"hostname", func(s *lpmos.Spec) { s.Hostname = "a\n" }},
		"host with capitals":     {"hostname", func(s *lpmos.Spec) { s.Hostname = "Web" }},
		"host with a long label": {"hostname", func(s *lpmos.Spec) { s.Hostname = strings.Repeat("a", 64) }},
		"too many keys":          {"ssh_keys", func(s *lpmos.Spec) { s.SSHKeys = slices.Repeat([]string{edKey}, 65) }},
		"two keys in one":        {"ssh_keys", func(s *lpmos.Spec) { s.SSHKeys = []string{edKey + "\n" + edKey} }},
		"long notes":             {"notes", func(s *lpmos.Spec) { s.Notes = strings.Repeat("n", lpmos.MaxNotesBytes+1) }},
		"a disk without size":    {"target_disk", func(s *lpmos.Spec) { s.TargetDisk = &lpmos.DiskRef{Serial: "x"} }},
		"a disk of any name":     {"target_disk", func(s *lpmos.Spec) { s.TargetDisk = &lpmos.DiskRef{SizeBytes: 1 << 30} }},
	} {
		s := goodSpec()
		tt.edit(&s)
		var invalid *lpmos.InvalidError
		if _, err := s.Normalize(); !errors.As(err, &invalid) || invalid.Field != tt.field {
			t.Errorf("Normalize with %s = %v; want an InvalidError about %s", name, err, tt.field)
		}
	}
}

// TestValidSSHKey is V16: one key, no options, one line.
func TestValidSSHKey(t *testing.T) {
	for _, s := range []string{edKey, edKey + " me@host", "ssh-rsa AAAAB3NzaC1yc2E= a b", "ecdsa-sha2-nistp256 AAAA", "sk-ssh-ed25519@openssh.com AAAA x"} {
		if !lpmos.ValidSSHKey(s) {
			t.Errorf("ValidSSHKey(%q) = false", s)
		}
	}
	for _, s := range []string{
		"", "ssh-ed25519", `command="/bin/sh" ` + edKey, "no-pty " + edKey, edKey + "\n" + edKey, edKey + "\r", edKey + "\x00", "ssh-dss AAAA",
		" " + edKey, "ssh-rsa " + strings.Repeat("A", 1<<20), "ssh-ed25519 AAAA \u202eevil", "# " + edKey,
	} {
		if lpmos.ValidSSHKey(s) {
			t.Errorf("ValidSSHKey(%.60q) = true", s)
		}
	}
}

// hostileIDs may become a part of no key and no path.
var hostileIDs = []string{
	"", "/", "..", ".", "a/b", "../dc2", "dc1/../dc2", "dc1/", "/dc1", "dc1%2f", "dc1\x00", "dc1\n", " dc1", "dc１", "dc1\u202e", "Dc1", "-dc1", "dc1-", "dc_1",
	"t1/approval", "550e8400-e29b-41d4-a716-446655440000/approval", "550E8400-E29B-41D4-A716-446655440000", strings.Repeat("a", 300), "$(x)", "-o", "*",
}

// TestIDs is V06, V07 and V09.
func TestIDs(t *testing.T) {
	for _, s := range hostileIDs {
		if lpmos.ValidRegionID(s) || lpmos.ValidTaskID(s) {
			t.Errorf("%q: a region id %v, a task id %v", s, lpmos.ValidRegionID(s), lpmos.ValidTaskID(s))
		}
	}
	for _, s := range []string{"", "a/b", "../../etc/shadow", "A", ".", "..", strings.Repeat("a", 255), "%00", "a\x00", "a b", ".hidden", "-o", "a\n"} {
		if lpmos.ValidName(s) {
			t.Errorf("ValidName(%.40q) = true", s)
		}
	}
	for _, s := range []string{"dc1", "a", "0", "eu-west-1", strings.Repeat("a", 32)} {
		if !lpmos.ValidRegionID(s) {
			t.Errorf("ValidRegionID(%q) = false", s)
		}
	}
	for _, s := range []string{"debian", "12", "24.04", "rocky_9", strings.Repeat("a", 64)} {
		if !lpmos.ValidName(s) {
			t.Errorf("ValidName(%q) = false", s)
		}
	}
	v4 := regexp.MustCompile(`^.{14}4.{4}[89ab]`)
	seen := map[string]bool{}
	for range 1000 {
		id := lpmos.NewTaskID()
		if !lpmos.ValidTaskID(id) || seen[id] || !v4.MatchString(id) {
			t.Fatalf("NewTaskID = %s; want a fresh UUID, version 4", id)
		}
		seen[id] = true
	}
}
