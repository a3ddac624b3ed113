package orchestrator_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/orchestrator"
	"github.com/lpmos/lpmos/internal/store"
)

// policySite is a site with approvers anna, ben and carl, a policy, and a task
// of olga's that waits.
func policySite(t *testing.T, p lpmos.ApprovalPolicy) (*site, lpmos.Task) {
	t.Helper()
	s := newSite(t, orchestrator.Config{})
	for _, name := range []string{"anna", "ben", "carl", "olga"} {
		if _, err := s.store.CreateUser(t.Context(), lpmos.User{Name: name, Role: lpmos.Approver}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.SetApprovalPolicy(t.Context(), p, "", "root"); err != nil {
		t.Fatal(err)
	}
	const mac = "52:54:00:00:0e:01"
	task, err := s.Create(t.Context(), spec(mac), "olga", "")
	if err != nil {
		t.Fatal(err)
	}
	s.ok(s.sess.PutHardware(t.Context(), task.ID, 1, hardware(mac)))
	return s, s.is(task.ID, lpmos.AwaitingApproval)
}

func (s *site) approves(task lpmos.Task, by string) (lpmos.Task, error) {
	return s.Decide(s.t.Context(), task.ID, api.Decision{Approved: true, PlanDigest: task.Plan.Digest, Approver: api.Approver{User: true, ProvedAt: time.Now()}}, by)
}

func bar(err error) lpmos.ApprovalBar {
	if e, ok := errors.AsType[*api.BarError](err); ok && errors.Is(err, lpmos.ErrForbidden) {
		return e.Bar
	}
	return ""
}

var twoEyes = lpmos.ApprovalPolicy{Rules: []lpmos.ApprovalRule{{Regions: []string{"dc1"}, Approvers: 2, NotCreator: true}}}

func TestFourEyes(t *testing.T) {
	s, task := policySite(t, twoEyes)
	if n := task.ApprovalNeeds; n == nil || n.Approvers != 2 || !n.NotCreator {
		t.Errorf("the task says it takes %+v; want two approvers, and not its creator", n)
	}
	if _, err := s.approves(task, "olga"); bar(err) != lpmos.BarCreator {
		t.Errorf("who asked for it approves: %v; want to hear that it takes somebody else", err)
	}
	if _, err := s.Decide(t.Context(), task.ID, api.Decision{Approved: true, PlanDigest: task.Plan.Digest}, "local"); bar(err) != lpmos.BarNobody {
		t.Errorf("a program of the host approves: %v", err)
	}
	first, err := s.approves(task, "anna")
	if err != nil || first.Status != lpmos.AwaitingApproval || first.Approval != nil || len(first.Approvals) != 1 {
		t.Fatalf("the first of two = %s, approval %v, %+v, %v; want a task that goes on waiting", first.Status, first.Approval, first.Approvals, err)
	}
	if _, err := s.approves(task, "anna"); bar(err) != lpmos.BarGiven || !strings.Contains(err.Error(), "1 of 2 approvals: anna") {
		t.Errorf("the same person once more = %v; want to hear who it takes", err)
	}
	s.eventually("everybody sees who approved", func() bool {
		x, _ := s.state.Task(task.ID)
		return len(x.Approvals) == 1 && x.Approvals[0].By == "anna" && x.ApprovalNeeds != nil
	})
	second, err := s.approves(task, "ben")
	if err != nil || second.Status != lpmos.Approved || len(second.Approvals) != 0 {
		t.Fatalf("the second of two = %s, %v; want approved", second.Status, err)
	}
	a := second.Approval
	if err := a.Verify([]ed25519.PublicKey{s.key.Public().(ed25519.PublicKey)}); err != nil {
		t.Error(err)
	}
	if len(a.Approvers) != 2 || a.Approvers[0].By != "anna" || a.By != "ben" {
		t.Errorf("signed is %+v; want both, in order", a.Approvers)
	}
	events, err := s.store.Events(t.Context(), task.ID)
	if err != nil || lpmos.VerifyEvents(events) != nil {
		t.Fatal(err)
	}
	var causes []string
	for _, e := range events {
		causes = append(causes, string(e.Cause)+" "+e.By)
	}
	if got := strings.Join(causes, ", "); got != "created olga, hardware_reported agent, approval_given anna, approved ben" {
		t.Errorf("events: %s", got)
	}
	if e := events[2]; !strings.Contains(e.Message, "1 of 2 approvals: anna") {
		t.Errorf("the first approval's event says %q", e.Message)
	}
}

// A label counts as it is when somebody approves, not as it was when the task
// was made, and by whatever names the machine: an address that the task does not
// name, or its UUID.
func TestFourEyesByLabel(t *testing.T) {
	const boot, second = "52:54:00:00:0e:01", "52:54:00:00:0e:02"
	policy := func(machines ...string) lpmos.ApprovalPolicy {
		return lpmos.ApprovalPolicy{Rules: []lpmos.ApprovalRule{{Labels: []string{"production"}, Approvers: 2, NotCreator: true}},
			Labels: map[string][]string{"production": machines}}
	}
	const other = "52:54:00:00:0f:ff"
	for name, machine := range map[string]string{"its address": boot, "another address of it": second, "its UUID": hardware(boot).System.UUID, "that in the other byte order": lpmos.UUIDSpellings(hardware(boot).System.UUID)[0]} {
		t.Run(name, func(t *testing.T) {
			s, task := policySite(t, policy(other))
			s.ok(s.sess.PutHardware(t.Context(), task.ID, 1, hardware(boot, second)))
			s.eventually("both addresses are known", func() bool {
				task, _ = s.state.Task(task.ID)
				return task.Hardware != nil && len(task.Hardware.NICs) == 2 && task.Plan != nil && task.Plan.HardwareDigest == task.Hardware.Digest()
			})
			if task.ApprovalNeeds != nil {
				t.Errorf("before it is labelled it takes %+v", task.ApprovalNeeds)
			}
			if _, err := s.SetApprovalPolicy(t.Context(), policy(other, machine), "", "root"); err != nil {
				t.Fatal(err)
			}
			if _, err := s.approves(task, "olga"); bar(err) != lpmos.BarCreator {
				t.Errorf("who asked for it, before it was labelled, approves: %v", err)
			}
			if got, err := s.approves(task, "anna"); err != nil || got.Status != lpmos.AwaitingApproval || len(got.Approvals) != 1 {
				t.Fatalf("the first of two = %s, %+v, %v", got.Status, got.Approvals, err)
			}
			if got, err := s.approves(task, "ben"); err != nil || got.Status != lpmos.Approved || len(got.Approval.Approvers) != 2 {
				t.Errorf("the second of two = %s, %v", got.Status, err)
			}
		})
	}
	t.Run("a label that was taken away asks for nothing", func(t *testing.T) {
		s, task := policySite(t, policy(boot))
		if _, err := s.approves(task, "anna"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.SetApprovalPolicy(t.Context(), policy(other), "", "root"); err != nil {
			t.Fatal(err)
		}
		if got, err := s.approves(task, "olga"); err != nil || got.Status != lpmos.Approved {
			t.Errorf("who asked for it approves a machine without a label = %s, %v; want approved", got.Status, err)
		}
	})
}

// Many approve at once: two approvals count, and they are two people's.
func TestTwoOfManyApproversAtOnce(t *testing.T) {
	s, task := policySite(t, twoEyes)
	var wg sync.WaitGroup
	var kept, approved atomic.Int64
	for i := range 24 {
		by := []string{"anna", "ben", "carl"}[i%3]
		wg.Go(func() {
			x, err := s.approves(task, by)
			switch {
			case err == nil && x.Status == lpmos.Approved:
				approved.Add(1)
			case err == nil:
				kept.Add(1)
			case bar(err) == lpmos.BarGiven, errors.Is(err, lpmos.ErrConflict):
			default:
				t.Errorf("%s: %v", by, err)
			}
		})
	}
	wg.Wait()
	got := s.is(task.ID, lpmos.Approved)
	if kept.Load() != 1 || approved.Load() != 1 {
		t.Errorf("%d approvals were kept and %d approved; want one each", kept.Load(), approved.Load())
	}
	if a := got.Approval.Approvers; len(a) != 2 || a[0].By == a[1].By {
		t.Errorf("approved by %+v; want two people", a)
	}
}

func TestFirstApprovalFallsWithItsGround(t *testing.T) {
	t.Run("its approver may not approve any more", func(t *testing.T) {
		s, task := policySite(t, twoEyes)
		if _, err := s.approves(task, "anna"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.store.UpdateUser(t.Context(), "anna", func(u *lpmos.User) error { u.Role = lpmos.Operator; return nil }); err != nil {
			t.Fatal(err)
		}
		got, err := s.approves(task, "ben")
		if err != nil || got.Status != lpmos.AwaitingApproval || len(got.Approvals) != 1 || got.Approvals[0].By != "ben" {
			t.Fatalf("with a first approver who was revoked = %s, %+v, %v; want ben's alone to count", got.Status, got.Approvals, err)
		}
		if got, err = s.approves(task, "carl"); err != nil || got.Status != lpmos.Approved {
			t.Errorf("with two who may = %s, %v", got.Status, err)
		}
		events, _ := s.store.Events(t.Context(), task.ID)
		if e := events[3]; !strings.Contains(e.Message, "anna does not count") {
			t.Errorf("ben's event says %q; want why anna's fell", e.Message)
		}
	})
	t.Run("the plan changed", func(t *testing.T) {
		s, task := policySite(t, twoEyes)
		if _, err := s.approves(task, "anna"); err != nil {
			t.Fatal(err)
		}
		h := hardware("52:54:00:00:0e:01")
		h.Disks[0].Content = lpmos.Content{Filesystem: &lpmos.Filesystem{Type: "ext4", Label: "payroll"}}
		s.ok(s.sess.PutHardware(t.Context(), task.ID, 1, h))
		s.eventually("another plan", func() bool { x, _ := s.state.Task(task.ID); return x.Plan.Digest != task.Plan.Digest })
		var stale *orchestrator.StalePlanError
		if _, err := s.approves(task, "ben"); !errors.As(err, &stale) {
			t.Errorf("approving the plan before = %v; want a StalePlanError", err)
		}
		now, _ := s.state.Task(task.ID)
		if len(now.Approvals) != 0 {
			t.Errorf("approvals of the plan before still stand: %+v", now.Approvals)
		}
		if got, err := s.approves(now, "ben"); err != nil || got.Status != lpmos.AwaitingApproval || len(got.Approvals) != 1 {
			t.Errorf("the first of the new plan = %s, %+v, %v", got.Status, got.Approvals, err)
		}
		events, _ := s.store.Events(t.Context(), task.ID)
		if e := events[3]; e.Cause != lpmos.CausePlanChanged || !strings.Contains(e.Message, "void") {
			t.Errorf("the event says %q; want that what was approved is void", e.Message)
		}
	})
	t.Run("the policy asks for another than its giver", func(t *testing.T) {
		s, task := policySite(t, lpmos.ApprovalPolicy{Rules: []lpmos.ApprovalRule{{Approvers: 2}}})
		if _, err := s.approves(task, "olga"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.SetApprovalPolicy(t.Context(), twoEyes, "", "root"); err != nil {
			t.Fatal(err)
		}
		if got, err := s.approves(task, "anna"); err != nil || got.Status != lpmos.AwaitingApproval || len(got.Approvals) != 1 || got.Approvals[0].By != "anna" {
			t.Errorf("after an approval of who asked for it = %s, %+v, %v; want anna's alone to count", got.Status, got.Approvals, err)
		}
	})
	t.Run("the policy asks for less", func(t *testing.T) {
		s, task := policySite(t, twoEyes)
		if _, err := s.approves(task, "anna"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.SetApprovalPolicy(t.Context(), lpmos.ApprovalPolicy{}, "", "root"); err != nil {
			t.Fatal(err)
		}
		if got, err := s.approves(task, "anna"); err != nil || got.Status != lpmos.Approved || len(got.Approval.Approvers) != 0 {
			t.Errorf("where one is enough = %s, %v", got.Status, err)
		}
	})
}

// meddling changes something after a decision was made and before it is stored.
type meddling struct {
	*counting
	once sync.Once
	with func()
}

func (m *meddling) Transition(ctx context.Context, id string, mv store.Move, edit func(*store.Record, *store.Move) error) (lpmos.Task, error) {
	return m.counting.Transition(ctx, id, mv, func(rec *store.Record, mv *store.Move) error {
		err := edit(rec, mv)
		m.once.Do(m.with)
		return err
	})
}

// What an approval is judged by is compared in its own transaction.
func TestNothingChangesBetweenJudgingAndStoring(t *testing.T) {
	for name, tt := range map[string]struct {
		meddle func(*site) error
		want   error
	}{
		"the approver is disabled": {func(s *site) error {
			_, _, err := s.store.UpdateUser(context.Background(), "anna", func(u *lpmos.User) error { u.Disabled = true; return nil })
			return err
		}, lpmos.ErrForbidden},
		"the approver is deleted": {func(s *site) error { _, err := s.store.DeleteUser(context.Background(), "anna"); return err }, lpmos.ErrForbidden},
		"the policy asks for another": {func(s *site) error {
			_, err := s.SetApprovalPolicy(context.Background(), lpmos.ApprovalPolicy{Rules: []lpmos.ApprovalRule{{ReauthMinutes: 5}}}, "", "root")
			return err
		}, lpmos.ErrForbidden},
	} {
		t.Run(name, func(t *testing.T) {
			s, task := policySite(t, lpmos.ApprovalPolicy{})
			m := &meddling{counting: s.moves, with: func() { s.ok(tt.meddle(s)) }}
			o := orchestrator.New(orchestrator.Config{Key: s.key}, s.state, m, discard)
			_, err := o.Decide(t.Context(), task.ID, api.Decision{Approved: true, PlanDigest: task.Plan.Digest, Approver: api.Approver{User: true}}, "anna")
			if !errors.Is(err, tt.want) {
				t.Errorf("Decide = %v; want %v", err, tt.want)
			}
			s.is(task.ID, lpmos.AwaitingApproval)
		})
	}
}

func TestReauthentication(t *testing.T) {
	s, task := policySite(t, lpmos.ApprovalPolicy{Rules: []lpmos.ApprovalRule{{ReauthMinutes: 5}}})
	decide := func(who api.Approver) error {
		_, err := s.Decide(t.Context(), task.ID, api.Decision{Approved: true, PlanDigest: task.Plan.Digest, Approver: who}, "anna")
		return err
	}
	for _, who := range []api.Approver{
		{User: true}, {User: true, ProvedAt: time.Now().Add(-6 * time.Minute)}, {User: true, Token: true}, {Token: true},
	} {
		var reauth *api.ReauthError
		if err := decide(who); !errors.As(err, &reauth) || reauth.Minutes != 5 || reauth.Token != who.Token {
			t.Errorf("%+v approves: %v; want a ReauthError", who, err)
		}
	}
	// To reject, nobody is asked.
	if err := decide(api.Approver{User: true, Token: true, ProvedAt: time.Now()}); err != nil {
		t.Errorf("a token with its user's password = %v", err)
	}
	s, task = policySite(t, lpmos.ApprovalPolicy{Rules: []lpmos.ApprovalRule{{ReauthMinutes: 5, AllowTokens: true}}})
	if err := decide(api.Approver{User: true, ProvedAt: time.Now().Add(-time.Hour)}); err == nil {
		t.Error("a session that proved it an hour ago approves, because tokens may")
	}
	if err := decide(api.Approver{User: true, Token: true}); err != nil {
		t.Errorf("a token where tokens may = %v", err)
	}
	s, task = policySite(t, lpmos.ApprovalPolicy{Rules: []lpmos.ApprovalRule{{ReauthMinutes: 5, Approvers: 2}}})
	if _, err := s.Decide(t.Context(), task.ID, api.Decision{Notes: fmt.Sprint("not now"), Approver: api.Approver{Token: true}}, "local"); err != nil {
		t.Errorf("rejecting = %v; it destroys nothing", err)
	}
}
