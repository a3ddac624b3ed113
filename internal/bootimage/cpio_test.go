package bootimage

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/lpmos/lpmos/internal/cpio"
)

// readCPIO is the reverse of tree.archive, as strict as the kernel: it also
// returns the entries' order.
func readCPIO(tb testing.TB, b []byte) (tree, []string) {
	tb.Helper()
	t := tree{}
	var order []string
	inodes := map[uint64]bool{}
	for at := 0; ; {
		if len(b)-at < 110 || string(b[at:at+6]) != "070701" {
			tb.Fatalf("no newc header at %d", at)
		}
		var field [13]uint64
		for i := range field {
			v, err := strconv.ParseUint(string(b[at+6+8*i:at+14+8*i]), 16, 32)
			if err != nil {
				tb.Fatalf("header at %d: %v", at, err)
			}
			field[i] = v
		}
		inode, mode, size, nameSize := field[0], field[1], int(field[6]), int(field[11])
		name := string(b[at+110 : at+110+nameSize-1])
		if b[at+110+nameSize-1] != 0 {
			tb.Fatalf("name %q is not terminated", name)
		}
		at = (at + 110 + nameSize + 3) &^ 3
		data := b[at : at+size]
		at = (at + size + 3) &^ 3
		if name == "TRAILER!!!" {
			if rest := bytes.Trim(b[at:], "\x00"); len(rest) > 0 {
				tb.Fatalf("%d bytes after the trailer", len(rest))
			}
			return t, order
		}
		for i, what := range map[int]string{2: "uid", 3: "gid", 5: "mtime", 7: "device", 8: "device"} {
			if field[i] != 0 {
				tb.Errorf("%s: %s = %d; want 0", name, what, field[i])
			}
		}
		if inodes[inode] {
			tb.Errorf("%s: inode %d is taken", name, inode)
		}
		inodes[inode] = true
		t["/"+name] = node{mode: uint32(mode), data: bytes.Clone(data)}
		order = append(order, "/"+name)
	}
}

func sample(keys []string) tree {
	all := map[string]func(t tree){
		"init":  func(t tree) { t.file("/init", 0o755, []byte("program")) },
		"empty": func(t tree) { t.file("/etc/empty", 0o600, nil) },
		"lib":   func(t tree) { t.symlink("/lib", "usr/lib") },
		"tmp":   func(t tree) { t.dir("/tmp", 0o1777) },
		"deep":  func(t tree) { t.file("/usr/lib/a/b/c", 0o644, bytes.Repeat([]byte("x"), 1001)) },
	}
	t := tree{}
	for _, k := range keys {
		all[k](t)
	}
	return t
}

func TestCPIO(t *testing.T) {
	in := sample([]string{"init", "empty", "lib", "tmp", "deep"})
	b := in.archive()
	if len(b)%cpio.Align != 0 {
		t.Errorf("archive has %d bytes; want a multiple of %d", len(b), cpio.Align)
	}
	got, order := readCPIO(t, b)
	if d := cmp.Diff(in, got, cmp.AllowUnexported(node{}), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("archive (-put in +read back):\n%s", d)
	}
	if n := got["/tmp"]; n.mode != 0o041777 {
		t.Errorf("/tmp has mode %o; want 41777", n.mode)
	}
	if n := got["/lib"]; n.mode != 0o120777 || string(n.data) != "usr/lib" {
		t.Errorf("/lib is %o to %q; want a symbolic link to usr/lib", n.mode, n.data)
	}

	t.Run("puts a directory before its content", func(t *testing.T) {
		for i, name := range order {
			if dir := path.Dir(name); dir != "/" && !slices.Contains(order[:i], dir) {
				t.Errorf("%s comes before %s", name, dir)
			}
		}
	})
	t.Run("does not depend on the order of adding", func(t *testing.T) {
		if other := sample([]string{"deep", "tmp", "lib", "empty", "init"}).archive(); !bytes.Equal(other, b) {
			t.Error("the same content gave another archive")
		}
	})
	t.Run("refuses a path that leaves the archive", func(t *testing.T) {
		for _, name := range []string{"init", "/../etc", "/a/", "/"} {
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("file(%q) was taken", name)
					}
				}()
				tree{}.file(name, 0o644, nil)
			}()
		}
	})
}

func TestCompressIsReproducible(t *testing.T) {
	var in bytes.Buffer
	for i := range 50_000 {
		fmt.Fprintf(&in, "line %d of %s\n", i, strings.Repeat("z", i%37))
	}
	a, err := compress(in.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	b, err := compress(in.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("the same bytes were compressed differently")
	}
	if len(a) > in.Len()/4 {
		t.Errorf("%d bytes became %d", in.Len(), len(a))
	}
	if out := decompress(t, a); !bytes.Equal(out, in.Bytes()) {
		t.Error("decompressed bytes differ")
	}
}
