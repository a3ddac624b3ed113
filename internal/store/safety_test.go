package store_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/store"
)

// Which addresses a machine has is what reports say, and a region may lie: what is
// unlocked, or whose TPM is forgotten, is what was locked or bound together.
func TestOtherMachinesAreLeftAlone(t *testing.T) {
	s, raw := tampered(t)
	ctx := t.Context()
	own, second, fresh := lpmos.MustMAC("52:54:00:00:00:07"), lpmos.MustMAC("52:54:00:00:00:08"), lpmos.MustMAC("52:54:00:00:00:01")
	victim := lpmos.MustMAC("52:54:00:00:00:09")
	left := func(kind store.Kind) (macs []lpmos.MAC) {
		t.Helper()
		for _, m := range []lpmos.MAC{own, second, fresh, victim} {
			r, err := raw.Get(ctx, store.Key{Kind: kind, MAC: m}.String(), clientv3.WithCountOnly())
			if err != nil {
				t.Fatal(err)
			}
			if r.Count > 0 {
				macs = append(macs, m)
			}
		}
		return macs
	}
	ok := func(_ int64, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// The card that is new has neither.
	all := []lpmos.MAC{fresh, own, second, victim}

	at := time.Now().UTC()
	ok(s.PutLock(ctx, []lpmos.MAC{own, second}, lpmos.Lock{By: "anna", Reason: "payroll", At: at}))
	ok(s.PutLock(ctx, []lpmos.MAC{victim}, lpmos.Lock{By: "anna", Reason: "payroll", At: at.Add(time.Second)}))
	ok(s.DeleteLock(ctx, all))
	if got := left(store.KindLock); !slices.Equal(got, []lpmos.MAC{victim}) {
		t.Errorf("after one lock was taken away %v are locked; want %v", got, victim)
	}
	ok(s.DeleteLock(ctx, all))
	if got := left(store.KindLock); got != nil {
		t.Errorf("after the next was taken away %v are locked", got)
	}

	for m, tpm := range map[lpmos.MAC]string{own: "b3du", second: "b3du", victim: "dGhlaXJz"} {
		_, err := raw.Put(ctx, store.Key{Kind: store.KindTPM, MAC: m}.String(), `{"endorsement":"`+tpm+`","task_id":"t"}`)
		ok(0, err)
	}
	// A live task of the machine whose TPM it is holds it; another's does not.
	create(t, s, "dc1", victim.String())
	held := create(t, s, "dc1", second.String())
	if _, err := s.ForgetTPM(ctx, all); !errors.Is(err, lpmos.ErrConflict) {
		t.Errorf("ForgetTPM with a live task = %v; want a conflict", err)
	}
	move(t, s, held.ID, lpmos.CauseCanceled, nil)
	ok(s.ForgetTPM(ctx, all))
	if got := left(store.KindTPM); !slices.Equal(got, []lpmos.MAC{victim}) {
		t.Errorf("after one TPM was forgotten %v have one; want %v", got, victim)
	}
}

// A token that could not be stored leaves nothing behind, not even its lease.
func TestEnrollmentThatIsNotStored(t *testing.T) {
	s, raw := tampered(t)
	ctx := t.Context()
	e := store.Enrollment{Region: "dc1", By: "anna", ExpiresAt: time.Now().Add(time.Hour)}
	hash := lpmos.DigestBytes([]byte("token"))[len("sha256:"):]
	if err := s.PutEnrollment(ctx, hash, e); err != nil {
		t.Fatal(err)
	}
	if err := s.PutEnrollment(ctx, hash, e); !errors.Is(err, lpmos.ErrConflict) {
		t.Errorf("PutEnrollment of a token that is there = %v; want a conflict", err)
	}
	if _, err := raw.Put(ctx, store.Key{Kind: store.KindIdentity, Region: "dc2"}.String(), "not JSON"); err != nil {
		t.Fatal(err)
	}
	e.Region = "dc2"
	if err := s.PutEnrollment(ctx, lpmos.DigestBytes([]byte("another"))[len("sha256:"):], e); err == nil {
		t.Error("PutEnrollment for a region whose identity cannot be read = nil; want an error")
	}
	l, err := raw.Leases(ctx)
	if err != nil || len(l.Leases) != 1 {
		t.Errorf("leases = %v, %v; want the first token's alone", l, err)
	}
}
