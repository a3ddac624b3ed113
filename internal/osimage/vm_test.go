package osimage

import (
	"bufio"
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/imagepack"
	"github.com/lpmos/lpmos/internal/tier"
)

// needs skips a test that needs more than a compiler, unless LPMOS_REQUIRE names
// the tier: then the test runs, and what is missing fails it.
func needs(t *testing.T, name string, tools ...string) {
	t.Helper()
	for n := range strings.SplitSeq(os.Getenv("LPMOS_REQUIRE"), ",") {
		if strings.TrimSpace(n) != name {
			continue
		}
		for _, tool := range tools {
			if _, err := findTool(tool); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	tier.Missing(t, name, "builds and boots whole systems: runs when LPMOS_REQUIRE names it")
}

// cacheDir is kept between runs: LPMOS_CACHE, or lpmos in the user's cache.
func cacheDir(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("LPMOS_CACHE"); dir != "" {
		return dir
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "lpmos")
}

// image builds an image, or takes it from the cache, and opens it.
func image(t *testing.T, name string) (*lpmos.ImageManifest, *os.File) {
	t.Helper()
	out := t.TempDir()
	started := time.Now()
	im, err := Build(t.Context(), Config{Name: name, OutDir: out, CacheDir: cacheDir(t)},
		slog.New(slog.NewTextHandler(t.Output(), nil)),
		func(step string, percent int) {
			t.Logf("%6.1fs %3d%% %s", time.Since(started).Seconds(), percent, step)
		})
	if err != nil {
		t.Fatal(err)
	}
	m, err := imagepack.Load(out, im.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if im.StoredBytes != m.Pack.Bytes || im.UsedBytes != m.UsedBytes || im.SizeBytes != m.SizeBytes {
		t.Errorf("Build = %+v, which does not agree with its manifest", im)
	}
	pack, err := os.Open(filepath.Join(out, "blobs", m.Pack.SHA256))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pack.Close() })
	t.Logf("%s: filesystem %d MB, written %d MB, stored %d MB, %d chunks", name,
		m.SizeBytes/1e6, m.UsedBytes/1e6, m.Pack.Bytes/1e6, len(m.Chunks))
	return m, pack
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	path, err := findTool(name)
	if err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	cmd := exec.CommandContext(t.Context(), path, args...)
	// Nobody is there to answer; a question must fail, not wait.
	cmd.Stdin = nil
	out, err := cmd.CombinedOutput()
	// e2fsck exits 1 when it has corrected something.
	if code := cmd.ProcessState.ExitCode(); err != nil && (name != "e2fsck" || code != 1) {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	t.Logf("%s %s: %.2f s", name, strings.Join(args, " "), time.Since(started).Seconds())
	return string(out)
}

const landedUUID = "6f1d9b5e-3d0b-4c1e-9a43-0c7e8f5a2b10"

// land writes an image where older data is and does to it what an installer
// does: check, own UUID, grow. Then it is as large as a small disk.
func land(t *testing.T, m *lpmos.ImageManifest, pack *os.File, sizeBytes int64) string {
	t.Helper()
	disk, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	garbage := bytes.Repeat([]byte{0xA5}, 1<<20)
	for at := int64(0); at < m.SizeBytes; at += 1 << 20 {
		if _, err := disk.WriteAt(garbage, at); err != nil {
			t.Fatal(err)
		}
	}
	started := time.Now()
	if err := imagepack.Unpack(t.Context(), m, pack, disk); err != nil {
		t.Fatal(err)
	}
	t.Logf("unpack: %.2f s", time.Since(started).Seconds())
	if err := disk.Truncate(sizeBytes); err != nil {
		t.Fatal(err)
	}
	command(t, "e2fsck", "-fp", disk.Name())
	command(t, "tune2fs", "-U", landedUUID, disk.Name())
	command(t, "resize2fs", disk.Name())
	command(t, "e2fsck", "-fn", disk.Name())
	return disk.Name()
}

// write puts files into the filesystem in disk, as an installer would with a
// mount. debugfs reports errors on standard error and exits 0.
func write(t *testing.T, disk string, files map[string]string) {
	t.Helper()
	var script strings.Builder
	made := make(map[string]bool)
	for name, text := range files {
		mode := os.FileMode(0o644)
		if strings.HasPrefix(text, "#!") {
			mode = 0o755
		}
		src := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(src, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		for dir := filepath.Dir(name); dir != "/" && !made[dir]; dir = filepath.Dir(dir) {
			made[dir] = true
		}
		fmt.Fprintf(&script, "rm %s\nwrite %s %s\n", name, src, name)
	}
	var dirs strings.Builder
	for n := 1; n < 12; n++ {
		for dir := range made {
			if strings.Count(dir, "/") == n {
				fmt.Fprintf(&dirs, "mkdir %s\n", dir)
			}
		}
	}
	commands := filepath.Join(t.TempDir(), "commands")
	if err := os.WriteFile(commands, []byte(dirs.String()+script.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, "debugfs", "-w", "-f", commands, disk)
	command(t, "e2fsck", "-fn", disk)
}

// read is the content of a file inside the filesystem in disk.
func read(t *testing.T, disk, name string) []byte {
	t.Helper()
	to := filepath.Join(t.TempDir(), "file")
	command(t, "debugfs", "-R", "dump "+name+" "+to, disk)
	b, err := os.ReadFile(to)
	if err != nil || len(b) == 0 {
		t.Fatalf("%s is not in the image (%v)", name, err)
	}
	return b
}

// machine is a virtual machine whose serial console is read.
type machine struct {
	started time.Time

	mu      sync.Mutex
	console bytes.Buffer
	more    chan struct{} // closed and replaced when console grows
	exited  bool
}

// boot starts the system on disk with its own kernel, without a loader.
func boot(t *testing.T, m *lpmos.ImageManifest, disk string, drive ...string) *machine {
	t.Helper()
	dir := t.TempDir()
	kernel, initrd := filepath.Join(dir, "kernel"), filepath.Join(dir, "initrd")
	for name, to := range map[string]string{m.Kernel: kernel, m.Initrd: initrd} {
		if err := os.WriteFile(to, read(t, disk, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	qemu, err := findTool("qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	if len(drive) == 0 {
		drive = []string{"-device", "virtio-blk-pci,drive=d", "-device", "virtio-net-pci,netdev=n"}
	}
	cmd := exec.CommandContext(t.Context(), qemu, append([]string{
		"-accel", "tcg", "-machine", "q35", "-smp", "2", "-m", "1024", "-nodefaults", "-display", "none", "-no-reboot",
		"-serial", "stdio", "-monitor", "none",
		"-kernel", kernel, "-initrd", initrd,
		"-append", "root=UUID=" + landedUUID + " " + m.KernelArgs + " console=ttyS0,115200",
		"-drive", "if=none,id=d,format=raw,snapshot=on,file=" + disk,
		// Answers DHCP itself and lets nothing out.
		"-netdev", "user,id=n,restrict=on",
		"-device", "virtio-rng-pci",
	}, drive...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	// It ends with this process, however that ends: with the thread that started
	// it, which is this goroutine's until the test is over.
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	v := &machine{started: time.Now(), more: make(chan struct{})}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		r := bufio.NewReader(out)
		b := make([]byte, 4096)
		for {
			n, err := r.Read(b)
			v.mu.Lock()
			v.console.Write(b[:n])
			v.exited = err != nil
			close(v.more)
			v.more = make(chan struct{})
			v.mu.Unlock()
			if err != nil {
				return
			}
		}
	})
	t.Cleanup(func() {
		cmd.Process.Kill()
		wg.Wait()
		cmd.Wait()
		if log := filepath.Join(t.ArtifactDir(), "console.log"); os.WriteFile(log, v.console.Bytes(), 0o644) == nil && t.Failed() {
			t.Logf("console:\n%s\n%s", v.console.Bytes(), complaints.Bytes())
		}
	})
	return v
}

// await waits until the console shows want and returns the line with it.
func (v *machine) await(t *testing.T, want string, within time.Duration) string {
	t.Helper()
	limit := time.After(time.Until(v.started.Add(within)))
	for {
		v.mu.Lock()
		text, more, exited := v.console.String(), v.more, v.exited
		v.mu.Unlock()
		if i := strings.Index(text, want); i >= 0 {
			if end := strings.IndexByte(text[i:], '\n'); end >= 0 {
				text = text[:i+end]
			}
			line := strings.TrimSpace(text[strings.LastIndexByte(text[:i], '\n')+1:])
			t.Logf("%5.1f s: %s", time.Since(v.started).Seconds(), line)
			return line
		}
		for _, bad := range []string{"Kernel panic", "no root filesystem", "Gave up waiting for root", "You are in emergency mode", "state: degraded"} {
			if strings.Contains(text, bad) {
				t.Fatalf("console shows %q before %q", bad, want)
			}
		}
		if exited {
			t.Fatalf("machine stopped before the console showed %q", want)
		}
		select {
		case <-more:
		case <-limit:
			t.Fatalf("console does not show %q within %v", want, within)
		}
	}
}

const fstab = "UUID=" + landedUUID + " / ext4 defaults,errors=remount-ro 0 1\n"

func TestTinyBoots(t *testing.T) {
	needs(t, "vm", "mmdebstrap", "qemu-system-x86_64")
	virtioNet := []string{"-device", "virtio-net-pci,netdev=n"}
	for _, c := range []struct {
		image, name string
		drive       []string
	}{
		{"tiny", "virtio-blk with virtio-net", append([]string{"-device", "virtio-blk-pci,drive=d"}, virtioNet...)},
		{"tiny", "virtio-scsi", append([]string{"-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=d"}, virtioNet...)},
		{"tiny", "NVMe", append([]string{"-device", "nvme,serial=a,drive=d"}, virtioNet...)},
		{"tiny-generic", "NVMe with e1000", []string{"-device", "nvme,serial=a,drive=d", "-device", "e1000,netdev=n"}},
		{"tiny-generic", "AHCI with e1000e", []string{"-device", "ide-hd,drive=d", "-device", "e1000e,netdev=n"}},
	} {
		t.Run(c.image+" on "+c.name, func(t *testing.T) {
			m, pack := image(t, c.image)
			if m.Pack.Bytes > 40e6 {
				t.Errorf("%s is %d bytes stored; want less than 40 MB", c.image, m.Pack.Bytes)
			}
			disk := land(t, m, pack, 4<<30)
			write(t, disk, map[string]string{
				"/etc/hostname": "rack1-u7\n",
				"/etc/fstab":    fstab,
				"/usr/lib/lpmos/agent": "#!/bin/sh\n" +
					"echo \"agent runs: $*\"\ntouch /var/written && echo \"root is writable: $(df -m / | tail -1)\"\n" +
					"sleep 3; reboot\n",
			})
			v := boot(t, m, disk, c.drive...)
			for _, want := range []string{
				"tiny: rack1-u7 is up", "tiny: address 10.0.2.", "agent runs: callhome", "root is writable:", "rack1-u7 login:",
				// -no-reboot ends the machine then.
				"reboot: Restarting system",
			} {
				v.await(t, want, 4*time.Minute)
			}
		})
	}
}

// probe tells the console how the boot went. It is a simple service: the boot
// ends when no job is left, and the start of a oneshot service is one until it
// is done. It opens the console at the end, because getty hangs up whoever had
// it open before.
var probe = map[string]string{
	"/etc/systemd/system/probe.service":                  "[Service]\nExecStart=/usr/local/sbin/probe\n",
	"/etc/systemd/system/multi-user.target.d/probe.conf": "[Unit]\nWants=probe.service\n",
	"/usr/local/sbin/probe": `#!/bin/sh
exec >/run/probe 2>&1
echo "state: $(timeout 300 systemctl is-system-running --wait)"
systemctl list-jobs --no-legend --no-pager
systemctl --no-legend --plain --failed
timeout 60 cloud-init status --long
networkctl --no-legend --no-pager
find /etc/ssh -name 'ssh_host_*_key'
findmnt -no OPTIONS,SIZE /
cat /etc/machine-id
timeout 60 cloud-init schema --system 2>&1 | tail -3
systemd-analyze --no-pager blame | head -30
systemd-analyze --no-pager critical-chain
systemd-analyze time
echo probe: end
cat /run/probe >/dev/ttyS0
`,
}

func TestDebianBoots(t *testing.T) {
	needs(t, "vm", "mmdebstrap", "qemu-system-x86_64")
	m, pack := image(t, "debian-12")
	disk := land(t, m, pack, 20<<30)
	for _, c := range []struct {
		name  string
		files map[string]string
		want  []string
	}{
		{"without a seed", nil, []string{"ssh_host_ed25519_key", "localhost login:"}},
		{"with a seed", map[string]string{
			"/etc/hostname":                              "rack1-u9\n",
			"/var/lib/cloud/seed/nocloud/meta-data":      "instance-id: a\nlocal-hostname: rack1-u9\n",
			"/var/lib/cloud/seed/nocloud/user-data":      "#cloud-config\nruncmd:\n - echo seed was read > /dev/ttyS0\n",
			"/var/lib/cloud/seed/nocloud/network-config": "version: 2\nethernets:\n  all:\n    match: {name: \"en*\"}\n    dhcp4: true\n",
		}, []string{"rack1-u9 login:", "seed was read", "status: done", "ssh_host_ed25519_key"}},
		{"with cloud-init switched off", map[string]string{
			"/etc/hostname":                  "rack1-u9\n",
			"/etc/cloud/cloud-init.disabled": "",
		}, []string{"rack1-u9 login:", "routable configured", "ssh_host_ed25519_key"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := map[string]string{"/etc/fstab": fstab}
			maps.Copy(files, probe)
			maps.Copy(files, c.files)
			write(t, disk, files)
			v := boot(t, m, disk)
			v.await(t, "login:", 10*time.Minute)
			v.await(t, "state: running", 10*time.Minute) // nothing failed
			v.await(t, "probe: end", 10*time.Minute)
			for _, want := range c.want {
				v.await(t, want, 10*time.Minute)
			}
			v.await(t, "Startup finished in", 10*time.Minute)
			v.mu.Lock()
			defer v.mu.Unlock()
			t.Logf("console:\n%s", v.console.String())
		})
	}
}
