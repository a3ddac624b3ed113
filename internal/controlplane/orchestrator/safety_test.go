package orchestrator_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/orchestrator"
	"github.com/lpmos/lpmos/internal/controlplane/state"
	"github.com/lpmos/lpmos/internal/store"
)

func mac(n int) string { return fmt.Sprintf("52:54:00:00:aa:%02x", n) }

// X02: of many that were approved at once, only so many begin in a minute, the
// one that asked first is first, and the others say how many are before them.
func TestPermitsAreRateLimited(t *testing.T) {
	const limit, all = 3, 8
	s := newSite(t, orchestrator.Config{PermitsPerMinute: limit})
	var ids []string
	began := time.Now().UTC()
	for i := range all {
		task := s.approvedTask(mac(i))
		ids = append(ids, task.ID)
		req := s.request(task, 1, strings.Repeat("1", 64))
		req.At = began.Add(time.Duration(i) * time.Second)
		s.ok(s.sess.PutPermitRequest(t.Context(), req))
		if i < limit {
			s.is(task.ID, lpmos.Installing)
		}
	}
	for i := limit; i < all; i++ {
		s.eventually("the queue is seen", func() bool {
			x, _ := s.state.Task(ids[i])
			return x.Status == lpmos.Approved && x.PermitWait != nil && x.PermitWait.Reason == lpmos.WaitRate && x.PermitWait.Before == i-limit
		})
	}
	// The gate itself holds, too, whatever the read model says.
	_, err := s.store.Transition(t.Context(), ids[all-1], store.Move{Cause: lpmos.CausePermitGranted, By: "test", Gate: &store.Gate{Limit: limit}},
		func(*store.Record, *store.Move) error { return nil })
	if held, ok := errors.AsType[*store.HeldError](err); !ok || held.Reason != lpmos.WaitRate {
		t.Errorf("a fourth permit = %v; want it held", err)
	}
	// More are let through as soon as the site says so, the first in the queue first.
	if _, err := s.SetLimits(t.Context(), lpmos.Limits{PermitsPerMinute: limit + 1}, "", "ada"); err != nil {
		t.Fatal(err)
	}
	s.is(ids[limit], lpmos.Installing)
	if x, _ := s.state.Task(ids[all-1]); x.Status != lpmos.Approved {
		t.Errorf("the last in the queue is %s", x.Status)
	}
}

// X04: the stop is compared in the transaction itself, so that a replica whose
// view is old grants nothing.
func TestStopWinsInTheTransaction(t *testing.T) {
	s := newSite(t, orchestrator.Config{})
	task := s.approvedTask(mac(1))
	if _, err := s.Stop(t.Context(), "wrong rack", "ada"); err != nil {
		t.Fatal(err)
	}
	_, err := s.store.Transition(t.Context(), task.ID, store.Move{Cause: lpmos.CausePermitGranted, By: "test", Gate: &store.Gate{Limit: 10}},
		func(*store.Record, *store.Move) error { return nil })
	if held, ok := errors.AsType[*store.HeldError](err); !ok || held.Reason != lpmos.WaitStop {
		t.Fatalf("a permit during the stop = %v; want it held", err)
	}
	s.ok(s.sess.PutPermitRequest(t.Context(), s.request(task, 1, strings.Repeat("2", 64))))
	s.eventually("it says why", func() bool {
		x, _ := s.state.Task(task.ID)
		return x.PermitWait != nil && x.PermitWait.Reason == lpmos.WaitStop
	})
	s.ok(s.Resume(t.Context(), "ada"))
	s.is(task.ID, lpmos.Installing)
}

func TestLockHoldsAllAddresses(t *testing.T) {
	s := newSite(t, orchestrator.Config{})
	task := s.create(mac(1))
	s.ok(s.sess.PutHardware(t.Context(), task.ID, 1, hardware(mac(1), mac(2))))
	task = s.is(task.ID, lpmos.AwaitingApproval)
	if _, err := s.Lock(t.Context(), lpmos.MustMAC(mac(2)), "payroll", "ada"); err != nil {
		t.Fatal(err)
	}
	_, err := s.store.Transition(t.Context(), task.ID, store.Move{Cause: lpmos.CauseApproved, By: "ada"}, nil)
	s.ok(err)
	_, err = s.store.Transition(t.Context(), task.ID, store.Move{Cause: lpmos.CausePermitGranted, By: "test", Gate: &store.Gate{Limit: 10}},
		func(*store.Record, *store.Move) error { return nil })
	if held, ok := errors.AsType[*store.HeldError](err); !ok || held.Reason != lpmos.WaitLock {
		t.Errorf("a permit for a machine that is locked by its other port = %v; want it held", err)
	}
	if _, err := s.Cancel(t.Context(), task.ID, "", "ada"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(t.Context(), spec(mac(1)), "ada", ""); !errors.Is(err, lpmos.ErrConflict) || !strings.Contains(err.Error(), "payroll") {
		t.Errorf("Create for a locked machine = %v; want a conflict that says why", err)
	}
	if _, err := s.CheckBatch([]lpmos.Spec{spec(mac(2))}); err == nil {
		t.Error("a batch takes a locked machine")
	}
	s.ok(s.Unlock(t.Context(), lpmos.MustMAC(mac(1)), "ada"))
	// Whoever unlocked it can install it at once.
	for i := range 20 {
		task, err := s.Create(t.Context(), spec(mac(1)), "ada", "")
		if err != nil {
			t.Fatalf("Create after unlock %d = %v", i+1, err)
		}
		if _, err := s.Cancel(t.Context(), task.ID, "", "ada"); err != nil {
			t.Fatal(err)
		}
		_, err = s.Lock(t.Context(), lpmos.MustMAC(mac(2)), "payroll", "ada")
		s.ok(err)
		s.ok(s.Unlock(t.Context(), lpmos.MustMAC(mac(2)), "ada"))
	}
}

// The computers LPMOS runs on are never installed.
func TestOwnHostsAreProtected(t *testing.T) {
	s := newSite(t, orchestrator.Config{})
	_, err := s.store.UpdateGlobal(t.Context(), func(g *store.Global) error {
		g.Hosts = map[string]lpmos.Host{"cp1": {Hostname: "cp1", MACs: []lpmos.MAC{lpmos.MustMAC(mac(7))}}}
		return nil
	})
	s.ok(err)
	s.eventually("it is known", func() bool { return s.state.Protection([]lpmos.MAC{lpmos.MustMAC(mac(7))}, "") != "" })
	if _, err := s.Create(t.Context(), spec(mac(7)), "ada", ""); !errors.Is(err, lpmos.ErrConflict) || !strings.Contains(err.Error(), "cp1") {
		t.Errorf("Create for a host of LPMOS = %v; want a conflict that names it", err)
	}
}

// TestSecretsAreSeenNowhere gives a task secrets with a canary in them and looks
// for it everywhere but in what the agent opens.
func TestSecretsAreSeenNowhere(t *testing.T) {
	const canary = "CANARY-7f3a"
	s := newSite(t, orchestrator.Config{})
	sp := spec(mac(1))
	sp.Secrets = map[string]lpmos.Secret{"root-password": lpmos.NewSecret("$6$" + canary), "join-token": lpmos.NewSecret("tok-" + canary)}
	var log bytes.Buffer
	out := slog.New(slog.NewJSONHandler(&log, nil))
	out.Info("spec", "spec", sp, "secret", sp.Secrets["join-token"], "text", fmt.Sprintf("%v %+v %#v %s", sp, sp, sp, sp.Secrets))
	task, err := s.Create(t.Context(), sp, "ada", "")
	s.ok(err)
	seen := func(where string, v any) {
		t.Helper()
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{string(b), fmt.Sprintf("%+v", v)} {
			if strings.Contains(text, canary) {
				t.Errorf("%s shows the secret: %.300s", where, text)
			}
		}
	}
	dump := func(when string) (sealed int) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for b, err := range s.store.Changes(ctx, store.All) {
			s.ok(err)
			for _, c := range b.Changes {
				if bytes.Contains(c.Value, []byte(canary)) {
					t.Errorf("%s: %s holds the secret", when, c.Key)
				}
				if c.Key.Kind == store.KindSecrets {
					sealed++
				}
			}
			break
		}
		return sealed
	}
	seen("the task", task)
	if strings.Contains(log.String(), canary) {
		t.Errorf("a log shows the secret: %s", log.String())
	}
	if n := dump("created"); n != 1 {
		t.Errorf("%d sealed secrets; want one", n)
	}
	s.ok(s.sess.PutHardware(t.Context(), task.ID, 1, hardware(mac(1))))
	task = s.is(task.ID, lpmos.AwaitingApproval)
	if n := len(task.Plan.Effect.Secrets); n != 2 {
		t.Fatalf("the plan commits to %d secrets; want 2", n)
	}
	seen("the plan", task)
	task = s.approve(task)
	req := s.request(task, 1, strings.Repeat("3", 64))
	s.ok(s.sess.PutPermitRequest(t.Context(), req))
	task = s.is(task.ID, lpmos.Installing)
	rec, err := s.store.Task(t.Context(), task.ID)
	s.ok(err)
	if rec.Secrets == nil || rec.Secrets.ForAgent == nil || rec.Secrets.ForAgent.AgentKey != rec.Permit.AgentKey {
		t.Fatalf("sealed for %+v; want the agent of the permit", rec.Secrets)
	}
	dump("installing")
	bound := lpmos.SecretContext(task.ID, 1, task.Approval.PlanDigest)
	if _, err := newKey().Open(bound, rec.Secrets.ForAgent.Sealed); err == nil {
		t.Error("another agent can open the secrets")
	}
	if _, err := agentKey.Open(lpmos.SecretContext(task.ID, 2, task.Approval.PlanDigest), rec.Secrets.ForAgent.Sealed); err == nil {
		t.Error("the secrets open for another attempt")
	}
	raw, err := agentKey.Open(bound, rec.Secrets.ForAgent.Sealed)
	s.ok(err)
	set, err := lpmos.ParseSecretSet(raw)
	s.ok(err)
	values, err := set.Check(task.Plan.Effect.Secrets)
	s.ok(err)
	if values["join-token"].Reveal() != "tok-"+canary {
		t.Errorf("the agent sees %q", values["join-token"].Reveal())
	}
	if _, err := set.Check(task.Plan.Effect.Secrets[:1]); err == nil {
		t.Error("more secrets than the plan commits to are taken")
	}
	other, err := lpmos.NewSecretSet(map[string]lpmos.Secret{"root-password": lpmos.NewSecret("x"), "join-token": lpmos.NewSecret("y")})
	s.ok(err)
	if _, err := other.Check(task.Plan.Effect.Secrets); err == nil {
		t.Error("other values than the plan commits to are taken")
	}
	s.ok(s.sess.PutResult(t.Context(), lpmos.Result{TaskID: task.ID, Attempt: 1, OK: true, Written: true}))
	s.is(task.ID, lpmos.Verifying)
	if rec, err := s.store.Task(t.Context(), task.ID); err != nil || rec.Secrets == nil || rec.Secrets.ForAgent != nil {
		t.Errorf("after the attempt: %+v, %v; want nothing sealed for an agent", rec.Secrets, err)
	}
	root, _ := task.Plan.Effect.Partition("root")
	s.ok(s.sess.PutBooted(t.Context(), task.ID, 1, lpmos.Receipt{RootFSUUID: root.UUID}))
	s.is(task.ID, lpmos.Completed)
	if n := dump("completed"); n != 0 {
		t.Errorf("%d sealed secrets outlive the task", n)
	}
	for _, e := range s.history(task.ID) {
		seen("the history", e)
	}
}

// What a region's agent server saw is on the task's timeline, once.
func TestAlarmIsOnTheTimeline(t *testing.T) {
	s := newSite(t, orchestrator.Config{})
	task := s.create(mac(1))
	pub := agentKey.Public()
	alarm := func(count int) {
		s.ok(s.sess.PutAgent(t.Context(), lpmos.AgentRecord{TaskID: task.ID, Attempt: 1, BootSeq: 1, Key: &pub, Alarm: &lpmos.Alarm{
			Code: "credential_stolen", Message: "Somebody used this machine's credential without its key.", Address: "10.0.0.9", Count: count, At: time.Now().UTC()}}))
	}
	alarm(1)
	s.eventually("the alarm is seen", func() bool {
		x, _ := s.state.Task(task.ID)
		return x.Alarm != nil && x.Alarm.Code == "credential_stolen"
	})
	alarm(2)
	alarm(10)
	s.eventually("ten more are seen", func() bool { x, _ := s.state.Task(task.ID); return x.Alarm.Count == 10 })
	if got := causes(s.history(task.ID)); got != "created alarm alarm" {
		t.Errorf("history = %s; want two alarms for eleven", got)
	}
	if x := s.is(task.ID, lpmos.Pending); x.AgentKey == nil || x.AgentKey.Words != lpmos.KeyWords(pub.Fingerprint()) {
		t.Errorf("agent key = %+v", x.AgentKey)
	}
}

// TestPasswordsOfProfiles follows the hash of an account's password from the
// profile to the agent, and looks for it everywhere else.
func TestPasswordsOfProfiles(t *testing.T) {
	hash := "$6$CANARY7f3a$" + strings.Repeat("x", 86)
	s := newSite(t, orchestrator.Config{})
	nowhere := func(when string, v any) {
		t.Helper()
		if b, err := json.Marshal(v); err != nil || bytes.Contains(b, []byte("CANARY")) || strings.Contains(fmt.Sprintf("%+v", v), "CANARY") {
			t.Errorf("%s shows the hash, %v: %.300s", when, err, b)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for b, err := range s.store.Changes(ctx, store.All) {
			s.ok(err)
			for _, c := range b.Changes {
				if bytes.Contains(c.Value, []byte("CANARY")) {
					t.Errorf("%s: %s holds the hash", when, c.Key)
				}
			}
			break
		}
	}
	p, err := s.PutProfile(t.Context(), lpmos.Profile{Name: "web", System: &lpmos.Setup{Users: []lpmos.Account{{Name: "ops", PasswordHash: lpmos.NewSecret(hash)}}}}, 0, "ada")
	s.ok(err)
	nowhere("the profile", p)
	s.eventually("the profile is known", func() bool { _, ok := s.state.Profile("web"); return ok })
	first, _ := s.state.Profile("web")
	// What is read and sent back with a change keeps the password.
	p.Description, p.Sealed = "changed", ""
	p, err = s.PutProfile(t.Context(), p, p.Version, "ada")
	s.ok(err)
	if p.Sealed == "" || !p.System.Users[0].Password {
		t.Fatalf("the changed profile is %+v", p)
	}
	s.eventually("the change is known", func() bool { now, _ := s.state.Profile("web"); return now.Version == 2 })
	// A replica that has not heard of that yet takes no password from before it.
	late := orchestrator.New(orchestrator.Config{Key: s.key}, lagging{s.state, first}, s.store, discard)
	if got, err := late.PutProfile(t.Context(), p, p.Version, "ada"); !errors.Is(err, lpmos.ErrConflict) {
		t.Errorf("a change on a replica that is behind = %s, %v; want ErrConflict", got.Ref(), err)
	}
	sp := spec(mac(1))
	sp.Profile = "web"
	task, err := s.Create(t.Context(), sp, "ada", "")
	s.ok(err)
	s.ok(s.sess.PutHardware(t.Context(), task.ID, 1, hardware(mac(1))))
	task = s.is(task.ID, lpmos.AwaitingApproval)
	nowhere("the task", task)
	if secrets := task.Plan.Effect.Secrets; len(secrets) != 1 || secrets[0].Name != "password.ops" {
		t.Fatalf("the plan commits to %+v; want the password", secrets)
	}
	task = s.approve(task)
	s.ok(s.sess.PutPermitRequest(t.Context(), s.request(task, 1, strings.Repeat("3", 64))))
	task = s.is(task.ID, lpmos.Installing)
	rec, err := s.store.Task(t.Context(), task.ID)
	s.ok(err)
	raw, err := agentKey.Open(lpmos.SecretContext(task.ID, 1, task.Approval.PlanDigest), rec.Secrets.ForAgent.Sealed)
	s.ok(err)
	set, err := lpmos.ParseSecretSet(raw)
	s.ok(err)
	if values, err := set.Check(task.Plan.Effect.Secrets); err != nil || values["password.ops"].Reveal() != hash {
		t.Errorf("the agent gets %v, %v", values, err)
	}

	// Without an account that has one, nothing is kept.
	p.System.Users[0].Password = false
	p, err = s.PutProfile(t.Context(), p, p.Version, "ada")
	s.ok(err)
	if p.Sealed != "" {
		t.Error("a password that no account has is kept")
	}
	sp = spec(mac(2))
	sp.Secrets = map[string]lpmos.Secret{"password.ops": lpmos.NewSecret("CANARY-plain")}
	if _, err := s.Create(t.Context(), sp, "ada", ""); err == nil || strings.Contains(err.Error(), "CANARY") || !strings.Contains(err.Error(), "secrets.password.ops") {
		t.Errorf("Create with a password that is no hash = %v", err)
	}
}

// lagging has not heard of the newest version of a profile.
type lagging struct {
	*state.State
	profile lpmos.Profile
}

func (l lagging) Profile(string) (lpmos.Profile, bool) { return l.profile, true }
