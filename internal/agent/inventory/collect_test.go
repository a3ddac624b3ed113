package inventory

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/lpmos/lpmos"
)

var update = flag.Bool("update", false, "rewrite golden files")

// TestCollect is D09 and D10 where disks are found: what is removable or remote is
// said to be.
func TestCollect(t *testing.T) {
	for name, boot := range map[string]string{"vm": "52:54:00:12:34:56", "server": "24:6e:96:00:00:02", "hostile": ""} {
		t.Run(name, func(t *testing.T) {
			var mac lpmos.MAC
			if boot != "" {
				mac = lpmos.MustMAC(boot)
			}
			h := Collect(t.Context(), readTree(t, name), mac)
			h.CPU.Architecture = "amd64" // whatever the test runs on
			got, err := json.MarshalIndent(h, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(strings.TrimSpace(string(want)), string(got)); d != "" {
				t.Errorf("Collect(%s) differs from %s (-want +got):\n%s", name, golden, d)
			}
			again := Collect(t.Context(), readTree(t, name), mac)
			again.CPU.Architecture = "amd64"
			if d := cmp.Diff(h, again); d != "" {
				t.Errorf("a second look differs:\n%s", d)
			}
		})
	}
}

// TestCollectOfNothing is D14 for a machine of which nothing can be found.
func TestCollectOfNothing(t *testing.T) {
	h := Collect(t.Context(), Source{Proc: fstest.MapFS{}, Sys: fstest.MapFS{}}, lpmos.MAC{})
	if h.BootMode != "bios" || len(h.Disks) != 0 || len(h.NICs) != 0 || h.CPU.Threads != 0 {
		t.Errorf("Collect of empty trees = %+v", h)
	}
}

// TestCollectBounds is D14.
func TestCollectBounds(t *testing.T) {
	all := fstest.MapFS{}
	for i := range 64 {
		name := "sd" + string(rune('a'+i%26))
		if i >= 26 {
			name = "sd" + string(rune('a'+i/26-1)) + string(rune('a'+i%26))
		}
		addDisk(all, name, i)
	}
	for i := range 1024 {
		addNIC(all, fmt.Sprintf("eth%d", i), i)
	}
	var looks, atOnce, most atomic.Int32
	src := sourceOf(t, all)
	src.Look = func(_ context.Context, d *lpmos.Disk) {
		if n := atOnce.Add(1); n > most.Load() {
			most.Store(n)
		}
		looks.Add(1)
		d.Content.Table = "gpt"
		atOnce.Add(-1)
	}
	boot := lpmos.MustMAC("02:00:00:00:03:ff") // eth1023
	start := time.Now()
	h := Collect(t.Context(), src, boot)
	t.Logf("64 disks and 1,024 interfaces took %s", time.Since(start))
	if len(h.Disks) != 64 || looks.Load() != 64 || most.Load() > 8 {
		t.Errorf("%d disks, %d looks, %d at once; want 64, 64, at most 8", len(h.Disks), looks.Load(), most.Load())
	}
	for i, want := range map[int]string{0: "/dev/sda", 25: "/dev/sdz", 26: "/dev/sdaa", 63: "/dev/sdbl"} {
		if h.Disks[i].Device != want || h.Disks[i].Content.Table != "gpt" {
			t.Errorf("disk %d = %+v; want %s", i, h.Disks[i], want)
		}
	}
	if len(h.NICs) != maxNICs {
		t.Errorf("%d interfaces; want %d", len(h.NICs), maxNICs)
	}
	if last := h.NICs[maxNICs-1]; !last.Boot || last.MAC != boot {
		t.Errorf("last interface = %+v; want the one the machine booted from", last)
	}
	if b, _ := json.Marshal(h); len(b) > 1<<20 {
		t.Errorf("the report has %d bytes; want at most 1 MiB", len(b))
	}
}

// TestHugeFile stands for a tree that never ends (D14).
func TestHugeFile(t *testing.T) {
	huge := bytes.Repeat([]byte("model name : x\nprocessor : 1\ncore id : 7\n"), 1<<20)
	src := Source{Proc: fstest.MapFS{"cpuinfo": {Data: huge}, "meminfo": {Data: huge}}, Sys: fstest.MapFS{"class/dmi/id/sys_vendor": {Data: huge}}}
	h := Collect(t.Context(), src, lpmos.MAC{})
	if len(h.System.Manufacturer) > maxText || h.CPU.Threads > maxCPUs || h.CPU.Sockets != 1 {
		t.Errorf("Collect = %d bytes of vendor, %+v", len(h.System.Manufacturer), h.CPU)
	}
}

// TestNotDisks is D09 for what the kernel lists beside disks.
func TestNotDisks(t *testing.T) {
	for name, want := range map[string]bool{
		"fd0": true, "sr0": true, "loop7": true, "ram0": true, "zram0": true, "dm-0": true, "md127": true, "md_d0": true, "nbd0": true, "mmcblk0boot0": true, "mmcblk0boot1": true, "mmcblk0rpmb": true, "mmcblk1gp0": true, "nvme0c1n1": true,
		"sda": false, "sdfd": false, "vda": false, "nvme0n1": false, "nvme10n2": false, "mmcblk0": false, "xvda": false, "hda": false, "pmem0": false,
	} {
		if got := notDisks.MatchString(name); got != want {
			t.Errorf("%s is no disk: %v; want %v", name, got, want)
		}
	}
}

func TestHostReadsThisMachine(t *testing.T) {
	src, err := Host()
	if err != nil {
		t.Fatal(err)
	}
	h := Collect(t.Context(), src, lpmos.MAC{})
	if h.Kernel == "" || h.CPU.Threads == 0 || h.CPU.Cores == 0 || h.Memory.TotalBytes == 0 {
		t.Errorf("Collect of this machine = %+v", h)
	}
	for _, d := range h.Disks {
		if strings.HasPrefix(d.Device, "/dev/loop") || strings.HasPrefix(d.Device, "/dev/ram") {
			t.Errorf("%s is no disk", d.Device)
		}
	}
}

func TestClean(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"trims and joins", "  INTEL   SSD\t\n", "INTEL SSD"},
		{"drops padding", "S1\x00\x00\x00", "S1"},
		{"drops controls", "a\x1b[31mb\x7f", "a[31mb"},
		{"drops bidi overrides and marks", "a\u202eb\u2066c\u200f\ufeffd", "abcd"},
		{"drops invalid UTF-8", "a\xff\x80b", "ab"},
		{"keeps letters of others", "Größe 容量", "Größe 容量"},
		{"cuts at a rune", strings.Repeat("é", 200), strings.Repeat("é", 128)},
		{"does not end in space", strings.Repeat("a", 255) + " b", strings.Repeat("a", 255)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Clean(tt.in); got != tt.want {
				t.Errorf("Clean(%q) = %q; want %q", tt.in, got, tt.want)
			}
		})
	}
}

func FuzzClean(f *testing.F) {
	f.Add("  a \x00\u202e é")
	f.Fuzz(func(t *testing.T, s string) {
		c := Clean(s)
		if len(c) > maxText || !utf8.ValidString(c) || c != strings.TrimSpace(c) || Clean(c) != c {
			t.Errorf("Clean(%q) = %q", s, c)
		}
	})
}

func FuzzVPD80(f *testing.F) {
	f.Add([]byte("\x00\x80\x00\x04ABCD"))
	f.Add([]byte("\x00\x80\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s := parseVPD80(b); len(s) > maxText {
			t.Errorf("parseVPD80(%x) has %d bytes", b, len(s))
		}
	})
}

func FuzzCPUInfo(f *testing.F) {
	f.Add([]byte("processor : 0\nphysical id : 0\ncore id : 1\nmodel name : X\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := parseCPUInfo(b)
		if c.Threads < 0 || c.Threads > maxCPUs || c.Threads > 0 && (c.Sockets < 1 || c.Cores < 1) {
			t.Errorf("parseCPUInfo(%q) = %+v", b, c)
		}
	})
}
