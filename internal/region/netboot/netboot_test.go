package netboot

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lpmos/lpmos"
)

var update = flag.Bool("update", false, "rewrite golden files")

// view is a boot index.
type view struct {
	entries map[lpmos.MAC]lpmos.BootEntry
	synced  bool
}

func (v view) Lookup(m lpmos.MAC) (lpmos.BootEntry, bool) { e, ok := v.entries[m]; return e, ok }
func (v view) Synced() bool                               { return v.synced }

var (
	agentMAC   = lpmos.MustMAC("52:54:00:00:00:01")
	localMAC   = lpmos.MustMAC("52:54:00:00:00:02")
	unknownMAC = lpmos.MustMAC("52:54:00:00:00:ff")
)

const taskID = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"

func decider(tb testing.TB, p Policy, synced bool) *Decider {
	tb.Helper()
	d, err := New(Config{BootURL: "http://10.77.0.1:8081", NextServer: netip.MustParseAddr("10.77.0.1"), Unknown: p},
		view{map[lpmos.MAC]lpmos.BootEntry{
			agentMAC: {MAC: agentMAC, Action: lpmos.BootAgent, TaskID: taskID},
			localMAC: {MAC: localMAC, Action: lpmos.BootLocal},
		}, synced})
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// TestOffers holds what every kind of client gets in every state of the region.
func TestOffers(t *testing.T) {
	const uuid = "4c4c4544-0042-3510-8054-b4c04f4e4b32"
	clients := []struct {
		name string
		Client
	}{
		{"BIOS", Client{Arch: 0, VendorClass: "PXEClient:Arch:00000:UNDI:002001"}},
		{"BIOS without option 93", Client{Arch: ArchUnknown, VendorClass: "PXEClient:Arch:00000:UNDI:002001"}},
		{"PXEClient and nothing else", Client{Arch: ArchUnknown, VendorClass: "PXEClient"}},
		{"UEFI 7", Client{Arch: 7, VendorClass: "PXEClient:Arch:00007:UNDI:003001"}},
		{"UEFI 7 in the class only", Client{Arch: ArchUnknown, VendorClass: "PXEClient:Arch:00007:UNDI:003001"}},
		{"UEFI 9", Client{Arch: 9, VendorClass: "PXEClient:Arch:00009:UNDI:003001"}},
		{"UEFI HTTP", Client{Arch: 16, VendorClass: "HTTPClient:Arch:00016:UNDI:003001"}},
		{"iPXE ROM BIOS", Client{Arch: 0, IPXE: true, UserClass: "iPXE", UUID: uuid, VendorClass: "PXEClient:Arch:00000:UNDI:002001"}},
		{"iPXE UEFI", Client{Arch: 7, IPXE: true, UserClass: "iPXE", VendorClass: "PXEClient:Arch:00007:UNDI:003010"}},
		{"iPXE of LPMOS", Client{Arch: 7, IPXE: true, UserClass: "LPMOS"}},
		{"iPXE with a hostile UUID", Client{Arch: 0, IPXE: true, UUID: "${shell}"}},
		{"arm64", Client{Arch: 11, VendorClass: "PXEClient:Arch:00011:UNDI:003001"}},
		{"arm64 HTTP", Client{Arch: 19, VendorClass: "HTTPClient:Arch:00019:UNDI:003001"}},
		{"arm64 iPXE", Client{Arch: 11, IPXE: true}},
		{"an architecture of the future", Client{Arch: 4711, VendorClass: "PXEClient"}},
		{"a garbled class", Client{Arch: ArchUnknown, VendorClass: "PXEClient:Arch:9999999999:UNDI"}},
		{"Linux", Client{Arch: ArchUnknown, VendorClass: "udhcp 1.35"}},
	}
	var b strings.Builder
	for _, state := range []struct {
		name string
		*Decider
		mac lpmos.MAC
	}{
		{"a machine that boots the agent", decider(t, Ignore, true), agentMAC},
		{"a machine that boots its disk", decider(t, Ignore, true), localMAC},
		{"an unknown machine, ignored", decider(t, Ignore, true), unknownMAC},
		{"an unknown machine, discovered", decider(t, Discover, true), unknownMAC},
		{"before the view is synced", decider(t, Discover, false), agentMAC},
	} {
		fmt.Fprintf(&b, "# %s\n", state.name)
		for _, c := range clients {
			c.MAC = state.mac
			o := state.Decide(c.Client)
			fmt.Fprintf(&b, "%-28s %s", c.name, o.Reason)
			if o.BootFile != "" {
				fmt.Fprintf(&b, " action=%s task=%t next=%v 60=%q 43=%x 175=%x http=%t\n%30s%s",
					o.Action, o.TaskID != "", o.NextServer, o.VendorClass, o.VendorOptions, o.IPXEOptions, o.HTTP, "", o.BootFile)
			}
			b.WriteString("\n")
		}
	}
	golden(t, "offers.txt", b.String())
}

func TestNothingIsOfferedBeforeTheViewIsSynced(t *testing.T) {
	for _, p := range []Policy{Ignore, Discover} {
		for arch := range firmwares {
			o := decider(t, p, false).Decide(Client{MAC: agentMAC, Arch: arch, VendorClass: "PXEClient", IPXE: arch == 0})
			if o.BootFile != "" || o.Reason != NotSynced {
				t.Errorf("Decide(arch %d) without a synced view = %+v; want no boot file", arch, o)
			}
		}
		if _, _, err := decider(t, p, false).Boot(localMAC); !errors.Is(err, lpmos.ErrUnavailable) {
			t.Errorf("Boot without a synced view = %v; want ErrUnavailable", err)
		}
	}
}

func TestAnActionOfTheFutureBootsTheDisk(t *testing.T) {
	d := decider(t, Ignore, true)
	d.view.(view).entries[agentMAC] = lpmos.BootEntry{MAC: agentMAC, Action: "erase-everything"}
	if e, _, err := d.Boot(agentMAC); err != nil || e.Action != lpmos.BootLocal {
		t.Errorf("Boot = %+v, %v; want local", e, err)
	}
}

func TestScripts(t *testing.T) {
	s := decider(t, Ignore, true).Scripts()
	m := func(p Platform) Machine {
		return Machine{MAC: agentMAC, UUID: "4c4c4544-0042-3510-8054-b4c04f4e4b32", Platform: p, Arch: "x86_64"}
	}
	img := lpmos.BootImage{
		Kernel:     lpmos.Blob{SHA256: strings.Repeat("a", 64)},
		Initrd:     lpmos.Blob{SHA256: strings.Repeat("b", 64)},
		KernelArgs: "console=tty0 console=ttyS0,115200 panic=30",
	}
	disk := &lpmos.BootDisk{RootUUID: "0b7c9f0e-6f1d-8f3a-9c55-0d1c8a7f2e11", ESPUUID: "1A2B-3C4D", BootMode: "uefi"}
	for name, write := range map[string]func() (string, error){
		"agent.ipxe":           func() (string, error) { return s.Agent(m(EFI), img, "n0nce-_1") },
		"local-bios.ipxe":      func() (string, error) { return s.Local(m(BIOS), lpmos.BootEntry{}) },
		"local-bios-disk.ipxe": func() (string, error) { return s.Local(m(BIOS), lpmos.BootEntry{Disk: disk}) },
		"local-efi.ipxe":       func() (string, error) { return s.Local(m(EFI), lpmos.BootEntry{}) },
		"local-efi-disk.ipxe":  func() (string, error) { return s.Local(m(EFI), lpmos.BootEntry{Disk: disk}) },
		"wait.ipxe":            func() (string, error) { return s.Wait(m(EFI), "this machine is held") },
		"refuse.ipxe":          func() (string, error) { return s.Refuse(m(EFI)) },
		"introduce.ipxe":       func() (string, error) { return s.Introduce(), nil },
		"autoexec.ipxe":        func() (string, error) { return s.Autoexec(), nil },
	} {
		t.Run(name, func(t *testing.T) {
			got, err := write()
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name, got)
			checkScript(t, got)
		})
	}
}

// checkScript holds what is true of every script: no shell, and an end that
// control does not fall off.
func checkScript(t *testing.T, script string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(script, "\n"), "\n")
	if lines[0] != "#!ipxe" {
		t.Errorf("the first line is %q; want #!ipxe", lines[0])
	}
	if last := lines[len(lines)-1]; last != "exit 1" && !strings.Contains(last, "goto ") {
		t.Errorf("the last line is %q; want an exit or a goto", last)
	}
	for _, l := range lines {
		if strings.Contains(l, "shell") || strings.Contains(l, "exit 0") || strings.Contains(l, "&&") {
			t.Errorf("line %q must not be in a script", l)
		}
	}
}

// TestScriptsRefuseWhatIPXEWouldObey tries to bring a command into every place
// that a value from outside reaches (V12).
func TestScriptsRefuseWhatIPXEWouldObey(t *testing.T) {
	s := decider(t, Ignore, true).Scripts()
	img := lpmos.BootImage{Kernel: lpmos.Blob{SHA256: strings.Repeat("a", 64)}, Initrd: lpmos.Blob{SHA256: strings.Repeat("b", 64)}}
	for _, evil := range []string{"${shell}", "a&&shell", "a||shell", "a;b", "a\nshell", "a\rshell", "a\x00", "a\"b", "a'b", "a b",
		"a#b", "<script>", "{", "}", "a|b", "a&b", "a\\b", "a`b", "a$b", "é", "\xff"} {
		m := Machine{MAC: agentMAC, Platform: EFI}
		bad := m
		bad.UUID = evil
		arch := m
		arch.Arch = evil
		args := img
		args.KernelArgs = "quiet \"" + evil
		for name, write := range map[string]func() (string, error){
			"uuid":        func() (string, error) { return s.Agent(bad, img, "n") },
			"arch":        func() (string, error) { return s.Wait(arch, "held") },
			"nonce":       func() (string, error) { return s.Agent(m, img, evil) },
			"kernel args": func() (string, error) { return s.Agent(m, args, "n") },
			"disk":        func() (string, error) { return s.Local(m, lpmos.BootEntry{Disk: &lpmos.BootDisk{RootUUID: evil}}) },
			"BIOS disk": func() (string, error) {
				return s.Local(Machine{MAC: agentMAC, Platform: BIOS}, lpmos.BootEntry{Disk: &lpmos.BootDisk{ESPUUID: evil}})
			},
		} {
			script, err := write()
			if _, ok := errors.AsType[*lpmos.InvalidError](err); !ok || script != "" {
				t.Errorf("%s %q gives %q, %v; want an InvalidError and no script", name, evil, script, err)
			}
		}
	}
}

func TestAgentScriptWantsABootImage(t *testing.T) {
	s := decider(t, Ignore, true).Scripts()
	if _, err := s.Agent(Machine{MAC: agentMAC, Platform: EFI}, lpmos.BootImage{}, "n"); !errors.Is(err, lpmos.ErrUnavailable) {
		t.Errorf("Agent without an image = %v; want ErrUnavailable", err)
	}
	if _, err := s.Local(Machine{MAC: agentMAC}, lpmos.BootEntry{}); err == nil {
		t.Error("Local without a platform succeeds; want an error")
	}
}

func TestConfig(t *testing.T) {
	good := Config{"http://10.77.0.1:8081", netip.MustParseAddr("10.77.0.1"), Ignore}
	if err := good.Validate(); err != nil {
		t.Errorf("Validate(%+v) = %v", good, err)
	}
	for name, change := range map[string]func(*Config){
		"boot_url":         func(c *Config) { c.BootURL = "https://x" },
		"boot_url ":        func(c *Config) { c.BootURL = "http://x/" },
		"boot_url  ":       func(c *Config) { c.BootURL = "http://${x}" },
		"next_server":      func(c *Config) { c.NextServer = netip.MustParseAddr("fe80::1") },
		"unknown_machines": func(c *Config) { c.Unknown = "" },
	} {
		c := good
		change(&c)
		if e, ok := errors.AsType[*lpmos.InvalidError](c.Validate()); !ok || e.Field != strings.TrimSpace(name) {
			t.Errorf("Validate(%+v) = %v; want an InvalidError on %s", c, e, name)
		}
	}
}
