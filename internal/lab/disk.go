package lab

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// CreateDisk makes a raw image of sizeBytes that occupies no space yet. A file
// that exists already is an error (os.ErrExist): it may be somebody's disk.
func CreateDisk(path string, sizeBytes int64) error {
	if sizeBytes <= 0 || sizeBytes%512 != 0 {
		return fmt.Errorf("create disk %s: %d bytes is not a positive multiple of 512", path, sizeBytes)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("create disk: %w", err)
	}
	err = errors.Join(f.Truncate(sizeBytes), f.Close())
	if err != nil {
		return fmt.Errorf("create disk: %w", err)
	}
	return nil
}

// ReadDisk returns n bytes at a byte offset. What a running machine has
// written is seen at once: QEMU and we share the page cache.
func ReadDisk(path string, offset int64, n int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read disk: %w", err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, offset); err != nil {
		return nil, fmt.Errorf("read disk %s at %d: %w", path, offset, err)
	}
	return b, nil
}

// WriteDisk puts b at a byte offset, for instance data that an installation
// must not touch. Only for machines that are off.
func WriteDisk(path string, offset int64, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("write disk: %w", err)
	}
	_, err = f.WriteAt(b, offset)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write disk %s at %d: %w", path, offset, err)
	}
	return nil
}

// hashBlock is the unit in which HashDisk leaves out zeroes.
const hashBlock = 64 << 10

// HashDisk returns a digest that is equal for two disks exactly when their
// sizes and contents are equal. It is SHA-256 over the size and over offset
// and bytes of every 64 KiB block that is not all zero, so that holes cost
// nothing and are the same as written zeroes; it is not the SHA-256 of the file.
func HashDisk(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("hash disk: %w", err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return "", fmt.Errorf("hash disk: %w", err)
	}
	h := sha256.New()
	head := binary.BigEndian.AppendUint64(nil, uint64(size))
	h.Write(head)
	buf, zero := make([]byte, hashBlock), make([]byte, hashBlock)
	for offset := int64(0); offset < size; {
		data, err := unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // a hole up to the end
		}
		if err != nil {
			return "", fmt.Errorf("hash disk %s: %w", path, err)
		}
		offset = data - data%hashBlock
		n, err := f.ReadAt(buf, offset)
		if err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("hash disk %s: %w", path, err)
		}
		if !bytes.Equal(buf[:n], zero[:n]) {
			h.Write(binary.BigEndian.AppendUint64(head[:0], uint64(offset)))
			h.Write(buf[:n])
		}
		offset += hashBlock
	}
	return "lab-sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}
