package inventory

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
)

const someUUID = "6f1d2c3b-4a59-4867-9a0b-1c2d3e4f5a6b"

func newImage(t testing.TB, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(name)
	if err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	return name
}

func probeFile(t testing.TB, name string, sector int) lpmos.Content {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	c, err := Probe(f, st.Size(), sector)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestMkfs compares with what the tools themselves were told. used is a range,
// because it depends on their version.
func TestMkfs(t *testing.T) {
	fill := t.TempDir() // a directory with 3 MiB in it
	if err := os.WriteFile(filepath.Join(fill, "data"), make([]byte, 3<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		sizeMiB int64
		tool    string
		args    []string // IMG stands for the file
		want    lpmos.Filesystem
		used    [2]int64
		written bool
	}{
		{"ext4", 64, "mkfs.ext4", []string{"-q", "-L", "root", "-U", someUUID, "-d", fill, "IMG"}, lpmos.Filesystem{Type: "ext4", Label: "root", UUID: someUUID, SizeBytes: 64 << 20}, [2]int64{3 << 20, 20 << 20}, true},
		{"ext4 with 1 KiB blocks, without 64bit", 64, "mkfs.ext4", []string{"-q", "-b", "1024", "-O", "^64bit", "-U", someUUID, "IMG"}, lpmos.Filesystem{Type: "ext4", UUID: someUUID, SizeBytes: 64 << 20}, [2]int64{1 << 20, 20 << 20}, true},
		{"ext3", 64, "mkfs.ext4", []string{"-q", "-t", "ext3", "-U", someUUID, "IMG"}, lpmos.Filesystem{Type: "ext3", UUID: someUUID, SizeBytes: 64 << 20}, [2]int64{1 << 20, 20 << 20}, true},
		{"ext2", 64, "mkfs.ext4", []string{"-q", "-t", "ext2", "-U", someUUID, "IMG"}, lpmos.Filesystem{Type: "ext2", UUID: someUUID, SizeBytes: 64 << 20}, [2]int64{1 << 18, 20 << 20}, true},
		{"FAT32", 64, "mkfs.vfat", []string{"-F", "32", "-n", "ESP", "-i", "1234abcd", "IMG"}, lpmos.Filesystem{Type: "vfat", Label: "ESP", UUID: "1234-ABCD", SizeBytes: 64 << 20}, [2]int64{0, 1 << 16}, false},
		{"FAT16", 32, "mkfs.vfat", []string{"-F", "16", "-n", "OLD", "-i", "1234abcd", "IMG"}, lpmos.Filesystem{Type: "vfat", Label: "OLD", UUID: "1234-ABCD", SizeBytes: 32 << 20}, [2]int64{0, 1 << 16}, false},
		{"FAT12 without a label", 2, "mkfs.vfat", []string{"-F", "12", "-i", "1234abcd", "IMG"}, lpmos.Filesystem{Type: "vfat", UUID: "1234-ABCD", SizeBytes: 2 << 20}, [2]int64{0, 0}, false},
		{"swap", 64, "mkswap", []string{"-L", "swap0", "-U", someUUID, "IMG"}, lpmos.Filesystem{Type: "swap", Label: "swap0", UUID: someUUID, SizeBytes: 64 << 20}, [2]int64{}, false},
		{"xfs", 400, "mkfs.xfs", []string{"-q", "-L", "data", "-m", "uuid=" + someUUID, "IMG"}, lpmos.Filesystem{Type: "xfs", Label: "data", UUID: someUUID, SizeBytes: 400 << 20}, [2]int64{1 << 16, 150 << 20}, false},
		{"btrfs", 200, "mkfs.btrfs", []string{"-q", "-L", "pool", "-U", someUUID, "IMG"}, lpmos.Filesystem{Type: "btrfs", Label: "pool", UUID: someUUID, SizeBytes: 200 << 20}, [2]int64{1 << 14, 1 << 20}, false},
		{"exfat", 64, "mkfs.exfat", []string{"-L", "stick", "IMG"}, lpmos.Filesystem{Type: "exfat", Label: "stick", SizeBytes: 64 << 20}, [2]int64{1 << 12, 1 << 20}, false},
		{"ntfs", 64, "mkntfs", []string{"-F", "-q", "-L", "Windows", "IMG"}, lpmos.Filesystem{Type: "ntfs", Label: "Windows"}, [2]int64{}, false},
		{"LUKS2", 64, "cryptsetup", []string{"luksFormat", "-q", "--type", "luks2", "--label", "safe", "--uuid", someUUID, "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "IMG", "-"}, lpmos.Filesystem{Type: "crypto_LUKS", Label: "safe", UUID: someUUID}, [2]int64{}, false},
		{"LUKS1", 64, "cryptsetup", []string{"luksFormat", "-q", "--type", "luks1", "--uuid", someUUID, "--pbkdf-force-iterations", "1000", "IMG", "-"}, lpmos.Filesystem{Type: "crypto_LUKS", UUID: someUUID}, [2]int64{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			img := newImage(t, tt.sizeMiB<<20)
			var args []string
			for _, a := range tt.args {
				args = append(args, strings.ReplaceAll(a, "IMG", img))
			}
			start := time.Now()
			command(t, "a passphrase", tt.tool, args...)
			c := probeFile(t, img, 512)
			f := c.Filesystem
			if c.Table != "" || f == nil {
				t.Fatalf("Probe = %+v; want a filesystem and no table", c)
			}
			if f.Type != tt.want.Type || f.Label != tt.want.Label || tt.want.UUID != "" && f.UUID != tt.want.UUID || f.UUID == "" {
				t.Errorf("Probe = %+v; want %+v", *f, tt.want)
			}
			if tt.want.SizeBytes != 0 && (f.SizeBytes > tt.want.SizeBytes || f.SizeBytes < tt.want.SizeBytes-1<<20) {
				t.Errorf("size %d; want about %d", f.SizeBytes, tt.want.SizeBytes)
			}
			if f.UsedBytes < tt.used[0] || f.UsedBytes > tt.used[1] {
				t.Errorf("used %d; want %d to %d", f.UsedBytes, tt.used[0], tt.used[1])
			}
			if tt.written && (f.WrittenAt.Before(start.Add(-time.Minute)) || f.WrittenAt.After(time.Now().Add(time.Minute))) {
				t.Errorf("written at %v; want now", f.WrittenAt)
			}
		})
	}
}

func TestMksquashfs(t *testing.T) {
	dir, img := t.TempDir(), filepath.Join(t.TempDir(), "x.squashfs")
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	command(t, "", "mksquashfs", dir, img, "-quiet", "-no-progress", "-mkfs-time", "1700000000")
	c := probeFile(t, img, 512)
	if f := c.Filesystem; f == nil || f.Type != "squashfs" || f.WrittenAt.Unix() != 1700000000 || f.UsedBytes == 0 {
		t.Errorf("Probe = %+v", c.Filesystem)
	}
}

func TestSfdisk(t *testing.T) {
	tests := []struct {
		name, script string
		want         []lpmos.Partition
	}{
		{"GPT", "label: gpt\nlabel-id: " + someUUID + "\nunit: sectors\nstart=2048, size=4096, type=21686148-6449-6E6F-744E-656564454649, name=\"bios\"\nstart=8192, size=65536, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=\"ESP é\"\n",
			[]lpmos.Partition{
				{Number: 1, StartBytes: mib, SizeBytes: 2 * mib, Type: "21686148-6449-6e6f-744e-656564454649", Name: "bios"},
				{Number: 2, StartBytes: 4 * mib, SizeBytes: 32 * mib, Type: "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", Name: "ESP é"},
			}},
		{"MBR with logical partitions", "label: dos\nlabel-id: 0x12345678\n1: start=2048, size=2048, type=83\n2: start=4096, size=40960, type=5\n5: start=6144, size=2048, type=82\n6: start=10240, size=2048, type=83\n",
			[]lpmos.Partition{
				{Number: 1, StartBytes: mib, SizeBytes: mib, Type: "83", UUID: "12345678-01"},
				{Number: 2, StartBytes: 2 * mib, SizeBytes: 20 * mib, Type: "05", UUID: "12345678-02"},
				{Number: 5, StartBytes: 3 * mib, SizeBytes: mib, Type: "82", UUID: "12345678-05"},
				{Number: 6, StartBytes: 5 * mib, SizeBytes: mib, Type: "83", UUID: "12345678-06"},
			}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			img := newImage(t, 64*mib)
			command(t, tt.script, "sfdisk", "--no-reread", "--no-tell-kernel", "-q", img)
			c := probeFile(t, img, 512)
			if len(c.Partitions) != len(tt.want) {
				t.Fatalf("Probe = %+v; want %d partitions", c, len(tt.want))
			}
			if id := c.TableID; id != someUUID && id != "12345678" {
				t.Errorf("table id %q", id)
			}
			for i, want := range tt.want {
				got := c.Partitions[i]
				if want.UUID == "" {
					if len(got.UUID) != 36 {
						t.Errorf("partition %d has UUID %q", got.Number, got.UUID)
					}
					got.UUID = ""
				}
				if got != want {
					t.Errorf("partition %+v; want %+v", got, want)
				}
			}
		})
	}
}
