package lpmos_test

import (
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
