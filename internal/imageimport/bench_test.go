package imageimport

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"

	"github.com/lpmos/lpmos/test/fixture"
	"github.com/lpmos/lpmos/test/memory"
)

// BenchmarkImport imports disks of two sizes, half of whose content compresses.
// MB/s are of the content; peak-MB is the most memory that the program had taken
// from the system while it imported, and does not grow with the image.
func BenchmarkImport(b *testing.B) {
	for _, mb := range []int{128, 1024} {
		raw := contentDisk(b, mb)
		for _, format := range []string{"raw", "qcow2"} {
			from := raw
			if format == "qcow2" {
				from = convert(b, raw)
			}
			b.Run(fmt.Sprintf("%s-%dMB", format, mb), func(b *testing.B) {
				b.SetBytes(int64(mb) << 20)
				var peak uint64
				debug.FreeOSMemory()
				for b.Loop() {
					r := request(b, from, format)
					ctx, cancel := context.WithCancel(b.Context())
					watched := make(chan uint64)
					go func() { watched <- memory.Peak(ctx) }()
					_, err := Import(b.Context(), r, Guard{}, Limits{}, nil)
					cancel()
					peak = max(peak, <-watched)
					must(b, err, os.RemoveAll(r.OutDir))
				}
				b.ReportMetric(float64(peak)/(1<<20), "peak-MB")
			})
		}
	}
}

// contentDisk is a disk in Ubuntu's layout with so much content.
func contentDisk(b *testing.B, mb int) string {
	b.Helper()
	tools(b, "mke2fs", "mkfs.vfat", "mcopy", "qemu-img")
	dir := b.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(b, fixture.Tree(at("root"), fixture.System("ubuntu", "Ubuntu 24.04 LTS", "24.04")), os.Mkdir(at("root/srv"), 0o755), fixture.Tree(at("boot"), fixture.BootTree("initrd.img-%s", false)),
		fixture.Tree(at("esp"), fixture.ESPTree("ubuntu", true)), os.WriteFile(at("core"), []byte("GRUB's second part"), 0o644))
	random := rand.NewChaCha8([32]byte{1})
	piece := make([]byte, 1<<20)
	for i := range mb {
		random.Read(piece[:len(piece)/2])
		for at := len(piece) / 2; at < len(piece); {
			at += copy(piece[at:], fmt.Sprintf("line %d of a file that compresses well\n", i))
		}
		must(b, os.WriteFile(at(fmt.Sprintf("root/srv/%d", i)), piece, 0o644))
	}
	must(b, fixture.UbuntuDisk(b.Context(), at("disk.img"), at("root"), at("boot"), at("esp"), []byte("\xeb\x63\x90 GRUB \x00Geom"), at("core"), fmt.Sprintf("%dM", mb+mb/4+64), "16M"),
		os.RemoveAll(at("root")))
	return at("disk.img")
}
