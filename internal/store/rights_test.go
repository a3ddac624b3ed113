package store_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/pki"
	"github.com/lpmos/lpmos/internal/store"
	"github.com/lpmos/lpmos/internal/store/storetest"
)

var quiet = slog.New(slog.DiscardHandler)

// TestRightsDocument holds the table of rights in docs/keyspace.md and the code
// together, and the column of writers and the code.
func TestRightsDocument(t *testing.T) {
	b, err := os.ReadFile("../../docs/keyspace.md")
	if err != nil {
		t.Fatal(err)
	}
	quoted := func(cell string) (out []string) {
		for i, part := range strings.Split(cell, "`") {
			if i%2 == 1 {
				out = append(out, part)
			}
		}
		slices.Sort(out)
		return out
	}
	of := func(rights []store.Right, write bool) (out []string) {
		for _, r := range rights {
			if r.Write == write {
				out = append(out, r.Key)
			}
		}
		slices.Sort(out)
		return out
	}
	seen := 0
	for line := range strings.Lines(string(b)) {
		cells := strings.Split(strings.Trim(line, "|\n "), "|")
		if len(cells) == 5 && strings.HasPrefix(strings.TrimSpace(cells[0]), "`") {
			kind := store.Kind(strings.Trim(strings.TrimSpace(cells[0]), "`"))
			if !strings.HasPrefix(strings.TrimSpace(cells[2]), string(kind.Writer())) {
				t.Errorf("%s is written by %q; the code says %q", kind, strings.TrimSpace(cells[2]), kind.Writer())
			}
		}
		if len(cells) != 3 {
			continue
		}
		var rights []store.Right
		switch strings.TrimSpace(cells[0]) {
		case "`lpmos-control`":
			rights = store.ControlRights()
		case "`lpmos-region-dc1`":
			rights = store.RegionRights("dc1")
		default:
			continue
		}
		seen++
		if got, want := quoted(cells[1]), of(rights, false); !slices.Equal(got, want) {
			t.Errorf("%s reads %q; the code says %q", cells[0], got, want)
		}
		if got, want := quoted(cells[2]), of(rights, true); !slices.Equal(got, want) {
			t.Errorf("%s writes %q; the code says %q", cells[0], got, want)
		}
	}
	if seen != 2 {
		t.Errorf("the table of rights has %d roles that are known here; want 2", seen)
	}
}

func TestRightsOfARegion(t *testing.T) {
	for _, r := range store.RegionRights("dc1") {
		own := strings.HasPrefix(r.Key, "/lpmos/regions/dc1/")
		if !own && (r.Write || !strings.HasPrefix(r.Key, "/lpmos/config/") || strings.HasSuffix(r.Key, "/")) {
			t.Errorf("a region has %+v", r)
		}
	}
	for user, want := range map[string]string{
		"lpmos-region-dc1.1": "dc1", "lpmos-region-a-b.12": "a-b", "lpmos-region-dc1.0": "dc1",
		"lpmos-region-dc1": "", "lpmos-region-dc1.": "", "lpmos-region-dc1.01": "", "lpmos-region-dc1.-1": "", "lpmos-region-.1": "",
		"lpmos-region-DC1.1": "", "lpmos-region-dc1.1.1": "", "lpmos-control": "", "root": "", "": "", "lpmos-region-dc1.1 ": "", "lpmos-region-../dc1.1": "",
	} {
		if region, n, ok := store.ParseRegionUser(user); ok != (want != "") || ok && (region != want || store.RegionUser(region, n) != user) {
			t.Errorf("ParseRegionUser(%q) = %q, %d, %v", user, region, n, ok)
		}
	}
}

// TestStolenRegionCertificate is E12: what somebody can do who has dc1's key and
// certificate, and etcd's own client.
func TestStolenRegionCertificate(t *testing.T) {
	s := storetest.NewSecured(t)
	ctx := t.Context()
	s.Region("dc1", 1)
	other := s.Region("dc10", 1)
	control := s.Raw(store.ControlUser)
	thief := s.Raw(store.RegionUser("dc1", 1))

	id := lpmos.NewTaskID()
	victim, err := other.OpenSession(ctx, "dc10", "i", lpmos.Capabilities{Hostname: "h"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(victim.Close)
	status := store.Key{Kind: store.KindStatus, TaskID: id}.String()
	approval := store.Key{Kind: store.KindApproval, TaskID: id}.String()
	order := store.Key{Kind: store.KindOrder, Region: "dc1", TaskID: id}.String()
	boot := store.Key{Kind: store.KindBoot, Region: "dc1", MAC: lpmos.MAC{2, 0, 0, 0, 0, 1}}.String()
	result := store.Key{Kind: store.KindReportResult, Region: "dc1", TaskID: id, Attempt: 1}.String()
	theirs := store.Key{Kind: store.KindOrder, Region: "dc10", TaskID: id}.String()
	for k, v := range map[string]string{status: "awaiting_approval", order: "{}", boot: "{}", theirs: "CANARY", "/lpmos/config/global": "{}", "/lpmos/config/profiles/web": "CANARY"} {
		if _, err := control.Put(ctx, k, v); err != nil {
			t.Fatal(err)
		}
	}
	idle, err := control.Grant(ctx, 600)
	if err != nil {
		t.Fatal(err)
	}
	held, err := control.Grant(ctx, 600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := control.Put(ctx, "/lpmos/idempotency/"+strings.Repeat("0a", 32), "{}", clientv3.WithLease(held.ID)); err != nil {
		t.Fatal(err)
	}
	beat, err := control.Get(ctx, store.Key{Kind: store.KindHeartbeat, Region: "dc10"}.String())
	if err != nil || len(beat.Kvs) != 1 {
		t.Fatal(beat, err)
	}
	theirLease := clientv3.LeaseID(beat.Kvs[0].Lease)

	kv := func(op clientv3.Op) func() error {
		return func() error { _, err := thief.Do(ctx, op); return err }
	}
	txn := func(ops ...clientv3.Op) func() error {
		return func() error { _, err := thief.Txn(ctx).Then(ops...).Commit(); return err }
	}
	// Everything that reads is tried on its own and wrapped, where etcd has let
	// it through before: as a compare, in a nested transaction, in the branch
	// that is not taken, as the previous value of a put.
	denied := map[string]func() error{
		"read another region's order":      kv(clientv3.OpGet(theirs)),
		"read another region's range":      kv(clientv3.OpGet("/lpmos/regions/dc10/", clientv3.WithPrefix())),
		"read own range without the slash": kv(clientv3.OpGet("/lpmos/regions/dc1", clientv3.WithPrefix())),
		"read a task":                      kv(clientv3.OpGet(status)),
		"read everything":                  kv(clientv3.OpGet("\x00", clientv3.WithFromKey())),
		"read from own range on":           kv(clientv3.OpGet("/lpmos/regions/dc1/", clientv3.WithFromKey())),
		"count everything":                 kv(clientv3.OpGet("/lpmos/", clientv3.WithPrefix(), clientv3.WithCountOnly())),
		"read everything, serializable":    kv(clientv3.OpGet("/lpmos/", clientv3.WithPrefix(), clientv3.WithSerializable())),
		"read an old revision of a task":   kv(clientv3.OpGet(status, clientv3.WithRev(beat.Header.Revision))),
		"read profiles":                    kv(clientv3.OpGet("/lpmos/config/profiles/", clientv3.WithPrefix())),
		"read all of the configuration":    kv(clientv3.OpGet("/lpmos/config/", clientv3.WithPrefix())),
		"read in a nested transaction":     txn(clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpGet(theirs)}, nil)),
		"read in a branch that is not taken": func() error {
			_, err := thief.Txn(ctx).Else(clientv3.OpGet(theirs)).Commit()
			return err
		},
		"guess a value by comparing": func() error {
			_, err := thief.Txn(ctx).If(clientv3.Compare(clientv3.Value(theirs), "=", "CANARY")).Commit()
			return err
		},
		"guess in a nested transaction": txn(clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.Value(theirs), "=", "CANARY")}, nil, nil)),

		"write an approval":                kv(clientv3.OpPut(approval, `{"approved":true}`)),
		"finish a task":                    kv(clientv3.OpPut(status, "completed")),
		"delete a task":                    kv(clientv3.OpDelete("/lpmos/tasks/"+id+"/", clientv3.WithPrefix())),
		"write an order":                   kv(clientv3.OpPut(order, "{}")),
		"delete an order":                  kv(clientv3.OpDelete(order)),
		"write the boot index":             kv(clientv3.OpPut(boot, "{}")),
		"write its own status":             kv(clientv3.OpPut("/lpmos/regions/dc1/client/status", "online")),
		"write its own identity":           kv(clientv3.OpPut("/lpmos/regions/dc1/identity", "{}")),
		"write another region's reports":   kv(clientv3.OpPut(strings.Replace(result, "/dc1/", "/dc10/", 1), "{}")),
		"take another region's heartbeat":  kv(clientv3.OpDelete(store.Key{Kind: store.KindHeartbeat, Region: "dc10"}.String())),
		"write configuration":              kv(clientv3.OpPut("/lpmos/config/global", "{}")),
		"name the store anew":              kv(clientv3.OpPut("/lpmos/config/store_id", "x")),
		"write an enrollment":              kv(clientv3.OpPut("/lpmos/enrollments/"+strings.Repeat("0a", 32), "{}")),
		"write outside of LPMOS":           kv(clientv3.OpPut("/elsewhere", "x")),
		"delete all it may and more":       kv(clientv3.OpDelete("/lpmos/regions/dc1/", clientv3.WithPrefix())),
		"write in a nested transaction":    txn(clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut(approval, "{}")}, nil)),
		"write beside what it may":         txn(clientv3.OpPut(result, "{}"), clientv3.OpPut(approval, "{}")),
		"see before a put what it may not": kv(clientv3.OpPut(order, "{}", clientv3.WithPrevKV())),

		"end another region's lease":       func() error { _, err := thief.Revoke(ctx, theirLease); return err },
		"keep another region's lease":      func() error { _, err := thief.KeepAliveOnce(ctx, theirLease); return err },
		"end a lease of the control plane": func() error { _, err := thief.Revoke(ctx, held.ID); return err },
		"see what is on a lease": func() error {
			_, err := thief.TimeToLive(ctx, held.ID, clientv3.WithAttachedKeys())
			return err
		},
		"list leases":                      func() error { _, err := thief.Leases(ctx); return err },
		"put its key on another's lease":   kv(clientv3.OpPut(result, "{}", clientv3.WithLease(held.ID))),
		"the same in a nested transaction": txn(clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut(result, "{}", clientv3.WithLease(held.ID))}, nil)),

		"compact": func() error { _, err := thief.Compact(ctx, beat.Header.Revision); return err },
		"take a dump": func() error {
			r, err := thief.Snapshot(ctx)
			if err == nil {
				_, err = r.Read(make([]byte, 1))
				r.Close()
			}
			return err
		},
		"defragment": func() error { _, err := thief.Defragment(ctx, s.URL); return err },
		"hash":       func() error { _, err := thief.HashKV(ctx, s.URL, 0); return err },
		"disarm alarms": func() error {
			_, err := pb.NewMaintenanceClient(thief.ActiveConnection()).Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE})
			return err
		},
		"move the leader": func() error { _, err := thief.MoveLeader(ctx, 1); return err },
		"downgrade": func() error {
			_, err := thief.Downgrade(ctx, clientv3.DowngradeAction(pb.DowngradeRequest_ENABLE), "3.5.0")
			return err
		},
		"add a member":    func() error { _, err := thief.MemberAdd(ctx, []string{"http://192.0.2.1:2380"}); return err },
		"remove a member": func() error { _, err := thief.MemberRemove(ctx, 1); return err },

		"turn authentication off": func() error { _, err := thief.AuthDisable(ctx); return err },
		"make a user":             func() error { _, err := thief.UserAdd(ctx, "eve", "x"); return err },
		"give itself root":        func() error { _, err := thief.UserGrantRole(ctx, store.RegionUser("dc1", 1), "root"); return err },
		"widen its role": func() error {
			_, err := thief.RoleGrantPermission(ctx, store.RegionRole("dc1"), "/lpmos/", clientv3.GetPrefixRangeEnd("/lpmos/"), clientv3.PermissionType(clientv3.PermReadWrite))
			return err
		},
		"set root's password": func() error { _, err := thief.UserChangePassword(ctx, "root", "x"); return err },
		"list users":          func() error { _, err := thief.UserList(ctx); return err },
		"read another role":   func() error { _, err := thief.RoleGet(ctx, store.RegionRole("dc10")); return err },
		"read another user":   func() error { _, err := thief.UserGet(ctx, store.ControlUser); return err },

		"lock a task's key": func() error {
			_, err := v3lockpb.NewLockClient(thief.ActiveConnection()).Lock(ctx, &v3lockpb.LockRequest{Name: []byte("/lpmos/tasks"), Lease: int64(idle.ID)})
			return err
		},
		"campaign for a task's key": func() error {
			_, err := v3electionpb.NewElectionClient(thief.ActiveConnection()).Campaign(ctx, &v3electionpb.CampaignRequest{Name: []byte("/lpmos/tasks"), Lease: int64(idle.ID), Value: []byte("x")})
			return err
		},
		"read a task's key by an election": func() error {
			_, err := v3electionpb.NewElectionClient(thief.ActiveConnection()).Leader(ctx, &v3electionpb.LeaderRequest{Name: []byte("/lpmos/regions/dc10/tasks")})
			return err
		},
		"observe a task's key by an election": func() error {
			octx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			o, err := v3electionpb.NewElectionClient(thief.ActiveConnection()).Observe(octx, &v3electionpb.LeaderRequest{Name: []byte("/lpmos/regions/dc10/tasks")})
			if err != nil {
				return err
			}
			// The watch behind it is denied, and the stream ends without a word.
			if r, err := o.Recv(); err == nil {
				t.Errorf("it saw %v", r)
			}
			return rpctypes.ErrPermissionDenied
		},
	}
	for name, try := range denied {
		t.Run("cannot "+name, func(t *testing.T) {
			err := rpctypes.Error(try())
			if err == nil {
				t.Fatal("it was done")
			}
			if !strings.Contains(err.Error(), "permission denied") {
				t.Errorf("refused with %v; want permission denied", err)
			}
		})
	}
	for name, watch := range map[string]struct {
		key  string
		opts []clientv3.OpOption
	}{
		"another region":           {"/lpmos/regions/dc10/", []clientv3.OpOption{clientv3.WithPrefix()}},
		"its name without a slash": {"/lpmos/regions/dc1", []clientv3.OpOption{clientv3.WithPrefix()}},
		"from its range on":        {"/lpmos/regions/dc1/", []clientv3.OpOption{clientv3.WithFromKey()}},
		"from its last key on":     {"/lpmos/regions/dc1/tasks/zzz", []clientv3.OpOption{clientv3.WithFromKey()}},
		"everything":               {"", []clientv3.OpOption{clientv3.WithPrefix()}},
		"everything from zero":     {"\x00", []clientv3.OpOption{clientv3.WithFromKey()}},
		"a task":                   {status, nil},
		"history of a task":        {status, []clientv3.OpOption{clientv3.WithRev(1), clientv3.WithPrevKV()}},
		"the configuration":        {"/lpmos/config/", []clientv3.OpOption{clientv3.WithPrefix()}},
	} {
		t.Run("cannot watch "+name, func(t *testing.T) {
			wctx, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			r, ok := <-thief.Watch(wctx, watch.key, watch.opts...)
			if !ok || r.Err() == nil || !strings.Contains(r.Err().Error(), "permission denied") {
				t.Errorf("watch answers %+v, %v (open: %v); want permission denied", r.Events, r.Err(), ok)
			}
		})
	}
	t.Run("what was attacked is as it was", func(t *testing.T) {
		for k, want := range map[string]string{status: "awaiting_approval", order: "{}", theirs: "CANARY"} {
			if r, err := control.Get(ctx, k); err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != want || r.Kvs[0].Version != 1 {
				t.Errorf("%s is %v, %v", k, r, err)
			}
		}
		select {
		case <-victim.Lost():
			t.Error("the other region lost its session")
		default:
		}
	})

	// What etcd allows to everybody who has a certificate. docs/security.md says
	// what follows from it; should a newer etcd deny it, this test tells.
	t.Run("can, and it is known", func(t *testing.T) {
		if _, err := thief.KeepAliveOnce(ctx, idle.ID); err != nil {
			t.Errorf("keep a lease without keys: %v", err)
		}
		if _, err := thief.Revoke(ctx, idle.ID); err != nil {
			t.Errorf("revoke a lease without keys: %v", err)
		}
		if _, err := thief.MemberList(ctx); err != nil {
			t.Errorf("list members: %v", err)
		}
		if _, err := thief.Status(ctx, s.URL); err != nil {
			t.Errorf("read a member's status: %v", err)
		}
		if _, err := thief.TimeToLive(ctx, held.ID); err != nil {
			t.Errorf("see whether a lease is there: %v", err)
		}
	})
}

// E09: a lease that another ends before its first key is not the end of a
// session.
func TestLeaseRevokedBeforeItsFirstKey(t *testing.T) {
	s := storetest.NewSecured(t)
	st := s.Region("dc1", 1)
	thief := s.Raw(store.RegionUser("dc1", 1))
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() { // as fast as it can
		defer close(stopped)
		for ctx.Err() == nil {
			l, err := thief.Grant(ctx, 60)
			if err != nil {
				return
			}
			_, _ = thief.Revoke(ctx, l.ID-1)
			_, _ = thief.Revoke(ctx, l.ID)
		}
	}()
	defer func() { cancel(); <-stopped }()
	var sess *store.Session
	for end := time.Now().Add(30 * time.Second); sess == nil; {
		var err error
		if sess, err = st.OpenSession(t.Context(), "dc1", "i", lpmos.Capabilities{Hostname: "h"}, nil); err != nil && time.Now().After(end) {
			t.Fatal(err)
		}
	}
	sess.Close()
}

func TestRegionWorksWithItsRights(t *testing.T) {
	s := storetest.NewSecured(t)
	st := s.Region("dc1", 1)
	id := lpmos.NewTaskID()
	control := s.Raw(store.ControlUser)
	if _, err := control.Put(t.Context(), store.Key{Kind: store.KindOrder, Region: "dc1", TaskID: id}.String(), `{"attempt":1}`); err != nil {
		t.Fatal(err)
	}
	sess, err := st.OpenSession(t.Context(), "dc1", "i", lpmos.Capabilities{Hostname: "h"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, write := range map[string]error{
		"agent":      sess.PutAgent(t.Context(), lpmos.AgentRecord{TaskID: id, Attempt: 1}),
		"hardware":   sess.PutHardware(t.Context(), id, 1, &lpmos.Hardware{}),
		"progress":   sess.PutProgress(t.Context(), &lpmos.Progress{TaskID: id, Attempt: 1}),
		"permit":     sess.PutPermitRequest(t.Context(), lpmos.PermitRequest{TaskID: id, Attempt: 1}),
		"log":        sess.AppendLog(t.Context(), id, 1, 0, []byte("x")),
		"result":     sess.PutResult(t.Context(), lpmos.Result{TaskID: id, Attempt: 1}),
		"booted":     sess.PutBooted(t.Context(), id, 1, lpmos.Receipt{}),
		"discovered": sess.PutDiscovered(t.Context(), lpmos.Discovered{MAC: lpmos.MAC{2, 0, 0, 0, 0, 1}}),
	} {
		if write != nil {
			t.Errorf("%s: %v", name, write)
		}
	}
	if _, err := control.Delete(t.Context(), store.Key{Kind: store.KindOrder, Region: "dc1", TaskID: id}.String()); err != nil {
		t.Fatal(err)
	}
	if err := sess.DeleteReports(t.Context(), id); err != nil {
		t.Error(err)
	}
	for _, scope := range []store.Scope{store.RegionScope("dc1"), store.GlobalScope} {
		for b, err := range st.Changes(t.Context(), scope) {
			if err != nil || !b.Reset {
				t.Errorf("follow %s: %v", scope, err)
			}
			break
		}
	}
	sess.Close()
}

// A denial is an error that says what to do, and is not tried again in silence.
func TestDeniedIsSaid(t *testing.T) {
	s := storetest.NewSecured(t)
	st := s.Region("dc1", 1)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, scope := range []store.Scope{store.All, store.ConfigScope, store.RegionScope("dc2")} {
		var got error
		for _, err := range st.Changes(ctx, scope) {
			got = err
			break
		}
		if !errors.Is(got, store.ErrDenied) || !strings.Contains(got.Error(), "lpmos region enroll") {
			t.Errorf("follow %s = %v; want a denial with what to do", scope, got)
		}
	}

	t.Run("a region that is revoked hears of it while it watches", func(t *testing.T) {
		began, ended := make(chan struct{}), make(chan error, 1)
		go func() {
			var last error
			first := true
			for _, err := range st.Changes(ctx, store.RegionScope("dc1")) {
				last = err
				if first {
					close(began)
					first = false
				}
			}
			ended <- last
		}()
		<-began
		if gone, err := s.Control.DeleteRegionUsers(ctx, "dc1", 1); err != nil || !slices.Equal(gone, []string{"lpmos-region-dc1.1"}) {
			t.Fatal(gone, err)
		}
		s.Own.Disconnect()
		if err := <-ended; !errors.Is(err, store.ErrDenied) {
			t.Errorf("the watch ended with %v; want a denial", err)
		}
		if _, err := store.Open(ctx, s.Config(store.RegionUser("dc1", 1)), quiet); !errors.Is(err, store.ErrDenied) {
			t.Errorf("Open with a revoked certificate = %v; want a denial", err)
		}
	})
	t.Run("the old certificate stays worthless when the region is enrolled again", func(t *testing.T) {
		s.Region("dc1", 2)
		if _, err := store.Open(ctx, s.Config(store.RegionUser("dc1", 1)), quiet); !errors.Is(err, store.ErrDenied) {
			t.Errorf("Open with the certificate from before = %v; want a denial", err)
		}
	})
}

// T06 and M10 for the store's listener: who is not let in at all.
func TestCertificatesThatAreRefused(t *testing.T) {
	s := storetest.NewSecured(t)
	s.Region("dc1", 1)
	foreign, err := pki.Load(t.TempDir()+"/ca.pem", true)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	user := store.RegionUser("dc1", 1)
	good := s.TLS(user)
	none := good.Clone()
	none.Certificates = nil
	old := good.Clone()
	old.MaxVersion = 0x0302 // TLS 1.1
	old.MinVersion = 0x0301
	wrongName := good.Clone()
	wrongName.ServerName = pki.ControlPlaneName
	for name, cfg := range map[string]store.Config{
		"no certificate":         {TLS: none},
		"one of another site":    {TLS: storetest.Client(t, s.CA, foreign, user, now, time.Hour)},
		"another site's root":    {TLS: storetest.Client(t, s.CA, foreign, "root", now, time.Hour)},
		"an expired one":         {TLS: storetest.Client(t, s.CA, s.CA, user, now.Add(-48*time.Hour), time.Hour)},
		"TLS 1.1":                {TLS: old},
		"a server of other name": {TLS: wrongName},
		"a foreign server":       {TLS: storetest.Client(t, foreign, s.CA, user, now, time.Hour)},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.Endpoints, cfg.Timeout = []string{s.URL}, 2*time.Second
			st, err := store.Open(t.Context(), cfg, quiet)
			if err == nil {
				st.Close()
				t.Fatal("it was let in")
			}
			t.Log(err)
		})
	}
	t.Run("a user that is none", func(t *testing.T) {
		for _, cn := range []string{"lpmos-region-dc2.1", "lpmos-region-dc1", "eve", ""} {
			if st, err := store.Open(t.Context(), s.Config(cn), quiet); err == nil {
				st.Close()
				t.Errorf("%q was let in", cn)
			} else if !errors.Is(err, store.ErrDenied) {
				t.Errorf("Open as %q = %v; want a denial", cn, err)
			}
		}
	})
	t.Run("plain connections", func(t *testing.T) {
		if st, err := store.Open(t.Context(), store.Config{Endpoints: []string{strings.Replace(s.URL, "https", "http", 1)}, Timeout: 2 * time.Second}, quiet); err == nil {
			st.Close()
			t.Error("it was let in")
		}
	})
}

// Users come and go while others work: none of their requests may fail for it.
func TestUsersChangeUnderLoad(t *testing.T) {
	s := storetest.NewSecured(t)
	st := s.Region("dc1", 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if err := st.Healthy(ctx); err != nil && ctx.Err() == nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for i := range 30 {
		if err := s.Control.PutRegionUser(t.Context(), "dc2", i+1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Control.DeleteRegionUsers(t.Context(), "dc2", 30); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("a request of another region failed: %v", err)
	}
}
