package rofs_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/lpmos/lpmos/internal/rofs"
)

// seed reads the first bytes of a filesystem made for a fuzz target; without
// the tool there is one seed less.
func seed(f *testing.F, tool string, args ...string) []byte {
	f.Helper()
	path := filepath.Join(f.TempDir(), "fs")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o644); err != nil {
		f.Fatal(err)
	}
	command(f, tool, append(args, path)...)
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// walk reads everything of a filesystem that a preflight might.
func walk(kind string, b []byte) {
	v, err := rofs.Open(kind, bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return
	}
	tr := rofs.NewTree(v)
	for _, dir := range []string{"/", "/etc", "/lost+found"} {
		entries, err := tr.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries[:min(len(entries), 50)] {
			_, _ = tr.ReadHead(dir+"/"+e.Name, 4096)
		}
	}
	_, _ = tr.ReadFile("/etc/os-release", 1<<20)
}

func FuzzExt(f *testing.F) {
	f.Add(seed(f, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024"))
	f.Fuzz(func(_ *testing.T, b []byte) { walk("ext4", b) })
}

// patch is a change of a valid filesystem.
func patch(b []byte, at uint32, change []byte) []byte {
	b = bytes.Clone(b)
	if len(b) > 0 {
		copy(b[int(at)%len(b):], change)
	}
	return b
}

// FuzzExtPatched changes a few bytes of a valid filesystem: what lies behind the
// superblock is reached that way.
func FuzzExtPatched(f *testing.F) {
	good := seed(f, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024")
	f.Add(uint32(1024), []byte{1})
	f.Add(uint32(2048), []byte{0xFF, 0xFF, 0xFF, 0xFF})
	f.Fuzz(func(_ *testing.T, at uint32, change []byte) { walk("ext4", patch(good, at, change)) })
}

func FuzzFAT(f *testing.F) {
	good := seed(f, "mkfs.vfat")
	f.Add(uint32(11), []byte{1})
	f.Add(uint32(0), good[:512])
	f.Fuzz(func(_ *testing.T, at uint32, change []byte) { walk("vfat", patch(good, at, change)) })
}

// FuzzXFS changes bytes of a small picture of XFS: a superblock, and an inode
// with a directory in it, of the layout that the superblock says.
func FuzzXFS(f *testing.F) {
	good := smallXFS()
	walk("xfs", good)
	f.Add(uint32(4), []byte{0, 0, 2, 0})
	f.Add(uint32(64<<10), []byte("IN"))
	f.Fuzz(func(_ *testing.T, at uint32, change []byte) { walk("xfs", patch(good, at, change)) })
}

// smallXFS has 16 blocks of 4096 bytes in one group, and its root directory at
// inode 64 (block 8) in short form.
func smallXFS() []byte {
	b := make([]byte, 16*4096)
	put := func(at int, v ...byte) { copy(b[at:], v) }
	copy(b, "XFSB")
	put(4, 0, 0, 16, 0)              // block size
	put(8, 0, 0, 0, 0, 0, 0, 0, 16)  // blocks
	put(56, 0, 0, 0, 0, 0, 0, 0, 64) // root inode
	put(84, 0, 0, 0, 16)             // blocks of a group
	put(88, 0, 0, 0, 1)              // groups
	put(100, 0, 5)                   // version
	put(104, 2, 0)                   // inode size
	put(123, 3, 4)                   // log2 of inodes in a block, of blocks in a group
	put(219, 1)                      // ftype
	inode := 8 * 4096
	copy(b[inode:], "IN")
	put(inode+2, 0x41, 0xED, 3, 1) // directory, version 3, local
	put(inode+176, 1, 0, 0, 0, 0, 64, 3, 0, 96, 'e', 't', 'c', 2, 0, 0, 0, 64)
	return b
}

func TestSmallXFS(t *testing.T) {
	b := smallXFS()
	v, err := rofs.Open("xfs", bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if entries, err := rofs.NewTree(v).ReadDir("/"); err != nil || len(entries) != 1 || entries[0].Name != "etc" {
		t.Errorf("ReadDir = %v, %v; the seed of the fuzz target should have one directory", entries, err)
	}
}
