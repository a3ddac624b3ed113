package vm_test

import (
	"bytes"
	"compress/gzip"
	"crypto/md5" //nolint:gosec // a field of a list of packages
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
	"github.com/lpmos/lpmos/internal/debpkg"
	"github.com/lpmos/lpmos/internal/lab"
	"github.com/lpmos/lpmos/test/fixture"
)

// debs brings Debian's packages to the cache: those named, and of closure with all
// they depend on.
func debs(t *testing.T, cache string, closure []string, names ...string) (*debpkg.Repo, []debpkg.Package) {
	t.Helper()
	return packages(t, debpkg.Config{Dir: filepath.Join(cache, "apt-bookworm"), Debs: filepath.Join(cache, "debs"), Suite: "bookworm", Updates: true}, closure, names...)
}

func packages(t *testing.T, cfg debpkg.Config, closure []string, names ...string) (*debpkg.Repo, []debpkg.Package) {
	t.Helper()
	repo, _, err := debpkg.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	pkgs, err := repo.Resolve(t.Context(), closure, names)
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.Fetch(t.Context(), pkgs); err != nil {
		t.Fatal(err)
	}
	return repo, pkgs
}

// installer is Debian's network installer as Debian packages it.
type installer struct {
	kernel, initrd []byte
}

func debianInstaller(t *testing.T, cache string) (d installer) {
	t.Helper()
	repo, pkgs := debs(t, cache, nil, installerPackage)
	dir := t.TempDir()
	if err := repo.Unpack(t.Context(), pkgs[0], dir); err != nil {
		t.Fatal(err)
	}
	for base, b := range map[string]*[]byte{"linux": &d.kernel, "initrd.gz": &d.initrd} {
		var err error
		if *b, err = os.ReadFile(filepath.Join(dir, "usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64", base)); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

const installerPackage = "debian-installer-12-netboot-amd64"

// release is the kernel's, by which the packages with its drivers are called
// (Linux, Documentation/arch/x86/boot.rst, kernel_version).
func (d installer) release() string {
	at := 0x200 + int(binary.LittleEndian.Uint16(d.kernel[0x20e:]))
	release, _, _ := strings.Cut(string(d.kernel[at:at+128]), " ")
	return release
}

// register makes it the image of the world, with a mirror and the key that the
// mirror is signed with, as a site does that has a mirror of its own.
func (w *world) registerInstaller(d installer, mirror string, key []byte) {
	w.t.Helper()
	initrd := append(bytes.Clone(d.initrd), make([]byte, -len(d.initrd)&511)...)
	initrd = append(initrd, agentapi.Archive(agentapi.ArchiveFile{Path: "/usr/share/keyrings/archive.gpg", Mode: 0o644, Content: key})...)
	m := lpmos.ImageManifest{Format: lpmos.FormatInstaller, OS: "debian", Version: "12-installer", Arch: "amd64",
		Installer: &lpmos.ImageInstaller{Answers: lpmos.TemplatePreseed, Kernel: w.blob(d.kernel), Initrd: w.blob(initrd), Repository: mirror}}
	text, err := json.Marshal(m)
	if err != nil {
		w.t.Fatal(err)
	}
	w.register(lpmos.Image{OS: m.OS, Version: m.Version, Arch: m.Arch, Digest: "sha256:" + w.blob(text).SHA256, Title: installerPackage})
}

// mirror is a signed archive with the drivers that the installer's kernel has
// for disks and their filesystems, as Debian has them, and with the package
// lab-system, which puts onto the disk what stands in disk.gz. It gives the
// mirror's address and its key.
func (w *world) mirror(d installer) (address string, key []byte) {
	w.t.Helper()
	root := filepath.Join(w.dir, "mirror")
	dist := filepath.Join(root, "debian/dists/bookworm")
	pool := filepath.Join(root, "debian/pool")
	index := filepath.Join(dist, "main/debian-installer/binary-amd64/Packages")
	// The installer asks for this file to learn whether the mirror has what its
	// processor runs.
	architecture := filepath.Join(dist, "main/binary-amd64/Release")
	for _, dir := range []string{pool, filepath.Dir(index), filepath.Dir(architecture)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := os.WriteFile(architecture, []byte("Archive: stable\nOrigin: Lab\nComponent: main\nArchitecture: amd64\n"), 0o644); err != nil {
		w.t.Fatal(err)
	}
	var names []string
	for _, kind := range []string{"ata", "cdrom-core", "scsi", "ext4"} {
		names = append(names, kind+"-modules-"+d.release()+"-di")
	}
	_, drivers := packages(w.t, debpkg.Config{Dir: filepath.Join(w.built.cache, "apt-bookworm-installer"), Debs: filepath.Join(w.built.cache, "debs"),
		Suite: "bookworm", Component: "main/debian-installer"}, nil, names...)
	var list bytes.Buffer
	add := func(udeb string) {
		b, err := os.ReadFile(udeb)
		if err != nil {
			w.t.Fatal(err)
		}
		name := filepath.Base(udeb)
		if err := os.WriteFile(filepath.Join(pool, name), b, 0o644); err != nil {
			w.t.Fatal(err)
		}
		fmt.Fprintf(&list, "%sFilename: pool/%s\nSize: %d\nMD5sum: %x\nSHA256: %x\n\n", w.output("/usr/bin/dpkg-deb", "-f", udeb), name, len(b), md5.Sum(b), sha256.Sum256(b))
	}
	for _, p := range drivers {
		add(filepath.Join(w.built.cache, "debs", p.File))
	}
	own := filepath.Join(w.dir, "lab-system")
	control := filepath.Join(own, "DEBIAN")
	if err := os.Mkdir(own, 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.CopyFS(control, os.DirFS("testdata/lab-system")); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(control, "postinst"), 0o755); err != nil {
		w.t.Fatal(err)
	}
	w.output("/usr/bin/dpkg-deb", "-Zgzip", "--build", own, own+"_1_all.udeb")
	add(own + "_1_all.udeb")
	if err := os.WriteFile(index, list.Bytes(), 0o644); err != nil {
		w.t.Fatal(err)
	}
	release := fmt.Sprintf("Origin: Lab\nSuite: stable\nCodename: bookworm\nArchitectures: amd64\nComponents: main\nDate: %s\nSHA256:\n %x %d main/debian-installer/binary-amd64/Packages\n",
		time.Now().UTC().Format(time.RFC1123), sha256.Sum256(list.Bytes()), list.Len())
	if err := os.WriteFile(filepath.Join(dist, "Release"), []byte(release), 0o644); err != nil {
		w.t.Fatal(err)
	}
	home := w.t.TempDir()
	gpg := func(args ...string) []byte {
		return w.output("/usr/bin/gpg", append([]string{"--homedir", home, "--batch", "--quiet", "--no-permission-warning", "--passphrase", "", "--pinentry-mode", "loopback"}, args...)...)
	}
	gpg("--quick-generate-key", "Lab", "ed25519", "sign", "never")
	gpg("--armor", "--detach-sign", "--output", filepath.Join(dist, "Release.gpg"), filepath.Join(dist, "Release"))

	l, err := w.net.Listen(w.t.Context(), "tcp", "10.77.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	files := http.FileServer(http.Dir(root))
	log := w.logFile("mirror.log")
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(log, "%s %s %s\n", time.Now().Format(time.TimeOnly), r.Method, r.URL.Path)
		files.ServeHTTP(rw, r)
	})}
	go func() { _ = server.Serve(l) }()
	w.t.Cleanup(func() { server.Close() })
	return "http://" + l.Addr().String() + "/debian", gpg("--export")
}

// putDisk gives the mirror a Debian as the content of a disk.
func (w *world) putDisk() {
	w.t.Helper()
	path := filepath.Join(w.dir, "system.raw")
	defer os.Remove(path)
	err := fixture.BootableDisk(w.t.Context(), path, "ubuntu", w.built.imageDir, w.built.image(w.t, "debian-12"), filepath.Join(w.built.cache, "debs"), "console=tty0 console=ttyS0,115200")
	if err != nil {
		w.t.Fatal(err)
	}
	from, err := os.Open(path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer from.Close()
	to, err := os.Create(filepath.Join(w.dir, "mirror/debian/disk.gz"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer to.Close()
	z, err := gzip.NewWriterLevel(to, gzip.BestSpeed)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := io.Copy(z, from); err != nil {
		w.t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		w.t.Fatal(err)
	}
}

// TestDebianInstaller boots Debian's own installer by the path of every machine:
// the agent reports, a plan with the rendered answers is approved, and with the
// permit the agent starts the installer in its place. The installer reads its
// answers, takes the packages of a mirror with the mirror's signature, runs what
// LPMOS gives it to run before the disk is written and at the end, and the
// system on the disk calls home.
//
// The archive that this is built with has the kernel's packages of the
// installer, but not partman's, base-installer's, grub-installer's and
// finish-install's (docs/testing.md, "Debian's installer"), so between those two
// commands a package of the lab writes the disk.
func TestDebianInstaller(t *testing.T) {
	rest(t)
	for _, firmware := range []lab.Firmware{lab.BIOS, lab.UEFI} {
		t.Run(firmware.String(), func(t *testing.T) {
			w := onSite(t, "tiny", nil)
			d := debianInstaller(t, w.built.cache)
			mirror, key := w.mirror(d)
			w.putDisk()
			w.registerInstaller(d, mirror, key)
			m := w.newMachine(lab.MachineConfig{Name: "di", Firmware: firmware, MemoryMB: 1536, Disks: []lab.Disk{{SizeBytes: 4 * gb}, {SizeBytes: 8 * gb}}})
			w.foreign(m.disk(0), "LVM2_member")
			before := w.hash(m.disk(0))
			profile := w.put(lpmos.Setup{Users: []lpmos.Account{{Name: "ops", Gecos: "Operations", Sudo: true}}})
			id := w.create(m, func(s *lpmos.Spec) {
				s.Profile, s.TargetDisk = profile, &lpmos.DiskRef{Serial: "LAB-di-1", SizeBytes: 8 * gb}
			})
			w.powerOn(m)
			plan := w.planned(m, id).Plan
			if text := plan.Effect.Files[0].Text; plan.Effect.Files[0].Path != "/preseed.cfg" || !strings.Contains(text, "partman-auto/disk string /dev/disk/by-id/lpmos-LAB-di-1\n") {
				t.Fatalf("the plan's first file is %+v", plan.Effect.Files[0])
			}
			w.approve(id)
			task := w.wait(m, id, installLimit, lpmos.Completed)
			lines, err := w.client.Logs(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			all := strings.Join(lines, "\n")
			for _, want := range []string{
				"installer loaded", "preseed.cfg", "Menu item 'choose-mirror' selected", "Good signature", "Menu item 'lab-system' selected",
				"partman/early_command: " + lpmos.InstallerAgent + " installer disk", "lpmos-LAB-di-1, is /dev/vdb", "vda: read-only 1", "vdb: read-only 0",
				"preseed/late_command: " + lpmos.InstallerAgent + " installer finish",
			} {
				if !strings.Contains(all, want) {
					t.Errorf("the log does not hold %q:\n%s", want, all)
				}
			}
			r := task.Receipt
			if task.Attempt != 1 || len(task.Drift) > 0 || r == nil || r.OSID != "debian" || r.Hostname != m.Name() || r.RootDisk.Serial != "LAB-di-1" || !strings.Contains(strings.Join(r.Users, " "), "ops") {
				t.Errorf("completed by attempt %d, drift %v, receipt %+v", task.Attempt, task.Drift, r)
			}
			m.PowerOff()
			if w.hash(m.disk(0)) != before {
				t.Error("the disk that is not in the plan was written")
			}
		})
	}
}
