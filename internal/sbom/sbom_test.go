package sbom_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lpmos/lpmos/internal/sbom"
)

type bill struct {
	BOMFormat, SpecVersion, SerialNumber string
	Metadata                             struct{ Timestamp string }
	Components                           []struct {
		Type, Name, Version, PURL string
		Ref                       string `json:"bom-ref"`
		Hashes                    []struct{ Alg, Content string }
	}
	Dependencies []struct {
		Ref       string
		DependsOn []string
	}
}

// program links the smallest of ours, or one with a module of others.
func program(t *testing.T, pkg string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), filepath.Base(pkg))
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, b)
	}
	return out
}

// The bill names every module that `go version -m` finds in the program, and the
// same programs give the same bytes.
func TestBillNamesEveryModule(t *testing.T) {
	path := program(t, "github.com/lpmos/lpmos/internal/sbom/testdata/program")
	r := sbom.Release{Version: "v1.2.3", At: time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC), Files: []string{path}}
	var one, two bytes.Buffer
	if err := sbom.Write(&one, r); err != nil {
		t.Fatal(err)
	}
	if err := sbom.Write(&two, r); err != nil || !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Errorf("two bills of the same program differ (%v):\n%s", err, cmp.Diff(one.String(), two.String()))
	}
	var b bill
	if err := json.Unmarshal(one.Bytes(), &b); err != nil {
		t.Fatal(err)
	}
	if b.BOMFormat != "CycloneDX" || b.SpecVersion != "1.6" || !strings.HasPrefix(b.SerialNumber, "urn:uuid:") || b.Metadata.Timestamp != "2026-11-27T12:00:00Z" {
		t.Errorf("the bill begins with %+v", b)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(text)
	refs := map[string]bool{}
	for _, c := range b.Components {
		refs[c.Ref] = true
		if c.Type == "application" && (c.Name != "program" || c.Version != "v1.2.3" || c.Hashes[0].Content != hex.EncodeToString(sum[:])) {
			t.Errorf("the program is %+v; want SHA-256 %x", c, sum)
		}
	}
	out, err := exec.CommandContext(t.Context(), "go", "version", "-m", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) >= 3 && f[0] == "dep" {
			found++
			if ref := "pkg:golang/" + f[1] + "@" + f[2]; !refs[ref] {
				t.Errorf("%s is linked, and not in the bill", ref)
			}
		}
	}
	if found == 0 || len(refs) != found+2 {
		t.Errorf("%d modules are linked and the bill has %d parts; want those, the program and std", found, len(refs))
	}
	for _, d := range b.Dependencies {
		for _, on := range d.DependsOn {
			if !refs[on] {
				t.Errorf("%s depends on %s, which is no part", d.Ref, on)
			}
		}
	}
}

func TestRefusesWhatIsNoProgramOfGo(t *testing.T) {
	for _, path := range []string{"/bin/sh", filepath.Join(t.TempDir(), "none")} {
		if err := sbom.Write(&bytes.Buffer{}, sbom.Release{Files: []string{path}}); err == nil {
			t.Errorf("a bill of %s was written", path)
		}
	}
}
