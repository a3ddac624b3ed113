package orchestrator_test

import (
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/orchestrator"
)

// TestImagesOfOthersAreNotInstalled is M08: whoever can write to the store, and
// does not have the control plane's key, can put no image on a machine.
func TestImagesOfOthersAreNotInstalled(t *testing.T) {
	s := newSite(t, orchestrator.Config{})
	_, other, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	for version, forge := range map[string]func(*lpmos.Image){
		"unsigned":          func(i *lpmos.Image) {},
		"of-another-key":    func(i *lpmos.Image) { i.Sign(other) },
		"of-another-image":  func(i *lpmos.Image) { j := tiny(); s.SignImage(&j); i.Signature = j.Signature },
		"of-another-digest": func(i *lpmos.Image) { s.SignImage(i); i.Digest = "sha256:" + strings.Repeat("cd", 32) },
	} {
		i := tiny()
		i.Version = version
		forge(&i)
		if err := s.store.PutImage(t.Context(), i); err != nil {
			t.Fatal(err)
		}
		s.eventually("the image is known", func() bool { _, ok := s.state.Image("tiny", version, "amd64"); return ok })
		sp := spec("52:54:00:00:08:01")
		sp.OSVersion = version
		_, err := s.Create(t.Context(), sp, "test", "")
		if e, ok := errors.AsType[*lpmos.InvalidError](err); !ok || e.Field != "os_type" || !strings.Contains(e.Problem, "not signed") {
			t.Errorf("Create with an image that is %s = %v; want an InvalidError about the signature", version, err)
		}
	}
	t.Run("nor when they are swapped after the task was made", func(t *testing.T) {
		const mac = "52:54:00:00:08:02"
		id := s.create(mac).ID
		i, _ := s.state.Image("tiny", "1", "amd64")
		i.Digest = "sha256:" + strings.Repeat("ee", 32)
		if err := s.store.PutImage(t.Context(), i); err != nil {
			t.Fatal(err)
		}
		s.eventually("the entry is swapped", func() bool {
			j, _ := s.state.Image("tiny", "1", "amd64")
			return j.Digest == i.Digest
		})
		if err := s.sess.PutHardware(t.Context(), id, 1, hardware(mac)); err != nil {
			t.Fatal(err)
		}
		s.eventually("a plan is made", func() bool { task, _ := s.state.Task(id); return task.Plan != nil })
		task, _ := s.state.Task(id)
		if !strings.Contains(task.Plan.Problem, "not signed") {
			t.Errorf("the plan's problem is %q; want one about the signature", task.Plan.Problem)
		}
	})
}
