// Package sbom says what is in the programs of a release: a bill of materials
// in CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json/), made of what the Go
// toolchain wrote into the programs themselves (debug/buildinfo), so that it
// names what was linked and nothing else. The same programs give the same bytes.
package sbom

import (
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// Release is what a bill is of.
type Release struct {
	Version string
	At      time.Time // of the commit; zero leaves it out
	Files   []string  // the programs, linked by Go
}

type bill struct {
	Format      string       `json:"bomFormat"`
	SpecVersion string       `json:"specVersion"`
	Serial      string       `json:"serialNumber"`
	Version     int          `json:"version"`
	Metadata    metadata     `json:"metadata"`
	Components  []component  `json:"components"`
	Depends     []dependency `json:"dependencies"`
}

type metadata struct {
	Timestamp string    `json:"timestamp,omitempty"`
	Component component `json:"component"`
}

type component struct {
	Type       string     `json:"type"`
	Ref        string     `json:"bom-ref"`
	Name       string     `json:"name"`
	Version    string     `json:"version,omitempty"`
	PURL       string     `json:"purl,omitempty"`
	Hashes     []hash     `json:"hashes,omitempty"`
	Properties []property `json:"properties,omitempty"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type dependency struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn"`
}

// purl names a Go module (https://github.com/package-url/purl-spec).
func purl(path, version string) string { return "pkg:golang/" + path + "@" + version }

// Write writes the bill. Programs that are linked dynamically are refused: they
// would need on the machine what no bill names.
func Write(w io.Writer, r Release) error {
	root := component{Type: "application", Ref: "lpmos", Name: "lpmos", Version: r.Version}
	b := bill{Format: "CycloneDX", SpecVersion: "1.6", Version: 1, Metadata: metadata{Component: root}}
	if !r.At.IsZero() {
		b.Metadata.Timestamp = r.At.UTC().Format(time.RFC3339)
	}
	modules := map[string]component{}
	all := sha256.New()
	var programs []string
	for _, path := range slices.Sorted(slices.Values(r.Files)) {
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return fmt.Errorf("read what %s is made of: %w", path, err)
		}
		if err := static(path); err != nil {
			return err
		}
		sum, err := digest(path)
		if err != nil {
			return err
		}
		name := filepath.Base(path)
		program := component{Type: "application", Ref: "file:" + name, Name: name, Version: r.Version, Hashes: []hash{{"SHA-256", sum}}}
		for _, s := range info.Settings {
			if slices.Contains([]string{"GOOS", "GOARCH", "CGO_ENABLED", "-tags", "-trimpath"}, s.Key) {
				program.Properties = append(program.Properties, property{"go:" + strings.TrimPrefix(s.Key, "-"), s.Value})
			}
		}
		var needs []string
		for _, m := range linked(info) {
			modules[m.Ref] = m
			needs = append(needs, m.Ref)
		}
		b.Components = append(b.Components, program)
		b.Depends = append(b.Depends, dependency{program.Ref, needs})
		programs = append(programs, program.Ref)
		fmt.Fprintf(all, "%s %s\n", name, sum)
	}
	b.Depends = append(b.Depends, dependency{root.Ref, programs})
	for _, m := range modules {
		b.Components = append(b.Components, m)
	}
	slices.SortFunc(b.Components, func(x, y component) int { return strings.Compare(x.Ref, y.Ref) })
	slices.SortFunc(b.Depends, func(x, y dependency) int { return strings.Compare(x.Ref, y.Ref) })
	id := all.Sum(nil)[:16]
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // a UUID of version 8
	h := hex.EncodeToString(id)
	b.Serial = "urn:uuid:" + strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(b)
}

// linked are the modules a program is made of, and the standard library.
func linked(info *debug.BuildInfo) (out []component) {
	std := strings.TrimPrefix(info.GoVersion, "go")
	out = append(out, component{Type: "library", Ref: purl("std", std), Name: "std", Version: std, PURL: purl("std", std)})
	for _, m := range info.Deps {
		path := m.Path
		if m.Replace != nil {
			m = m.Replace
		}
		ref := purl(m.Path, cmp.Or(m.Version, "(devel)"))
		c := component{Type: "library", Ref: ref, Name: m.Path, Version: m.Version, PURL: ref}
		if m.Sum != "" {
			c.Properties = append(c.Properties, property{"go:sum", m.Sum}) // as in go.sum
		}
		if m.Path != path {
			c.Properties = append(c.Properties, property{"go:replaces", path})
		}
		out = append(out, c)
	}
	slices.SortFunc(out, func(x, y component) int { return strings.Compare(x.Ref, y.Ref) })
	return out
}

// static refuses a program that names a dynamic loader.
func static(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is linked dynamically: build it with CGO_ENABLED=0", path)
		}
	}
	return nil
}

func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("hash %s: %w", path, err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("hash %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
