package confine_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lpmos/lpmos/internal/agent/confine"
	"github.com/lpmos/lpmos/internal/agent/run"
	"github.com/lpmos/lpmos/internal/tier"
)

func TestMain(m *testing.M) {
	if confine.IsChild() {
		confine.Child()
	}
	os.Exit(m.Run())
}

// system is a tree with this host's programs in it, read-only.
func system(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		tier.Missing(t, "root", "not root")
	}
	root := t.TempDir()
	for _, dir := range []string{"proc", "dev", "run", "tmp", "etc", "usr"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, link := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+link, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	usr := filepath.Join(root, "usr")
	if err := syscall.Mount("/usr", usr, "", syscall.MS_BIND, ""); err != nil {
		tier.Missing(t, "root", "bind mount: "+err.Error())
	}
	t.Cleanup(func() { syscall.Unmount(usr, syscall.MNT_DETACH) })
	return root
}

func confined(t *testing.T, root, script string, timeout time.Duration) (run.Result, error) {
	t.Helper()
	var r run.Runner
	argv := confine.Command{Root: root, Path: "/bin/sh", Args: []string{"-c", script}}.Argv()
	return r.Run(context.Background(), run.Cmd{Path: "/proc/self/exe", Arg0: argv[0], Args: argv[1:], Attr: confine.Attr(), Timeout: timeout})
}

// TestConfined asks the confined program itself what it can reach.
func TestConfined(t *testing.T) {
	root := system(t)
	if err := syscall.Mknod(filepath.Join(root, "etc/zero"), syscall.S_IFCHR|0o666, 1<<8|5); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for name, c := range map[string]struct{ script, want string }{
		"writes files of the tree":                    {"echo made > /etc/file && chown 7:8 /etc/file && stat -c %u:%g /etc/file", "7:8"},
		"is process 1 and sees no other":              {"echo $$; ls -d /proc/[0-9]* | wc -l", "1\n"},
		"has no network, not even loopback":           {"cat /proc/net/route | wc -l; cat /proc/net/dev | grep -c : ", "0\n1"},
		"has the devices that are harmless":           {"ls /dev | tr '\\n' ' '; head -c 4 /dev/urandom | wc -c", "fd full null random stderr stdin stdout urandom zero 4"},
		"opens no device node of the tree":            {"cat /etc/zero 2>&1 | head -c 200; true", "Permission denied"},
		"makes no device node":                        {"mknod /tmp/sda b 8 0 2>&1; true", "not permitted"},
		"mounts nothing":                              {"mount -t tmpfs none /tmp 2>&1; true", "permission denied"},
		"changes no root":                             {"chroot / /bin/true 2>&1; true", "not permitted"},
		"cannot write what the kernel shows":          {"echo 1 > /proc/sys/kernel/panic; echo status $?", "status"},
		"is another host":                             {"cat /proc/sys/kernel/hostname", "localhost"},
		"can gain nothing":                            {"grep -e NoNewPrivs -e CapBnd -e CapEff -e CapPrm /proc/self/status | tr -d '\\t' | tr '\\n' ' '", "CapPrm:000000008000001b CapEff:000000008000001b CapBnd:000000008000001b NoNewPrivs:1"},
		"has no environment of ours":                  {"env | grep -c -e SECRET -e GO; true", "0"},
		"does not see the machine's files":            {"cat " + secret + " 2>&1; true", "No such file"},
		"does not see the kernel's view of the disks": {"ls /sys 2>&1; true", "No such file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("SECRET", "x")
			res, err := confined(t, root, c.script, time.Minute)
			if err != nil || !strings.Contains(strings.ToLower(res.Output), strings.ToLower(c.want)) {
				t.Errorf("%s = %q, %v; want %q in it", c.script, res.Output, err, c.want)
			}
		})
	}
	if b, err := os.ReadFile("/proc/sys/kernel/hostname"); err != nil || strings.TrimSpace(string(b)) == "localhost" && hostname(t) != "localhost" {
		t.Errorf("the machine's own name became %q, %v", b, err)
	}
}

func hostname(t *testing.T) string {
	h, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestConfinedEndsWithAllItStarted(t *testing.T) {
	root := system(t)
	began := time.Now()
	_, err := confined(t, root, "sleep 1000 & setsid sleep 1000 & sleep 1000", 500*time.Millisecond)
	if err == nil || time.Since(began) > time.Minute {
		t.Fatalf("a program that does not end = %v after %v; want it stopped", err, time.Since(began))
	}
	found := func() (left []string) {
		all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, p := range all {
			if b, _ := os.ReadFile(p); string(b) == "sleep\x001000\x00" {
				left = append(left, p)
			}
		}
		return left
	}
	for end := time.Now().Add(time.Minute); len(found()) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("processes are left: %v", found())
		}
	}
}

func TestConfinedSaysWhyItDidNotStart(t *testing.T) {
	if os.Getuid() != 0 {
		tier.Missing(t, "root", "not root")
	}
	res, err := confined(t, t.TempDir(), "true", time.Minute)
	if err == nil || !strings.Contains(res.Output, "the tree has no directory /proc") {
		t.Errorf("a tree that is none = %q, %v; want the reason", res.Output, err)
	}
}
