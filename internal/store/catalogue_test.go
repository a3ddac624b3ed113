package store_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/store"
	"github.com/lpmos/lpmos/internal/store/storetest"
)

func TestVersionedConfiguration(t *testing.T) {
	s := storetest.New(t)
	ctx := t.Context()
	first, err := s.PutProfile(ctx, lpmos.Profile{Name: "web", Version: 99, Notes: "one"}, 0)
	if err != nil || first.Version != 1 || first.CreatedAt.IsZero() {
		t.Fatalf("first version = %+v, %v", first, err)
	}
	second, err := s.PutProfile(ctx, lpmos.Profile{Name: "web", Notes: "two"}, 1)
	if err != nil || second.Version != 2 || !second.CreatedAt.Equal(first.CreatedAt) {
		t.Fatalf("second version = %+v, %v", second, err)
	}
	for _, based := range []int{0, 1, 3} {
		_, err := s.PutProfile(ctx, lpmos.Profile{Name: "web", Notes: "lost"}, based)
		if e, ok := errors.AsType[*store.VersionError](err); !ok || e.Version != 2 || !errors.Is(err, lpmos.ErrConflict) {
			t.Errorf("a change based on version %d = %v; want to hear that it is at 2", based, err)
		}
	}
	// Of many who change the same version, one does.
	var won atomic.Int64
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := s.PutTemplate(ctx, lpmos.Template{Name: "base", Text: "x"}, 0); err == nil {
				won.Add(1)
			} else if !errors.Is(err, lpmos.ErrConflict) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d of 20 made version 1", won.Load())
	}
	if _, err := s.DeleteProfile(ctx, "web", 1); !errors.Is(err, lpmos.ErrConflict) {
		t.Errorf("deleting an older version = %v", err)
	}
	if _, err := s.DeleteProfile(ctx, "web", 2); err != nil {
		t.Error(err)
	}
	if _, err := s.DeleteTemplate(ctx, "base", 0); err != nil {
		t.Error(err)
	}
	_, e1 := s.DeleteProfile(ctx, "web", 0)
	_, e2 := s.DeleteTemplate(ctx, "base", 0)
	for _, err := range []error{e1, e2} {
		if !errors.Is(err, lpmos.ErrNotFound) {
			t.Errorf("deleting what is gone = %v", err)
		}
	}
	if _, err := s.PutProfile(ctx, lpmos.Profile{Name: "web"}, 2); !errors.Is(err, lpmos.ErrConflict) {
		t.Errorf("changing what was deleted = %v", err)
	}
	for _, h := range []string{"", "..", "a/b", "A"} {
		_, e1 := s.PutProfile(ctx, lpmos.Profile{Name: h}, 0)
		_, e2 := s.PutTemplate(ctx, lpmos.Template{Name: h}, 0)
		_, e3 := s.DeleteProfile(ctx, h, 0)
		_, e4 := s.DeleteTemplate(ctx, h, 0)
		for _, err := range []error{e1, e2, e3, e4} {
			var invalid *lpmos.InvalidError
			if !errors.As(err, &invalid) {
				t.Errorf("name %q = %v; want it refused", h, err)
			}
		}
	}
}

// What a task was created with, and how its machine was before, are kept in
// keys of their own and go with the task.
func TestTaskKeepsTemplateAndPrevious(t *testing.T) {
	s := storetest.New(t)
	template, err := s.PutTemplate(t.Context(), lpmos.Template{Name: "base", Kind: "user-data", Text: "#cloud-config\n"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	pinned := template.Pinned()
	n := store.NewTask{Spec: spec("dc1", mac1), By: "tester", Key: "k", Request: "sha256:asked"}
	for ref, want := range map[string]error{"base@2": lpmos.ErrConflict, "other@1": nil, "a/b": nil} {
		n.Spec.Template = ref
		if _, err := s.Create(t.Context(), n); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("a task with the template %s = %v", ref, err)
		}
	}
	n.Spec.Template = "base@1"
	task, err := s.Create(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	// The same question again, although what was filled in has changed.
	n.Spec.Notes = "from a newer profile"
	if again, err := s.Create(t.Context(), n); err != nil || again.ID != task.ID {
		t.Errorf("the same request again = %s, %v; want %s", again.ID, err, task.ID)
	}
	h := &lpmos.Hardware{BootMode: "bios"}
	seen := &lpmos.Sighting{At: time.Now().UTC(), RegionID: "dc1", Hardware: &lpmos.Hardware{BootMode: "uefi"}}
	move(t, s, task.ID, lpmos.CauseHardwareReported, func(r *store.Record) { r.Task.Hardware, r.Task.Previous = h, seen })
	rec, err := s.Task(t.Context(), task.ID)
	if err != nil {
		t.Fatal(err)
	}
	got := rec.Task
	if got.TemplateText == nil || *got.TemplateText != *pinned || got.Previous == nil || got.Previous.Hardware.BootMode != "uefi" || got.HardwareAt.IsZero() {
		t.Errorf("task = %+v, %+v, %v", got.TemplateText, got.Previous, got.HardwareAt)
	}
	at := got.HardwareAt
	move(t, s, task.ID, lpmos.CauseCanceled, nil)
	if rec, _ = s.Task(t.Context(), task.ID); !rec.Task.HardwareAt.Equal(at) || rec.Task.Previous == nil {
		t.Errorf("a move without a report changed when it was: %v, was %v", rec.Task.HardwareAt, at)
	}
	if err := s.DeleteTask(t.Context(), task.ID); err != nil {
		t.Fatal(err)
	}
	for b, err := range s.Changes(t.Context(), store.All) {
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range b.Changes {
			if c.Key.TaskID == task.ID {
				t.Errorf("%s outlived its task", c.Key)
			}
		}
		break
	}
}

func TestDeleteDiscovered(t *testing.T) {
	s := storetest.New(t)
	ss, err := s.OpenSession(t.Context(), "dc1", "i", lpmos.Capabilities{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ss.Close()
	mac := lpmos.MustMAC(mac1)
	seen := time.Now().UTC()
	count := func() (n int) {
		for b := range s.Changes(t.Context(), store.All) {
			for _, c := range b.Changes {
				if c.Key.Kind == store.KindDiscovered {
					n++
				}
			}
			break
		}
		return n
	}
	if err := ss.PutDiscovered(t.Context(), lpmos.Discovered{MAC: mac, SeenAt: seen}); err != nil {
		t.Fatal(err)
	}
	if err := ss.DeleteDiscovered(t.Context(), mac, seen.Add(-time.Hour)); err != nil || count() != 1 {
		t.Errorf("a machine that was seen again is forgotten: %v", err)
	}
	if err := ss.DeleteDiscovered(t.Context(), mac, seen); err != nil || count() != 0 {
		t.Errorf("the machine is remembered: %v", err)
	}
	if err := ss.DeleteDiscovered(t.Context(), mac, seen); err != nil {
		t.Errorf("forgetting what is forgotten = %v", err)
	}
}
