package pid1

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/tier"
)

var quiet = slog.New(slog.DiscardHandler)

// moduleLists are lines as depmod writes them for Debian's kernel.
var moduleLists = fstest.MapFS{
	"modules.dep": {Data: []byte(`kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko kernel/fs/mbcache.ko kernel/fs/jbd2/jbd2.ko
kernel/lib/crc16.ko:
kernel/fs/mbcache.ko:
kernel/fs/jbd2/jbd2.ko:
kernel/crypto/crc32c_generic.ko:
kernel/arch/x86/crypto/crc32c-intel.ko:
kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko kernel/net/core/failover.ko
kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko
kernel/net/core/failover.ko:
kernel/drivers/net/ethernet/intel/e1000e/e1000e.ko:
kernel/drivers/nvme/host/nvme.ko.xz: kernel/drivers/nvme/host/nvme-core.ko.xz
kernel/drivers/nvme/host/nvme-core.ko.xz:
kernel/a.ko:
kernel/b.ko:
../../../etc/shadow.ko:
`)},
	"modules.alias": {Data: []byte(`# Aliases extracted from modules themselves.
alias virtio:d00000001v* virtio_net
alias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e
alias pci:v*d*sv*sd*bc01sc08i02* nvme
alias fs-ext4 ext4
alias ext3 ext4
alias crypto-crc32c crc32c_intel
alias crypto-crc32c crc32c_generic
alias cpu:type:x86,ven*fam*mod*:feature:*0094* crc32c_intel
alias usb:v0525p1080d*dc*dsc*dp*ic*isc*ip*in* a
alias acpi*:PNP0C0[A-D]:* a
alias of:N*T*Cx-[!a-c]y* b
alias broken
`)},
	"modules.softdep": {Data: []byte("softdep ext4 pre: crypto-crc32c post: b\nsoftdep a pre: b\nsoftdep b pre: a\n")},
	"modules.builtin": {Data: []byte("kernel/fs/mbcache.ko\n")},
}

func TestMatch(t *testing.T) {
	m, err := ReadModules(moduleLists)
	if err != nil {
		t.Fatal(err)
	}
	for alias, want := range map[string][]string{
		"virtio:d00000001v00001AF4":                                  {"virtio_net"},
		"virtio:d00000002v00001AF4":                                  nil,
		"pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00":      {"e1000e"},
		"pci:v0000144Dd0000A808sv0000144Dsd0000A801bc01sc08i02":      {"nvme"},
		"cpu:type:x86,ven0000fam0006mod0055:feature:,0000,0094,0099": {"crc32c_intel"},
		"acpi:PNP0C0B:":             {"a"},
		"acpi:PNP0C0E:":             nil,
		"of:NfooTbarCx-dy":          {"b"},
		"of:NfooTbarCx-ay":          nil,
		"crypto-crc32c":             {"crc32c_intel", "crc32c_generic"},
		"crypto_crc32c":             {"crc32c_intel", "crc32c_generic"},
		"ext4":                      {"ext4"},
		"ext3":                      {"ext4"},
		"crc32c-intel":              {"crc32c_intel"},
		"":                          nil,
		strings.Repeat("pci:v", 50): nil,
	} {
		if got := m.Match(alias); !slices.Equal(got, want) {
			t.Errorf("Match(%q) = %q; want %q", alias, got, want)
		}
	}
}

func TestFnmatch(t *testing.T) {
	for _, tt := range []struct {
		glob, s string
		want    bool
	}{
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"*", "a/b", true}, {"a*c*e", "abcde", true}, {"a*c*e", "abcd", false},
		{"?", "a", true}, {"?", "", false}, {"[a-c]", "b", true}, {"[^a-c]", "b", false}, {"[a-", "[a-", true}, {"[]", "[]", true},
		{`\*`, "*", true}, {`\*`, "a", false}, {"a", "ab", false}, {"ab", "a", false}, {"*ab", "aab", true}, {"**b**", "abc", true},
	} {
		if got := fnmatch(tt.glob, tt.s); got != tt.want {
			t.Errorf("fnmatch(%q, %q) = %t; want %t", tt.glob, tt.s, got, tt.want)
		}
	}
	// No pattern takes for ever.
	start := time.Now()
	fnmatch(strings.Repeat("a*", 2000)+"b", strings.Repeat("a", 4000))
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("a hostile pattern took %s", took)
	}
}

func FuzzFnmatch(f *testing.F) {
	f.Add("a*[b-d]?\\*", "aacx*")
	f.Fuzz(func(t *testing.T, glob, s string) {
		if !strings.ContainsAny(glob, "*?[\\") && fnmatch(glob, s) != (glob == s) {
			t.Errorf("fnmatch(%q, %q) is not equality", glob, s)
		}
		// A backslash at the end would escape the star that is added.
		if fnmatch(glob, s) && !strings.HasSuffix(glob, `\`) && !fnmatch("*"+glob+"*", "x"+s+"y") {
			t.Errorf("*%s* does not match x%sy", glob, s)
		}
	})
}

// recorder is a loader that keeps what it would load.
func recorder(t testing.TB, fail map[string]error) (*loader, *[]string) {
	t.Helper()
	m, err := ReadModules(moduleLists)
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	return &loader{modules: m, dir: "/m", log: quiet, insert: func(file string) error {
		order = append(order, strings.TrimPrefix(file, "/m/kernel/"))
		return fail[moduleName(file)]
	}}, &order
}

func TestLoad(t *testing.T) {
	t.Run("what a module needs comes first, once, built-in ones not at all", func(t *testing.T) {
		l, order := recorder(t, nil)
		l.load("fs-ext4")
		l.load("ext4")
		want := []string{"fs/jbd2/jbd2.ko", "lib/crc16.ko", "arch/x86/crypto/crc32c-intel.ko", "crypto/crc32c_generic.ko", "fs/ext4/ext4.ko"}
		if !slices.Equal(*order, want) {
			t.Errorf("order %q; want %q", *order, want)
		}
	})
	t.Run("the last of the list is the first in life", func(t *testing.T) {
		l, order := recorder(t, nil)
		l.load("virtio:d00000001v00001AF4")
		if want := []string{"net/core/failover.ko", "drivers/net/net_failover.ko", "drivers/net/virtio_net.ko"}; !slices.Equal(*order, want) {
			t.Errorf("order %q; want %q", *order, want)
		}
	})
	t.Run("a circle ends", func(t *testing.T) {
		l, order := recorder(t, nil)
		l.load("a")
		if want := []string{"b.ko", "a.ko"}; !slices.Equal(*order, want) {
			t.Errorf("order %q; want %q", *order, want)
		}
	})
	t.Run("a missing file stops nothing", func(t *testing.T) {
		l, order := recorder(t, map[string]error{"nvme_core": fs.ErrNotExist})
		l.load("nvme")
		l.load("virtio_net")
		if len(*order) != 5 || l.loaded["nvme_core"] || !l.loaded["virtio_net"] {
			t.Errorf("order %q, loaded %v", *order, l.loaded)
		}
	})
	t.Run("paths outside the directory do not exist", func(t *testing.T) {
		l, order := recorder(t, nil)
		l.load("shadow")
		if len(*order) != 0 {
			t.Errorf("order %q", *order)
		}
	})
}

func TestColdplugGoesOnWhileDevicesAppear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sys := fstest.MapFS{
			"bus/pci/devices/0000:00:03.0/modalias": {Data: []byte("pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00\n")},
			"bus/pci/devices/0000:00:04.0/vendor":   {Data: []byte("x\n")},
			"devices/system/cpu/modalias":           {Data: []byte("cpu:type:x86,ven0000fam0006mod0055:feature:,0000,0094\n")},
		}
		l, order := recorder(t, nil)
		inner := l.insert
		l.insert = func(file string) error {
			if strings.HasSuffix(file, "e1000e.ko") {
				sys["bus/virtio/devices/virtio0/modalias"] = &fstest.MapFile{Data: []byte("virtio:d00000001v00001AF4\n")}
			}
			return inner(file)
		}
		l.coldplug(t.Context(), sys)
		if !slices.Contains(*order, "drivers/net/virtio_net.ko") || !slices.Contains(*order, "arch/x86/crypto/crc32c-intel.ko") {
			t.Errorf("order %q; want the device that came later and the processor too", *order)
		}
	})
}

func TestReadModulesWithoutLists(t *testing.T) {
	if _, err := ReadModules(fstest.MapFS{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadModules of nothing = %v", err)
	}
}

// TestRealModules needs the module lists of a Debian kernel, in
// LPMOS_MODULES_DIR.
func TestRealModules(t *testing.T) {
	dir := os.Getenv("LPMOS_MODULES_DIR")
	if dir == "" {
		tier.Missing(t, "modules", "LPMOS_MODULES_DIR is not set")
	}
	start := time.Now()
	m, err := ReadModules(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	read := time.Since(start)
	for alias, want := range map[string]string{
		"pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00": "virtio_pci",
		"virtio:d00000001v00001AF4":                             "virtio_net",
		"pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01": "ahci",
		"pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02": "nvme",
		"pci:v00001000d00000097sv00001028sd00001FD3bc01sc07i00": "mpt3sas",
		"pci:v00008086d00001572sv00008086sd00000000bc02sc00i00": "i40e",
		"scsi:t-0x00":   "sd_mod",
		"fs-xfs":        "xfs",
		"nls_cp437":     "nls_cp437",
		"crypto-crc32c": "crc32c_generic",
	} {
		if !slices.Contains(m.Match(alias), want) {
			t.Errorf("Match(%q) = %q; want %s among them", alias, m.Match(alias), want)
		}
	}
	start = time.Now()
	for range 400 {
		m.Match("pci:v00008086d00001572sv00008086sd00000000bc02sc00i00")
	}
	matched := time.Since(start)
	t.Logf("%d modules; lists read in %s, 400 aliases matched in %s", len(m.files), read, matched)
	if matched > 10*time.Second {
		t.Errorf("400 aliases took %s", matched)
	}
}

func TestInterfacesPutTheBootOneFirst(t *testing.T) {
	sys := t.TempDir()
	for name, mac := range map[string]string{"eth0": "02:00:00:00:00:01", "eth1": "02:00:00:00:00:02", "eth2": "02:00:00:00:00:03", "lo": "00:00:00:00:00:00"} {
		dir := filepath.Join(sys, "class/net", name)
		if err := os.MkdirAll(filepath.Join(dir, "device"), 0o755); err != nil {
			t.Fatal(err)
		}
		os.WriteFile(filepath.Join(dir, "address"), []byte(mac+"\n"), 0o644)
	}
	os.Remove(filepath.Join(sys, "class/net/eth1/device"))
	got := interfaces(sys, lpmos.MustMAC("02:00:00:00:00:03"))
	if len(got) != 2 || got[0].name != "eth2" || got[1].name != "eth0" {
		t.Errorf("interfaces = %+v; want eth2, eth0", got)
	}
}

func TestSettle(t *testing.T) {
	full := fstest.MapFS{"block/sda/size": {}, "block/loop0/size": {}, "class/net/eth0/device/x": {}, "class/net/lo/address": {}}
	tests := []struct {
		name        string
		sys         fstest.MapFS
		change      bool // every half second
		disks, nics int
		least, most time.Duration
	}{
		{"is short when nothing changes", full, false, 1, 1, settleQuiet, settleQuiet + time.Second/2},
		{"waits longer for the first disk", fstest.MapFS{"class/net/eth0/device/x": {}}, false, 0, 1, settlePatience, settlePatience + time.Second},
		{"has a limit", full, true, 1, 1, settleLimit, settleLimit + time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sys := fs.FS(tt.sys)
				if tt.change {
					sys = flicker{tt.sys, time.Now()}
				}
				start := time.Now()
				disks, nics := settle(t.Context(), sys, settleQuiet, settlePatience, settleLimit)
				if took := time.Since(start); took < tt.least || took > tt.most {
					t.Errorf("settle took %s; want %s to %s", took, tt.least, tt.most)
				}
				if !tt.change && (disks != tt.disks || nics != tt.nics) {
					t.Errorf("settle = %d disks, %d nics; want %d, %d", disks, nics, tt.disks, tt.nics)
				}
			})
		})
	}
}

// flicker has a disk that comes and goes.
type flicker struct {
	fstest.MapFS
	start time.Time
}

func (f flicker) ReadDir(name string) ([]fs.DirEntry, error) {
	if name == "block" && time.Since(f.start)/(time.Second/2)%2 == 1 {
		return nil, nil
	}
	return f.MapFS.ReadDir(name)
}

func TestDiskMounts(t *testing.T) {
	table := "proc /proc proc rw 0 0\n/dev/sda2 /run/target ext4 rw 0 0\n/dev/sda1 /run/target/boot\\040efi vfat rw 0 0\ntmpfs /run tmpfs rw 0 0\nbroken\n"
	if got, want := diskMounts(table), []string{"/run/target/boot efi", "/run/target"}; !slices.Equal(got, want) {
		t.Errorf("diskMounts = %q; want %q", got, want)
	}
}

// TestNothingHappensElsewhere is worth a test, because the others run on
// people's machines.
func TestNothingHappensElsewhere(t *testing.T) {
	if Booted() {
		t.Fatal("Booted in a test")
	}
	s := &System{Log: quiet}
	_, startErr := Start(t.Context(), Options{}, quiet)
	for name, err := range map[string]error{"Reboot": s.Reboot(), "SetClock": s.SetClock(time.Now()), "Start": startErr} {
		if !errors.Is(err, errNotBooted) {
			t.Errorf("%s = %v; want a refusal", name, err)
		}
	}
}

func TestGuardedTurnsAPanicIntoAnError(t *testing.T) {
	err := guarded(t.Context(), nil, func(context.Context, *System) error { panic("no such disk") })
	if err == nil || !strings.Contains(err.Error(), "panic: no such disk") || !strings.Contains(err.Error(), "pid1_test.go") {
		t.Errorf("guarded = %v; want the panic and where it was", err)
	}
}

func TestLogIsOneShortLine(t *testing.T) {
	var b bytes.Buffer
	newLog(&b).Info("address", "nic", "eth0", "err", errors.New("two\nlines"))
	if got, want := b.String(), "lpmos: msg=address nic=eth0 err=\"two\\nlines\"\n"; got != want {
		t.Errorf("log = %q; want %q", got, want)
	}
}

// TestSilentConsole writes to a terminal that takes nothing: the agent, whose
// log goes there, must not stand still with it.
func TestSilentConsole(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	var other bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		log := newLog(consoles{console{w}, &other})
		for range 3 {
			log.Info(strings.Repeat("x", 64<<10)) // as much as a pipe holds
		}
	}()
	select {
	case <-done:
		if n := strings.Count(other.String(), "\n"); n != 3 {
			t.Errorf("the other console has %d lines; want 3", n)
		}
	case <-time.After(time.Minute):
		t.Error("a console that takes nothing stops the log")
	}
}
