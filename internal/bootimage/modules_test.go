package bootimage

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseModinfo(t *testing.T) {
	got := parseModinfo("r8169", []byte("license=GPL\x00depends=libphy,mdio-devres\x00softdep=pre: realtek foo post: bar\x00"+
		"alias=pci:v000010ECd00008168sv*sd*bc*sc*i*\x00alias=plain\x00depends=\x00"))
	want := &module{name: "r8169", depends: []string{"libphy", "mdio_devres"}, soft: []string{"realtek", "foo"},
		aliases: []string{"pci:v000010ECd00008168sv*sd*bc*sc*i*", "plain"}}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(module{})); d != "" {
		t.Errorf("parseModinfo (-want +got):\n%s", d)
	}
}

// testSet has a soft dependency with two providers, a loop of soft
// dependencies and a module the kernel has built in.
func testSet(t *testing.T) *moduleSet {
	s := &moduleSet{dir: t.TempDir(), release: "6.1.0-test", byName: map[string]*module{}, builtin: map[string]bool{"efivarfs": true},
		exact:  map[string][]string{"crypto-crc32c": {"crc32c_intel", "crc32c_generic"}, "sha256": {"sha256_ssse3"}},
		served: map[string]bool{"sha256": true}}
	for _, m := range []*module{
		{name: "ext4", depends: []string{"jbd2", "crc16"}, soft: []string{"crypto-crc32c"}, aliases: []string{"fs-ext4"}},
		{name: "jbd2", depends: []string{"crc16"}},
		{name: "crc16"},
		{name: "crc32c_generic", aliases: []string{"crypto-crc32c"}},
		{name: "crc32c_intel", aliases: []string{"crypto-crc32c", "cpu:type:x86,ven*"}},
		{name: "vfat", depends: []string{"fat"}}, {name: "fat"},
		{name: "nls_cp437"}, {name: "nls_ascii"}, {name: "nls_utf8"},
		{name: "btrfs", soft: []string{"sha256"}}, {name: "sha256_ssse3"},
		{name: "chicken", soft: []string{"egg"}}, {name: "egg", soft: []string{"chicken"}},
		{name: "broken", depends: []string{"nowhere"}},
	} {
		m.file = "kernel/" + m.name + ".ko"
		s.byName[m.name] = m
		if err := os.MkdirAll(filepath.Join(s.dir, "kernel"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.dir, m.file), []byte(m.name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func TestModuleOrder(t *testing.T) {
	s := testSet(t)
	for _, c := range []struct {
		name string
		want []string
	}{
		{"crc16", nil},
		{"ext4", []string{"crc16", "jbd2", "crc32c_generic"}},
		{"vfat", []string{"fat", "nls_cp437", "nls_ascii", "nls_utf8"}},
		{"btrfs", nil},
		{"chicken", []string{"egg"}},
	} {
		order, err := s.order(s.byName[c.name])
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range order {
			got = append(got, m.name)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("order(%s) = %v; want %v", c.name, got, c.want)
		}
	}
	if _, err := s.order(s.byName["broken"]); err == nil {
		t.Error("order(broken) = nil; want an error for the missing module")
	}
}

func TestPickNeedsTheRequired(t *testing.T) {
	s := testSet(t)
	if _, _, err := s.pick(); err == nil {
		t.Error("pick without virtio_pci = nil; want an error")
	}
	for _, name := range requiredModules {
		s.builtin[name] = true
	}
	chosen, absent, err := s.pick()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ext4", "jbd2", "crc16", "crc32c_generic", "vfat", "nls_utf8"} {
		if chosen[name] == nil {
			t.Errorf("%s is not among the chosen", name)
		}
	}
	if chosen["chicken"] != nil {
		t.Error("chicken, which nobody wants, was chosen")
	}
	if !slices.Contains(absent, "igb") || slices.Contains(absent, "efivarfs") {
		t.Errorf("absent = %v; want igb in it and efivarfs not", absent)
	}
}

func TestStageModules(t *testing.T) {
	s := testSet(t)
	tr := tree{}
	chosen := map[string]*module{"ext4": s.byName["ext4"], "jbd2": s.byName["jbd2"], "crc16": s.byName["crc16"]}
	if err := s.stage(tr, chosen); err != nil {
		t.Fatal(err)
	}
	const root = "/usr/lib/modules/6.1.0-test/"
	for name, want := range map[string]string{
		"modules.dep":     "kernel/crc16.ko:\nkernel/ext4.ko: kernel/crc32c_generic.ko kernel/jbd2.ko kernel/crc16.ko\nkernel/jbd2.ko: kernel/crc16.ko\n",
		"modules.alias":   "alias fs-ext4 ext4\n",
		"modules.builtin": "efivarfs\n",
		"kernel/ext4.ko":  "ext4",
	} {
		if got := string(tr[root+name].data); got != want {
			t.Errorf("%s = %q; want %q", name, got, want)
		}
	}
}
