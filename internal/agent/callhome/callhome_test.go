package callhome

import (
	"context"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
	"github.com/lpmos/lpmos/internal/tier"
)

const (
	testTask    = "3b1e5f8d-1111-4222-8333-444455556666"
	testHostKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJtRsVIW4YbLgZEn0pPxYTKz0pJb7aJGJJ2vS7T5zjNn"
	rootUUID    = "01234567-89ab-cdef-0123-456789abcdef"
)

// installed is the tree of an installed system.
func installed(t *testing.T, cfg agentapi.CallhomeConfig) string {
	t.Helper()
	root := t.TempDir()
	super := make([]byte, 4096)
	super[1024+0x38], super[1024+0x39] = 0x53, 0xEF
	copy(super[1024+0x68:], "\x01\x23\x45\x67\x89\xab\xcd\xef\x01\x23\x45\x67\x89\xab\xcd\xef")
	for name, text := range map[string]string{
		"/proc/cmdline": "root=UUID=x ro\n", "/etc/passwd": "root:x:0:0::/root:/bin/sh\nops:x:1000:1000::/home/ops:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n", "/etc/ssh/ssh_host_ed25519_key.pub": testHostKey + " root@web-1\n",
		"/usr/share/zoneinfo/Europe/Berlin": "TZif", "/run/cloud-init/result.json": `{"v1":{"datasource":"DataSourceNoCloud","errors":["no such package"]}}`,
		ConfigPath: string(lpmos.CanonicalJSON(cfg)), AgentPath: "program", UnitPath: "unit",
		"/etc/os-release": "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12\"\n", "/etc/machine-id": "0123456789abcdef0123456789abcdef\n",
		"/proc/sys/kernel/osrelease": "6.1.0-1-amd64\n", "/proc/sys/kernel/hostname": "web-1\n", "/proc/uptime": "41.23 3.00\n",
		"/proc/self/mountinfo":                "22 1 0:2 / / rw - rootfs rootfs rw\n23 1 8:3 / / rw,relatime - ext4 /dev/sda3 rw\n24 23 0:5 / /dev rw - devtmpfs x rw\n",
		"/sys/devices/pci/sda/sda3/partition": "3\n", "/dev/sda3": string(super),
	} {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range [][2]string{{"../../devices/pci/sda/sda3", "/sys/dev/block/8:3"}, {UnitPath, WantsPath}, {"/usr/share/zoneinfo/Europe/Berlin", "/etc/localtime"}} {
		p := filepath.Join(root, l[1])
		os.MkdirAll(filepath.Dir(p), 0o755)
		if err := os.Symlink(l[0], p); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func testDisks(context.Context) (*lpmos.Hardware, error) {
	return &lpmos.Hardware{Disks: []lpmos.Disk{{Device: "/dev/sdb", SizeBytes: 5, Serial: "B"}, {Device: "/dev/sda", SizeBytes: 7, Serial: "A", WWN: "naa.1"}}}, nil
}

func TestRunReportsOnceAndRemovesItself(t *testing.T) {
	var got []agentapi.Booted
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var b agentapi.Booted
		if err := lpmos.DecodeJSON(r.Body, agentapi.MaxBodyBytes, &b); err != nil || r.URL.Path != agentapi.PathBooted || r.Header.Get("Authorization") != "Bearer token" {
			t.Errorf("%s with %q: %v", r.URL, r.Header.Get("Authorization"), err)
		}
		got = append(got, b)
		w.WriteHeader(204)
	}))
	defer srv.Close()
	cfg := agentapi.CallhomeConfig{URLs: []string{srv.URL}, ServerName: "example.com", Token: "token", TaskID: testTask, Attempt: 2, MAC: lpmos.MustMAC("52:54:00:00:00:01"),
		CA: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))}
	root := installed(t, cfg)
	for range 2 { // the second has nothing to do
		if code := Run(t.Context(), root, testDisks, slog.New(slog.DiscardHandler)); code != ExitReported {
			t.Fatalf("Run = %d", code)
		}
	}
	if len(got) != 1 {
		t.Fatalf("%d reports; want 1", len(got))
	}
	b, r := got[0], got[0].Receipt
	if b.TaskID != testTask || b.Attempt != 2 || b.MACAddress != cfg.MAC {
		t.Errorf("report = %+v", b)
	}
	want := lpmos.Receipt{BootMode: "bios", OS: "Debian GNU/Linux 12 (bookworm)", Kernel: "6.1.0-1-amd64", Hostname: "web-1", MachineID: "0123456789abcdef0123456789abcdef",
		RootDisk: lpmos.DiskRef{Serial: "A", WWN: "naa.1", SizeBytes: 7}, RootFSUUID: rootUUID, UptimeSec: 41, Addresses: r.Addresses,
		OSID: "debian", OSVersion: "12", KernelArgs: "root=UUID=x ro", Mounts: []lpmos.Mount{{Path: "/", FS: "ext4"}}, Timezone: "Europe/Berlin", Users: []string{"ops"}, CloudInit: "error", CloudInitErrors: []string{"no such package"}}
	key, err := lpmos.ParseHostKey(testHostKey)
	if err != nil {
		t.Fatal(err)
	}
	want.HostKeys = []lpmos.HostKey{key}
	if lpmos.DigestOf(r) != lpmos.DigestOf(want) {
		t.Errorf("receipt = %+v; want %+v", r, want)
	}
	for _, p := range []string{ConfigPath, AgentPath, UnitPath, WantsPath, filepath.Dir(ConfigPath), filepath.Dir(AgentPath)} {
		if _, err := os.Lstat(filepath.Join(root, p)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", p, err)
		}
	}
}

// A btrfs is mounted with a number that no device has (0:31): which disk it is on
// says the name that it was mounted by.
func TestReceiptOfBtrfs(t *testing.T) {
	super := make([]byte, 68<<10)
	copy(super[64<<10+0x20:], "\x01\x23\x45\x67\x89\xab\xcd\xef\x01\x23\x45\x67\x89\xab\xcd\xef")
	copy(super[64<<10+0x40:], "_BHRfS_M")
	made := filepath.Join(t.TempDir(), "btrfs")
	if err := os.WriteFile(made, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(made, 200<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("mkfs.btrfs"); err != nil {
		tier.Missing(t, "mkfs", "no mkfs.btrfs")
	}
	if out, err := exec.Command("mkfs.btrfs", "-q", "-U", rootUUID, made).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.btrfs: %v: %s", err, out)
	}
	real, err := os.ReadFile(made)
	if err != nil {
		t.Fatal(err)
	}
	real = real[:len(super)]
	for _, c := range []struct {
		name, source string
		super        []byte
		link         bool // the name of the mapping is one
		uuid         string
	}{
		{"a partition", "/dev/sda3", super, false, rootUUID},
		{"what mkfs.btrfs made", "/dev/sda3", real, false, rootUUID},
		{"a mapping, whose name is a link", "/dev/mapper/vg-root", super, true, rootUUID},
		{"a mapping, whose name is a device", "/dev/mapper/vg-root", super, false, rootUUID},
		{"a device that is not there", "/dev/sdz9", super, false, ""},
		{"no device", "overlay", super, false, ""},
		{"a path out of /dev", "/dev/../etc/passwd", super, false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := installed(t, agentapi.CallhomeConfig{})
			at := func(name string) string { return filepath.Join(root, name) }
			for _, dir := range []string{"sys/class/block", "sys/devices/virtual/block/dm-0/slaves", "sys/devices/virtual/block/dm-0/dm", "dev/mapper"} {
				if err := os.MkdirAll(at(dir), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			err := errors.Join(
				os.WriteFile(at("proc/self/mountinfo"), []byte("22 1 0:2 / / rw - rootfs rootfs rw\n23 1 0:31 /@/.snapshots/1/snapshot / rw,relatime - btrfs "+c.source+" rw,subvolid=268\n"), 0o600),
				os.WriteFile(at("sys/devices/virtual/block/dm-0/dm/name"), []byte("vg-root\n"), 0o600),
				os.WriteFile(at("dev/sda3"), c.super, 0o600), os.WriteFile(at("dev/dm-0"), c.super, 0o600),
				os.Symlink("../../devices/pci/sda/sda3", at("sys/class/block/sda3")),
				os.Symlink("../../devices/virtual/block/dm-0", at("sys/class/block/dm-0")),
				os.Symlink("../../../../pci/sda/sda3", at("sys/devices/virtual/block/dm-0/slaves/sda3")),
			)
			if c.link {
				err = errors.Join(err, os.Symlink("../dm-0", at("dev/mapper/vg-root")))
			} else {
				err = errors.Join(err, os.WriteFile(at("dev/mapper/vg-root"), nil, 0o600))
			}
			if err != nil {
				t.Fatal(err)
			}
			r := Collect(t.Context(), root, testDisks)
			want := lpmos.DiskRef{Serial: "A", WWN: "naa.1", SizeBytes: 7}
			if c.uuid == "" {
				want = lpmos.DiskRef{}
			}
			if r.RootFSUUID != c.uuid || r.RootDisk != want {
				t.Errorf("root filesystem %q on %+v; want %q on %+v", r.RootFSUUID, r.RootDisk, c.uuid, want)
			}
			if err := r.Check(); (err == nil) != (c.uuid != "") {
				t.Errorf("the region says %v", err)
			}
		})
	}
}

// TestBtrfsOfTheKernel is the same with what a kernel says of a subvolume.
func TestBtrfsOfTheKernel(t *testing.T) {
	if os.Getuid() != 0 {
		tier.Missing(t, "root", "not root")
	}
	for _, tool := range []string{"losetup", "mkfs.btrfs", "btrfs"} {
		if _, err := exec.LookPath(tool); err != nil {
			tier.Missing(t, "root", "no "+tool)
		}
	}
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	img, dir := filepath.Join(t.TempDir(), "btrfs"), t.TempDir()
	if err := errors.Join(os.WriteFile(img, nil, 0o600), os.Truncate(img, 200<<20)); err != nil {
		t.Fatal(err)
	}
	run("mkfs.btrfs", "-q", "-U", rootUUID, img)
	loop := run("losetup", "--show", "-f", img)
	t.Cleanup(func() { run("losetup", "-d", loop) })
	if err := syscall.Mount(loop, dir, "btrfs", 0, ""); err != nil {
		tier.Missing(t, "root", "the kernel has no btrfs: "+err.Error())
	}
	_, err := exec.Command("btrfs", "subvolume", "create", filepath.Join(dir, "@")).CombinedOutput()
	if err := errors.Join(err, syscall.Unmount(dir, 0), syscall.Mount(loop, dir, "btrfs", 0, "subvol=@")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, 0) })
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	// As if it were the root.
	m := rootMount(strings.ReplaceAll(string(b), " "+dir+" ", " / "))
	if sys := m.device("/"); m.of != "/@" || filepath.Base(sys) != filepath.Base(loop) || fsUUID(loop, m.fs) != rootUUID {
		t.Errorf("%+v is on %q with the UUID %q; want %s with %s", m, sys, fsUUID(loop, m.fs), loop, rootUUID)
	}
}

// Which superblock is read goes by what is mounted: what an earlier filesystem
// left is not it.
func TestRootUUIDByKind(t *testing.T) {
	b := make([]byte, 68<<10)
	copy(b, "XFSB")
	copy(b[32:], strings.Repeat("x", 16))
	copy(b[1024+0x38:], "\x53\xEF")
	copy(b[1024+0x68:], strings.Repeat("e", 16))
	copy(b[64<<10+0x40:], "_BHRfS_M")
	copy(b[64<<10+0x20:], strings.Repeat("b", 16))
	dev := filepath.Join(t.TempDir(), "dev")
	for _, size := range []int{len(b), 64<<10 + 0x40} {
		if err := os.WriteFile(dev, b[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		for kind, letter := range map[string]string{"xfs": "78", "ext4": "65", "ext2": "65", "btrfs": "62"} {
			h := strings.Repeat(letter, 16)
			want := h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
			if kind == "btrfs" && size < len(b) {
				want = "" // its superblock is not whole
			}
			if got := fsUUID(dev, kind); got != want {
				t.Errorf("UUID of %s in %d bytes = %q; want %q", kind, size, got, want)
			}
		}
	}
}

func TestRunKeepsEverythingWhenRefused(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(403) }))
	defer srv.Close()
	root := installed(t, agentapi.CallhomeConfig{URLs: []string{srv.URL}, ServerName: "example.com", Token: "token",
		CA: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))})
	if code := Run(t.Context(), root, testDisks, slog.New(slog.DiscardHandler)); code != ExitRefused {
		t.Errorf("Run = %d; want %d", code, ExitRefused)
	}
	for _, p := range []string{ConfigPath, AgentPath, UnitPath} {
		if _, err := os.Lstat(filepath.Join(root, p)); err != nil {
			t.Error(err)
		}
	}
}

func TestRunGivesUpWithItsContext(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) }))
	defer srv.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 1)
	defer cancel()
	root := installed(t, agentapi.CallhomeConfig{URLs: []string{srv.URL}, ServerName: "example.com", Token: "token",
		CA: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))})
	if code := Run(ctx, root, testDisks, slog.New(slog.DiscardHandler)); code != ExitUnreachable {
		t.Errorf("Run = %d; want %d", code, ExitUnreachable)
	}
}
