package imageimport

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/lpmos/lpmos"
)

// Formats and compressions that can be declared.
var (
	Formats      = []string{"qcow2", "raw", "tar"}
	Compressions = []string{"none", "gz", "xz", "zstd"}
)

// magics are the beginnings of files that somebody may take for another kind.
var magics = []struct {
	kind  string
	at    int
	magic string
}{
	{"gz", 0, "\x1f\x8b"},
	{"xz", 0, "\xfd7zXZ\x00"},
	{"zstd", 0, "\x28\xb5\x2f\xfd"},
	{"bzip2", 0, "BZh"},
	{"zip", 0, "PK\x03\x04"},
	{"qcow2", 0, "QFI\xfb"},
	{"vmdk", 0, "KDMV"},
	{"vmdk (a description of one)", 0, "# Disk DescriptorFile"},
	{"vhdx", 0, "vhdxfile"},
	{"vhd", 0, "conectix"},
	{"vdi", 64, "\x7f\x10\xda\xbe"},
	{"squashfs", 0, "hsqs"},
	{"iso9660", 32769, "CD001"},
	{"tar", 257, "ustar"},
	{"a web page", 0, "<!DOCTYPE"},
	{"a web page", 0, "<!doctype"},
	{"a web page", 0, "<html"},
}

const magicBytes = 40 << 10

// recognise names what a file begins like, "" for nothing known.
func recognise(head []byte) string {
	for _, m := range magics {
		if len(head) >= m.at+len(m.magic) && string(head[m.at:m.at+len(m.magic)]) == m.magic {
			return m.kind
		}
	}
	return ""
}

// checkKind compares what a file begins like with what it was declared to be.
func checkKind(head []byte, declared string) error {
	is := recognise(head)
	// An image of a disk may begin with anything a disk may; of what is known,
	// only an installation medium has a partition table as well.
	fits := is == declared || declared == "raw" && (is == "" || is == "iso9660") || declared == "tar" && is == ""
	if fits && declared == "raw" && is == "iso9660" {
		fits = false
	}
	if fits {
		return nil
	}
	if is == "" {
		is = "something else"
	}
	return &lpmos.InvalidError{Field: "format", Problem: "is not what the file is: it was declared to be " + declared + ", and its content is " + is + " (say so, if that is right; it is not guessed)"}
}

// decompressor reads the compressed form of a file. Its memory is bounded: a
// window of at most 128 MiB.
func decompressor(f io.ReaderAt, size int64, compression string, l Limits) (io.ReadCloser, error) {
	r := io.NewSectionReader(f, 0, size)
	switch compression {
	case "none":
		return io.NopCloser(r), nil
	case "gz":
		return gzip.NewReader(r)
	case "zstd":
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	case "xz":
		n, err := checkXZ(f, size)
		if err != nil {
			return nil, err
		}
		if n > l.Unpacked {
			return nil, fmt.Errorf("it says that it unpacks to %s, more than the %s allowed", lpmos.FormatBytes(n), lpmos.FormatBytes(l.Unpacked))
		}
		x, err := xz.ReaderConfig{DictCap: 8 << 20}.NewReader(r)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(x), nil
	}
	return nil, &lpmos.InvalidError{Field: "compression", Problem: "is none of none, gz, xz, zstd", Value: compression}
}

const maxWindow = 128 << 20

// bounded ends a stream with an error when it unpacks to more than is allowed,
// and counts.
type bounded struct {
	ctx    context.Context
	r      io.Reader
	limits Limits
	in     int64 // bytes of the file it comes from
	n      int64
	step   string
	say    Progress
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.ctx.Err() != nil {
		return 0, context.Cause(b.ctx)
	}
	n, err := b.r.Read(p)
	b.n += int64(n)
	if b.n > b.limits.Unpacked {
		return n, fmt.Errorf("it unpacks to more than the %s allowed", lpmos.FormatBytes(b.limits.Unpacked))
	}
	if b.n > 1<<30 && b.in > 0 && b.n/b.in > b.limits.Ratio {
		return n, fmt.Errorf("it unpacks to more than %d times its size", b.limits.Ratio)
	}
	b.say(b.step, b.n, 0)
	return n, err
}

// unpackSparse writes a stream to a file and leaves holes where it is zero.
func unpackSparse(r io.Reader, out *os.File) (size int64, err error) {
	const block = 64 << 10
	buf := make([]byte, 1<<20)
	var none [block]byte
	for {
		n, err := io.ReadFull(bodyReader{r}, buf)
		for at := 0; at < n; at += block {
			b := buf[at:min(at+block, n)]
			if !bytes.Equal(b, none[:len(b)]) {
				if _, err := out.WriteAt(b, size+int64(at)); err != nil {
					return size, err
				}
			}
		}
		size += int64(n)
		switch {
		case errors.Is(err, errOver):
			return size, out.Truncate(size)
		case err != nil:
			return size, err
		}
	}
}

// errOver is the end of a bodyReader.
var errOver = errors.New("over")

// bodyReader tells the end of a stream from a decompressor's
// io.ErrUnexpectedEOF, which io.ReadFull makes of both.
type bodyReader struct{ r io.Reader }

func (b bodyReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err == io.EOF {
		err = errOver
	}
	return n, err
}
