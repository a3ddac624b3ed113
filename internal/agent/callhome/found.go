package callhome

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent/run"
)

// mounts are what block devices are mounted at, by path, from mountinfo. Of
// several on one path the last is what is seen; parts of a filesystem that are
// bound elsewhere are left out, but for the subvolume that is the root.
func mounts(mountinfo string) []lpmos.Mount {
	byPath := map[string]string{}
	for line := range strings.Lines(mountinfo) {
		m, ok := readMount(line)
		if !ok {
			continue
		}
		delete(byPath, m.path)
		if (m.of == "/" || m.path == "/") && strings.HasPrefix(m.source, "/dev/") {
			byPath[m.path] = m.fs
		}
	}
	var out []lpmos.Mount
	for p, fs := range byPath {
		out = append(out, lpmos.Mount{Path: lpmos.Shorten(p, 200), FS: lpmos.Shorten(fs, 32)})
	}
	slices.SortFunc(out, func(a, b lpmos.Mount) int { return strings.Compare(a.Path, b.Path) })
	return out[:min(len(out), lpmos.MaxReceiptList)]
}

// unescape undoes how mountinfo writes spaces and the like: \040.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return strings.ToValidUTF8(b.String(), "")
}

// timezone is the name that /etc/localtime links to. A link to what is not
// there means UTC to every program, whatever it says.
func timezone(root string) string {
	to, err := os.Readlink(filepath.Join(root, "etc/localtime"))
	if err != nil {
		return "UTC"
	}
	_, name, ok := strings.Cut(path.Join("/etc", to), "/zoneinfo/")
	if path.IsAbs(to) {
		_, name, ok = strings.Cut(to, "/zoneinfo/")
	}
	if !ok {
		return "unknown"
	}
	name = lpmos.Shorten(name, 100)
	if _, err := os.Stat(filepath.Join(root, "usr/share/zoneinfo", filepath.Clean("/"+name))); err != nil {
		return "UTC (the system has no data of " + name + ")"
	}
	return name
}

// people are the accounts with numbers of people (login.defs, UID_MIN and
// UID_MAX).
func people(passwd string) []string {
	var out []string
	for line := range strings.Lines(passwd) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 7 || len(out) == lpmos.MaxReceiptList {
			continue
		}
		if n, err := strconv.Atoi(f[2]); err == nil && n >= 1000 && n < 60000 {
			out = append(out, lpmos.Shorten(f[0], 64))
		}
	}
	slices.Sort(out)
	return out
}

// hostKeys are those of an SSH server, Ed25519 first: what cannot be read is
// left out.
func hostKeys(root string) []lpmos.HostKey {
	var out []lpmos.HostKey
	for _, kind := range []string{"ed25519", "ecdsa", "rsa"} {
		b, err := os.ReadFile(filepath.Join(root, "etc/ssh/ssh_host_"+kind+"_key.pub"))
		if err != nil || len(b) > 8<<10 {
			continue
		}
		line, _, _ := strings.Cut(string(b), "\n")
		if k, err := lpmos.ParseHostKey(line); err == nil {
			out = append(out, k)
		}
	}
	return out
}

// clockSynced asks the kernel whether its clock is kept by another (adjtimex(2),
// STA_UNSYNC).
func clockSynced() *bool {
	const unsynchronized, errorState = 0x40, 5
	var t syscall.Timex
	state, err := syscall.Adjtimex(&t)
	if err != nil {
		return nil
	}
	synced := state != errorState && t.Status&unsynchronized == 0
	return &synced
}

// cloudInit says what became of cloud-init: it writes result.json when it is
// finished (cloud-init, "Reported finished").
func cloudInit(root string) (state string, problems []string) {
	at := func(name string) string { return filepath.Join(root, "run/cloud-init", name) }
	if _, err := os.Stat(at("disabled")); err == nil {
		return "disabled", nil
	}
	b, err := os.ReadFile(at("result.json"))
	if errors.Is(err, fs.ErrNotExist) {
		for _, begun := range []string{"enabled", "status.json"} {
			if _, err := os.Stat(at(begun)); err == nil {
				return "running", nil
			}
		}
		return "", nil
	}
	var result struct {
		V1 struct {
			Errors []string `json:"errors"`
		} `json:"v1"`
	}
	if err != nil || len(b) > 1<<20 || json.Unmarshal(b, &result) != nil {
		return "error", []string{"its result cannot be read"}
	}
	for _, e := range result.V1.Errors[:min(len(result.V1.Errors), 8)] {
		problems = append(problems, lpmos.Shorten(strings.ToValidUTF8(e, ""), 200))
	}
	if len(problems) > 0 {
		return "error", problems
	}
	return "done", nil
}

// failedUnits are those that systemd says failed; nil where it does not run.
func failedUnits(ctx context.Context, root string) []string {
	if root != "/" {
		return nil
	}
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return nil
	}
	var r run.Runner
	for _, systemctl := range []string{"/usr/bin/systemctl", "/bin/systemctl"} {
		if _, err := os.Stat(systemctl); err != nil {
			continue
		}
		res, err := r.Run(ctx, run.Cmd{Path: systemctl, Args: []string{"list-units", "--state=failed", "--all", "--plain", "--no-legend", "--no-pager", "--full"}, Timeout: 20 * time.Second})
		if err != nil {
			return nil
		}
		return unitNames(res.Output)
	}
	return nil
}

func unitNames(list string) []string {
	out := []string{}
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); len(f) > 0 && strings.Contains(f[0], ".") && len(out) < lpmos.MaxReceiptList {
			out = append(out, lpmos.Shorten(f[0], 200))
		}
	}
	return out
}

const (
	// settlePatience is how long the first boot may take to configure the system
	// before it is reported as it stands.
	settlePatience = 10 * time.Minute
	// timePatience is how long the clock may take to follow another.
	timePatience = time.Minute
)

// settle waits until cloud-init is finished and, if that was asked for, until
// the clock follows a server: what is reported before would be differences that
// go away by themselves.
func settle(ctx context.Context, root string, clock bool) {
	wait := func(patience time.Duration, done func() bool) {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		t := time.NewTicker(500 * time.Millisecond)
		defer t.Stop()
		for !done() {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
		}
	}
	wait(settlePatience, func() bool { state, _ := cloudInit(root); return state != "running" })
	if clock && root == "/" {
		wait(timePatience, func() bool { synced := clockSynced(); return synced == nil || *synced })
	}
}
