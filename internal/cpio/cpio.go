// Package cpio writes archives that Linux unpacks as initramfs: format newc
// (Linux, Documentation/driver-api/early-userspace/buffer-format.rst), 110 bytes
// of hexadecimal header, name and content, the latter two padded to four bytes.
//
// All belongs to root, so that equal entries make equal archives. Devices are
// not written: the kernel makes /dev/console itself.
package cpio

import (
	"bytes"
	"fmt"
)

// File types of a mode, and the bits that hold one.
const (
	Dir  = 0o040000
	File = 0o100000
	Link = 0o120000
	Type = 0o170000
)

// Align is the multiple of bytes that an archive ends on. Linux wants one that
// follows to begin on a multiple of four, and skips zeros between them
// (init/initramfs.c); 512 is what cpio pads to.
const Align = 512

// Entry is a directory, a file or a symbolic link.
type Entry struct {
	Name string // without a leading slash
	Mode uint32 // type and permissions, as st_mode has them
	Data []byte // a file's content, a link's target
	Time int64  // of the last change, in Unix seconds
}

// Archive packs entries, each directory before what it holds.
func Archive(entries ...Entry) []byte {
	size := Align + 128
	for _, e := range entries {
		size += 128 + len(e.Name) + len(e.Data)
	}
	var b bytes.Buffer
	b.Grow(size)
	for i, e := range entries {
		write(&b, i+1, e)
	}
	write(&b, 0, Entry{Name: "TRAILER!!!"})
	Pad(&b, Align)
	return b.Bytes()
}

// write appends one entry. Links are one, except for directories' customary two,
// so that the kernel keeps no table of hard links.
func write(b *bytes.Buffer, inode int, e Entry) {
	links := 1
	if e.Mode&Type == Dir {
		links = 2
	}
	const zero = 0
	fmt.Fprintf(b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		inode, e.Mode, zero /* uid */, zero /* gid */, links, e.Time, len(e.Data),
		zero, zero /* device */, zero, zero /* device it stands for */, len(e.Name)+1, zero /* checksum */, e.Name)
	Pad(b, 4)
	b.Write(e.Data)
	Pad(b, 4)
}

// Pad fills b with zeros up to the next multiple of n.
func Pad(b *bytes.Buffer, n int) {
	if rest := b.Len() % n; rest != 0 {
		b.Write(make([]byte, n-rest))
	}
}
