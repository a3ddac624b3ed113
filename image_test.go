package lpmos_test

import (
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
)

func manifest() lpmos.ImageManifest {
	sum := strings.Repeat("ab", 32)
	return lpmos.ImageManifest{
		Format: "ext4", SizeBytes: 64 << 20, UsedBytes: 12 << 20, Pack: lpmos.Blob{SHA256: sum, Bytes: 300},
		Chunks: []lpmos.Chunk{
			{Offset: 0, Bytes: 8 << 20, StoredOffset: 0, StoredBytes: 200, SHA256: sum},
			{Offset: 16 << 20, Bytes: 4 << 20, StoredOffset: 200, StoredBytes: 100, SHA256: sum},
		},
		FirstBoot: "systemd", Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd.img", OS: "debian", Version: "12", Arch: "amd64",
	}
}

// TestManifestValidate is V12 for what an image's boot menu says, among others.
func TestManifestValidate(t *testing.T) {
	m := manifest()
	if err := m.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*lpmos.ImageManifest){
		"another format":             func(m *lpmos.ImageManifest) { m.Format = "raw" },
		"no size":                    func(m *lpmos.ImageManifest) { m.SizeBytes = 0 },
		"a size off 4096":            func(m *lpmos.ImageManifest) { m.SizeBytes++ },
		"a size over 1 TiB":          func(m *lpmos.ImageManifest) { m.SizeBytes = lpmos.MaxImageBytes + 4096 },
		"a pack without digest":      func(m *lpmos.ImageManifest) { m.Pack.SHA256 = "" },
		"a pack named by a path":     func(m *lpmos.ImageManifest) { m.Pack.SHA256 = "../" + m.Pack.SHA256[3:] },
		"a pack too long":            func(m *lpmos.ImageManifest) { m.Pack.Bytes++ },
		"a pack too short":           func(m *lpmos.ImageManifest) { m.Pack.Bytes-- },
		"another first boot":         func(m *lpmos.ImageManifest) { m.FirstBoot = "sysv" },
		"no kernel":                  func(m *lpmos.ImageManifest) { m.Kernel = "" },
		"no initrd":                  func(m *lpmos.ImageManifest) { m.Initrd = "" },
		"an argument with a quote":   func(m *lpmos.ImageManifest) { m.KernelArgs = "ro a=\"b" },
		"an argument with a command": func(m *lpmos.ImageManifest) { m.KernelArgs = "ro;reboot" },
		"a variable of GRUB's":       func(m *lpmos.ImageManifest) { m.KernelArgs = "root=${root}" },
		"an argument with NUL":       func(m *lpmos.ImageManifest) { m.KernelArgs = "a\x00" },
		"a kernel in braces":         func(m *lpmos.ImageManifest) { m.Kernel = "/boot/{a}" },
		"a chunk past the end":       func(m *lpmos.ImageManifest) { m.Chunks[1].Offset = 62 << 20 },
		"chunks that overlap":        func(m *lpmos.ImageManifest) { m.Chunks[1].Offset = 4 << 20 },
		"chunks in another order":    func(m *lpmos.ImageManifest) { m.Chunks[0], m.Chunks[1] = m.Chunks[1], m.Chunks[0] },
		"a negative offset":          func(m *lpmos.ImageManifest) { m.Chunks[0].Offset = -4096 },
		"an offset off 4096":         func(m *lpmos.ImageManifest) { m.Chunks[1].Offset++ },
		"an offset that overflows":   func(m *lpmos.ImageManifest) { m.Chunks[1].Offset = 1<<63 - 4096 },
		"an empty chunk":             func(m *lpmos.ImageManifest) { m.Chunks[1].Bytes = 0 },
		"a huge chunk":               func(m *lpmos.ImageManifest) { m.Chunks[0].Bytes = lpmos.MaxChunkBytes + 1 },
		"a huge stored chunk":        func(m *lpmos.ImageManifest) { m.Chunks[0].StoredBytes = lpmos.MaxChunkBytes + 1 },
		"a gap in the pack":          func(m *lpmos.ImageManifest) { m.Chunks[1].StoredOffset++ },
		"a chunk without digest":     func(m *lpmos.ImageManifest) { m.Chunks[1].SHA256 = "x" },
		"no chunks":                  func(m *lpmos.ImageManifest) { m.Chunks, m.Pack.Bytes, m.UsedBytes = nil, 0, 0 },
		"a used size that is not so": func(m *lpmos.ImageManifest) { m.UsedBytes++ },
	} {
		m := manifest()
		edit(&m)
		var invalid *lpmos.InvalidError
		if err := m.Validate(); !errors.As(err, &invalid) || !strings.HasPrefix(invalid.Field, "manifest.") {
			t.Errorf("Validate with %s = %v; want an InvalidError about the manifest", name, err)
		}
	}
}

// diskManifest is of a disk as Ubuntu lays it out: the root filesystem is
// number 1 and comes last.
func diskManifest() lpmos.ImageManifest {
	m := manifest()
	m.Format, m.Kernel, m.Initrd = lpmos.FormatDisk, "", ""
	m.Zero = []lpmos.Range{{Offset: 8 << 20, Bytes: 8 << 20}, {Offset: 20 << 20, Bytes: 4096}}
	m.Disk = &lpmos.ImageDisk{
		Table: "gpt", TableID: "c0ffee00-0000-0000-0000-000000000001", SectorBytes: 512,
		Partitions: []lpmos.ImagePartition{
			{Number: 14, Type: "21686148-6449-6e6f-744e-656564454649", StartBytes: 1 << 20, SizeBytes: 4 << 20, Role: "bios-boot"},
			{Number: 15, Type: "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", StartBytes: 5 << 20, SizeBytes: 8 << 20, FS: "vfat", Role: "esp"},
			{Number: 16, Type: "bc13c2ff-59e6-4262-a352-b275fd6f7172", StartBytes: 13 << 20, SizeBytes: 8 << 20, FS: "ext4", Role: "boot"},
			{Number: 1, Type: "0fc63daf-8483-4772-8e79-3d69d8477de4", StartBytes: 21 << 20, SizeBytes: 42 << 20, FS: "ext4", Role: "root"},
		},
		Root: 1, Boot: 16, ESP: 15, BIOSBoot: 14, Loaders: []string{"grub-bios", "shim"}, Entries: "grub",
	}
	return m
}

func tarManifest() lpmos.ImageManifest {
	m := manifest()
	m.Format, m.UnpackedBytes = lpmos.FormatTar, 20<<20
	m.Chunks[1].Offset, m.Chunks[1].Bytes = 8<<20, 512
	m.SizeBytes, m.UsedBytes = 8<<20+512, 8<<20+512
	return m
}

func TestManifestValidateOfOtherFormats(t *testing.T) {
	for name, m := range map[string]lpmos.ImageManifest{"disk": diskManifest(), "tar": tarManifest()} {
		if err := m.Validate(); err != nil {
			t.Fatalf("Validate of a manifest of %s = %v", name, err)
		}
	}
	for name, edit := range map[string]func(*lpmos.ImageManifest){
		"no disk":                      func(m *lpmos.ImageManifest) { m.Disk = nil },
		"a disk in a filesystem":       func(m *lpmos.ImageManifest) { m.Format, m.Kernel, m.Initrd = "ext4", "/k", "/i" },
		"a zero range over a chunk":    func(m *lpmos.ImageManifest) { m.Zero[0].Offset -= 4096 },
		"a zero range into a chunk":    func(m *lpmos.ImageManifest) { m.Zero[0].Bytes += 4096 },
		"a zero range past the end":    func(m *lpmos.ImageManifest) { m.Zero[1].Offset = 64 << 20 },
		"a zero range that overflows":  func(m *lpmos.ImageManifest) { m.Zero[1].Bytes = 1<<63 - 4096 },
		"zero ranges in another order": func(m *lpmos.ImageManifest) { m.Zero[0], m.Zero[1] = m.Zero[1], m.Zero[0] },
		"an empty zero range":          func(m *lpmos.ImageManifest) { m.Zero[0].Bytes = 0 },
		"a zero range off 4096":        func(m *lpmos.ImageManifest) { m.Zero[1].Bytes = 512 },
		"another table":                func(m *lpmos.ImageManifest) { m.Disk.Table = "bsd" },
		"sectors of 520 bytes":         func(m *lpmos.ImageManifest) { m.Disk.SectorBytes = 520 },
		"no partitions":                func(m *lpmos.ImageManifest) { m.Disk.Partitions = nil },
		"a number twice":               func(m *lpmos.ImageManifest) { m.Disk.Partitions[0].Number = 1 },
		"a number of 0":                func(m *lpmos.ImageManifest) { m.Disk.Partitions[0].Number = 0 },
		"partitions that overlap":      func(m *lpmos.ImageManifest) { m.Disk.Partitions[0].SizeBytes += 512 },
		"a partition past the end":     func(m *lpmos.ImageManifest) { m.Disk.Partitions[3].SizeBytes += 2 << 20 },
		"a partition that overflows":   func(m *lpmos.ImageManifest) { m.Disk.Partitions[3].SizeBytes = 1<<63 - 512 },
		"a partition at the table":     func(m *lpmos.ImageManifest) { m.Disk.Partitions[0].StartBytes = 0 },
		"half a sector":                func(m *lpmos.ImageManifest) { m.Disk.Partitions[3].SizeBytes -= 256 },
		"no root":                      func(m *lpmos.ImageManifest) { m.Disk.Root = 0 },
		"a root that is not there":     func(m *lpmos.ImageManifest) { m.Disk.Root = 2 },
		"a root in an extended one":    func(m *lpmos.ImageManifest) { m.Disk.Table, m.Disk.Root = "mbr", 16 },
		"a /boot that is not there":    func(m *lpmos.ImageManifest) { m.Disk.Boot = 2 },
		"another kind of menu":         func(m *lpmos.ImageManifest) { m.Disk.Entries = "lilo" },
		"another family":               func(m *lpmos.ImageManifest) { m.Family = "slackware" },
		"an unpacked size of a disk":   func(m *lpmos.ImageManifest) { m.UnpackedBytes = 1 },
	} {
		m := diskManifest()
		edit(&m)
		var invalid *lpmos.InvalidError
		if err := m.Validate(); !errors.As(err, &invalid) || !strings.HasPrefix(invalid.Field, "manifest.") {
			t.Errorf("Validate of a disk with %s = %v; want an InvalidError about the manifest", name, err)
		}
	}
	for name, edit := range map[string]func(*lpmos.ImageManifest){
		"a gap":            func(m *lpmos.ImageManifest) { m.Chunks[1].Offset += 512; m.SizeBytes += 512 },
		"a missing end":    func(m *lpmos.ImageManifest) { m.SizeBytes += 512 },
		"a zero range":     func(m *lpmos.ImageManifest) { m.Zero = []lpmos.Range{{Offset: 0, Bytes: 4096}} },
		"no unpacked size": func(m *lpmos.ImageManifest) { m.UnpackedBytes = 0 },
		"no kernel":        func(m *lpmos.ImageManifest) { m.Kernel = "" },
		"half a record":    func(m *lpmos.ImageManifest) { m.Chunks[1].Bytes--; m.SizeBytes--; m.UsedBytes-- },
	} {
		m := tarManifest()
		edit(&m)
		var invalid *lpmos.InvalidError
		if err := m.Validate(); !errors.As(err, &invalid) || !strings.HasPrefix(invalid.Field, "manifest.") {
			t.Errorf("Validate of a tar with %s = %v; want an InvalidError about the manifest", name, err)
		}
	}
}

func TestImageSignature(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	i := lpmos.Image{OS: "debian", Version: "12", Arch: "amd64", Digest: "sha256:" + strings.Repeat("ab", 32), BootModes: []string{"bios"}}
	keys := []ed25519.PublicKey{pub}
	if err := i.Verify(keys); !errors.Is(err, lpmos.ErrSignature) {
		t.Errorf("Verify without a signature = %v; want ErrSignature", err)
	}
	i.Sign(key)
	if err := i.Verify(keys); err != nil {
		t.Errorf("Verify after Sign = %v", err)
	}
	if err := i.Verify([]ed25519.PublicKey{other}); !errors.Is(err, lpmos.ErrSignature) {
		t.Errorf("Verify with another key = %v; want ErrSignature", err)
	}
	for name, edit := range map[string]func(*lpmos.Image){
		"another digest":    func(i *lpmos.Image) { i.Digest = "sha256:" + strings.Repeat("cd", 32) },
		"another version":   func(i *lpmos.Image) { i.Version = "11" },
		"another boot mode": func(i *lpmos.Image) { i.BootModes = []string{"bios", "uefi"} },
		"a badge":           func(i *lpmos.Image) { i.Badges = []lpmos.Badge{{Firmware: "uefi", Passed: true}} },
	} {
		i := i
		edit(&i)
		if err := i.Verify(keys); !errors.Is(err, lpmos.ErrSignature) {
			t.Errorf("Verify with %s = %v; want ErrSignature", name, err)
		}
	}
}

func TestImageWithAProblemIsNotPlanned(t *testing.T) {
	i := lpmos.Image{Preflight: &lpmos.Preflight{Checks: []lpmos.PreflightCheck{
		{Name: "boot", Result: lpmos.CheckWarning, Text: "W."}, {Name: "fstab", Result: lpmos.CheckProblem, Text: "P."}, {Name: "user", Result: lpmos.CheckOK, Text: "O."},
	}}}
	if p := i.Preflight.Problems(); len(p) != 1 || p[0] != "P." {
		t.Errorf("Problems() = %q; want P.", p)
	}
	if w := i.Preflight.Warnings(); len(w) != 1 || w[0] != "W." {
		t.Errorf("Warnings() = %q; want W.", w)
	}
	if p := (lpmos.Image{}).Preflight.Problems(); p != nil {
		t.Errorf("Problems() of an image without a preflight = %q; want none", p)
	}
}
