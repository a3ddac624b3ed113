package imageimport

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/imagepack"
	"github.com/lpmos/lpmos/internal/preflight"
	"github.com/lpmos/lpmos/internal/rofs"
)

// Request is what a person asks for.
type Request struct {
	From        string // a path, or an address beginning with https:// (http:// where the Guard allows it)
	Format      string // of Formats
	Compression string // of Compressions; "" is none
	Want        preflight.Want
	Title       string // "" takes what os-release says

	Sum       Sum    // given by the person; zero when not
	Checksums string // a path or an address of a list of checksums; "" when not given
	Signature string // a path or an address of a detached signature over the list, "inline" when the list is signed in itself
	Keyring   string // a path; of the keys that may have signed

	WorkDir string // for what is fetched and unpacked; kept when a transfer breaks, emptied at the end
	OutDir  string // the image's blobs are put in OutDir/blobs
}

// Validate names what is wrong with a request before anything is fetched.
func (r *Request) Validate() error {
	bad := func(field, problem, value string) error {
		return &lpmos.InvalidError{Field: field, Problem: problem, Value: value}
	}
	if r.Compression == "" {
		r.Compression = "none"
	}
	switch {
	case r.From == "":
		return bad("from", "is missing", "")
	case !slices.Contains(Formats, r.Format):
		return bad("format", "is none of qcow2, raw, tar", r.Format)
	case !slices.Contains(Compressions, r.Compression):
		return bad("compression", "is none of none, gz, xz, zstd", r.Compression)
	case r.Signature != "" && r.Checksums == "":
		return bad("signature", "signs a list of checksums, which is not given", "")
	case r.Signature != "" && r.Keyring == "":
		return bad("keyring", "is missing: whose signature counts is for you to say", "")
	case r.Signature == "" && r.Keyring != "":
		return bad("signature", "is missing: a keyring alone verifies nothing", "")
	}
	for field, v := range map[string]string{"os": r.Want.OS, "version": r.Want.Version, "arch": r.Want.Arch} {
		if !lpmos.ValidName(v) {
			return bad(field, "is not a name: small letters, digits, and . _ - inside", v)
		}
	}
	if r.Want.Arch != "amd64" && r.Want.Arch != "arm64" {
		return bad("arch", "is neither amd64 nor arm64", r.Want.Arch)
	}
	return nil
}

// Result is an import that succeeded.
type Result struct {
	Image    lpmos.Image
	Manifest *lpmos.ImageManifest
	// Whole are the ext4 partitions that could not be packed by their own
	// bitmaps, by offset, with the reason.
	Whole map[int64]string
}

// BlockedError is an image that was read and cannot be installed.
type BlockedError struct{ Report lpmos.Preflight }

func (e *BlockedError) Error() string {
	return "the image cannot be installed: " + strings.Join(e.Report.Problems(), " ")
}

// Import does everything up to the blobs and the entry for the catalogue. An
// image with a problem is a *BlockedError and leaves nothing behind.
func Import(ctx context.Context, r Request, g Guard, l Limits, say Progress) (Result, error) {
	l.defaults()
	if say == nil {
		say = func(string, int64, int64) {}
	}
	if err := r.Validate(); err != nil {
		return Result{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, l.Total, fmt.Errorf("the import took longer than %v", l.Total))
	defer cancel()
	if err := os.MkdirAll(r.WorkDir, 0o700); err != nil {
		return Result{}, fmt.Errorf("import image: %w", err)
	}
	im := &importer{r: r, guard: g, limits: l, say: say, fetch: newFetcher(g, l, say)}
	res, err := im.run(ctx)
	if err != nil && ctx.Err() != nil && !errors.Is(err, context.Canceled) {
		err = context.Cause(ctx)
	}
	if err != nil {
		return Result{}, fmt.Errorf("import %s: %w", im.shown(), err)
	}
	return res, nil
}

type importer struct {
	r      Request
	guard  Guard
	limits Limits
	say    Progress
	fetch  *fetcher
	clean  []string // files of WorkDir to remove once they are not needed
}

func (im *importer) shown() string {
	if u := remote(im.r.From); u != nil {
		return shown(u)
	}
	return filepath.Base(im.r.From)
}

// remote is the address that s is, nil for a path.
func remote(s string) *url.URL {
	if !strings.Contains(s, "://") {
		return nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return &url.URL{Scheme: "invalid"}
	}
	return u
}

func (im *importer) run(ctx context.Context) (Result, error) {
	want, from, signer, err := im.sum(ctx)
	if err != nil {
		return Result{}, err
	}
	name, err := im.bring(ctx)
	if err != nil {
		return Result{}, err
	}
	f, err := os.Open(name)
	if err != nil {
		return Result{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return Result{}, err
	case !info.Mode().IsRegular():
		return Result{}, errors.New("it is not a regular file")
	case info.Size() > im.limits.Bytes:
		return Result{}, fmt.Errorf("it has %s, more than the %s allowed", lpmos.FormatBytes(info.Size()), lpmos.FormatBytes(im.limits.Bytes))
	}
	digest, err := im.verify(ctx, f, info.Size(), want)
	if err != nil {
		// Wrong bytes are not kept to be continued.
		im.drop(name)
		return Result{}, err
	}
	src := &lpmos.ImageSource{URL: im.shown(), Format: im.r.Format, SHA256: digest, Bytes: info.Size(), From: from, Signer: signer}
	if want.Hex != "" {
		src.Checksum = want.String()
	}
	var res Result
	if im.r.Format == "tar" {
		res, err = im.tar(ctx, f, info.Size())
	} else {
		res, err = im.disk(ctx, f, info.Size())
	}
	if _, blocked := errors.AsType[*BlockedError](err); err == nil || blocked {
		im.drop(name)
	}
	if err != nil {
		return Result{}, err
	}
	res.Image.Source = src
	return res, nil
}

// drop removes a file that was fetched; a file of the person's stays.
func (im *importer) drop(name string) {
	if slices.Contains(im.clean, name) {
		os.Remove(name)
		os.Remove(name + ".json")
	}
}

// sum finds out which digest the file must have, and who says so.
func (im *importer) sum(ctx context.Context) (s Sum, from, signer string, err error) {
	s = im.r.Sum
	if s.Hex != "" {
		from = "command line"
	}
	if im.r.Checksums == "" {
		return s, from, "", nil
	}
	list, err := im.text(ctx, im.r.Checksums)
	if err != nil {
		return s, "", "", fmt.Errorf("read checksums: %w", err)
	}
	if im.r.Signature != "" {
		var sig []byte
		if im.r.Signature != "inline" {
			if sig, err = im.text(ctx, im.r.Signature); err != nil {
				return s, "", "", fmt.Errorf("read signature: %w", err)
			}
		}
		im.say("verifying the signature", 0, 0)
		if list, signer, err = signature(ctx, im.r.WorkDir, list, sig, im.r.Keyring); err != nil {
			return s, "", "", err
		}
	}
	base := path.Base(filepath.ToSlash(im.r.From))
	if u := remote(im.r.From); u != nil {
		base = path.Base(u.Path)
	}
	found, err := FindSum(list, base)
	if err != nil {
		return s, "", "", err
	}
	if s.Hex != "" && s.Kind == found.Kind && s != found {
		return s, "", "", fmt.Errorf("the list of checksums says %s, and the command line %s", found, s)
	}
	from = filepath.Base(im.r.Checksums)
	if u := remote(im.r.Checksums); u != nil {
		from = shown(u)
	}
	return found, from, signer, nil
}

// text reads a short file from a path or an address.
func (im *importer) text(ctx context.Context, where string) ([]byte, error) {
	if u := remote(where); u != nil {
		if err := im.guard.CheckURL(u); err != nil {
			return nil, fmt.Errorf("%s: %w", shown(u), err)
		}
		return im.fetch.small(ctx, u, maxChecksums)
	}
	f, err := os.Open(where)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxChecksums+1))
	if err == nil && len(b) > maxChecksums {
		err = errors.New("it is longer than 4 MiB")
	}
	return b, err
}

// bring makes the image a local file.
func (im *importer) bring(ctx context.Context) (string, error) {
	u := remote(im.r.From)
	if u == nil {
		return im.r.From, nil
	}
	if err := im.guard.CheckURL(u); err != nil {
		return "", err
	}
	name, err := im.fetch.file(ctx, u, im.r.WorkDir)
	if err == nil {
		im.clean = append(im.clean, name)
	}
	return name, err
}

// verify reads the file once and compares it with the digest wanted. It gives
// the file's SHA-256 in any case.
func (im *importer) verify(ctx context.Context, f *os.File, size int64, want Sum) (string, error) {
	h256 := sha256.New()
	hashes := []io.Writer{h256}
	var wanted hash.Hash = h256
	if want.Kind == "sha512" {
		wanted = sha512.New()
		hashes = append(hashes, wanted)
	}
	buf := make([]byte, 1<<20)
	w := io.MultiWriter(hashes...)
	for done := int64(0); ; {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		n, err := f.Read(buf)
		_, _ = w.Write(buf[:n]) // a hash does not fail
		done += int64(n)
		im.say("verifying", done, size)
		if err == io.EOF {
			break
		}
		if err != nil {
			return "", fmt.Errorf("verify: %w", err)
		}
	}
	if got := hex.EncodeToString(wanted.Sum(nil)); want.Hex != "" && got != want.Hex {
		return "", fmt.Errorf("the file has the digest %s:%s, and must have %s: it is not the file that was meant", want.Kind, got, want)
	}
	return hex.EncodeToString(h256.Sum(nil)), nil
}

func head(f *os.File) ([]byte, error) {
	b := make([]byte, magicBytes)
	n, err := f.ReadAt(b, 0)
	if err == io.EOF {
		err = nil
	}
	return b[:n], err
}

// disk converts a whole-disk image.
func (im *importer) disk(ctx context.Context, f *os.File, size int64) (Result, error) {
	if im.r.Compression != "none" {
		b, err := head(f)
		if err == nil {
			err = checkKind(b, im.r.Compression)
		}
		if err != nil {
			return Result{}, err
		}
		un, n, err := im.unpack(ctx, f, size)
		if err != nil {
			return Result{}, err
		}
		defer os.Remove(un.Name())
		defer un.Close()
		f, size = un, n
	}
	b, err := head(f)
	if err == nil {
		err = checkKind(b, im.r.Format)
	}
	if err != nil {
		return Result{}, err
	}
	d := imagepack.Disk{Progress: func(done int64) { im.say("packing", done, size) }}
	if im.r.Format == "qcow2" {
		diskBytes, err := checkQcow2(b, size, im.limits.Unpacked)
		if err != nil {
			return Result{}, err
		}
		q, err := openQcow2(f, diskBytes)
		if err != nil {
			return Result{}, err
		}
		d.Source, d.Holes, size = q, q.holes, diskBytes
	} else {
		d.Source, d.Holes = f, fileHoles(f, size)
	}
	d.Bytes = size
	found, err := preflight.Disk(d.Source, size, im.r.Want)
	if err != nil {
		return Result{}, err
	}
	if len(found.Report.Problems()) > 0 {
		return Result{}, &BlockedError{found.Report}
	}
	if len(found.BootModes) == 0 {
		found.Report.Checks = append(found.Report.Checks, lpmos.PreflightCheck{Name: "boot", Result: lpmos.CheckProblem, Text: "No boot loader was found in it, for BIOS or for UEFI."})
		return Result{}, &BlockedError{found.Report}
	}
	d.Ext4, d.Manifest = found.Ext4, found.Manifest
	packed, err := imagepack.PackDisk(ctx, im.r.OutDir, d)
	if err != nil {
		return Result{}, err
	}
	res := im.entry(packed, found)
	res.Image.MinDiskBytes = packed.Manifest.SizeBytes
	res.Whole = packed.Whole
	return res, nil
}

// unpack decompresses the file into another, with holes where it is zero.
func (im *importer) unpack(ctx context.Context, f *os.File, size int64) (*os.File, int64, error) {
	out, err := os.CreateTemp(im.r.WorkDir, "unpacked-*")
	if err != nil {
		return nil, 0, err
	}
	fail := func(err error) (*os.File, int64, error) {
		out.Close()
		os.Remove(out.Name())
		return nil, 0, fmt.Errorf("unpack: %w", err)
	}
	r, err := decompressor(f, size, im.r.Compression, im.limits)
	if err != nil {
		return fail(err)
	}
	defer r.Close()
	n, err := unpackSparse(&bounded{ctx: ctx, r: r, limits: im.limits, in: size, step: "unpacking", say: im.say}, out)
	if err != nil {
		return fail(err)
	}
	return out, n, nil
}

// fileHoles yields the holes of a sparse file, as far as the filesystem tells.
func fileHoles(f *os.File, size int64) iter.Seq2[lpmos.Range, error] {
	return func(yield func(lpmos.Range, error) bool) {
		for at := int64(0); at < size; {
			hole, err := unix.Seek(int(f.Fd()), at, unix.SEEK_HOLE)
			if err != nil || hole >= size {
				return
			}
			data, err := unix.Seek(int(f.Fd()), hole, unix.SEEK_DATA)
			if err != nil {
				data = size // nothing but a hole follows
			}
			if !yield(lpmos.Range{Offset: hole, Bytes: min(data, size) - hole}, nil) {
				return
			}
			at = data
		}
	}
}

// tar packs the tar of a root filesystem, and looks at it while it passes by.
func (im *importer) tar(ctx context.Context, f *os.File, size int64) (Result, error) {
	b, err := head(f)
	if err != nil {
		return Result{}, err
	}
	declared := im.r.Format
	if im.r.Compression != "none" {
		declared = im.r.Compression
	}
	if err := checkKind(b, declared); err != nil {
		return Result{}, err
	}
	r, err := decompressor(f, size, im.r.Compression, im.limits)
	if err != nil {
		return Result{}, fmt.Errorf("unpack: %w", err)
	}
	defer r.Close()
	in := &bounded{ctx: ctx, r: r, limits: im.limits, in: size, step: "packing", say: im.say}
	list := rofs.NewTar()
	pr, pw := io.Pipe()
	type scanned struct {
		unpacked int64
		err      error
	}
	done := make(chan scanned, 1)
	go func() {
		n, err := scanTar(pr, list)
		pr.CloseWithError(err) // nil: the rest is not looked at
		done <- scanned{n, err}
	}()
	var found preflight.Found
	packed, err := imagepack.PackTar(ctx, im.r.OutDir, io.TeeReader(in, pw), lpmos.ImageManifest{}, func(m *lpmos.ImageManifest) error {
		pw.Close()
		s := <-done
		done <- s
		if s.err != nil {
			return s.err
		}
		found = preflight.Tar(list, im.r.Want)
		if len(found.Report.Problems()) > 0 {
			return &BlockedError{found.Report}
		}
		f := found.Manifest
		f.Format, f.SizeBytes, f.UsedBytes, f.Pack, f.Chunks, f.UnpackedBytes = m.Format, m.SizeBytes, m.UsedBytes, m.Pack, m.Chunks, s.unpacked
		*m = f
		return nil
	})
	pw.Close()
	s := <-done
	if err != nil {
		if s.err != nil && !errors.Is(s.err, io.ErrUnexpectedEOF) {
			err = s.err
		}
		return Result{}, err
	}
	res := im.entry(packed, found)
	res.Image.SizeBytes = packed.Manifest.RootBytes()
	return res, nil
}

// scanTar lists a tar stream and counts what its files take in blocks of 4096
// bytes. It reads the stream to its end.
func scanTar(r io.Reader, list *rofs.Tar) (unpacked int64, err error) {
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, fmt.Errorf("read the tar stream: %w", err)
		}
		unpacked += 4096 // its inode, its name, and what rounding takes
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeGNUSparse:
			unpacked += (h.Size + 4095) / 4096 * 4096
			var content []byte
			if keep := min(preflight.TarKeep(h.Name), h.Size); keep > 0 {
				content = make([]byte, keep)
				if _, err := io.ReadFull(t, content); err != nil {
					return 0, fmt.Errorf("read %q of the tar stream: %w", lpmos.Shorten(h.Name, 80), err)
				}
			}
			err = list.Add(h.Name, 0, h.Size, "", content)
		case tar.TypeDir:
			err = list.Add(h.Name, fs.ModeDir, 0, "", nil)
		case tar.TypeSymlink:
			err = list.Add(h.Name, fs.ModeSymlink, int64(len(h.Linkname)), h.Linkname, nil)
		case tar.TypeLink:
			err = list.Link(h.Name, h.Linkname)
		case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
			err = list.Add(h.Name, fs.ModeDevice, 0, "", nil)
		case tar.TypeXGlobalHeader:
			unpacked -= 4096
		default:
			err = fmt.Errorf("the member %q is of the kind %q, which is not known", lpmos.Shorten(h.Name, 80), h.Typeflag)
		}
		if err != nil {
			return 0, err
		}
		if unpacked > lpmos.MaxImageBytes {
			return 0, errors.New("its files take more than 1 TiB")
		}
	}
	_, err = io.Copy(io.Discard, r) // padding behind the end
	return unpacked, err
}

// entry is the catalogue's entry of what was packed.
func (im *importer) entry(p imagepack.Packed, found preflight.Found) Result {
	m := p.Manifest
	title := im.r.Title
	if title == "" {
		title = found.Report.PrettyName
	}
	if title == "" {
		title = im.r.Want.OS + " " + im.r.Want.Version
	}
	report := found.Report
	return Result{Manifest: m, Image: lpmos.Image{
		OS: m.OS, Version: m.Version, Arch: m.Arch, Digest: p.Digest, Title: title, Format: m.Format,
		SizeBytes: m.SizeBytes, UsedBytes: m.UsedBytes, StoredBytes: m.Pack.Bytes, BootModes: found.BootModes,
		CloudInit: m.CloudInit, CreatedAt: time.Now().UTC().Truncate(time.Second), Preflight: &report,
	}}
}
