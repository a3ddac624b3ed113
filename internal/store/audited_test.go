package store_test

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/store"
	"github.com/lpmos/lpmos/internal/store/storetest"
)

var signingKey = ed25519.NewKeyFromSeed(make([]byte, 32))

func sign(h *lpmos.AuditHead) { h.Sign(signingKey) }

// tampered is a store with etcd's own client beside it.
func tampered(t *testing.T) (*store.Store, *clientv3.Client) {
	t.Helper()
	e, s := storetest.Start(t)
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{e.Endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return s, c
}

// check verifies what the store exports.
func check(t *testing.T, s *store.Store) (lpmos.AuditReport, error) {
	t.Helper()
	v := &lpmos.AuditVerifier{Keys: []ed25519.PublicKey{signingKey.Public().(ed25519.PublicKey)}}
	err := s.ExportAudit(t.Context(), func(r lpmos.AuditRecord) error {
		b, err := json.Marshal(r)
		if err != nil {
			return err
		}
		var read lpmos.AuditRecord
		if err := json.Unmarshal(b, &read); err != nil {
			return err
		}
		return v.Add(read)
	})
	if err != nil {
		return lpmos.AuditReport{}, err
	}
	return v.Report()
}

func hash(n int) string { return strings.Repeat(fmt.Sprintf("%02x", n), 32) }

// Every method of the store that writes is here: those of administrators make
// one entry, in the very transaction of the change; the others make none. A
// method that is added has to be put into one of the lists.
func TestEveryAdministrativeWriteHasItsEntry(t *testing.T) {
	s, raw := tampered(t)
	ctx := lpmos.WithActor(t.Context(), lpmos.Actor{Name: "anna", From: "192.0.2.7", Via: "token ci"})
	mac := lpmos.MustMAC("52:54:00:00:00:01")
	image := lpmos.Image{OS: "debian", Version: "12", Arch: "amd64", Digest: "sha256:" + hash(1)}
	last := func(_ any, err error) error { return err }
	var taskID string
	steps := []struct {
		method string // of Store
		action string // of its entry
		key    store.Key
		do     func() error
	}{
		{"CreateFirstUser", "user.create", store.Key{Kind: store.KindUser, Name: "admin"}, func() error {
			return last(s.CreateFirstUser(ctx, lpmos.User{Name: "admin", Role: lpmos.Admin, Password: "$argon2id$canary"}))
		}},
		{"CreateUser", "user.create", store.Key{Kind: store.KindUser, Name: "bob"}, func() error {
			return last(s.CreateUser(ctx, lpmos.User{Name: "bob", Role: lpmos.Viewer, Password: "$argon2id$canary"}))
		}},
		{"UpdateUser", "user.update", store.Key{Kind: store.KindUser, Name: "bob"}, func() error {
			_, _, err := s.UpdateUser(ctx, "bob", func(u *lpmos.User) error { u.Role = lpmos.Admin; return nil })
			return err
		}},
		{"UpdateUser", "user.password", store.Key{Kind: store.KindUser, Name: "bob"}, func() error {
			_, _, err := s.UpdateUser(ctx, "bob", func(u *lpmos.User) error { u.Password, u.Epoch = "$argon2id$canary2", 1; return nil })
			return err
		}},
		{"CreateToken", "token.create", store.Key{Kind: store.KindToken, Name: hash(2)}, func() error {
			return last(s.CreateToken(ctx, hash(2), lpmos.APIToken{Name: "ci", User: "bob", Role: lpmos.Viewer}))
		}},
		{"DeleteToken", "token.delete", store.Key{Kind: store.KindToken, Name: hash(2)}, func() error { return last(s.DeleteToken(ctx, hash(2))) }},
		{"EndSignIn", "session.end", store.Key{Kind: store.KindSignIn, Name: hash(3)}, func() error {
			if _, err := s.CreateSignIn(ctx, hash(3), lpmos.SignIn{User: "bob", Epoch: 1}, time.Hour); err != nil {
				return err
			}
			return last(s.EndSignIn(ctx, hash(3)))
		}},
		{"DeleteUser", "user.delete", store.Key{Kind: store.KindUser, Name: "bob"}, func() error { return last(s.DeleteUser(ctx, "bob")) }},
		{"PutEnrollment", "region.enroll", store.Key{Kind: store.KindEnrollment, Name: hash(4)}, func() error {
			return s.PutEnrollment(ctx, hash(4), store.Enrollment{Region: "dc1", By: "anna", ExpiresAt: time.Now().Add(time.Hour)})
		}},
		{"Redeem", "region.redeem", store.Key{Kind: store.KindIdentity, Region: "dc1"}, func() error {
			return last(s.Redeem(ctx, hash(4), hash(5), time.Now(), func(store.Enrollment, store.Identity) error { return nil }))
		}},
		{"EditIdentity", "region.certificate", store.Key{Kind: store.KindIdentity, Region: "dc1"}, func() error {
			return s.EditIdentity(ctx, "dc1", func(id *store.Identity) error {
				id.Certificates = append(id.Certificates, store.RegionCertificate{User: 1, Serial: "ab"})
				return nil
			})
		}},
		{"EditIdentity", "region.rotate", store.Key{Kind: store.KindIdentity, Region: "dc1"}, func() error {
			return s.EditIdentity(ctx, "dc1", func(id *store.Identity) error { id.RotateAfter = time.Now(); return nil })
		}},
		{"EditIdentity", "region.revoke", store.Key{Kind: store.KindIdentity, Region: "dc1"}, func() error {
			return s.EditIdentity(ctx, "dc1", func(id *store.Identity) error { id.Certificates = nil; return nil })
		}},
		{"PutImage", "image.create", store.Key{Kind: store.KindImage, OS: "debian", Version: "12", Arch: "amd64"}, func() error { return s.PutImage(ctx, image) }},
		{"PutImageIf", "image.update", store.Key{Kind: store.KindImage, OS: "debian", Version: "12", Arch: "amd64"}, func() error {
			other := image
			other.Title = "Debian"
			return last(s.PutImageIf(ctx, other, -1))
		}},
		{"DeleteImageIf", "image.delete", store.Key{Kind: store.KindImage, OS: "debian", Version: "12", Arch: "amd64"}, func() error {
			_, err := s.DeleteImageIf(ctx, "debian", "12", "amd64", -1)
			return err
		}},
		{"DeleteImage", "image.delete", store.Key{Kind: store.KindImage, OS: "debian", Version: "12", Arch: "amd64"}, func() error {
			if err := s.PutImage(t.Context(), image); err != nil {
				return err
			}
			return s.DeleteImage(ctx, "debian", "12", "amd64")
		}},
		{"PutProfile", "profile.create", store.Key{Kind: store.KindProfile, Name: "web"}, func() error { return last(s.PutProfile(ctx, lpmos.Profile{Name: "web"}, 0)) }},
		{"PutProfile", "profile.update", store.Key{Kind: store.KindProfile, Name: "web"}, func() error {
			return last(s.PutProfile(ctx, lpmos.Profile{Name: "web", Notes: "n"}, 1))
		}},
		{"DeleteProfile", "profile.delete", store.Key{Kind: store.KindProfile, Name: "web"}, func() error { _, err := s.DeleteProfile(ctx, "web", 2); return err }},
		{"PutTemplate", "template.create", store.Key{Kind: store.KindTemplate, Name: "base"}, func() error {
			return last(s.PutTemplate(ctx, lpmos.Template{Name: "base", Kind: lpmos.TemplateUserData, Text: "#cloud-config\npassword: canary"}, 0))
		}},
		{"DeleteTemplate", "template.delete", store.Key{Kind: store.KindTemplate, Name: "base"}, func() error { _, err := s.DeleteTemplate(ctx, "base", 0); return err }},
		{"UpdateGlobal", "limits.set", store.Key{Kind: store.KindGlobal}, func() error {
			return last(s.UpdateGlobal(ctx, func(g *store.Global) error { g.PermitsPerMinute = 7; return nil }))
		}},
		{"UpdateGlobal", "bootimage.publish", store.Key{Kind: store.KindGlobal}, func() error {
			return last(s.UpdateGlobal(ctx, func(g *store.Global) error { g.BootImage = &lpmos.BootImage{Version: "6.1"}; return nil }))
		}},
		{"UpdateGlobal", "config.update", store.Key{Kind: store.KindGlobal}, func() error {
			return last(s.UpdateGlobal(ctx, func(g *store.Global) error {
				g.Keys = [][]byte{signingKey.Public().(ed25519.PublicKey)}
				return nil
			}))
		}},
		{"UpdateGlobal", "policy.set", store.Key{Kind: store.KindGlobal}, func() error {
			return last(s.UpdateGlobal(ctx, func(g *store.Global) error {
				g.Approvals = lpmos.ApprovalPolicy{Rules: []lpmos.ApprovalRule{{Approvers: 2}}}
				return nil
			}))
		}},
		{"ForgetTPM", "machine.tpm_forget", store.Key{Kind: store.KindTPM, MAC: mac}, func() error {
			if _, err := raw.Put(ctx, store.Key{Kind: store.KindTPM, MAC: mac}.String(), `{"task_id":"t"}`); err != nil {
				return err
			}
			return last(s.ForgetTPM(ctx, []lpmos.MAC{mac}))
		}},
		{"PutLock", "machine.lock", store.Key{Kind: store.KindLock, MAC: mac}, func() error { return last(s.PutLock(ctx, []lpmos.MAC{mac}, lpmos.Lock{By: "anna", Reason: "r"})) }},
		{"DeleteLock", "machine.unlock", store.Key{Kind: store.KindLock, MAC: mac}, func() error { return last(s.DeleteLock(ctx, []lpmos.MAC{mac})) }},
		{"PutStop", "stop.begin", store.Key{Kind: store.KindStop}, func() error { return last(s.PutStop(ctx, lpmos.Stop{By: "anna", Reason: "r"})) }},
		{"DeleteStop", "stop.end", store.Key{Kind: store.KindStop}, func() error { return last(s.DeleteStop(ctx)) }},
		{"DeleteTask", lpmos.AuditTaskDeleted, store.Key{}, func() error {
			task, err := s.CreateTask(ctx, lpmos.Spec{RegionID: "dc1", TargetMAC: mac, OSType: "debian", OSVersion: "12"}, "anna", "")
			if err != nil {
				return err
			}
			taskID = task.ID
			if _, err := s.Transition(ctx, task.ID, store.Move{Cause: lpmos.CauseCanceled, By: "anna"}, nil); err != nil {
				return err
			}
			return s.DeleteTask(ctx, task.ID)
		}},
	}
	covered := map[string]bool{}
	for i, step := range steps {
		before, err := s.AuditEnd(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.method, err)
		}
		covered[step.method] = true
		end, err := s.AuditEnd(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		extra := int64(1)
		if step.method == "DeleteImage" {
			extra = 2
		}
		if step.method == "CreateFirstUser" && i == 0 && end.Seq != 1 || end.Seq != before.Seq+extra {
			t.Errorf("%s: the audit ends at %d after %d; want %d more", step.method, end.Seq, before.Seq, extra)
			continue
		}
		e, err := s.AuditEntry(t.Context(), end.Seq)
		if err != nil {
			t.Fatal(err)
		}
		if e.Action != step.action || e.By != "anna" || e.Peer != "192.0.2.7" || e.Via != "token ci" || !slices.Contains(lpmos.AuditActions, e.Action) {
			t.Errorf("%s: its entry is %+v; want %s by anna, from 192.0.2.7, with token ci", step.method, e, step.action)
		}
		if text := string(e.Before) + string(e.After); strings.Contains(text, "canary") || strings.Contains(text, hash(2)) || e.Before == nil && e.After == nil {
			t.Errorf("%s: before %s, after %s: empty, or with a secret", step.method, e.Before, e.After)
		}
		// The same revision: one transaction.
		r, err := raw.Get(t.Context(), store.Key{Kind: store.KindAuditEntry, Seq: end.Seq}.String())
		if err != nil {
			t.Fatal(err)
		}
		rev := r.Kvs[0].ModRevision
		key := step.key.String
		if step.method == "DeleteTask" {
			key = store.Key{Kind: store.KindStatus, TaskID: taskID}.String
			if e.Heads[taskID].Seq != 2 {
				t.Errorf("the entry of a deleted task notes %+v; want its chain, which had 2 events", e.Heads)
			}
		}
		is, err := raw.Get(t.Context(), key(), clientv3.WithRev(rev))
		if err != nil {
			t.Fatal(err)
		}
		was, err := raw.Get(t.Context(), key(), clientv3.WithRev(rev-1))
		if err != nil {
			t.Fatal(err)
		}
		if len(is.Kvs) == len(was.Kvs) && (len(is.Kvs) == 0 || is.Kvs[0].ModRevision != rev) {
			t.Errorf("%s: %s was not changed in the transaction of its entry", step.method, key())
		}
	}
	r, err := check(t, s)
	if err != nil || r.First != 1 {
		t.Errorf("the audit of all this = %+v, %v", r, err)
	}

	others := strings.Fields(`ArchiveTasks AuditEnd AuditEntries AuditEntry Batch BatchProgress CanAdminister Changes Close Compact Create CreateBatch CreateBatchTask CreateSignIn
		CreateTask DeleteRegionUsers DeleteSignIn Discovered Events ExportAudit FoldProgress FollowIdentity ForgetTries Healthy ID Identity KnownBatch KnownTask MachineInfo NoteTasks NoteTry OpenBatches
		OpenSession PutRegionUser RefreshRegionRoles Secure Secured SetRegionStatus SignAudit SignIn SignedHeads Stop Task Token TouchSignIn TouchToken Transition Tries TrimAudit`)
	for m := range reflect.TypeFor[*store.Store]().Methods() {
		if !covered[m.Name] && !slices.Contains(others, m.Name) {
			t.Errorf("Store.%s is new: if it changes what administrators decide, try it above; else put it on the list", m.Name)
		}
	}
}

// Of many who write at once each has an entry, without gaps and forks, also from
// several processes.
func TestAuditOfManyWritersAtOnce(t *testing.T) {
	e, one := storetest.Start(t)
	stores := []*store.Store{one, storetest.Connect(t, e), storetest.Connect(t, e)}
	const each = 15
	var wg sync.WaitGroup
	for i, s := range stores {
		for n := range each {
			wg.Go(func() {
				if _, err := s.CreateUser(t.Context(), lpmos.User{Name: fmt.Sprintf("u%d-%d", i, n), Role: lpmos.Viewer}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Go(func() { // what is refused leaves no entry
			if _, err := s.DeleteUser(t.Context(), "nobody"); !errors.Is(err, lpmos.ErrNotFound) {
				t.Errorf("delete nobody = %v", err)
			}
		})
	}
	wg.Wait()
	r, err := check(t, one)
	if want := int64(each * len(stores)); err != nil || r.Last != want {
		t.Errorf("the audit = %+v, %v; want %d entries", r, err, want)
	}
}

// A condition that does not hold writes neither the change nor an entry, and is
// told from another writer who was quicker.
func TestAuditOfWhatIsRefused(t *testing.T) {
	e, s := storetest.Start(t)
	other := storetest.Connect(t, e)
	ctx := t.Context()
	for i, u := range []string{"a", "b", "c", "d"} {
		st := []*store.Store{s, other}[i%2]
		if _, err := st.CreateUser(ctx, lpmos.User{Name: u, Role: lpmos.Viewer}); err != nil {
			t.Fatal(err)
		}
	}
	for _, st := range []*store.Store{s, other} {
		if made, err := st.CreateFirstUser(ctx, lpmos.User{Name: "admin"}); made || err != nil {
			t.Errorf("CreateFirstUser where there are users = %v, %v", made, err)
		}
		if _, err := st.CreateUser(ctx, lpmos.User{Name: "a"}); !errors.Is(err, lpmos.ErrConflict) {
			t.Errorf("CreateUser of one that exists = %v", err)
		}
	}
	if r, err := check(t, s); err != nil || r.Last != 4 {
		t.Errorf("the audit = %+v, %v; want 4 entries", r, err)
	}
}

// X07: what somebody does who has etcd's own client is named.
func TestAuditTamperedWith(t *testing.T) {
	ctx := t.Context()
	key := func(seq int64) string { return store.Key{Kind: store.KindAuditEntry, Seq: seq}.String() }
	head := store.Key{Kind: store.KindAuditHead}.String()
	s, raw := tampered(t)
	get := func(k string) string {
		t.Helper()
		r, err := raw.Get(ctx, k)
		if err != nil || len(r.Kvs) == 0 {
			t.Fatalf("read %s: %v", k, err)
		}
		return string(r.Kvs[0].Value)
	}
	put := func(k, v string) {
		t.Helper()
		if _, err := raw.Put(ctx, k, v); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(k string, opts ...clientv3.OpOption) {
		t.Helper()
		if _, err := raw.Delete(ctx, k, opts...); err != nil {
			t.Fatal(err)
		}
	}
	user := func(name string) {
		t.Helper()
		if _, err := s.CreateUser(ctx, lpmos.User{Name: name, Role: lpmos.Viewer}); err != nil {
			t.Fatal(err)
		}
	}
	var tasks []string
	for i := range 2 {
		task, err := s.CreateTask(ctx, lpmos.Spec{RegionID: "dc1", TargetMAC: lpmos.MAC{2, 0, 0, 0, 0, byte(i + 1)}, OSType: "debian", OSVersion: "12"}, "anna", "")
		if err != nil {
			t.Fatal(err)
		}
		tasks = append(tasks, task.ID)
		if _, err := s.Transition(ctx, task.ID, store.Move{Cause: lpmos.CauseCanceled, By: "anna"}, nil); err != nil {
			t.Fatal(err)
		}
	}
	user("a")
	user("b")
	user("c")
	if err := s.NoteTasks(ctx, tasks); err != nil {
		t.Fatal(err)
	}
	signed, err := s.SignAudit(ctx, sign)
	if err != nil || signed.Seq != 4 {
		t.Fatalf("SignAudit = %+v, %v; want the head of entry 4", signed, err)
	}
	if again, err := s.SignAudit(ctx, sign); err != nil || again.Seq != 4 || !again.At.Equal(signed.At) {
		t.Errorf("signed again = %+v, %v; want the one there is", again, err)
	}
	user("d")
	if r, err := check(t, s); err != nil || r.Last != 5 || r.Unsigned() != 1 || r.Tasks != 2 || r.Events != 4 {
		t.Fatalf("untouched = %+v, %v", r, err)
	}

	entries := map[string]string{head: get(head)}
	for seq := int64(1); seq <= 5; seq++ {
		entries[key(seq)] = get(key(seq))
	}
	signedKey := store.Key{Kind: store.KindSignedHead, Seq: 4}.String()
	entries[signedKey] = get(signedKey)
	event := func(task string, seq int64) string {
		return store.Key{Kind: store.KindEvent, TaskID: task, Seq: seq}.String()
	}
	for _, id := range tasks {
		entries[event(id, 1)], entries[event(id, 2)] = get(event(id, 1)), get(event(id, 2))
	}
	restore := func() {
		for k, v := range entries {
			put(k, v)
		}
	}
	for _, tt := range []struct {
		name string
		do   func()
		want string
	}{
		{"an entry altered by hand", func() { put(key(2), strings.Replace(get(key(2)), `"viewer"`, `"admin"`, 1)) }, "entry 2 (user.create of user b by orchestrator"},
		{"an entry that is no JSON any more", func() { put(key(3), "rm -rf") }, "entry 3 cannot be read"},
		{"an entry removed from the middle", func() { remove(key(2)) }, "entry 2 is missing before entry 3"},
		{"two entries exchanged", func() { put(key(1), entries[key(2)]); put(key(2), entries[key(1)]) }, "entry 1 is not the one that was written: what is kept in its place is entry 2"},
		{"the end cut off, with the head put back", func() {
			remove(key(4))
			remove(key(5))
			var e lpmos.AuditEntry
			if err := json.Unmarshal([]byte(entries[key(3)]), &e); err != nil {
				t.Fatal(err)
			}
			put(head, fmt.Sprintf(`{"seq":3,"hash":%q}`, e.Hash))
		}, "entry 4 is missing at the end: a head that was signed"},
		{"the unsigned end cut off", func() { remove(key(5)) }, "entry 5 is missing at the end: the store says that entry 5 is the last"},
		{"everything cut off", func() { remove("/lpmos/audit/entries/", clientv3.WithPrefix()) }, "entries 1 to 4 are missing"},
		{"the events of two tasks exchanged", func() {
			for _, seq := range []int64{1, 2} {
				put(event(tasks[0], seq), entries[event(tasks[1], seq)])
				put(event(tasks[1], seq), entries[event(tasks[0], seq)])
			}
		}, "its event 1 is one of task"},
		{"a task's event altered", func() { put(event(tasks[0], 2), strings.Replace(entries[event(tasks[0], 2)], "anna", "bob", 1)) }, "task " + tasks[0] + ": its event 2 (canceled by bob"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.do()
			defer restore()
			_, err := check(t, s)
			if bad, ok := errors.AsType[*lpmos.AuditError](err); !ok || !strings.Contains(bad.Error(), tt.want) {
				t.Errorf("= %v; want %q", err, tt.want)
			}
		})
	}
	t.Run("nothing that was altered is signed", func(t *testing.T) {
		put(key(5), strings.Replace(entries[key(5)], `"viewer"`, `"admin"`, 1))
		if h, err := s.SignAudit(ctx, sign); err == nil || !strings.Contains(err.Error(), "entry 5") {
			t.Errorf("SignAudit = %+v, %v; want that entry 5 was altered", h, err)
		}
		restore()
	})
	t.Run("the head put back overwrites nothing", func(t *testing.T) {
		var e lpmos.AuditEntry
		if err := json.Unmarshal([]byte(entries[key(4)]), &e); err != nil {
			t.Fatal(err)
		}
		put(head, fmt.Sprintf(`{"seq":4,"hash":%q}`, e.Hash))
		if _, err := s.CreateUser(ctx, lpmos.User{Name: "e"}); err == nil || !strings.Contains(err.Error(), "lpmos audit verify") {
			t.Errorf("CreateUser = %v; want it refused", err)
		}
		if get(key(5)) != entries[key(5)] {
			t.Error("entry 5 was overwritten")
		}
		restore()
		user("e")
		if r, err := check(t, s); err != nil || r.Last != 6 {
			t.Errorf("afterwards = %+v, %v", r, err)
		}
	})
	t.Run("a task that is removed whole", func(t *testing.T) {
		remove("/lpmos/tasks/"+tasks[0]+"/", clientv3.WithPrefix())
		if _, err := check(t, s); err == nil || !strings.Contains(err.Error(), "task "+tasks[0]+": it is gone with all its events, and nobody deleted it") {
			t.Errorf("= %v", err)
		}
	})
	t.Run("a task that somebody deleted", func(t *testing.T) {
		if err := s.DeleteTask(ctx, tasks[1]); err != nil {
			t.Fatal(err)
		}
		if _, err := check(t, s); err == nil || strings.Contains(err.Error(), tasks[1]) {
			t.Errorf("= %v; want the other task still", err)
		}
	})
}

// What is old goes up to a signed head, which then says so; the rest is whole.
func TestAuditTrimmed(t *testing.T) {
	s := storetest.New(t)
	ctx := t.Context()
	for i := range 6 {
		if _, err := s.CreateUser(ctx, lpmos.User{Name: fmt.Sprintf("u%d", i)}); err != nil {
			t.Fatal(err)
		}
		if i%2 == 1 {
			if _, err := s.SignAudit(ctx, sign); err != nil {
				t.Fatal(err)
			}
		}
	}
	heads, err := s.SignedHeads(ctx)
	if err != nil || len(heads) != 3 {
		t.Fatalf("%d heads, %v; want 3", len(heads), err)
	}
	if trimmed, err := s.TrimAudit(ctx, heads[0].At, sign); trimmed || err != nil {
		t.Errorf("TrimAudit of nothing = %v, %v", trimmed, err)
	}
	if trimmed, err := s.TrimAudit(ctx, heads[1].At.Add(time.Nanosecond), sign); !trimmed || err != nil {
		t.Errorf("TrimAudit = %v, %v", trimmed, err)
	}
	r, err := check(t, s)
	if err != nil || r.First != 5 || r.Last != 6 {
		t.Errorf("afterwards = %+v, %v; want entries 5 and 6", r, err)
	}
	if _, err := s.AuditEntry(ctx, 4); !errors.Is(err, lpmos.ErrNotFound) {
		t.Errorf("entry 4 = %v; want it gone", err)
	}
	if trimmed, err := s.TrimAudit(ctx, heads[1].At.Add(time.Nanosecond), sign); trimmed || err != nil {
		t.Errorf("TrimAudit again = %v, %v", trimmed, err)
	}
}

// A task's events say from where.
func TestEventsSayFromWhere(t *testing.T) {
	s := storetest.New(t)
	ctx := lpmos.WithActor(t.Context(), lpmos.Actor{Name: "anna", From: "192.0.2.7", Via: "token ci"})
	task, err := s.CreateTask(ctx, lpmos.Spec{RegionID: "dc1", TargetMAC: lpmos.MAC{2, 0, 0, 0, 0, 1}, OSType: "debian", OSVersion: "12"}, "anna", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Transition(ctx, task.ID, store.Move{Cause: lpmos.CauseCanceled, By: "orchestrator"}, nil); err != nil {
		t.Fatal(err)
	}
	events, err := s.Events(t.Context(), task.ID)
	if err != nil {
		t.Fatal(err)
	}
	if e := events[0]; e.By != "anna" || e.Peer != "192.0.2.7" || e.Via != "token ci" {
		t.Errorf("created by %q from %q with %q", e.By, e.Peer, e.Via)
	}
	if e := events[1]; e.Peer != "" || e.Via != "" {
		t.Errorf("what LPMOS did for anna is from %q with %q; want neither", e.Peer, e.Via)
	}
	if err := lpmos.VerifyEvents(events); err != nil {
		t.Error(err)
	}
}
