package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
)

const passwordHash = "$6$saltsalt$qFmFH.bQmmtXzyBY0s9v7Oicd2z4XSIecDzlB5KiA2/jctKu9YterLp8wwnSq.qc.eoxqOmSuNp2xS0ktL3nh/"

// guest is an installer of a distribution, its plan and what was started.
type guest struct {
	blobs  *blobServer
	img    lpmos.Image
	hw     lpmos.Hardware
	plan   lpmos.Plan
	job    Job
	in     *Installer
	kernel []byte // as loaded, with the initramfs and the command line
	initrd []byte
	args   string
}

func newGuest(t *testing.T, answers string) *guest {
	t.Helper()
	g := &guest{blobs: newBlobServer(t), hw: lpmos.Hardware{BootMode: "bios", CPU: lpmos.CPU{Architecture: "amd64"}, System: lpmos.System{UUID: "5f8d3b1e-0000-4000-8000-000000000001"},
		Disks: []lpmos.Disk{
			{Device: "/dev/vda", SizeBytes: 8 << 30, SectorBytes: 512, Serial: "TARGET", Transport: "virtio"},
			{Device: "/dev/vdb", SizeBytes: 9 << 30, SectorBytes: 512, Serial: "OTHER", Transport: "virtio"},
			{Device: "/dev/sr0", SizeBytes: 1 << 30, SectorBytes: 2048, Removable: true, ReadOnly: true},
		},
		NICs: []lpmos.NIC{{Name: "eth0", MAC: lpmos.MustMAC("52:54:00:00:00:01")}}}}
	kernel, initrd := []byte("a kernel"), []byte("an initramfs")
	m := lpmos.ImageManifest{Format: lpmos.FormatInstaller, OS: "debian", Version: "12", Arch: "amd64", Installer: &lpmos.ImageInstaller{Answers: answers,
		Kernel: lpmos.Blob{SHA256: g.blobs.put(kernel), Bytes: int64(len(kernel))}, Initrd: lpmos.Blob{SHA256: g.blobs.put(initrd), Bytes: int64(len(initrd))}, KernelArgs: "quiet"}}
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	g.img = lpmos.Image{OS: m.OS, Version: m.Version, Arch: m.Arch, Digest: "sha256:" + g.blobs.put(text), Format: m.Format, BootModes: []string{"bios"}, Installer: m.Installer}
	task := &lpmos.Task{ID: "3b1e5f8d-1111-4222-8333-444455556666", Spec: lpmos.Spec{Hostname: "web-1", SSHKeys: []string{"ssh-ed25519 AAAA test"}},
		Setup: &lpmos.Setup{Users: []lpmos.Account{{Name: "ops", Groups: []string{"adm"}, Password: true}}}}
	if g.plan = lpmos.NewPlan(task, &g.hw, g.img); g.plan.Problem != "" {
		t.Fatal(g.plan.Problem)
	}
	key, err := lpmos.NewAgentKey()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{"cmdline": "console=tty0 quiet console=ttyS0,115200 lpmos=1\n", "agent": "the agent"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g.job = Job{TaskID: task.ID, Attempt: 2, Plan: &g.plan, Callhome: agentapi.CallhomeConfig{Token: "a token", TaskID: task.ID},
		Secrets: map[string]lpmos.Secret{"password.ops": lpmos.NewSecret(passwordHash)},
		Boot:    agentapi.BootConfig{RegionID: "dc1", AgentURL: "https://10.77.0.1:8443", Credential: "a credential", BootMAC: g.hw.NICs[0].MAC, Key: key}}
	g.in = New(Config{WorkDir: filepath.Join(dir, "run"), Proc: dir, Sys: filepath.Join(dir, "sys"), Agent: filepath.Join(dir, "agent"), StallTimeout: 2 * time.Second,
		Identify: func(context.Context) (*lpmos.Hardware, error) { return &g.hw, nil },
		Kexec: func(kernel, initrd *os.File, args string) error {
			for f, to := range map[*os.File]*[]byte{kernel: &g.kernel, initrd: &g.initrd} {
				b, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
				if err != nil {
					return err
				}
				*to = b
				if _, err := f.Write([]byte("x")); err == nil {
					t.Error("the kernel would be asked to load a file that can be written")
				}
			}
			g.args = args
			return nil
		}}, nil, g.blobs.client(t, time.Second), nil, slog.New(slog.NewTextHandler(t.Output(), nil)))
	return g
}

// answer makes the server say something else for a blob.
func (g *guest) answer(b lpmos.Blob, text string) {
	g.blobs.spoil = func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		mine := strings.HasSuffix(r.URL.Path, b.SHA256)
		if mine {
			io.WriteString(w, text)
		}
		return mine
	}
}

// archived is a file of the archive behind an initramfs.
func archived(b []byte, name string) string {
	for {
		at := bytes.Index(b, []byte("070701"))
		if at < 0 {
			return ""
		}
		b = b[at:]
		var size, nameSize int
		fmt.Sscanf(string(b[54:62]), "%X", &size)
		fmt.Sscanf(string(b[94:102]), "%X", &nameSize)
		body := (110 + nameSize + 3) &^ 3
		if string(b[110:110+nameSize-1]) == name {
			return string(b[body : body+size])
		}
		b = b[6:]
	}
}

func TestStartInstaller(t *testing.T) {
	g := newGuest(t, lpmos.TemplatePreseed)
	wrote := false
	g.job.OnWrite = func() { wrote = true }
	if err := g.in.Install(t.Context(), g.job); !errors.Is(err, ErrHandedOver) {
		t.Fatalf("Install = %v; want ErrHandedOver", err)
	}
	if string(g.kernel) != "a kernel" || !bytes.HasPrefix(g.initrd, []byte("an initramfs\x00")) || !wrote {
		t.Errorf("loaded kernel %q, initramfs %q…; wrote %v", g.kernel, g.initrd[:12], wrote)
	}
	if want := "priority=critical BOOTIF=01-52-54-00-00-00-01 quiet console=tty0 console=ttyS0,115200"; g.args != want {
		t.Errorf("command line %q; want %q", g.args, want)
	}
	answers := archived(g.initrd, "preseed.cfg")
	if !strings.Contains(answers, "partman-auto/disk string /dev/disk/by-id/lpmos-TARGET\n") || archived(g.initrd, "lpmos/agent") != "the agent" {
		t.Errorf("the initramfs has the answers\n%s\nand the agent %q", answers, archived(g.initrd, "lpmos/agent"))
	}
	name := filepath.Join(t.TempDir(), "handover.json")
	if err := os.WriteFile(name, []byte(archived(g.initrd, "lpmos/handover.json")), 0o600); err != nil {
		t.Fatal(err)
	}
	h, err := ReadHandover(name)
	if err != nil {
		t.Fatal(err)
	}
	job := h.Job()
	if !h.Boot.Key.Signer().Equal(g.job.Boot.Key.Signer()) || h.Boot.Credential != "a credential" || job.Attempt != 2 || job.Callhome.Token != "a token" ||
		job.Secrets["password.ops"].Reveal() != passwordHash || lpmos.DigestOf(job.Plan.Effect) != lpmos.DigestOf(g.plan.Effect) {
		t.Errorf("handover = %+v", h)
	}
	if left, _ := os.ReadDir(g.in.cfg.WorkDir); len(left) != 0 {
		t.Errorf("files with secrets are left: %v", left)
	}
}

// TestFetchInto wants what the network spoils to be fetched again alone (M01), and
// a full memory to be called that.
func TestFetchInto(t *testing.T) {
	g := newGuest(t, lpmos.TemplatePreseed)
	content := testBytes(2*partBytes + 1000)
	b := lpmos.Blob{SHA256: g.blobs.put(content), Bytes: int64(len(content))}
	var cut sync.Once
	g.blobs.spoil = func(w http.ResponseWriter, r *http.Request, blob []byte) bool {
		if strings.HasPrefix(r.Header.Get("Range"), fmt.Sprintf("bytes=%d-", partBytes)) {
			cut.Do(func() { w = cutter{w, new(atomic.Int64), 100_000} })
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
		return true
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "kernel"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum, err := g.in.fetchInto(t.Context(), f, "kernel", b)
	if got, _ := os.ReadFile(f.Name()); err != nil || sum != b.SHA256 || !bytes.Equal(got, content) {
		t.Errorf("fetchInto = %s, %v, with %d bytes; want all %d", sum, err, len(got), len(content))
	}
	if want := []string{"bytes=0-4194303", "bytes=4194304-8388607", "bytes=4194304-8388607", "bytes=8388608-8389607"}; !slices.Equal(g.blobs.ranges, want) {
		t.Errorf("asked for %q; want %q", g.blobs.ranges, want)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	g.blobs.ranges = nil
	if _, err := g.in.fetchInto(t.Context(), full, "kernel", b); failureCode(err) != "memory_too_small" || len(g.blobs.ranges) != 1 {
		t.Errorf("fetchInto a memory that is full = %v after %d requests; want memory_too_small after one", err, len(g.blobs.ranges))
	}
}

func TestStartInstallerRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*guest)
		code  string
	}{
		"a kernel that is not the one approved":  {func(g *guest) { g.answer(g.img.Installer.Kernel, "b kernel") }, "image_corrupt"},
		"a kernel of another length":             {func(g *guest) { g.answer(g.img.Installer.Kernel, "another kernel") }, "image_corrupt"},
		"an initramfs that nobody has":           {func(g *guest) { delete(g.blobs.blobs, g.img.Installer.Initrd.SHA256) }, "image_missing"},
		"answers that are not in the plan":       {func(g *guest) { g.plan.Effect.Files = nil }, "plan_invalid"},
		"another installer than the plan's":      {func(g *guest) { i := *g.plan.Effect.Installer; i.KernelArgs = "x"; g.plan.Effect.Installer = &i }, "plan_invalid"},
		"a machine whose disk is gone":           {func(g *guest) { g.hw.Disks = g.hw.Disks[1:] }, "disk_missing"},
		"a kernel that this one does not accept": {func(g *guest) { g.in.cfg.Kexec = func(_, _ *os.File, _ string) error { return syscall.EPERM } }, "installer_refused"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, lpmos.TemplatePreseed)
			c.spoil(g)
			if err := g.in.Install(t.Context(), g.job); failureCode(err) != c.code || g.args != "" {
				t.Errorf("Install = %v, started with %q; want %s and no start", err, g.args, c.code)
			}
		})
	}
}

func TestHold(t *testing.T) {
	for _, answers := range []string{lpmos.TemplatePreseed, lpmos.TemplateKickstart, lpmos.TemplateAutoinstall} {
		t.Run(answers, func(t *testing.T) {
			g, root := newGuest(t, answers), t.TempDir()
			for name, text := range map[string]string{"run/udev/control": "", "autoinstall.yaml": `{"path": "/dev/disk/by-id/lpmos-TARGET"}`} {
				p := filepath.Join(root, name)
				if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			var closed []string
			closing := func(device string, on bool) error {
				if !on {
					t.Errorf("%s was made writable", device)
				}
				closed = append(closed, device)
				return nil
			}
			for range 2 { // a hook may be called again
				if err := g.in.Hold(t.Context(), &g.plan.Effect, root, closing); err != nil {
					t.Fatal(err)
				}
			}
			if !slices.Equal(closed, []string{"/dev/vdb", "/dev/vdb"}) {
				t.Errorf("read-only were made %q; want the one disk that is not the target", closed)
			}
			if to, err := os.Readlink(filepath.Join(root, "dev/disk/by-id/lpmos-TARGET")); err != nil || to != "/dev/vda" {
				t.Errorf("the target's name leads to %q, %v", to, err)
			}
			if rule, _ := os.ReadFile(filepath.Join(root, "run/udev/rules.d/61-lpmos.rules")); string(rule) != "SUBSYSTEM==\"block\", KERNEL==\"vda\", SYMLINK+=\"disk/by-id/lpmos-TARGET\"\n" {
				t.Errorf("rule for udev %q", rule)
			}
			want := `{"path": "/dev/disk/by-id/lpmos-TARGET"}`
			if answers == lpmos.TemplateAutoinstall {
				want = `{"path": "/dev/vda"}`
			}
			if b, _ := os.ReadFile(filepath.Join(root, "autoinstall.yaml")); string(b) != want {
				t.Errorf("autoinstall.yaml = %s; want %s", b, want)
			}
			g.hw.Disks[0].SizeBytes++ // another disk with the same number
			if err := g.in.Hold(t.Context(), &g.plan.Effect, root, closing); failureCode(err) != "disk_missing" {
				t.Errorf("Hold with another disk = %v; want disk_missing", err)
			}
			g.hw.Disks[0].SizeBytes--
			if err := g.in.Hold(t.Context(), &g.plan.Effect, root, func(string, bool) error { return syscall.EACCES }); failureCode(err) != "disk_unprotected" {
				t.Errorf("Hold with a disk that stays writable = %v; want disk_unprotected", err)
			}
		})
	}
}

// onDisk makes the directory lie on a partition of a disk, as far as /sys says.
func (g *guest) onDisk(t *testing.T, dir, disk string) {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	part := filepath.Join(g.in.cfg.Sys, "devices/block", disk, disk+"1")
	numbers := filepath.Join(g.in.cfg.Sys, "dev/block")
	if err := errors.Join(os.MkdirAll(part, 0o755), os.MkdirAll(numbers, 0o755), os.WriteFile(filepath.Join(part, "partition"), []byte("1\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(numbers, fmt.Sprintf("%d:%d", st.Dev>>8&0xfff|st.Dev>>32&^0xfff, st.Dev&0xff|st.Dev>>12&^0xff))
	os.Remove(link)
	if err := os.Symlink(part, link); err != nil {
		t.Fatal(err)
	}
}

func TestFinish(t *testing.T) {
	g := newGuest(t, lpmos.TemplatePreseed)
	_, root := accountTree(t)
	g.onDisk(t, root, "vdb")
	if err := g.in.Finish(t.Context(), &g.job, root); failureCode(err) != "wrong_disk" {
		t.Fatalf("Finish of a system on another disk = %v; want wrong_disk", err)
	}
	g.onDisk(t, root, "vda")
	if err := g.in.Finish(t.Context(), &g.job, root); err != nil {
		t.Fatal(err)
	}
	text := func(name string) string {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	for name, want := range map[string]string{
		"etc/shadow":                "ops:" + passwordHash + "::0:99999:7:::\n",
		"etc/hostname":              "web-1\n",
		"root/.ssh/authorized_keys": "ssh-ed25519 AAAA test\n",
		"etc/lpmos/callhome.json":   `"token": "a token"`,
		"etc/systemd/system/multi-user.target.wants/lpmos-callhome.service": "agent callhome",
		"usr/lib/lpmos/agent":           "the agent",
		"lpmos/" + g.plan.Effect.BootID: "installed by LPMOS",
		"etc/ssh/ssh_host_rsa_key":      "everybody's", // the installer made it for this machine alone
	} {
		// A link leads into the installed system, not into this one.
		if name == "etc/systemd/system/multi-user.target.wants/lpmos-callhome.service" {
			if to, err := os.Readlink(filepath.Join(root, name)); err != nil || to != "/etc/systemd/system/lpmos-callhome.service" {
				t.Errorf("%s leads to %q, %v", name, to, err)
			}
			continue
		}
		if got := text(name); !strings.Contains(got, want) {
			t.Errorf("%s = %q; want %q in it", name, got, want)
		}
	}
	if _, err := os.Stat(filepath.Join(root, "preseed.cfg")); err == nil {
		t.Error("the answers, which the installer alone reads, are in the installed system")
	}
	g.plan.Effect.BootMode = "uefi"
	if err := g.in.Finish(t.Context(), &g.job, root); failureCode(err) != "user_exists" {
		t.Errorf("Finish twice = %v; want user_exists", err)
	}
}

func TestFinishUEFI(t *testing.T) {
	g := newGuest(t, lpmos.TemplatePreseed)
	g.plan.Effect.BootMode = "uefi"
	_, root := accountTree(t)
	g.onDisk(t, root, "vda")
	grub := filepath.Join(root, "boot/efi/EFI/debian/grubx64.efi")
	if err := errors.Join(os.MkdirAll(filepath.Dir(grub), 0o755), os.WriteFile(grub, []byte("grub"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := g.in.Finish(t.Context(), &g.job, root); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"EFI/BOOT/BOOTX64.EFI", "lpmos/" + g.plan.Effect.BootID} {
		if _, err := os.Stat(filepath.Join(root, "boot/efi", name)); err != nil {
			t.Error(err)
		}
	}
}
