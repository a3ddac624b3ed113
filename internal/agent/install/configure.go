package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/lpmos/lpmos"
)

// configure writes what makes the image this machine's system.
func (in *Installer) configure(ctx context.Context, job *Job, m *lpmos.ImageManifest, boot *bootParts, fss []mountable) error {
	job.step(lpmos.Configuring, 0, 6, "Writing the configuration of "+job.Plan.Effect.Hostname)
	files, err := systemFiles(job, m, boot)
	if err != nil {
		return err
	}
	err = in.mounted(fss, func(root *os.Root) error {
		for _, name := range []string{m.Kernel, m.Initrd} {
			if _, err := root.Stat(strings.TrimPrefix(name, "/")); err != nil {
				return corrupt("it has no %s", name)
			}
		}
		t := tree{root}
		if err := t.configure(job, m, files); err != nil {
			return err
		}
		if err := t.MkdirAll("boot/efi", 0o700); err != nil {
			return fmt.Errorf("make /boot/efi: %w", err)
		}
		if fs, _ := job.Plan.Effect.Boot(); fs.Mount == "/boot" {
			// The boot loader looks for /boot/grub on the filesystem it reads,
			// which here is /boot itself.
			if err := t.link("boot/boot", "."); err != nil {
				return fmt.Errorf("link /boot/boot: %w", err)
			}
		}
		if err := in.leaveAgent(job, m, t); err != nil {
			return err
		}
		return in.remakeInitramfs(ctx, job, m, t)
	})
	if err != nil {
		return err
	}
	job.step(lpmos.Configuring, 3, 6, "Checking the filesystems once more")
	for _, fs := range fss {
		if fs.FS == "ext4" {
			if err := in.check(ctx, fs.dev); err != nil {
				return err
			}
		}
	}
	return nil
}

// leaveAgent leaves behind what reports the first boot.
func (in *Installer) leaveAgent(job *Job, m *lpmos.ImageManifest, t tree) error {
	if job.Plan.Effect.Unverified {
		return nil
	}
	if m.FirstBoot == "systemd" {
		if err := t.link("etc/systemd/system/multi-user.target.wants/lpmos-callhome.service", "/etc/systemd/system/lpmos-callhome.service"); err != nil {
			return fmt.Errorf("enable call home: %w", err)
		}
	}
	job.step(lpmos.Configuring, 1, 6, "Copying the agent for the first boot")
	return t.copyFile("usr/lib/lpmos/agent", 0o755, in.cfg.Agent)
}

// complete makes all disks bootable and marks the installation complete; the
// target's marker, which decides, comes last.
func (in *Installer) complete(ctx context.Context, job *Job, boot *bootParts, targets []target) error {
	job.step(lpmos.Configuring, 4, 6, "Writing the boot loader")
	if err := in.still(ctx, targets); err != nil {
		return err
	}
	for _, t := range targets {
		for _, p := range t.parts {
			if p.Role != "esp" {
				continue
			}
			sectorBytes, err := in.sectorBytes(t.path)
			if err != nil {
				return err
			}
			if err := in.makeESP(ctx, p.PlannedPartition, t.part(p.Number), sectorBytes, boot.esp); err != nil {
				return err
			}
		}
	}
	job.step(lpmos.Configuring, 5, 6, "Marking the installation complete")
	for _, t := range slices.Backward(targets) {
		if err := in.seal(ctx, job, boot, t); err != nil {
			return err
		}
	}
	job.step(lpmos.Configuring, 6, 6, "Everything is written")
	in.log.Info("disk complete", "disk", targets[0].path, "disks", len(targets), "attempt", job.Attempt)
	return nil
}

// seal writes the code for a BIOS and the marker of one disk.
func (in *Installer) seal(ctx context.Context, job *Job, boot *bootParts, t target) error {
	d, err := in.open(t.path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := in.still(ctx, []target{t}); err != nil {
		return err
	}
	if boot != nil && t.role("bios-boot") != "" {
		if err := boot.writeBIOS(d); err != nil {
			return writeFailed(t.path, err)
		}
	}
	marker := Marker{TaskID: job.TaskID, Attempt: job.Attempt, PlanDigest: job.Plan.Digest, WrittenAt: time.Now().UTC().Truncate(time.Second)}
	return writeFailed(t.path, d.writeMarker(marker))
}

func (in *Installer) sectorBytes(path string) (int64, error) {
	d, err := in.open(path)
	if err != nil {
		return 0, err
	}
	return d.sectorBytes, writeFailed(path, d.Close())
}

// file is one file of the installed system. Its path has no slash in front.
type file struct {
	path string
	mode fs.FileMode
	text string
	// dirMode is the mode of directories that are made for it; 0 is 0755.
	dirMode fs.FileMode
	// remove says that the file is to be absent instead.
	remove bool
	// link is the target of a symbolic link that stands in the file's place.
	link string
	// owner is an account that was added; empty is root.
	owner string
	// when names what must be there for the file to be written, unless what must
	// not be; both begin with a slash.
	when, unless string
}

// tree writes below a root that links in the image cannot leave. What stands
// in a file's place is removed first, link or not, so that nothing else is
// written through it.
type tree struct{ *os.Root }

func (t tree) write(f file, users map[string]account) error {
	if f.link != "" {
		return t.link(f.path, f.link)
	}
	if err := t.clear(f.path); err != nil || f.remove {
		return err
	}
	u, ok := users[f.owner]
	if f.owner != "" {
		if !ok {
			return fmt.Errorf("there is no account %s", f.owner)
		}
		if err := t.makeOwned(path.Dir(f.path), 0o700, u); err != nil {
			return err
		}
	}
	w, err := t.create(f.path, f.mode, f.dirMode)
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, f.text)
	if err := errors.Join(err, w.Close()); err != nil || f.owner == "" {
		return err
	}
	return t.own(f.path, u)
}

// configure makes the system what the plan says: its accounts, its files, and
// host keys that are its own.
func (t tree) configure(job *Job, m *lpmos.ImageManifest, files []file) error {
	if err := t.apply(job, m, files); err != nil {
		return err
	}
	if err := t.freshHostKeys(m); err != nil {
		return fmt.Errorf("make host keys: %w", err)
	}
	return nil
}

// apply adds the accounts of the plan and writes files.
func (t tree) apply(job *Job, m *lpmos.ImageManifest, files []file) error {
	users, err := t.addUsers(job, m.CloudInit)
	if err != nil {
		return fmt.Errorf("add accounts: %w", err)
	}
	for _, f := range files {
		if !t.wanted(f) {
			continue
		}
		if err := t.write(f, users); err != nil {
			return fmt.Errorf("write /%s: %w", f.path, err)
		}
	}
	return nil
}

func (t tree) copyFile(to string, mode fs.FileMode, from string) error {
	if err := t.clear(to); err != nil {
		return fmt.Errorf("write /%s: %w", to, err)
	}
	src, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("copy the agent: %w", err)
	}
	defer src.Close()
	w, err := t.create(to, mode, 0)
	if err != nil {
		return fmt.Errorf("write /%s: %w", to, err)
	}
	_, err = io.Copy(w, src)
	if err := errors.Join(err, w.Close()); err != nil {
		return fmt.Errorf("write /%s: %w", to, err)
	}
	return nil
}

// openFile opens a file of an image for reading. Anything else is an error: whoever
// opens a FIFO waits for somebody at its other end.
func openFile(root *os.Root, name string) (*os.File, fs.FileInfo, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: errors.New("is not a file")}
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, st, nil
}

func (t tree) create(name string, mode, dirMode fs.FileMode) (*os.File, error) {
	if dirMode == 0 {
		dirMode = 0o755
	}
	dir := path.Dir(name)
	if _, err := t.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := t.MkdirAll(dir, dirMode); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	if dirMode != 0o755 {
		if err := t.Chmod(dir, dirMode); err != nil {
			return nil, err
		}
	}
	w, err := t.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return nil, err
	}
	if err := w.Chmod(mode); err != nil { // whatever the umask is
		w.Close()
		return nil, err
	}
	return w, nil
}

func (t tree) link(name, target string) error {
	if err := t.clear(name); err != nil {
		return err
	}
	if err := t.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	return t.Symlink(target, name)
}

func (t tree) clear(name string) error {
	if err := t.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
