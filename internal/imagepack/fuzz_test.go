package imagepack

import (
	"bytes"
	"os"
	"testing"
)

// FuzzExt4 changes bytes of a valid filesystem and has it read as for packing:
// what is taken for allocated lies in it, in order, and nothing twice.
func FuzzExt4(f *testing.F) {
	good, err := os.ReadFile(ext4(f, f.TempDir(), "8M"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(superblockOffset), []byte{1})
	f.Add(uint32(superblockOffset+4), []byte{0, 0, 0, 0xff})
	f.Add(uint32(blockBytes), []byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, at uint32, change []byte) {
		b := bytes.Clone(good)
		copy(b[int(at)%len(b):], change)
		r := bytes.NewReader(b)
		fs, err := readFilesystem(r)
		if err != nil {
			return
		}
		used, err := fs.allocated(r)
		if err != nil {
			return
		}
		var end int64
		for run := range used.runs(0, fs.blocks) {
			if run.first < end || run.count <= 0 || run.first+run.count > fs.blocks {
				t.Fatalf("run %+v behind block %d of %d", run, end, fs.blocks)
			}
			end = run.first + run.count
		}
	})
}
