// Package inside is the agent's part in the memory of a distribution's
// installer that it started: how it gets from the installer's initramfs into its
// running system, and what the installer's hooks call. What it tells the region
// is package agent's (Guest), what it does to disks package install's.
package inside

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent"
	"github.com/lpmos/lpmos/internal/agent/install"
	"github.com/lpmos/lpmos/internal/agent/inventory"
)

// Staging reports whether this process is the first of an installer's initramfs
// (rdinit=): Stage is then all it does.
func Staging() bool { return os.Getpid() == 1 && os.Args[0] == lpmos.InstallerAgent }

// Stage has the initramfs carry the agent over into the system it starts, and
// becomes its own first program. It does not return.
func Stage() {
	if err := stage("/"); err != nil {
		fmt.Fprintln(os.Stderr, "lpmos:", err)
	}
	err := syscall.Exec("/init", []string{"/init"}, os.Environ())
	fmt.Fprintln(os.Stderr, "lpmos: start the installer's initramfs:", err)
	<-time.After(time.Minute)
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
}

// stage adds a call of "installer carry" to the hooks of an initramfs: dracut
// runs the files of a directory, casper those that are listed.
func stage(root string) error {
	for _, dir := range []string{"lib/dracut/hooks/pre-pivot", "var/lib/dracut/hooks/pre-pivot"} {
		if dir = filepath.Join(root, dir); isDir(dir) {
			return os.WriteFile(filepath.Join(dir, "90-lpmos.sh"), []byte(lpmos.InstallerAgent+" installer carry \"$NEWROOT\"\n"), 0o755)
		}
	}
	f, err := os.OpenFile(filepath.Join(root, "scripts/casper-bottom/ORDER"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return errors.New("the installer's initramfs is neither dracut's nor casper's, so the agent stays behind in it")
	}
	_, err = f.WriteString(lpmos.InstallerAgent + " installer carry \"${rootmnt}\"\n")
	return errors.Join(err, f.Close())
}

func isDir(name string) bool {
	st, err := os.Stat(name)
	return err == nil && st.IsDir()
}

// carry copies the agent and what it needs from the initramfs below from to the
// system below to.
func carry(from, to string) error {
	source := filepath.Join(from, filepath.Dir(lpmos.InstallerAgent))
	target := filepath.Join(to, filepath.Dir(lpmos.InstallerAgent))
	if err := os.Mkdir(target, 0o700); err != nil {
		return fmt.Errorf("carry the agent over: %w", err)
	}
	if err := os.CopyFS(target, os.DirFS(source)); err != nil {
		return fmt.Errorf("carry the agent over: %w", err)
	}
	answers := filepath.Base((&lpmos.ImageInstaller{Answers: lpmos.TemplateAutoinstall}).AnswersPath())
	b, err := os.ReadFile(filepath.Join(source, answers))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(to, answers), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("carry the answers over: %w", err)
	}
	return nil
}

// Run is "agent installer …"; the exit code is for the process. After a failure
// that the region was told of, the machine restarts.
func Run(ctx context.Context, args []string, identify func(context.Context) (*lpmos.Hardware, error), log *slog.Logger) int {
	if args[0] == "carry" {
		if len(args) != 2 {
			return 2
		}
		return code(log, carry("/", args[1]))
	}
	h, err := install.ReadHandover(install.HandoverPath)
	if err != nil {
		return code(log, err)
	}
	if args[0] == "watch" {
		return code(log, errors.Join(deafen("/", h.Effect.Installer.Answers), detach()))
	}
	client, err := agent.NewClient(h.Boot, log)
	if err != nil {
		return code(log, err)
	}
	defer client.Close()
	g := agent.NewGuest(h, client, install.New(install.Config{Identify: identify}, nil, nil, nil, log), nil, agent.Pauses{}, log)
	switch args[0] {
	case "report":
		return code(log, g.Watch(ctx, ""))
	case "disk":
		err = g.Hold(ctx, "/", (&inventory.Inspector{}).SetReadOnly)
	case "finish":
		err = g.Finish(ctx, "")
	case "failed":
		err = g.Failed(ctx)
	default:
		return 2
	}
	if err != nil {
		log.Error("the installation ends here; the machine restarts", "err", err)
		syscall.Sync()
		_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
	}
	return code(log, err)
}

// deafen has the installer take answers from its initramfs only. Debian's loads
// another file over them when a DHCP server names an address as boot file, which
// any on the network can.
func deafen(root, answers string) error {
	if answers != lpmos.TemplatePreseed {
		return nil
	}
	const asks = "var/lib/dpkg/info/network-preseed.isinstallable"
	return os.WriteFile(filepath.Join(root, asks), []byte("#!/bin/sh\nexit 1\n"), 0o755)
}

func code(log *slog.Logger, err error) int {
	if err == nil {
		return 0
	}
	log.Error("not done", "err", err)
	return 1
}

// detach starts "installer report" in a session of its own: the installer waits
// for its hooks to end.
func detach() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	p, err := os.StartProcess("/proc/self/exe", []string{lpmos.InstallerAgent, "installer", "report"},
		&os.ProcAttr{Dir: "/", Files: []*os.File{null, null, null}, Sys: &syscall.SysProcAttr{Setsid: true}})
	if err != nil {
		return fmt.Errorf("follow the installer's log: %w", err)
	}
	return p.Release()
}
