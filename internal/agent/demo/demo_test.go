package demo

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// newc packs files as the kernel's initramfs format.
func newc(files ...[2]string) []byte {
	var b bytes.Buffer
	pad := func() {
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
	}
	for _, f := range append(files, [2]string{"TRAILER!!!", ""}) {
		fmt.Fprintf(&b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", 1, 0o100600, 0, 0, 1, 0, len(f[1]), 0, 0, 0, 0, len(f[0])+1, 0)
		b.WriteString(f[0] + "\x00")
		pad()
		b.WriteString(f[1])
		pad()
	}
	return b.Bytes()
}

func TestFileOfCPIO(t *testing.T) {
	archive := newc([2]string{"lpmos", ""}, [2]string{"lpmos/other", "abc"}, [2]string{"/lpmos/boot.json", `{"a":1}`})
	got, err := fileOfCPIO(archive, "lpmos/boot.json")
	if err != nil || string(got) != `{"a":1}` {
		t.Errorf("fileOfCPIO = %q, %v", got, err)
	}
	for name, bad := range map[string][]byte{"nothing": nil, "text": bytes.Repeat([]byte("x"), 500), "cut": archive[:len(archive)/2], "no such file": newc([2]string{"a", "b"})} {
		if got, err := fileOfCPIO(bad, "lpmos/boot.json"); err == nil {
			t.Errorf("fileOfCPIO of %s = %q", name, got)
		}
	}
}

func TestBootFollowsTheScript(t *testing.T) {
	mac := lpmos.MustMAC("02:00:00:00:00:01")
	cfg := agentapi.BootConfig{RegionID: "dc1", BootMAC: mac, Keys: [][]byte{make([]byte, 32)}, Credential: "c"}
	var script string
	mux := http.NewServeMux()
	mux.HandleFunc("GET /boot.ipxe", func(w http.ResponseWriter, r *http.Request) {
		if q := r.URL.Query(); q.Get("mac") != mac.String() || len(q.Get("uuid")) != 36 || q.Get("platform") != "pcbios" {
			t.Errorf("asked for %s", r.URL)
		}
		io.WriteString(w, script)
	})
	mux.HandleFunc("GET "+agentapi.PathSegment+"n0nce", func(w http.ResponseWriter, r *http.Request) {
		w.Write(newc([2]string{"lpmos/boot.json", string(lpmos.CanonicalJSON(cfg))}))
	})
	mux.HandleFunc("GET "+agentapi.PathBlobs+"51fe", func(w http.ResponseWriter, r *http.Request) {
		w.Write(newc([2]string{"lpmos/site.json", string(lpmos.CanonicalJSON(agentapi.SiteConfig{Keys: cfg.Keys}))}))
	})
	srv := httptest.NewServer(mux)
	defer srv.Close()
	m := New(Config{RegionURL: srv.URL, MAC: mac, Pauses: agent.Pauses{}}, io.Discard, slog.LevelError)
	for name, s := range map[string]string{
		"with absolute addresses": "#!ipxe\nkernel --name vmlinuz " + srv.URL + "/blobs/0 initrd=base.img\ninitrd --name base.img " + srv.URL + "/blobs/1 || goto failed\ninitrd --name machine.img " + srv.URL + "/boot/segment/n0nce || goto failed\ninitrd --name site.img " + srv.URL + "/blobs/51fe || goto failed\nboot\n",
		"with paths":              "#!ipxe\ninitrd --name machine.img /boot/segment/n0nce\ninitrd --name site.img /blobs/51fe\n",
	} {
		script = s
		if got, err := m.boot(t.Context()); err != nil || got.BootMAC != mac {
			t.Errorf("boot by a script %s = %+v, %v", name, got, err)
		}
	}
	for _, s := range []string{"#!ipxe\necho LPMOS: x boots its own disk\nsanboot --no-describe --drive 0x80 || exit 1\nexit 1\n", "#!ipxe\nchain --autofree http://10.0.0.1:8081/boot/localboot.0 || echo no\n"} {
		script = s
		if _, err := m.boot(t.Context()); err != ErrLocal {
			t.Errorf("boot by %q = %v; want %v", s, err, ErrLocal)
		}
	}
	script = "#!ipxe\ninitrd --name machine.img /boot/segment/n0nce\n"
	if _, err := m.boot(t.Context()); err == nil || !strings.Contains(err.Error(), "names no site segment") {
		t.Errorf("boot by a script without the site's keys = %v; want an error", err)
	}
	script = "#!ipxe\n:failed\necho LPMOS: wait\nsleep 30\nchain --replace " + srv.URL + "/boot.ipxe?mac=x || goto failed\n"
	if _, err := m.boot(t.Context()); err == nil || err == ErrLocal || !strings.Contains(err.Error(), "names no segment") {
		t.Errorf("boot by a script that says wait = %v; want an error", err)
	}
}

func TestHardwareIsTheMachinesOwn(t *testing.T) {
	a, b := Hardware(lpmos.MustMAC("02:00:00:00:00:01"), "v"), Hardware(lpmos.MustMAC("02:00:00:00:00:02"), "v")
	if a.Digest() == b.Digest() || a.Disks[0].Serial == b.Disks[0].Serial {
		t.Error("two machines are one")
	}
	again := Hardware(lpmos.MustMAC("02:00:00:00:00:01"), "v")
	if again.Digest() != a.Digest() {
		t.Error("a machine is not itself after a reboot")
	}
	if !a.Disks[0].Installable() {
		t.Error("the disk cannot be installed on")
	}
}

// FuzzCPIO looks for a file in whatever a region serves as an archive.
func FuzzCPIO(f *testing.F) {
	f.Add(agentapi.Archive(agentapi.ArchiveFile{Path: "/lpmos/boot.json", Mode: 0o600, Content: []byte("{}")}))
	f.Add([]byte("\x00\x00070701ffffffff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := fileOfCPIO(b, "lpmos/boot.json"); err == nil && !bytes.Contains(b, got) {
			t.Fatalf("%q is not in the archive", got)
		}
	})
}
