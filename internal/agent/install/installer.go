package install

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
	"github.com/lpmos/lpmos/internal/grubboot"
)

// ErrHandedOver says that nothing is installed yet: the machine is to be
// restarted, and the distribution's own installer takes it from there.
var ErrHandedOver = errors.New("the distribution's installer takes over")

// HandoverPath is where an installer that the agent started has its Handover.
const HandoverPath = "/lpmos/handover.json"

// Handover is what the agent leaves to itself in the memory of an installer:
// the attempt, and what it needs to speak for it.
type Handover struct {
	Boot     agentapi.BootConfig     `json:"boot"`
	Sign     []byte                  `json:"sign"` // seed of the key that Boot's credential is bound to
	TaskID   string                  `json:"task_id"`
	Attempt  int                     `json:"attempt"`
	Effect   lpmos.Effect            `json:"effect"`
	Callhome agentapi.CallhomeConfig `json:"callhome"`
	Secrets  map[string]string       `json:"secrets,omitempty"`
}

// maxHandoverBytes bounds a handover: a plan with all its files.
const maxHandoverBytes = agentapi.MaxAnswerBytes

// ReadHandover reads the handover of the installer that this process runs in.
func ReadHandover(name string) (*Handover, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read handover: %w", err)
	}
	defer f.Close()
	var h Handover
	if err := lpmos.DecodeJSON(f, maxHandoverBytes, &h); err != nil {
		return nil, fmt.Errorf("read handover: %w", err)
	}
	if h.Effect.Installer == nil {
		return nil, fmt.Errorf("read handover: %w", &lpmos.InvalidError{Field: "effect.installer", Problem: "is missing"})
	}
	if h.Boot.Key, err = lpmos.SigningHalf(h.Sign); err != nil {
		return nil, fmt.Errorf("read handover: %w", err)
	}
	return &h, nil
}

// Job is the attempt that goes on.
func (h *Handover) Job() Job {
	secrets := map[string]lpmos.Secret{}
	for name, v := range h.Secrets {
		secrets[name] = lpmos.NewSecret(v)
	}
	return Job{TaskID: h.TaskID, Attempt: h.Attempt, Plan: &lpmos.Plan{Effect: h.Effect}, Callhome: h.Callhome, Secrets: secrets, Boot: h.Boot}
}

// startInstaller fetches the installer, puts the rendered answers and the agent
// into its memory, and loads it to be started in place of this kernel. All of it
// is what was approved: kernel and initramfs by digest, the answers by their
// text.
func (in *Installer) startInstaller(ctx context.Context, job *Job, m *lpmos.ImageManifest) error {
	e := &job.Plan.Effect
	at := slices.IndexFunc(e.Files, func(f lpmos.PlannedFile) bool { return f.For == lpmos.ForInstaller })
	if e.Installer == nil || *e.Installer != *m.Installer || at < 0 || e.Files[at].Path != e.Installer.AnswersPath() || e.Target.ByID() == "" {
		return &Failure{Code: "plan_invalid", Cause: "The plan is not of the installer that its image is.", NextStep: nextReport}
	}
	if _, err := in.identify(ctx, e.Target); err != nil {
		return err
	}
	if err := os.MkdirAll(in.cfg.WorkDir, 0o700); err != nil {
		return keepFailed("make directory", err)
	}
	kernel, err := in.fetchFile(ctx, job, "kernel", e.Installer.Kernel, 1)
	if err != nil {
		return err
	}
	defer func() { kernel.Close() }()
	initrd, err := in.fetchFile(ctx, job, "initramfs", e.Installer.Initrd, 2)
	if err != nil {
		return err
	}
	defer func() { initrd.Close() }()
	if err := in.extend(initrd, job, e.Files[at]); err != nil {
		return keepFailed("extend the installer's initramfs", err)
	}
	for _, f := range []**os.File{&kernel, &initrd} {
		if *f, err = readOnly(*f); err != nil {
			return fmt.Errorf("read the installer back: %w", err)
		}
	}
	job.step(lpmos.Partitioning, 4, 10, "Starting the installer of "+m.OS+" "+m.Version)
	if job.OnWrite != nil {
		job.OnWrite() // from here on what is written is not this process's to say
	}
	args := e.Installer.CommandLine(job.Boot.BootMAC)
	for _, c := range in.consoles() {
		args += " " + c
	}
	if err := in.cfg.Kexec(kernel, initrd, args); err != nil {
		next := "Use an image, which needs no other kernel."
		if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EKEYREJECTED) {
			next = "With Secure Boot only a kernel that this one's maker signed is started: turn it off, or use an image."
		}
		return &Failure{Code: "installer_refused", Cause: "The kernel of the installer was not accepted.", NextStep: next, Err: err}
	}
	in.log.Info("installer loaded", "os", m.OS, "version", m.Version, "args", args)
	return ErrHandedOver
}

// readOnly closes a file that has no name and opens it again for reading: no
// kernel is loaded from a file that somebody could still write.
func readOnly(f *os.File) (*os.File, error) {
	again, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	return again, errors.Join(err, f.Close())
}

// consoles are the arguments of this boot that say where a person looks.
func (in *Installer) consoles() []string {
	b, _ := os.ReadFile(filepath.Join(in.cfg.Proc, "cmdline"))
	return slices.DeleteFunc(strings.Fields(string(b)), func(a string) bool { return !strings.HasPrefix(a, "console=") })
}

// fetchFile brings a blob into RAM. The file has no name any more and goes when
// it is closed.
func (in *Installer) fetchFile(ctx context.Context, job *Job, what string, b lpmos.Blob, done int64) (*os.File, error) {
	f, err := os.CreateTemp(in.cfg.WorkDir, "installer-")
	if err != nil {
		return nil, keepFailed("keep the installer's "+what, err)
	}
	err = os.Remove(f.Name())
	for try := 1; err == nil; try++ {
		job.step(lpmos.Partitioning, done, 10, "Downloading the installer's "+what+" ("+lpmos.FormatBytes(b.Bytes)+")")
		var sum string
		if sum, err = in.fetchInto(ctx, f, what, b); err == nil && sum == b.SHA256 {
			return f, nil
		}
		if err == nil && try == 2 {
			err = corrupt("its %s is not %s, on two tries", what, lpmos.Prefix(b.SHA256, 12))
		}
	}
	f.Close()
	return nil, err
}

// partBytes is how much of an installer is asked for at once, and what of it the
// network spoils is asked for again.
const partBytes = 4 << 20

// fetchInto writes a blob to a file, part by part, and gives its digest.
func (in *Installer) fetchInto(ctx context.Context, f io.WriterAt, what string, b lpmos.Blob) (string, error) {
	sum, buf := sha256.New(), make([]byte, min(b.Bytes, partBytes))
	for at := int64(0); at < b.Bytes; {
		part := buf[:min(b.Bytes-at, partBytes)]
		err := persist(ctx, in.cfg.StallTimeout, func(ctx context.Context) error {
			r, err := in.blobs.Open(ctx, b.SHA256, agentapi.Part{Offset: at, Length: int64(len(part))})
			if err != nil {
				return missingIf404(err, what, "sha256:"+b.SHA256)
			}
			defer r.Close()
			if r.Total >= 0 && r.Total != b.Bytes {
				return corrupt("its %s has %d bytes and the manifest says %d", what, r.Total, b.Bytes)
			}
			_, err = io.ReadFull(r, part)
			return err
		})
		if err != nil {
			return "", err
		}
		if _, err := f.WriteAt(part, at); err != nil {
			return "", keepFailed("keep the installer's "+what, err)
		}
		sum.Write(part)
		at += int64(len(part))
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// keepFailed is an error of the memory that an installer is kept in.
func keepFailed(doing string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.ENOMEM) {
		return &Failure{Code: "memory_too_small", Cause: "The machine has not enough memory for the installer.",
			NextStep: "Give the machine more memory, or use an image, which needs less.", Err: err}
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// extend appends an archive to an initramfs: the answers, the handover and the
// agent itself.
func (in *Installer) extend(initrd *os.File, job *Job, answers lpmos.PlannedFile) error {
	h := Handover{Boot: job.Boot, TaskID: job.TaskID, Attempt: job.Attempt, Effect: job.Plan.Effect, Callhome: job.Callhome, Secrets: map[string]string{}}
	if job.Boot.Key == nil {
		return errors.New("this boot has no key")
	}
	h.Sign = job.Boot.Key.Signer()[:ed25519.SeedSize]
	for name, v := range job.Secrets {
		h.Secrets[name] = v.Reveal()
	}
	handover, err := json.Marshal(h)
	if err != nil {
		return err
	}
	agent, err := os.ReadFile(in.cfg.Agent)
	if err != nil {
		return err
	}
	end, err := initrd.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	// An archive that is not compressed begins at a multiple of four bytes.
	if _, err := initrd.Write(make([]byte, -end&511)); err != nil {
		return err
	}
	_, err = initrd.Write(agentapi.Archive(
		agentapi.ArchiveFile{Path: answers.Path, Mode: 0o600, Content: []byte(lpmos.FillSecrets(answers.Text, job.Secrets))},
		agentapi.ArchiveFile{Path: HandoverPath, Mode: 0o600, Content: handover},
		agentapi.ArchiveFile{Path: lpmos.InstallerAgent, Mode: 0o700, Content: agent},
	))
	return err
}

// kexec loads a kernel to be started at the next restart (kexec_file_load(2)).
func kexec(kernel, initrd *os.File, args string) error {
	line, err := syscall.BytePtrFromString(args)
	if err != nil {
		return err
	}
	_, _, errno := syscall.Syscall6(sysKexecFileLoad, kernel.Fd(), initrd.Fd(), uintptr(len(args)+1), uintptr(unsafe.Pointer(line)), 0, 0)
	if errno != 0 {
		return fmt.Errorf("load kernel: %w", errno)
	}
	return nil
}

// Hold finds the target among the disks that the installer sees, makes all
// others read-only, and gives the target the name that the answers call it by.
// root is "/", or a directory in a test.
func (in *Installer) Hold(ctx context.Context, e *lpmos.Effect, root string, setReadOnly func(device string, on bool) error) error {
	h, err := in.cfg.Identify(ctx)
	if err != nil {
		return fmt.Errorf("list disks: %w", err)
	}
	target, err := h.Disk(e.Target)
	if err != nil {
		return &Failure{Code: "disk_missing", Cause: "The approved disk (" + e.Target.String() + ") is not among those that the installer sees.",
			NextStep: "Check that the disk is healthy and that the installer has its driver, then retry the task.", Err: err}
	}
	for _, d := range h.Disks {
		if d.Device == target.Device || d.ReadOnly {
			continue
		}
		if err := setReadOnly(d.Device, true); err != nil && !d.Removable {
			return &Failure{Code: "disk_unprotected", Cause: "The disk " + d.Ref().String() + ", which is not in the plan, could not be made read-only.",
				NextStep: "Remove that disk, or use an image.", Err: err}
		}
	}
	name := filepath.Join(root, e.Target.ByID())
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("name the disk: %w", err)
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("name the disk: %w", err)
	}
	if err := os.Symlink(target.Device, name); err != nil {
		return fmt.Errorf("name the disk: %w", err)
	}
	// Anaconda believes what udev says and not what is in /dev.
	rules := filepath.Join(root, "run/udev/rules.d")
	if _, err := os.Stat(filepath.Dir(rules)); err == nil {
		rule := fmt.Sprintf("SUBSYSTEM==\"block\", KERNEL==%q, SYMLINK+=%q\n", path.Base(target.Device), strings.TrimPrefix(e.Target.ByID(), "/dev/"))
		if err := errors.Join(os.MkdirAll(rules, 0o755), os.WriteFile(filepath.Join(rules, "61-lpmos.rules"), []byte(rule), 0o644)); err != nil {
			return fmt.Errorf("name the disk: %w", err)
		}
	}
	// Ubuntu's installer compares device names, and reads its answers again after
	// the first commands.
	if e.Installer.Answers == lpmos.TemplateAutoinstall {
		answers := filepath.Join(root, autoinstallPath)
		b, err := os.ReadFile(answers)
		if err != nil {
			return fmt.Errorf("name the disk: %w", err)
		}
		text := strings.ReplaceAll(string(b), `"`+e.Target.ByID()+`"`, strconv.Quote(target.Device))
		if err := os.WriteFile(answers, []byte(text), 0o600); err != nil {
			return fmt.Errorf("name the disk: %w", err)
		}
	}
	in.log.Info("disk held", "disk", target.Device, "target", e.Target.String(), "others", len(h.Disks)-1)
	return nil
}

// autoinstallPath is where Ubuntu's installer looks for its answers.
const autoinstallPath = "/autoinstall.yaml"

// Finish makes what an installer installed below root this machine's system, as
// configure does with an image: accounts, files, the report of the first boot,
// and the file by which the region's boot helper finds the disk.
func (in *Installer) Finish(ctx context.Context, job *Job, root string) error {
	e := &job.Plan.Effect
	device, err := in.identify(ctx, e.Target)
	if err != nil {
		return staged(lpmos.Configuring, err)
	}
	if on, err := in.diskBelow(root); err != nil || on != device {
		return staged(lpmos.Configuring, &Failure{Code: "wrong_disk", Cause: fmt.Sprintf("The installer installed to %q, and not to the approved disk %s.", on, device), NextStep: nextReport, Err: err})
	}
	job.step(lpmos.Configuring, 4, 6, "Writing the configuration of "+e.Hostname)
	return staged0(lpmos.Configuring, in.finishTree(job, root))
}

func (in *Installer) finishTree(job *Job, root string) error {
	r, err := os.OpenRoot(root)
	if err != nil {
		return fmt.Errorf("open the installed system: %w", err)
	}
	defer r.Close()
	t, e := tree{r}, &job.Plan.Effect
	m := &lpmos.ImageManifest{FirstBoot: "systemd", Arch: e.Image.Arch}
	files, err := ownFiles(job, m)
	if err != nil {
		return err
	}
	if err := t.apply(job, m, files); err != nil {
		return err
	}
	if err := in.leaveAgent(job, m, t); err != nil {
		return err
	}
	sign := file{path: grubboot.SignpostDir + "/" + e.BootID, mode: 0o644, text: "This disk was installed by LPMOS.\n"}
	if e.BootMode != "uefi" {
		return t.write(sign, nil)
	}
	efi, err := r.OpenRoot("boot/efi")
	if err != nil {
		return &Failure{Code: "image_unsuitable", Cause: "The installer made no EFI system partition, and the machine boots by UEFI.", NextStep: "Find out from its log why, or use an image.", Err: err}
	}
	defer efi.Close()
	if err := fallbackLoader(tree{efi}, m.Arch); err != nil {
		return err
	}
	return tree{efi}.write(sign, nil)
}

// diskBelow is the disk that a mounted filesystem lies on: "/dev/sda".
func (in *Installer) diskBelow(root string) (string, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(root, &st); err != nil {
		return "", fmt.Errorf("find the disk of %s: %w", root, err)
	}
	major, minor := st.Dev>>8&0xfff|st.Dev>>32&^0xfff, st.Dev&0xff|st.Dev>>12&^0xff
	dir, err := filepath.EvalSymlinks(filepath.Join(in.cfg.Sys, "dev/block", fmt.Sprintf("%d:%d", major, minor)))
	if err != nil {
		return "", fmt.Errorf("find the disk of %s: %w", root, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir)
	}
	return "/dev/" + filepath.Base(dir), nil
}
