package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/lpmos/lpmos"
)

// ioctls of block devices (Linux, include/uapi/linux/fs.h and blkpg.h).
const (
	blkROSet     = 0x125d
	blkRRPart    = 0x125f
	blkFlsBuf    = 0x1261
	blkSSZGet    = 0x1268
	blkPG        = 0x1269
	blkGetSize64 = 0x80081272
	blkPGAdd     = 1
)

// device is a whole disk, opened for writing and for nobody else (O_EXCL): the
// kernel refuses that while the disk or a partition of it is mounted, swapped
// to or part of something. For the same reason it must be closed before its
// partitions are used.
type device struct {
	*os.File
	sizeBytes   int64
	sectorBytes int64
	regular     bool // a file in a test: there is no kernel behind it
}

// openBlock opens a block device. It never creates anything.
func openBlock(path string) (*device, error) {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_EXCL, 0)
	if errors.Is(err, syscall.EBUSY) {
		return nil, busy("the kernel does not say what holds "+path, err)
	}
	if err != nil {
		return nil, &Failure{Code: "disk_missing", Cause: "The target disk " + path + " cannot be opened for writing.", NextStep: nextDisk, Err: err}
	}
	st, err := f.Stat()
	if err == nil && st.Mode()&(os.ModeDevice|os.ModeCharDevice) != os.ModeDevice {
		err = errors.New("is not a block device")
	}
	d := &device{File: f}
	if err == nil {
		var size uint64
		err = ioctl(f, blkGetSize64, unsafe.Pointer(&size))
		d.sizeBytes = int64(size)
	}
	if err == nil {
		var sector int32
		err = ioctl(f, blkSSZGet, unsafe.Pointer(&sector))
		d.sectorBytes = int64(sector)
	}
	if err != nil {
		f.Close()
		return nil, &Failure{Code: "disk_missing", Cause: "The target disk " + path + " is not what was approved.", NextStep: nextDisk, Err: fmt.Errorf("open %s: %w", path, err)}
	}
	return d, nil
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), request, uintptr(arg))
	if errno != 0 {
		return os.NewSyscallError("ioctl", errno)
	}
	return nil
}

// checkTarget refuses a disk that is not as the plan has it, or that something
// holds. Nothing has been written when it does.
func (in *Installer) checkTarget(d *device, want lpmos.DiskRef, bootMode string) error {
	if d.sizeBytes != want.SizeBytes {
		return &Failure{Code: "disk_missing", Cause: fmt.Sprintf("The target disk (%s) has %d bytes now and %d were approved.", want, d.sizeBytes, want.SizeBytes),
			NextStep: "Look at the new plan and approve it, if it is right."}
	}
	if d.sectorBytes != 512 && d.sectorBytes != 4096 {
		return &Failure{Code: "disk_unsupported", Cause: fmt.Sprintf("The target disk has sectors of %d bytes.", d.sectorBytes), NextStep: "Choose a disk with sectors of 512 or 4096 bytes."}
	}
	if d.sectorBytes != 512 && bootMode == "bios" {
		return &Failure{Code: "disk_unsupported", Cause: "A BIOS cannot boot a disk with sectors of 4096 bytes.", NextStep: "Switch the machine to UEFI, or choose another disk."}
	}
	if d.regular {
		return nil
	}
	if holder := in.holder(d.Name()); holder != "" {
		return busy(holder, nil)
	}
	return nil
}

func busy(holder string, err error) *Failure {
	return &Failure{Code: "disk_busy", Cause: "The target disk is in use: " + holder + ".", NextStep: "Take it out of use, then retry the task.", Err: err}
}

// holder says what uses the disk or one of its partitions, "" if nothing does.
// O_EXCL refuses most of it already; this names it, and also sees mounts of
// filesystems that do not claim their device.
func (in *Installer) holder(path string) string {
	name := filepath.Base(path)
	dirs := []string{filepath.Join(in.cfg.Sys, "class/block", name)}
	if parts, err := filepath.Glob(filepath.Join(dirs[0], name+"*")); err == nil {
		dirs = append(dirs, parts...)
	}
	numbers := map[string]string{}
	for _, dir := range dirs {
		if h, _ := os.ReadDir(filepath.Join(dir, "holders")); len(h) > 0 {
			return filepath.Base(dir) + " is held by " + h[0].Name()
		}
		if b, err := os.ReadFile(filepath.Join(dir, "dev")); err == nil {
			numbers[strings.TrimSpace(string(b))] = filepath.Base(dir)
		}
	}
	mounts, _ := os.ReadFile(filepath.Join(in.cfg.Proc, "self/mountinfo"))
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && numbers[f[2]] != "" {
			return numbers[f[2]] + " is mounted on " + f[4]
		}
	}
	swaps, _ := os.ReadFile(filepath.Join(in.cfg.Proc, "swaps"))
	for line := range strings.Lines(string(swaps)) {
		if f := strings.Fields(line); len(f) > 0 {
			for _, part := range numbers {
				if f[0] == "/dev/"+part {
					return part + " is swapped to"
				}
			}
		}
	}
	return ""
}

// writable lifts the kernel's write protection, which the inventory put on
// every disk it looked at. Only the target of an attempt gets here.
func (d *device) writable() error {
	if d.regular {
		return nil
	}
	var off int32
	if err := ioctl(d.File, blkROSet, unsafe.Pointer(&off)); err != nil {
		return &Failure{Code: "disk_read_only", Cause: "The target disk cannot be made writable.", NextStep: nextDisk, Err: err}
	}
	return nil
}

// wipe zeroes the first and last MiB of the disk and of each partition to be:
// old tables and their copies, RAID, LVM, ZFS and filesystem superblocks, and
// the marker of an earlier installation, which goes first.
func (d *device) wipe(parts []placed) error {
	zero := make([]byte, 1<<20)
	clear := func(from, to int64) error {
		for ; from < to; from += int64(len(zero)) {
			if _, err := d.WriteAt(zero[:min(int64(len(zero)), to-from)], from); err != nil {
				return err
			}
		}
		return nil
	}
	if err := clear(markerOffset, markerOffset+markerBytes); err != nil {
		return err
	}
	if err := d.flush(); err != nil {
		return err
	}
	const end = 1 << 20
	if err := errors.Join(clear(0, end), clear(d.sizeBytes-end, d.sizeBytes)); err != nil {
		return err
	}
	for _, p := range parts {
		if err := errors.Join(clear(p.start, p.start+end), clear(p.start+p.SizeBytes-end, p.start+p.SizeBytes)); err != nil {
			return err
		}
	}
	return d.flush()
}

// flush writes everything out and drops what the kernel kept of it, so that the
// next read is of the disk.
func (d *device) flush() error {
	if err := d.Sync(); err != nil {
		return err
	}
	if d.regular {
		return nil
	}
	return ioctl(d.File, blkFlsBuf, nil)
}

// blkpgIoctlArg and blkpgPartition are the kernel's structures of these names.
type blkpgIoctlArg struct {
	op, flags, length int32
	data              unsafe.Pointer
}
type blkpgPartition struct {
	start, length int64 // bytes
	number        int32
	_             [64 + 64 + 4]byte
}

// reread makes the kernel see the new table and waits until the nodes of all
// partitions are there, at the places they were given. A kernel that cannot
// read a GPT is told each partition.
func (d *device) reread(ctx context.Context, parts []placed) error {
	if d.regular {
		return nil
	}
	if err := ioctl(d.File, blkRRPart, nil); err != nil {
		return &Failure{Code: "disk_busy", Cause: "The kernel keeps the old partition table of the target disk: something uses it.", NextStep: "Retry the task.", Err: err}
	}
	deadline, told := time.Now().Add(20*time.Second), false
	for {
		err := d.nodes(parts)
		if err == nil {
			return nil
		}
		if !told {
			told = true
			if _, e := os.Stat(sysPartition(d.Name(), parts[0].Number)); errors.Is(e, os.ErrNotExist) {
				for _, p := range parts {
					part := blkpgPartition{start: p.start, length: p.SizeBytes, number: int32(p.Number)}
					_ = ioctl(d.File, blkPG, unsafe.Pointer(&blkpgIoctlArg{op: blkPGAdd, length: int32(unsafe.Sizeof(part)), data: unsafe.Pointer(&part)}))
				}
			}
			continue
		}
		if time.Now().After(deadline) {
			return &Failure{Code: "disk_unsupported", Cause: "The new partitions did not appear.", NextStep: nextDisk, Err: err}
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// nodes reports which partition is not there yet, or not where it should be.
func (d *device) nodes(parts []placed) error {
	for _, p := range parts {
		sys := sysPartition(d.Name(), p.Number)
		for _, want := range []struct {
			name  string
			value int64
		}{{"start", p.start / 512}, {"size", p.SizeBytes / 512}} {
			b, err := os.ReadFile(filepath.Join(sys, want.name))
			if err != nil {
				return err
			}
			if got := strings.TrimSpace(string(b)); got != strconv.FormatInt(want.value, 10) {
				return fmt.Errorf("partition %d has %s %s; want %d", p.Number, want.name, got, want.value)
			}
		}
		st, err := os.Stat(partitionPath(d.Name(), p.Number))
		if err != nil {
			return err
		}
		if st.Mode()&os.ModeDevice == 0 {
			return fmt.Errorf("%s is not a device", partitionPath(d.Name(), p.Number))
		}
	}
	return nil
}

func sysPartition(dev string, n int) string {
	return filepath.Join("/sys/class/block", filepath.Base(partitionPath(dev, n)))
}

// partitionPath is what the kernel calls a partition: a disk whose name ends in
// a digit (nvme0n1, mmcblk0) has a p before the number.
func partitionPath(dev string, n int) string {
	if c := dev[len(dev)-1]; c >= '0' && c <= '9' {
		dev += "p"
	}
	return dev + strconv.Itoa(n)
}

// openPartition opens a partition for writing, for nobody else.
func openPartition(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_EXCL, 0)
	if err != nil {
		return nil, writeFailed(path, err)
	}
	return f, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

var _ io.WriterAt = (*device)(nil)
