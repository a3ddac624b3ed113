package store_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/store"
	"github.com/lpmos/lpmos/internal/store/storetest"
)

// Two admins take it from each other at once, at two replicas, each in another
// way: one of them is too late, and an admin is left.
func TestTwoAdminsDoNotEndEachOther(t *testing.T) {
	e, first := storetest.Start(t)
	replicas := []*store.Store{first, storetest.Connect(t, e)}
	ctx := t.Context()
	change := func(f func(*lpmos.User)) func(*store.Store, string) error {
		return func(s *store.Store, name string) error {
			_, _, err := s.UpdateUser(ctx, name, func(u *lpmos.User) error { f(u); return nil })
			return err
		}
	}
	ways := []func(*store.Store, string) error{
		change(func(u *lpmos.User) { u.Role = lpmos.Viewer }),
		change(func(u *lpmos.User) { u.Regions = []string{"dc1"} }),
		change(func(u *lpmos.User) { u.Disabled = true }),
		change(func(u *lpmos.User) { u.External = &lpmos.External{Issuer: "https://id", Subject: "1"} }),
		func(s *store.Store, name string) error { _, err := s.DeleteUser(ctx, name); return err },
	}
	// Neither of these is an admin who can let others in.
	for _, u := range []lpmos.User{
		{Name: "limited", Role: lpmos.Admin, Regions: []string{"dc1"}}, {Name: "gone", Role: lpmos.Admin, Disabled: true},
		{Name: "elsewhere", Role: lpmos.Admin, External: &lpmos.External{Issuer: "https://id", Subject: "2"}}, {Name: "looks", Role: lpmos.Approver},
	} {
		if _, err := first.CreateUser(ctx, u); err != nil {
			t.Fatal(err)
		}
	}
	left := "" // the admin that the round before left
	for round := range 4 * len(ways) {
		names := []string{fmt.Sprintf("a%d", round), fmt.Sprintf("b%d", round)}
		for _, n := range names {
			if _, err := first.CreateUser(ctx, lpmos.User{Name: n, Role: lpmos.Admin}); err != nil {
				t.Fatal(err)
			}
		}
		if left != "" {
			if _, err := first.DeleteUser(ctx, left); err != nil {
				t.Fatalf("delete %s while there are others: %v", left, err)
			}
		}
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for i, s := range replicas {
			wg.Go(func() { errs[i] = ways[(round+i*(round/len(ways)))%len(ways)](s, names[1-i]) })
		}
		wg.Wait()
		late := slices.IndexFunc(errs, func(err error) bool { return err != nil })
		if late < 0 || errs[1-late] != nil || !errors.Is(errs[late], lpmos.ErrConflict) {
			t.Fatalf("round %d: both took it from each other: %v; want one to be too late", round, errs)
		}
		left = names[1-late]
	}
	for i, way := range ways {
		if err := way(replicas[i%2], left); !errors.Is(err, lpmos.ErrConflict) {
			t.Errorf("way %d ends the last admin: %v", i, err)
		}
	}
	if err := change(func(u *lpmos.User) { u.Epoch++ })(first, left); err != nil {
		t.Errorf("another password for the last admin: %v", err)
	}
	if _, err := first.DeleteUser(ctx, "looks"); err != nil {
		t.Errorf("delete somebody else: %v", err)
	}
}

// Wrong passwords are counted once each, whichever replica saw them, and
// forgotten in time, or when somebody knew the right one.
func TestTries(t *testing.T) {
	e, first := storetest.Start(t)
	replicas := []*store.Store{first, storetest.Connect(t, e)}
	ctx := t.Context()
	const window = 15 * time.Minute
	account, peer := hash(1), hash(2)
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	tries := func(id string) []time.Time {
		t.Helper()
		all, err := replicas[1].Tries(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	note := func(s *store.Store, id string, at time.Time) {
		if err := s.NoteTry(ctx, id, at, window); err != nil {
			t.Error(err)
		}
	}
	if all := tries(account); len(all) != 0 {
		t.Errorf("before the first there are %v", all)
	}
	var wg sync.WaitGroup
	want := make([]time.Time, 20)
	for i := range want {
		want[i] = now.Add(time.Duration(i) * time.Second)
		wg.Go(func() { note(replicas[i%2], account, want[i]) })
	}
	wg.Wait()
	if all := tries(account); !slices.EqualFunc(all, want, time.Time.Equal) {
		t.Errorf("of %d at once these are counted, oldest first: %v", len(want), all)
	}
	if all := tries(peer); len(all) != 0 {
		t.Errorf("another has %v", all)
	}

	c, err := clientv3.New(clientv3.Config{Endpoints: []string{e.Endpoint()}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r, err := c.Get(ctx, store.Key{Kind: store.KindTries, Name: account}.String())
	if err != nil || len(r.Kvs) != 1 {
		t.Fatalf("the key is %v, %v", r, err)
	}
	if l, err := c.TimeToLive(ctx, clientv3.LeaseID(r.Kvs[0].Lease)); err != nil || l.GrantedTTL != int64(window/time.Second) {
		t.Errorf("the key lives as long as %+v, %v; want the window", l, err)
	}

	// One more after the window of all but five.
	at := want[14].Add(window + time.Millisecond)
	note(first, account, at)
	if all := tries(account); !slices.EqualFunc(all, append(want[15:len(want):len(want)], at), time.Time.Equal) {
		t.Errorf("later these are counted: %v; want the last five and the new one", all)
	}
	for i := range 70 {
		note(first, peer, now.Add(time.Duration(i)*time.Millisecond))
	}
	if all := tries(peer); len(all) != 64 || !all[63].Equal(now.Add(69*time.Millisecond)) {
		t.Errorf("of 70 there are %d, up to %v; want the newest 64", len(all), all[len(all)-1])
	}
	for _, s := range replicas { // the second finds nothing
		if err := s.ForgetTries(ctx, account); err != nil {
			t.Error(err)
		}
	}
	if all := tries(account); len(all) != 0 {
		t.Errorf("after they were forgotten there are %v", all)
	}
	if n := len(tries(peer)); n != 64 {
		t.Errorf("another's are %d now; want 64", n)
	}
	for what, err := range map[string]error{
		"note": first.NoteTry(ctx, "../users/admin", now, window), "forget": first.ForgetTries(ctx, "x/y"), "read": func() error { _, err := first.Tries(ctx, ""); return err }(),
	} {
		if !errors.Is(err, lpmos.ErrNotFound) {
			t.Errorf("%s of what is no hash = %v; want ErrNotFound", what, err)
		}
	}
}
