package inventory

import (
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

// readTree makes /proc and /sys out of testdata/name.tree. Real trees have
// colons in their file names, which Go modules cannot have, and mostly one
// short line in each file. Lines are:
//
//	path = text      a file, with \n and the like as in Go
//	path : 00 80     a file in hexadecimal
//	path -> target   a symbolic link
//	path <<          a file of the lines up to one that is just "."
//
// Paths begin with proc/ or sys/.
func readTree(t testing.TB, name string) Source {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name + ".tree")
	if err != nil {
		t.Fatal(err)
	}
	all := fstest.MapFS{}
	lines := strings.Split(string(b), "\n")
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		if line == "" || line[0] == '#' {
			continue
		}
		file, op, rest := "", "", ""
		for _, o := range []string{" = ", " : ", " -> ", " <<"} {
			if at := strings.Index(line, o); at > 0 && (op == "" || at < len(file)) {
				file, op, rest = line[:at], o, line[at+len(o):]
			}
		}
		f := &fstest.MapFile{Mode: 0o444}
		switch op {
		case " = ":
			f.Data = []byte(strings.NewReplacer(`\n`, "\n", `\t`, "\t", `\0`, "\x00", `\e`, "\x1b", `\x80`, "\x80", `\u202e`, "\u202e").Replace(rest) + "\n")
		case " : ":
			if f.Data, err = hex.DecodeString(strings.ReplaceAll(rest, " ", "")); err != nil {
				t.Fatalf("%s.tree:%d: %v", name, i+1, err)
			}
		case " -> ":
			f.Mode, f.Data = fs.ModeSymlink|0o777, []byte(rest)
		case " <<":
			for i++; lines[i] != "."; i++ {
				f.Data = append(f.Data, lines[i]+"\n"...)
			}
		default:
			t.Fatalf("%s.tree:%d: no operator in %q", name, i+1, line)
		}
		all[file] = f
	}
	return sourceOf(t, all)
}

// sourceOf writes the files to a directory and opens that as Host does the real
// trees, so that links behave as they do there.
func sourceOf(t testing.TB, all fstest.MapFS) Source {
	t.Helper()
	dir := t.TempDir()
	for _, top := range []string{"proc", "sys"} {
		if err := os.Mkdir(filepath.Join(dir, top), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, f := range all {
		name = filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(name), 0o755)
		if err == nil && f.Mode&fs.ModeSymlink != 0 {
			err = os.Symlink(string(f.Data), name)
		} else if err == nil {
			err = os.WriteFile(name, f.Data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	open := func(top string) fs.FS {
		root, err := os.OpenRoot(filepath.Join(dir, top))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { root.Close() })
		return root.FS()
	}
	return Source{Proc: open("proc"), Sys: open("sys")}
}

// addDisk puts a SCSI disk into a tree.
func addDisk(all fstest.MapFS, name string, i int) {
	dev := fmt.Sprintf("devices/pci0000:00/0000:00:10.0/host0/target0:0:%d/0:0:%d:0", i, i)
	file := func(p, data string) {
		all[path.Join("sys", dev, "block", name, p)] = &fstest.MapFile{Data: []byte(data)}
	}
	file("size", "1000000\n")
	file("removable", "0\n")
	file("ro", "0\n")
	all["sys/"+dev+"/wwid"] = &fstest.MapFile{Data: fmt.Appendf(nil, "naa.5000c500%08x\n", i)}
	all["sys/"+dev+"/block/"+name+"/device"] = &fstest.MapFile{Mode: fs.ModeSymlink, Data: []byte("../..")}
	all["sys/block/"+name] = &fstest.MapFile{Mode: fs.ModeSymlink, Data: []byte("../" + dev + "/block/" + name)}
}

// addNIC puts a PCI network card into a tree.
func addNIC(all fstest.MapFS, name string, i int) {
	pci := fmt.Sprintf("devices/pci%04x:00/%04x:00:%02x.0", i/32, i/32, i%32)
	dir := "sys/" + pci + "/net/" + name
	all[dir+"/address"] = &fstest.MapFile{Data: fmt.Appendf(nil, "02:00:00:00:%02x:%02x\n", i>>8, i&255)}
	all[dir+"/device"] = &fstest.MapFile{Mode: fs.ModeSymlink, Data: []byte("../..")}
	all["sys/class/net/"+name] = &fstest.MapFile{Mode: fs.ModeSymlink, Data: []byte("../../" + pci + "/net/" + name)}
}
