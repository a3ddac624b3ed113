package imageimport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// checkXZ looks at the headers of all blocks of an xz file, by its index (The
// .xz File Format 1.2.1), before it is read: the reader takes a window as large
// as a block asks for, up to 4 GiB. It gives what the file says it unpacks to.
func checkXZ(r io.ReaderAt, size int64) (unpacked int64, err error) {
	damaged := errors.New("the xz file is damaged or cut off")
	for end := size; end > 0; {
		if end%4 != 0 || end < 32 {
			return 0, damaged
		}
		footer := make([]byte, 12)
		if _, err := r.ReadAt(footer, end-12); err != nil {
			return 0, err
		}
		if binary.LittleEndian.Uint32(footer[8:]) == 0 {
			end -= 4 // padding between streams
			continue
		}
		if string(footer[10:]) != "YZ" {
			return 0, damaged
		}
		indexBytes := (int64(binary.LittleEndian.Uint32(footer[4:])) + 1) * 4
		if indexBytes > end-24 || indexBytes > 64<<20 {
			return 0, damaged
		}
		index := make([]byte, indexBytes)
		if _, err := r.ReadAt(index, end-12-indexBytes); err != nil {
			return 0, err
		}
		blocks, whole, n, err := xzIndex(index)
		if err != nil {
			return 0, err
		}
		start := end - 12 - indexBytes - whole - 12
		if start < 0 || n > 1<<62-unpacked {
			return 0, damaged
		}
		unpacked += n
		at := start + 12
		for _, b := range blocks {
			if err := xzBlock(r, at); err != nil {
				return 0, err
			}
			at += b
		}
		end = start
	}
	return unpacked, nil
}

// xzIndex lists the padded lengths of a stream's blocks, their sum, and what
// they unpack to.
func xzIndex(b []byte) (blocks []int64, whole, unpacked int64, err error) {
	damaged := errors.New("the index of the xz file is damaged")
	number := func() (v int64) {
		for shift := 0; shift < 63; shift += 7 {
			if len(b) == 0 {
				err = damaged
				return 0
			}
			c := b[0]
			b = b[1:]
			v |= int64(c&0x7F) << shift
			if c < 0x80 {
				return v
			}
		}
		err = damaged
		return 0
	}
	if len(b) < 8 || b[0] != 0 {
		return nil, 0, 0, damaged
	}
	b = b[1:]
	count := number()
	for range count {
		length, n := number(), number()
		if err != nil || length <= 0 || length > 1<<50 || n < 0 || unpacked > 1<<60 || whole > 1<<60 || len(blocks) > 1<<20 {
			return nil, 0, 0, damaged
		}
		length = (length + 3) / 4 * 4
		blocks, whole, unpacked = append(blocks, length), whole+length, unpacked+min(n, 1<<60)
	}
	return blocks, whole, unpacked, err
}

// xzBlock refuses a block that wants a window of more than maxWindow.
func xzBlock(r io.ReaderAt, at int64) error {
	head := make([]byte, 1024)
	n, err := r.ReadAt(head, at)
	if err != nil && err != io.EOF {
		return err
	}
	damaged := errors.New("a block of the xz file is damaged")
	if n < 8 || head[0] == 0 {
		return damaged
	}
	head = head[:min(n, (int(head[0])+1)*4)]
	flags, b := head[1], head[2:]
	skip := func() bool {
		for i := range b {
			if b[i] < 0x80 {
				b = b[i+1:]
				return true
			}
		}
		return false
	}
	for _, bit := range []byte{0x40, 0x80} {
		if flags&bit != 0 && !skip() {
			return damaged
		}
	}
	for range int(flags&3) + 1 {
		if len(b) < 3 {
			return damaged
		}
		id, size := b[0], int(b[1])
		if size >= 0x80 || len(b) < 2+size {
			return damaged
		}
		if id == 0x21 {
			if size != 1 {
				return damaged
			}
			// 2 or 3 times a power of two.
			window := int64(2|b[2]&1) << (min(b[2], 40)/2 + 11)
			if window > maxWindow {
				return fmt.Errorf("the xz file wants a window of %d MiB; %d are allowed", window>>20, maxWindow>>20)
			}
		}
		b = b[2+size:]
	}
	return nil
}
