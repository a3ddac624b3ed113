package install

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/tier"
)

// image is a tree with account files as Debian has them.
func accountTree(t *testing.T) (tree, string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"etc/passwd":  "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/:/usr/sbin/nologin\ndebian:x:1000:1000::/home/debian:/bin/bash\n",
		"etc/group":   "root:x:0:\nadm:x:4:syslog\nsudo:x:27:\ndebian:x:1000:\nwheel:x:1001:\n",
		"etc/shadow":  "root:*:19000:0:99999:7:::\n",
		"etc/gshadow": "root:*::\nadm:*::syslog\nsudo:*::\n",
		"bin/sh":      "", "etc/skel/.profile": "umask 027\n", "etc/skel/.config/a": "b", "etc/ssh/ssh_host_rsa_key": "everybody's", "etc/ssh/ssh_host_rsa_key.pub": "x", "etc/ssh/sshd_config": "",
	} {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return tree{root}, dir
}

// setupJob is an attempt whose plan configures s.
func setupJob(s *lpmos.Setup) *Job {
	return &Job{Plan: &lpmos.Plan{Effect: lpmos.Effect{System: s}}, Secrets: map[string]lpmos.Secret{"password.ops": lpmos.NewSecret(passwordHash)}}
}

func TestAddUsers(t *testing.T) {
	tr, dir := accountTree(t)
	s := &lpmos.Setup{Users: []lpmos.Account{
		{Name: "ops", Gecos: "Operations", Groups: []string{"adm", "docker"}, Shell: "/bin/sh"},
		{Name: "app", Shell: "/bin/zsh"},
	}}
	users, err := tr.addUsers(setupJob(s), false)
	if err != nil {
		t.Fatal(err)
	}
	if users["ops"] != (account{1002, 1002}) || users["app"].uid <= 1002 {
		t.Errorf("accounts %+v; want numbers that neither a user nor a group has", users)
	}
	text := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for name, want := range map[string]string{
		"etc/passwd": "debian:x:1000:1000::/home/debian:/bin/bash\nops:x:1002:1002:Operations:/home/ops:/bin/sh\napp:x:1004:1004::/home/app:/bin/sh\n",
		"etc/group":  "adm:x:4:syslog,ops\n", "etc/shadow": "root:*:19000:0:99999:7:::\nops:!::0:99999:7:::\napp:!::0:99999:7:::\n", "etc/gshadow": "adm:*::syslog,ops\n",
		"home/ops/.profile": "umask 027\n", "home/ops/.config/a": "b",
	} {
		if got := text(name); !strings.Contains(got, want) {
			t.Errorf("%s is\n%s\nwithout\n%s", name, got, want)
		}
	}
	if got := text("etc/group"); !strings.Contains(got, "docker:x:1003:ops\n") || !strings.Contains(got, "app:x:1004:\n") {
		t.Errorf("groups\n%s", got)
	}
	if st, err := os.Stat(filepath.Join(dir, "etc/shadow")); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("mode of shadow %v, %v; want that of the image", st.Mode(), err)
	}
	if st, err := os.Stat(filepath.Join(dir, "home/ops")); err != nil || st.Mode().Perm() != 0o750 {
		t.Errorf("mode of the home %v, %v", st.Mode(), err)
	}
	if err := tr.write(file{path: "home/ops/.ssh/authorized_keys", mode: 0o600, dirMode: 0o700, owner: "ops", text: "key\n"}, users); err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(filepath.Join(dir, "home/ops/.ssh")); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf(".ssh: %v, %v", st, err)
	}
	if _, err := tr.addUsers(setupJob(&lpmos.Setup{Users: []lpmos.Account{{Name: "debian"}}}), false); failureCode(err) != "user_exists" {
		t.Errorf("an account that is there: %v; want user_exists", err)
	}
	if users, err := tr.addUsers(setupJob(&lpmos.Setup{Users: []lpmos.Account{{Name: "other"}}}), true); err != nil || len(users) != 0 || strings.Contains(text("etc/passwd"), "other") {
		t.Errorf("cloud-init's accounts were added, too: %v, %v", users, err)
	}
}

func TestAddUsersFollowsNoLink(t *testing.T) {
	tr, dir := accountTree(t)
	outside := filepath.Join(t.TempDir(), "passwd")
	os.WriteFile(outside, []byte("root:x:0:0::/:/bin/sh\n"), 0o600)
	os.Remove(filepath.Join(dir, "etc/passwd"))
	if err := os.Symlink(outside, filepath.Join(dir, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.addUsers(setupJob(&lpmos.Setup{Users: []lpmos.Account{{Name: "ops"}}}), false); err == nil {
		t.Error("a link out of the image was followed")
	}
	if b, _ := os.ReadFile(outside); strings.Contains(string(b), "ops") {
		t.Error("a file outside of the image was changed")
	}
	home := filepath.Join(dir, "home")
	os.RemoveAll(home)
	os.Remove(filepath.Join(dir, "etc/passwd"))
	os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0::/:/bin/sh\n"), 0o644)
	if err := os.Symlink(filepath.Dir(outside), home); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.addUsers(setupJob(&lpmos.Setup{Users: []lpmos.Account{{Name: "ops"}}}), false); err == nil {
		t.Error("a home was made outside of the image")
	}
}

// Nobody writes to the other end of a FIFO of an image.
func TestAccountFileThatIsNone(t *testing.T) {
	tr, dir := accountTree(t)
	for _, name := range []string{"etc/passwd", "etc/gshadow"} {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.Remove(p), syscall.Mkfifo(p, 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := tr.addUsers(setupJob(&lpmos.Setup{Users: []lpmos.Account{{Name: "ops"}}}), false); err == nil || !strings.Contains(err.Error(), name+": is not a file") {
			t.Errorf("addUsers with a FIFO as %s = %v; want that it is not a file", name, err)
		}
		if err := errors.Join(os.Remove(p), os.WriteFile(p, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFreshHostKeys(t *testing.T) {
	tr, dir := accountTree(t)
	if err := tr.freshHostKeys(&lpmos.ImageManifest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "etc/ssh/ssh_host_rsa_key")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the image's key is still there: %v", err)
	}
	key := filepath.Join(dir, "etc/ssh/ssh_host_ed25519_key")
	pub, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	k, err := lpmos.ParseHostKey(string(pub))
	if err != nil {
		t.Fatalf("public key %q: %v", pub, err)
	}
	if st, err := os.Stat(key); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("private key: %v, %v", st, err)
	}
	keygen, err := exec.LookPath("ssh-keygen")
	if err != nil {
		tier.Missing(t, "tools", "there is no ssh-keygen to compare with")
	}
	out, err := exec.Command(keygen, "-y", "-f", key).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), k.Type+" "+k.Key) {
		t.Errorf("ssh-keygen -y = %q, %v; want %s", out, err, k.Key)
	}
	out, err = exec.Command(keygen, "-l", "-f", key+".pub").CombinedOutput()
	if err != nil || !strings.Contains(string(out), k.Fingerprint) {
		t.Errorf("ssh-keygen -l = %q, %v; want %s", out, err, k.Fingerprint)
	}
	// With cloud-init the first boot makes them.
	tr, dir = accountTree(t)
	if err := tr.freshHostKeys(&lpmos.ImageManifest{CloudInit: true}); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "etc/ssh/ssh_host_*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func TestPlannedFilesRefusesPaths(t *testing.T) {
	for _, p := range []lpmos.PlannedFile{
		{Path: "etc/x", Mode: "0644", Text: "a"}, {Path: "/../etc/x", Mode: "0644", Text: "a"}, {Path: "/etc//x", Mode: "0644", Text: "a"},
		{Path: "/", Mode: "0644", Text: "a"}, {Path: "/etc/x", Mode: "rw", Text: "a"}, {Path: "/etc/x", Mode: "99999", Text: "a"},
	} {
		if got, err := plannedFiles(&lpmos.Effect{Files: []lpmos.PlannedFile{p}}, nil); err == nil {
			t.Errorf("%+v becomes %+v; want an error", p, got)
		}
	}
	if got, err := plannedFiles(&lpmos.Effect{Files: []lpmos.PlannedFile{{Path: "/etc/fstab", Mode: "0644"}, {Path: "/root/.ssh/a", Mode: "0600", Text: "a"}}}, nil); err != nil || len(got) != 1 || got[0].dirMode != 0o700 {
		t.Errorf("plannedFiles = %+v, %v", got, err)
	}
}
