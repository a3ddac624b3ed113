package install

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// espFile is a file of the EFI system partition. Every part of its path must be
// a short name: up to eight letters, a dot, up to three.
type espFile struct {
	path string
	data []byte
}

type readWriterAt interface {
	io.ReaderAt
	io.WriterAt
}

// fat is a FAT16 or FAT32 filesystem that mkfs.vfat just made (Microsoft,
// "FAT: General Overview of On-Disk Format", 1.03). Files are put into it
// here rather than through a mount, so that the agent's kernel needs neither
// vfat nor its code pages, and nothing of it is left half-written in a cache.
type fat struct {
	dev       readWriterAt
	cluster   int64 // bytes
	fatAt     int64 // first table
	fatBytes  int64
	fats      int64
	rootAt    int64 // FAT16: fixed root directory
	rootBytes int64
	rootFirst uint32 // FAT32: first cluster of the root directory
	dataAt    int64  // cluster 2
	clusters  uint32
	wide      bool  // FAT32
	infoAt    int64 // FAT32: the sector that counts free clusters

	table []byte
	next  uint32
}

// writeESP puts files into the empty filesystem on dev.
func writeESP(dev readWriterAt, files []espFile) error {
	f, err := openFAT(dev)
	if err != nil {
		return err
	}
	root := &fatDir{sub: map[string]*fatDir{}}
	for _, file := range files {
		dir := root
		parts := strings.Split(file.path, "/")
		for _, name := range parts[:len(parts)-1] {
			if dir.sub[name] == nil {
				dir.sub[name] = &fatDir{sub: map[string]*fatDir{}}
				dir.order = append(dir.order, name)
			}
			dir = dir.sub[name]
		}
		dir.files = append(dir.files, file)
	}
	entries, err := f.store(root, f.rootFirst, 0)
	if err != nil {
		return err
	}
	if err := f.appendRoot(entries); err != nil {
		return err
	}
	for i := range f.fats {
		if _, err := dev.WriteAt(f.table, f.fatAt+i*f.fatBytes); err != nil {
			return err
		}
	}
	return f.count()
}

// count puts the number of free clusters where FAT32 keeps it.
func (f *fat) count() error {
	if !f.wide {
		return nil
	}
	var free uint32
	for c := uint32(2); c < f.clusters+2; c++ {
		if f.entry(c) == 0 {
			free++
		}
	}
	var b [8]byte
	binary.LittleEndian.PutUint32(b[:], free)
	binary.LittleEndian.PutUint32(b[4:], f.next)
	_, err := f.dev.WriteAt(b[:], f.infoAt+488)
	return err
}

func openFAT(dev readWriterAt) (*fat, error) {
	var b [512]byte
	if _, err := dev.ReadAt(b[:], 0); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	sector := int64(le.Uint16(b[11:]))
	perCluster, reserved, rootEntries := int64(b[13]), int64(le.Uint16(b[14:])), int64(le.Uint16(b[17:]))
	total, fatSectors := int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if total == 0 {
		total = int64(le.Uint32(b[32:]))
	}
	if fatSectors == 0 {
		fatSectors = int64(le.Uint32(b[36:]))
	}
	if b[510] != 0x55 || b[511] != 0xaa || sector < 512 || perCluster == 0 || fatSectors == 0 || b[16] == 0 {
		return nil, errors.New("not a FAT filesystem")
	}
	f := &fat{dev: dev, cluster: sector * perCluster, fatAt: reserved * sector, fatBytes: fatSectors * sector, fats: int64(b[16])}
	f.rootAt = f.fatAt + f.fats*f.fatBytes
	f.rootBytes = (rootEntries*32 + sector - 1) / sector * sector
	f.dataAt = f.rootAt + f.rootBytes
	f.clusters = uint32((total*sector - f.dataAt) / f.cluster)
	f.wide = f.clusters >= 65525
	if f.clusters < 4085 {
		return nil, fmt.Errorf("%d clusters are a FAT12", f.clusters)
	}
	if f.wide {
		f.rootFirst = le.Uint32(b[44:])
		f.infoAt = int64(le.Uint16(b[48:])) * sector
	}
	f.table = make([]byte, f.fatBytes)
	if _, err := dev.ReadAt(f.table, f.fatAt); err != nil {
		return nil, err
	}
	f.next = 2
	return f, nil
}

func (f *fat) entry(c uint32) uint32 {
	if f.wide {
		return binary.LittleEndian.Uint32(f.table[4*c:]) & 0x0fffffff
	}
	return uint32(binary.LittleEndian.Uint16(f.table[2*c:]))
}

func (f *fat) set(c, v uint32) {
	if f.wide {
		binary.LittleEndian.PutUint32(f.table[4*c:], v)
	} else {
		binary.LittleEndian.PutUint16(f.table[2*c:], uint16(v))
	}
}

// allocate chains n free clusters that follow each other. The filesystem is
// empty, so they do.
func (f *fat) allocate(n uint32) (first uint32, err error) {
	for f.next < f.clusters+2 && f.entry(f.next) != 0 {
		f.next++
	}
	first = f.next
	if int64(first)+int64(n) > int64(f.clusters)+2 {
		return 0, errors.New("no space left")
	}
	for i := range n {
		v := first + i + 1
		if i == n-1 {
			v = 0x0fffffff
		}
		f.set(first+i, v)
	}
	f.next += n
	return first, nil
}

// put writes data to new clusters, padded with zeros.
func (f *fat) put(first uint32, data []byte) error {
	padded := make([]byte, (int64(len(data))+f.cluster-1)/f.cluster*f.cluster)
	copy(padded, data)
	_, err := f.dev.WriteAt(padded, f.dataAt+int64(first-2)*f.cluster)
	return err
}

type fatDir struct {
	sub   map[string]*fatDir
	order []string
	files []espFile
}

// store writes what is in d and returns d's entries. self is d's first cluster;
// the parent's is what ".." of directories in d's children name.
func (f *fat) store(d *fatDir, self uint32, depth int) ([]byte, error) {
	var entries []byte
	for _, name := range d.order {
		sub := d.sub[name]
		count := 2 + len(sub.order) + len(sub.files)
		first, err := f.allocate(uint32((int64(count)*32 + f.cluster - 1) / f.cluster))
		if err != nil {
			return nil, err
		}
		inner, err := f.store(sub, first, depth+1)
		if err != nil {
			return nil, err
		}
		up := self
		if depth == 0 {
			up = 0 // the root is cluster 0 to its children, whatever it is
		}
		const directory = 0x10
		body := append(dirEntry(".          ", directory, first, 0), dirEntry("..         ", directory, up, 0)...)
		if err := f.put(first, append(body, inner...)); err != nil {
			return nil, err
		}
		short, err := shortName(name)
		if err != nil {
			return nil, err
		}
		entries = append(entries, dirEntry(short, directory, first, 0)...)
	}
	for _, file := range d.files {
		n := max(1, uint32((int64(len(file.data))+f.cluster-1)/f.cluster))
		first, err := f.allocate(n)
		if err != nil {
			return nil, err
		}
		if err := f.put(first, file.data); err != nil {
			return nil, err
		}
		short, err := shortName(path.Base(file.path))
		if err != nil {
			return nil, err
		}
		const archive = 0x20
		entries = append(entries, dirEntry(short, archive, first, uint32(len(file.data)))...)
	}
	return entries, nil
}

// appendRoot adds entries to the root directory, after the volume label.
func (f *fat) appendRoot(entries []byte) error {
	at, size := f.rootAt, f.rootBytes
	if f.wide {
		at, size = f.dataAt+int64(f.rootFirst-2)*f.cluster, f.cluster
	}
	b := make([]byte, size)
	if _, err := f.dev.ReadAt(b, at); err != nil {
		return err
	}
	free := 0
	for free < len(b) && b[free] != 0 {
		free += 32
	}
	if free+len(entries) > len(b) {
		return errors.New("no room in the root directory")
	}
	copy(b[free:], entries)
	_, err := f.dev.WriteAt(b, at)
	return err
}

// dirEntry is a directory entry of 1980-01-01, as no time belongs to the files
// of a boot loader.
func dirEntry(name string, attr byte, first, size uint32) []byte {
	e := make([]byte, 32)
	copy(e, name)
	e[11] = attr
	const day = 1<<5 | 1
	for _, at := range []int{16, 18, 24} {
		binary.LittleEndian.PutUint16(e[at:], day)
	}
	binary.LittleEndian.PutUint16(e[20:], uint16(first>>16))
	binary.LittleEndian.PutUint16(e[26:], uint16(first))
	binary.LittleEndian.PutUint32(e[28:], size)
	return e
}

func shortName(name string) (string, error) {
	base, ext, _ := strings.Cut(strings.ToUpper(name), ".")
	if base == "" || len(base) > 8 || len(ext) > 3 || strings.ContainsAny(base+ext, " ./\\+,;=[]") {
		return "", fmt.Errorf("%q has no short name", name)
	}
	return fmt.Sprintf("%-8s%-3s", base, ext), nil
}
