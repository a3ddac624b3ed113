package install

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/lpmos/lpmos"
)

// unpack writes the tree of files onto the mounted filesystems and compares a
// sample of the files with what the disks return.
func (in *Installer) unpack(ctx context.Context, job *Job, m *lpmos.ImageManifest, fss []mountable) error {
	var u *unpacker
	err := in.mounted(fss, func(root *os.Root) error {
		u = newUnpacker(root, m)
		return in.stream(ctx, job, m, u)
	})
	if err != nil {
		return err
	}
	in.log.Info("image unpacked", "files", u.files, "bytes", u.bytes)
	// Mounted anew, nothing of it is in a cache but what the device kept.
	job.step(lpmos.StageInstall, 70, 100, "Comparing a sample of the files with the disk")
	err = in.mounted(fss, u.compare)
	if err == nil {
		job.step(lpmos.StageInstall, 100, 100, "The files are in place")
	}
	return err
}

// stream feeds the chunks, which are one tar stream, to u.
func (in *Installer) stream(ctx context.Context, job *Job, m *lpmos.ImageManifest, u *unpacker) error {
	r, w := io.Pipe()
	unpacked := make(chan error, 1)
	go func() {
		err := protectUnpack(func() error { return u.run(r) })
		// What follows the end of the archive is padding.
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		_ = r.CloseWithError(cmp.Or(err, io.ErrClosedPipe)) // always nil
		unpacked <- err
	}()
	c := Copier{Blobs: in.blobs, Decode: in.decode, Stall: in.cfg.StallTimeout, Log: in.log, Progress: job.progress(m)}
	err := c.Copy(ctx, m, func(_ int, _ lpmos.Chunk, _ int64, piece []byte) error {
		_, err := w.Write(piece)
		return err
	})
	_ = w.CloseWithError(cmp.Or(err, io.EOF)) // always nil
	// What the unpacker says is the cause; the copy then only says that nobody
	// reads.
	if bad := <-unpacked; bad != nil && (err == nil || errors.Is(err, bad)) {
		return bad
	}
	return err
}

// protectUnpack makes a panic of the archive reader an error of the image.
func protectUnpack(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = corrupt("its archive cannot be read: %v", p)
		}
	}()
	return f()
}

// unpacker writes the entries of an archive below a root. Every path is
// resolved by os.Root: neither dots nor links of the archive lead out of it,
// and a link that would is an error rather than followed.
type unpacker struct {
	root  *os.Root
	limit int64 // of bytes in files
	room  int   // for what is remembered until the end: bytes that are left

	files, bytes int64
	dirs         []dirTime          // times of directories, set when nothing is put into them any more
	acls         []namedACL         // set at the end
	samples      map[string]fileSum // by name
	every        int64
	names        map[string]map[string]int // "user", "group": ids by name, for ACLs
	buf          []byte
}

type dirTime struct {
	name string
	at   time.Time
}

// namedACL is an ACL with names of users and groups: the lists of these may come
// later in the archive than what has it, and what is put into a directory must
// not inherit it.
type namedACL struct{ name, kind, text string }

type fileSum struct {
	size int64
	sum  [sha256.Size]byte
}

const (
	maxUnpackedFiles = 4_000_000
	maxSampledBytes  = 64 << 20 // a larger file is not compared
	maxRemembered    = 64 << 20 // names of directories and ACLs
)

func newUnpacker(root *os.Root, m *lpmos.ImageManifest) *unpacker {
	// The stream has at least a header of 512 bytes for each file; holes make
	// the files larger than the stream, but not than what was measured.
	return &unpacker{root: root, limit: max(m.UnpackedBytes*2, m.SizeBytes) + 1<<30, room: maxRemembered, every: max(1, m.SizeBytes/(32<<10)/sampleChunks/4),
		samples: map[string]fileSum{}, buf: make([]byte, 256<<10)}
}

func (u *unpacker) run(r io.Reader) error {
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
			return corrupt("its archive cannot be read: %v", err)
		}
		if err != nil {
			return err
		}
		if u.files++; u.files > maxUnpackedFiles {
			return corrupt("its archive has more than %d entries", maxUnpackedFiles)
		}
		if err := u.entry(h, t); err != nil {
			return entryFailed(h.Name, err)
		}
	}
	for _, a := range u.acls {
		acl, err := u.acl(a.text)
		if err == nil {
			err = u.set(a.name, []xattr{{"system.posix_acl_" + a.kind, acl}})
		}
		if err != nil {
			return entryFailed(a.name, err)
		}
	}
	for _, d := range slices.Backward(u.dirs) {
		if err := u.root.Chtimes(d.name, d.at, d.at); err != nil {
			return fmt.Errorf("set time of /%s: %w", d.name, err)
		}
	}
	return nil
}

// entryFailed says what it means that an entry could not be written.
func entryFailed(name string, err error) error {
	if _, ok := errors.AsType[*Failure](err); ok {
		return err
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return &Failure{Code: "image_too_large", Cause: "The filesystem is full at " + quoted(name) + ".", NextStep: "Choose a larger disk, or a layout with more room there.", Err: err}
	}
	if errors.Is(err, syscall.EIO) {
		return writeFailed("the disk", err)
	}
	return &Failure{Code: "image_unsuitable", Cause: fmt.Sprintf("The entry %s of the image cannot be unpacked: %v.", quoted(name), err), NextStep: nextImage, Err: err}
}

func quoted(name string) string { return fmt.Sprintf("%q", lpmos.Shorten(name, 200)) }

// clean is an entry's name as os.Root has it. One that is absolute or climbs
// is refused, as no archive of a system has any.
func clean(name string) (string, error) {
	n := path.Clean(strings.TrimSuffix(name, "/"))
	if strings.HasPrefix(name, "/") || strings.ContainsRune(name, 0) || !filepath.IsLocal(n) {
		return "", &Failure{Code: "image_unsuitable", Cause: "The image has an entry outside its own tree: " + quoted(name) + ".", NextStep: nextImage}
	}
	return n, nil
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
	default:
		return fmt.Errorf("it is of a kind (%q) that no filesystem has", h.Typeflag)
	}
	if h.Uid < 0 || h.Gid < 0 || h.Uid > 1<<32-2 || h.Gid > 1<<32-2 {
		return fmt.Errorf("its owner %d:%d is no number of a user", h.Uid, h.Gid)
	}
	if name != "." {
		if err := u.parents(path.Dir(name)); err != nil {
			return err
		}
		if err := u.makeWay(name, h.Typeflag == tar.TypeDir); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		err := u.root.Mkdir(name, 0o700)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := u.remember(name); err != nil {
			return err
		}
		u.dirs = append(u.dirs, dirTime{name, h.ModTime})
	case tar.TypeLink:
		old, err := clean(h.Linkname)
		if err != nil {
			return err
		}
		return u.root.Link(old, name) // owner, mode and time are those of the file
	case tar.TypeSymlink:
		if err := u.root.Symlink(h.Linkname, name); err != nil {
			return err
		}
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		if err := u.node(name, h); err != nil {
			return err
		}
	default:
		if err := u.file(name, h, content); err != nil {
			return err
		}
	}
	return u.attributes(name, h)
}

// remember takes from the room for what is kept until the end, so that no archive
// fills the machine's memory.
func (u *unpacker) remember(text string) error {
	const beside = 64 // times, lengths, addresses
	if u.room -= len(text) + beside; u.room < 0 {
		return corrupt("the names of its directories and its ACLs take more than %s", lpmos.FormatBytes(maxRemembered))
	}
	return nil
}

// parents makes directories that the archive has not named; it names them all
// when it is whole.
func (u *unpacker) parents(dir string) error {
	if dir == "." {
		return nil
	}
	if _, err := u.root.Stat(dir); err == nil {
		return nil
	}
	return u.root.MkdirAll(dir, 0o755)
}

// makeWay removes what an earlier entry left under a name. A directory stays
// for a directory, and is in the way of anything else.
func (u *unpacker) makeWay(name string, dir bool) error {
	st, err := u.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && dir && st.IsDir() {
		return nil
	}
	if err != nil {
		return err
	}
	delete(u.samples, name)
	return u.root.Remove(name)
}

// file writes a file's content; blocks of zeros become holes.
func (u *unpacker) file(name string, h *tar.Header, content io.Reader) error {
	if u.bytes += h.Size; h.Size < 0 || u.bytes > u.limit {
		return corrupt("its files are larger than the %s that were measured when it was imported", lpmos.FormatBytes(u.limit))
	}
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	sum := sha256.New()
	sampled := h.Size > 0 && h.Size <= maxSampledBytes && u.files%u.every == 0
	var at int64
	for err == nil && at < h.Size {
		b := u.buf[:min(int64(len(u.buf)), h.Size-at)]
		if _, err = io.ReadFull(content, b); err != nil {
			err = corrupt("its archive ends within %s", quoted(h.Name))
			break
		}
		if sampled {
			sum.Write(b)
		}
		err = writeSparse(f, b, at)
		at += int64(len(b))
	}
	if err == nil {
		err = f.Truncate(h.Size) // a hole at the end
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if sampled {
		u.samples[name] = fileSum{h.Size, [sha256.Size]byte(sum.Sum(nil))}
	}
	return nil
}

const holeBytes = 4096

var zeroBlock [holeBytes]byte

// writeSparse writes b at off, but for whole blocks of zeros.
func writeSparse(f *os.File, b []byte, off int64) error {
	hole := func(at int) bool {
		return at+holeBytes <= len(b) && bytes.Equal(b[at:at+holeBytes], zeroBlock[:])
	}
	for at := 0; at < len(b); {
		if hole(at) {
			at += holeBytes
			continue
		}
		end := at
		for end < len(b) && !hole(end) {
			end = min(end+holeBytes, len(b))
		}
		if _, err := f.WriteAt(b[at:end], off+int64(at)); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// in calls f with the directory an entry is in, opened, and its last name.
func (u *unpacker) in(name string, f func(dir int, base string) error) error {
	d, err := u.root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer d.Close()
	return f(int(d.Fd()), path.Base(name))
}

func (u *unpacker) node(name string, h *tar.Header) error {
	mode, dev := uint32(0o600), 0
	switch h.Typeflag {
	case tar.TypeChar:
		mode |= syscall.S_IFCHR
	case tar.TypeBlock:
		mode |= syscall.S_IFBLK
	default:
		mode |= syscall.S_IFIFO
	}
	if h.Typeflag != tar.TypeFifo {
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return fmt.Errorf("its device number %d:%d is none", h.Devmajor, h.Devminor)
		}
		dev = int(h.Devminor&0xff | h.Devmajor<<8 | h.Devminor&^0xff<<12) // as mknod(2) takes it
	}
	return u.in(name, func(dir int, base string) error { return syscall.Mknodat(dir, base, mode, dev) })
}

// attributes sets owner, mode, extended attributes and time, in that order: a
// new owner takes set-user-ID bits and capabilities away.
func (u *unpacker) attributes(name string, h *tar.Header) error {
	if err := u.root.Lchown(name, h.Uid, h.Gid); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		mode := fs.FileMode(h.Mode & 0o777)
		for bit, m := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
			if h.Mode&bit != 0 {
				mode |= m
			}
		}
		if err := u.root.Chmod(name, mode); err != nil {
			return err
		}
	}
	attrs, err := u.xattrs(h)
	if err != nil {
		return err
	}
	if err := u.set(name, attrs); err != nil {
		return err
	}
	for _, kind := range []string{"access", "default"} {
		if text, ok := h.PAXRecords["SCHILY.acl."+kind]; ok {
			if err := u.remember(name + text); err != nil {
				return err
			}
			u.acls = append(u.acls, namedACL{name, kind, text})
		}
	}
	if h.Typeflag == tar.TypeDir || h.Typeflag == tar.TypeSymlink {
		return nil // a directory's comes at the end, a link's matters to nobody
	}
	return u.root.Chtimes(name, h.ModTime, h.ModTime)
}

type xattr struct {
	name  string
	value []byte
}

// set sets extended attributes, which may be none.
func (u *unpacker) set(name string, attrs []xattr) error {
	if len(attrs) == 0 {
		return nil
	}
	return u.in(name, func(dir int, base string) error {
		for _, a := range attrs {
			if err := lsetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", dir, base), a.name, a.value); err != nil {
				return fmt.Errorf("set its attribute %s: %w", a.name, err)
			}
		}
		return nil
	})
}

// xattrs are an entry's extended attributes, as GNU tar and bsdtar write them.
// ACLs are either the kernel's own attribute, among these, or text beside it.
func (u *unpacker) xattrs(h *tar.Header) ([]xattr, error) {
	var out []xattr
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		switch {
		case ok:
			namespace, rest, _ := strings.Cut(name, ".")
			if rest == "" || len(name) > 255 || len(value) > 64<<10 || !slices.Contains([]string{"user", "security", "trusted", "system"}, namespace) {
				return nil, fmt.Errorf("it has an attribute %s that no filesystem takes", quoted(name))
			}
			if h.Typeflag == tar.TypeSymlink && namespace != "security" && namespace != "trusted" {
				continue // Linux has no others on links
			}
			out = append(out, xattr{name, []byte(value)})
		case key == "RHT.security.selinux":
			out = append(out, xattr{"security.selinux", []byte(strings.TrimRight(value, "\x00") + "\x00")})
		}
	}
	// SELinux' own and star's spelling of one attribute are the same.
	slices.SortFunc(out, func(a, b xattr) int { return strings.Compare(a.name, b.name) })
	return slices.CompactFunc(out, func(a, b xattr) bool { return a.name == b.name }), nil
}

// acl is the kernel's form (Linux, include/uapi/linux/posix_acl_xattr.h) of an
// ACL in acl(5)'s short or long text form.
func (u *unpacker) acl(text string) ([]byte, error) {
	const undefined = 0xffffffff
	bad := func(entry string) error {
		return fmt.Errorf("its ACL has an entry %s that means nothing", quoted(entry))
	}
	type entry struct {
		tag, perm uint16
		id        uint32
	}
	var entries []entry
	for e := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ',' || r == '\n' }) {
		f := strings.Split(strings.TrimSpace(e), ":")
		if len(f) < 3 {
			return nil, bad(e)
		}
		// "user:name:rwx:1000" has the number at the end.
		n := entry{id: undefined}
		qualifier := f[1]
		if len(f) > 3 && qualifier != "" {
			qualifier = f[3]
		}
		kind := map[string]uint16{"user": 0x01, "u": 0x01, "group": 0x04, "g": 0x04, "mask": 0x10, "m": 0x10, "other": 0x20, "o": 0x20}[f[0]]
		if kind == 0 || kind >= 0x10 && qualifier != "" {
			return nil, bad(e)
		}
		n.tag = kind
		if qualifier != "" {
			n.tag <<= 1 // ACL_USER, ACL_GROUP
			id, err := u.id(map[uint16]string{0x01: "passwd", 0x04: "group"}[kind], qualifier)
			if err != nil {
				return nil, err
			}
			n.id = id
		}
		for _, c := range strings.TrimSpace(strings.SplitN(f[2], "#", 2)[0]) {
			switch c {
			case 'r':
				n.perm |= 4
			case 'w':
				n.perm |= 2
			case 'x':
				n.perm |= 1
			case '-':
			default:
				return nil, bad(e)
			}
		}
		entries = append(entries, n)
	}
	// The kernel wants them in this order.
	slices.SortStableFunc(entries, func(a, b entry) int { return cmp.Or(cmp.Compare(a.tag, b.tag), cmp.Compare(a.id, b.id)) })
	out := []byte{2, 0, 0, 0} // POSIX_ACL_XATTR_VERSION
	for _, e := range entries {
		out = append(out, byte(e.tag), byte(e.tag>>8), byte(e.perm), byte(e.perm>>8), byte(e.id), byte(e.id>>8), byte(e.id>>16), byte(e.id>>24))
	}
	return out, nil
}

// id is a user's or group's number: given as such, or a name of the image's own
// list.
func (u *unpacker) id(list, name string) (uint32, error) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(n), nil
	}
	if u.names == nil {
		u.names = map[string]map[string]int{}
	}
	if u.names[list] == nil {
		ids := map[string]int{}
		if f, _, err := openFile(u.root, "etc/"+list); err == nil {
			text, _ := io.ReadAll(io.LimitReader(f, 1<<20))
			f.Close()
			for line := range strings.Lines(string(text)) {
				if f := strings.Split(line, ":"); len(f) > 2 {
					if n, err := strconv.Atoi(f[2]); err == nil {
						ids[f[0]] = n
					}
				}
			}
		}
		u.names[list] = ids
	}
	n, ok := u.names[list][name]
	if !ok {
		return 0, fmt.Errorf("its ACL names %s, who is not in /etc/%s", quoted(name), list)
	}
	return uint32(n), nil
}

func lsetxattr(path, name string, value []byte) error {
	p, err := syscall.BytePtrFromString(path)
	if err != nil {
		return err
	}
	n, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	var v unsafe.Pointer
	if len(value) > 0 {
		v = unsafe.Pointer(&value[0])
	}
	if _, _, errno := syscall.Syscall6(syscall.SYS_LSETXATTR, uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(n)), uintptr(v), uintptr(len(value)), 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// compare reads the sampled files and checks that they are what was written.
func (u *unpacker) compare(root *os.Root) error {
	for name, s := range u.samples {
		f, _, err := openFile(root, name)
		sum := sha256.New()
		var n int64
		if err == nil {
			n, err = io.Copy(sum, f)
			f.Close()
		}
		if err != nil {
			return &Failure{Code: "disk_verify_failed", Cause: "The file /" + name + " that was written cannot be read back.", NextStep: nextDisk, Err: err}
		}
		if n != s.size || [sha256.Size]byte(sum.Sum(nil)) != s.sum {
			return &Failure{Code: "disk_verify_failed", Cause: "The disk returns another file than was written: /" + name + ".", NextStep: nextDisk}
		}
	}
	return nil
}
