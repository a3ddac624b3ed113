package lab

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lpmos/lpmos"
)

var update = flag.Bool("update", false, "rewrite the golden files")

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

func TestPhases(t *testing.T) {
	on := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	at := func(s float64) time.Time { return on.Add(time.Duration(s * float64(time.Second))) }
	var b bytes.Buffer
	err := WritePhases(&b, []Mark{
		{"power on", on}, {"first DHCP", at(2.34)}, {"agent report", at(11.3)}, {"approved", time.Time{}},
		{"installing", at(12)}, {"reboot", at(118.06)}, {"second boot", at(117.96)}, {"called home", at(131)},
	})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "phases.txt", b.String())
}

func TestQEMUArguments(t *testing.T) {
	tools := Tools{QEMU: "/q", OVMFCode: "/code.fd", OVMFVars: "/vars.fd", OVMFSecureCode: "/scode.fd"}
	var b strings.Builder
	for _, c := range []MachineConfig{
		{Name: "bios", NICs: []NIC{{MAC: lpmos.MAC{2, 0, 0, 0, 0, 1}}, {MAC: lpmos.MAC{2, 0, 0, 0, 0, 2}, ROM: "/a,b.rom"}},
			Disks: []Disk{{Path: "/d0"}, {Path: "/d1", Bus: AHCI, WWN: 0x5000c500a1b2c3d4}, {Path: "/d2", Bus: AHCI}}},
		{Name: "uefi", Firmware: UEFI, NVRAMOrder: true, RTC: time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC),
			NICs: []NIC{{MAC: lpmos.MAC{2, 0, 0, 0, 0, 3}, Model: E1000e}},
			Disks: []Disk{{Path: "/d0", Bus: NVMe, SectorBytes: 4096, Cache: "none"}, {Path: "/d1", Bus: SCSI, WWN: 1},
				{Path: "/d2", Bus: SCSI}, {Path: "/d3", Bus: USB, Serial: "STICK"}},
			SMBIOS: SMBIOS{UUID: "00112233-4455-6677-8899-aabbccddeeff", Product: "X,Y"}},
		{Name: "http", Firmware: UEFIHTTP},
		{Name: "secure", Firmware: UEFISecureBoot, Args: []string{"-snapshot"}},
	} {
		c, err := c.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		for i, a := range c.args(tools, []string{"tap0", "tap1"}, "/dir") {
			switch {
			case strings.HasPrefix(a, "-"):
				fmt.Fprintf(&b, "\n%s", a)
			case i > 0:
				fmt.Fprintf(&b, " %s", a)
			}
		}
		b.WriteString("\n")
	}
	golden(t, "arguments.txt", b.String())
}

func TestMachineConfigRefuses(t *testing.T) {
	nic := []NIC{{MAC: lpmos.MAC{2, 0, 0, 0, 0, 1}}}
	for _, tc := range []struct {
		name string
		cfg  MachineConfig
		want string
	}{
		{"a name that leaves the directory", MachineConfig{Name: "../x"}, "name"},
		{"no name", MachineConfig{}, "name"},
		{"unknown firmware", MachineConfig{Name: "m", Firmware: 99}, "firmware"},
		{"a card without a MAC", MachineConfig{Name: "m", NICs: []NIC{{}}}, "MAC"},
		{"a disk without a path", MachineConfig{Name: "m", NICs: nic, Disks: []Disk{{}}}, "path"},
		{"an unknown bus", MachineConfig{Name: "m", Disks: []Disk{{Path: "/d", Bus: "mfm"}}}, "bus"},
		{"4Kn on AHCI", MachineConfig{Name: "m", Disks: []Disk{{Path: "/d", Bus: AHCI, SectorBytes: 4096}}}, "sectors"},
		{"a serial the bus would cut", MachineConfig{Name: "m", Disks: []Disk{{Path: "/d", Serial: strings.Repeat("s", 21)}}}, "serial"},
	} {
		if _, err := tc.cfg.withDefaults(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: withDefaults = %v; want an error about %q", tc.name, err, tc.want)
		}
	}
	c, err := MachineConfig{Name: strings.Repeat("m", 40), Disks: []Disk{{Path: "/a"}, {Path: "/b"}}}.withDefaults()
	if err != nil || c.Disks[0].Serial == c.Disks[1].Serial || len(c.Disks[1].Serial) > 20 {
		t.Errorf("default serials = %+v, %v; want two of at most 20 bytes", c.Disks, err)
	}
}

func TestConsole(t *testing.T) {
	texts := func(c *Console) []string { return c.Tail(100) }
	t.Run("cuts lines where terminals see them", func(t *testing.T) {
		c := newConsole("m", nil, nil)
		input := "\x1b[2J\x1b[01;01HBdsDxe: loading\x1b[0m Boot0001\x1b[05;01H>>Start PXE\r\r\n\r\n" +
			"10%\r20%\rabc\bd\n\x00\xffdone\n# "
		for i := range len(input) { // byte by byte: sequences cut anywhere
			c.Write([]byte(input[i : i+1]))
		}
		want := []string{"BdsDxe: loading Boot0001", ">>Start PXE", "10%", "20%", "abd", "?done", "# "}
		if diff := cmp.Diff(want, texts(c)); diff != "" {
			t.Errorf("lines (-want +got):\n%s", diff)
		}
	})
	t.Run("finds lines one after the other", func(t *testing.T) {
		c := newConsole("m", Failures, nil)
		c.Write([]byte("boot 1\nboot 2\n"))
		for _, want := range []string{"boot 1", "boot 2"} {
			if l, err := c.WaitFor(t.Context(), regexp.MustCompile("boot")); err != nil || l.Text != want {
				t.Errorf("WaitFor = %q, %v; want %q", l.Text, err, want)
			}
		}
		if l, err := c.NewReader().WaitFor(t.Context(), regexp.MustCompile("boot")); err != nil || l.Text != "boot 1" {
			t.Errorf("WaitFor of a new reader = %q, %v; want the first line", l.Text, err)
		}
	})
	t.Run("fails at once on a failure line", func(t *testing.T) {
		c := newConsole("m", Failures, nil)
		for i := range 50 {
			fmt.Fprintf(c, "line %d\n", i)
		}
		c.Write([]byte("[ 1.0] Kernel panic - not syncing\nnever seen\n"))
		_, err := c.WaitFor(t.Context(), regexp.MustCompile("never seen"))
		var ce *ConsoleError
		if !errors.As(err, &ce) || !errors.Is(err, ErrFailed) || !strings.Contains(ce.Line, "panic") || len(ce.Tail) != 40 {
			t.Errorf("WaitFor = %v; want a ConsoleError about the panic with 40 lines", err)
		}
	})
	t.Run("takes a prompt, but not half a line", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newConsole("m", nil, nil)
			go func() {
				c.Write([]byte("progress=1"))
				time.Sleep(promptQuiet / 2)
				c.Write([]byte("00\nlogin: "))
			}()
			for re, want := range map[string]string{`progress=\d+`: "progress=100"} {
				if l, err := c.WaitFor(t.Context(), regexp.MustCompile(re)); err != nil || l.Text != want {
					t.Errorf("WaitFor(%q) = %q, %v; want %q", re, l.Text, err, want)
				}
			}
			if l, err := c.WaitFor(t.Context(), regexp.MustCompile(`login:`)); err != nil || l.Text != "login:" {
				t.Errorf("WaitFor(login:) = %q, %v", l.Text, err)
			}
		})
	})
	t.Run("ends with the context and with the console", func(t *testing.T) {
		c := newConsole("m", nil, nil)
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("enough")
		cancel(why)
		if _, err := c.WaitFor(ctx, regexp.MustCompile("x")); !errors.Is(err, why) {
			t.Errorf("WaitFor = %v; want %v", err, why)
		}
		c.close()
		if _, err := c.WaitFor(t.Context(), regexp.MustCompile("x")); err == nil {
			t.Error("WaitFor on a closed console = nil")
		}
	})
	t.Run("bounds a line that never ends", func(t *testing.T) {
		c := newConsole("m", nil, nil)
		c.Write(bytes.Repeat([]byte("x"), 3*maxLine))
		if l := texts(c); len(l) != 3 || len(l[0]) != maxLine {
			t.Errorf("%d lines; want 3 of %d bytes", len(l), maxLine)
		}
	})
}

func TestDisk(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	const size = 1 << 30
	if err := CreateDisk(path, size); err != nil {
		t.Fatal(err)
	}
	if err := CreateDisk(path, size); !errors.Is(err, os.ErrExist) {
		t.Errorf("CreateDisk over a disk = %v; want ErrExist", err)
	}
	if err := CreateDisk(filepath.Join(dir, "odd"), 1000); err == nil {
		t.Error("CreateDisk of 1000 bytes = nil; want an error")
	}
	hash := func(path string) string {
		t.Helper()
		h, err := HashDisk(path)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	seen := []string{hash(path)}
	for _, offset := range []int64{0, 513, size - 6} {
		if err := WriteDisk(path, offset, []byte("marker")); err != nil {
			t.Fatal(err)
		}
		if b, err := ReadDisk(path, offset, 6); err != nil || string(b) != "marker" {
			t.Errorf("ReadDisk(%d) = %q, %v; want what was written", offset, b, err)
		}
		if h := hash(path); slices.Contains(seen, h) {
			t.Errorf("HashDisk after a write at %d is one seen before", offset)
		} else {
			seen = append(seen, h)
		}
	}
	// Written zeroes are holes; another size is another disk.
	for _, offset := range []int64{0, 513, size - 6} {
		if err := WriteDisk(path, offset, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
	}
	if h := hash(path); h != seen[0] {
		t.Error("HashDisk of a disk written back to zero differs from that of a new one")
	}
	if err := os.Truncate(path, size+512); err != nil {
		t.Fatal(err)
	}
	if h := hash(path); h == seen[0] {
		t.Error("HashDisk does not see the size")
	}
}
