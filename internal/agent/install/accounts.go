package install

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/lpmos/lpmos"
)

// account is a user of the installed system.
type account struct{ uid, gid int }

// Numbers of people begin here (login.defs: UID_MIN, UID_MAX).
const (
	firstUID = 1000
	lastUID  = 60000
)

// table is one of /etc/passwd, group, shadow and gshadow: lines of fields that
// colons part. Lines that are not understood stay as they are.
type table struct {
	path  string
	lines []string
	mode  fs.FileMode
	gid   int // group of the file: shadow is root's or shadow's
}

// maxTable bounds an account file.
const maxTable = 4 << 20

func (t tree) readTable(name string, must bool) (*table, error) {
	f, st, err := openFile(t.Root, name)
	if errors.Is(err, fs.ErrNotExist) && !must {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st.Size() > maxTable {
		return nil, fmt.Errorf("/%s is not an account file: it has %s", name, lpmos.FormatBytes(st.Size()))
	}
	text, err := io.ReadAll(io.LimitReader(f, maxTable))
	if err != nil {
		return nil, err
	}
	out := &table{path: name, mode: st.Mode().Perm(), gid: groupOf(st)}
	if s := strings.TrimSuffix(string(text), "\n"); s != "" {
		out.lines = strings.Split(s, "\n")
	}
	return out, nil
}

// find is the line of a name, -1 without one.
func (t *table) find(name string) int {
	return slices.IndexFunc(t.lines, func(l string) bool { return strings.HasPrefix(l, name+":") })
}

// numbers are those in a field, of all lines.
func (t *table) numbers(field int) map[int]bool {
	out := map[int]bool{}
	for _, l := range t.lines {
		if f := strings.Split(l, ":"); len(f) > field {
			if n, err := strconv.Atoi(f[field]); err == nil {
				out[n] = true
			}
		}
	}
	return out
}

// join adds a name to the members in the last field of a line.
func (t *table) join(at int, name string) {
	f := strings.Split(t.lines[at], ":")
	var members []string
	if last := f[len(f)-1]; last != "" {
		members = strings.Split(last, ",")
	}
	if !slices.Contains(members, name) {
		f[len(f)-1] = strings.Join(append(members, name), ",")
	}
	t.lines[at] = strings.Join(f, ":")
}

// addUsers adds the accounts of a plan and returns them; cloud-init, where the
// image has it, adds them itself.
func (t tree) addUsers(job *Job, cloudInit bool) (map[string]account, error) {
	users, s := map[string]account{}, job.Plan.Effect.System
	if s == nil || len(s.Users) == 0 || cloudInit {
		return users, nil
	}
	passwd, err := t.readTable("etc/passwd", true)
	if err != nil {
		return nil, err
	}
	group, err := t.readTable("etc/group", true)
	if err != nil {
		return nil, err
	}
	shadow, err := t.readTable("etc/shadow", false)
	if err != nil {
		return nil, err
	}
	gshadow, err := t.readTable("etc/gshadow", false)
	if err != nil {
		return nil, err
	}
	addGroup := func(name string, gid int) {
		group.lines = append(group.lines, fmt.Sprintf("%s:x:%d:", name, gid))
		if gshadow != nil && gshadow.find(name) < 0 {
			gshadow.lines = append(gshadow.lines, name+":!::")
		}
	}
	free := func() (int, error) {
		uids, gids := passwd.numbers(2), group.numbers(2)
		for n := firstUID; n <= lastUID; n++ {
			if !uids[n] && !gids[n] {
				return n, nil
			}
		}
		return 0, errors.New("no number is free")
	}
	for _, u := range s.Users {
		if passwd.find(u.Name) >= 0 {
			return nil, &Failure{Code: "user_exists", Cause: "The image has an account " + u.Name + " already.", NextStep: "Give the user of the profile another name, then create the task again."}
		}
		n, err := free()
		if err != nil {
			return nil, err
		}
		a := account{uid: n, gid: n}
		if at := group.find(u.Name); at >= 0 {
			f := strings.Split(group.lines[at], ":")
			if len(f) < 4 {
				return nil, fmt.Errorf("/etc/group has a line %q", lpmos.Shorten(group.lines[at], 80))
			}
			if a.gid, err = strconv.Atoi(f[2]); err != nil {
				return nil, fmt.Errorf("/etc/group has a line %q", lpmos.Shorten(group.lines[at], 80))
			}
		} else {
			addGroup(u.Name, n)
		}
		home := "home/" + u.Name
		passwd.lines = append(passwd.lines, fmt.Sprintf("%s:x:%d:%d:%s:/%s:%s", u.Name, a.uid, a.gid, u.Gecos, home, t.shell(u.Shell)))
		if shadow != nil {
			// "!" is no password's hash. The day of the last change is left out,
			// which turns ageing off: the agent's clock may be anywhere.
			hash := "!"
			if u.Password {
				hash = job.Secrets[u.PasswordSecret()].Reveal()
				if lpmos.CheckPasswordHash(hash) != nil {
					return nil, &Failure{Code: "secrets_invalid", Cause: "The password of " + u.Name + " did not come with the permit.", NextStep: "Store the profile with the password hash again, then create the task again."}
				}
			}
			shadow.lines = append(shadow.lines, u.Name+":"+hash+"::0:99999:7:::")
		} else if u.Password {
			return nil, &Failure{Code: "image_unsuitable", Cause: "The image has no /etc/shadow, so the password of " + u.Name + " has no place.", NextStep: "Use another image, or an account without a password."}
		}
		for _, g := range u.Groups {
			if group.find(g) < 0 {
				gid, err := free()
				if err != nil {
					return nil, err
				}
				addGroup(g, gid)
			}
			group.join(group.find(g), u.Name)
			if gshadow != nil {
				if at := gshadow.find(g); at >= 0 {
					gshadow.join(at, u.Name)
				}
			}
		}
		if err := t.makeHome(home, a); err != nil {
			return nil, fmt.Errorf("make /%s: %w", home, err)
		}
		users[u.Name] = a
	}
	for _, f := range []*table{group, gshadow, passwd, shadow} {
		if f == nil {
			continue
		}
		if err := t.write(file{path: f.path, mode: f.mode, text: strings.Join(f.lines, "\n") + "\n"}, nil); err != nil {
			return nil, fmt.Errorf("write /%s: %w", f.path, err)
		}
		if err := t.Lchown(f.path, 0, f.gid); err != nil && os.Geteuid() == 0 {
			return nil, fmt.Errorf("write /%s: %w", f.path, err)
		}
	}
	return users, nil
}

// shell is the one asked for, or the one that every system has where that is
// not in the image: an account that nobody can use helps nobody.
func (t tree) shell(want string) string {
	if want == "" {
		want = "/bin/bash"
	}
	if _, err := t.Stat(strings.TrimPrefix(want, "/")); err != nil {
		return "/bin/sh"
	}
	return want
}

// makeHome makes a home directory with what the image has in /etc/skel:
// regular files and directories, nothing else.
func (t tree) makeHome(home string, a account) error {
	if err := t.makeOwned(home, 0o750, a); err != nil {
		return err
	}
	skel, err := t.OpenRoot("etc/skel")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer skel.Close()
	return fs.WalkDir(skel.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case name == ".":
			return nil
		case d.IsDir():
			return t.makeOwned(path.Join(home, name), 0o755, a)
		case !d.Type().IsRegular():
			return nil
		}
		info, err := d.Info()
		if err != nil || info.Size() > 1<<20 {
			return err
		}
		text, err := fs.ReadFile(skel.FS(), name)
		if err != nil {
			return err
		}
		to := path.Join(home, name)
		if err := t.write(file{path: to, mode: info.Mode().Perm(), text: string(text)}, nil); err != nil {
			return err
		}
		return t.own(to, a)
	})
}

// makeOwned makes a directory that belongs to an account. Directories above it
// are root's.
func (t tree) makeOwned(dir string, mode fs.FileMode, a account) error {
	if err := t.MkdirAll(path.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := t.Mkdir(dir, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	st, err := t.Lstat(dir)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return fmt.Errorf("/%s is not a directory", dir)
	}
	if err := t.Chmod(dir, mode); err != nil {
		return err
	}
	return t.own(dir, a)
}

// own gives a file to an account. Only a test is not root.
func (t tree) own(name string, a account) error {
	if err := t.Lchown(name, a.uid, a.gid); err != nil && os.Geteuid() == 0 {
		return err
	}
	return nil
}

// wanted reports whether what a file depends on is as it wants.
func (t tree) wanted(f file) bool {
	has := func(name string) bool {
		_, err := t.Stat(strings.TrimPrefix(name, "/"))
		return err == nil
	}
	return (f.when == "" || has(f.when)) && (f.unless == "" || !has(f.unless))
}

// freshHostKeys removes the host keys of an image, which everybody has who has
// the image. Where no cloud-init makes new ones, one is made here.
func (t tree) freshHostKeys(m *lpmos.ImageManifest) error {
	dir, err := t.Open("etc/ssh")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	dir.Close()
	if err != nil {
		return err
	}
	for _, n := range names {
		if strings.HasPrefix(n, "ssh_host_") {
			if err := t.clear("etc/ssh/" + n); err != nil {
				return err
			}
		}
	}
	if m.CloudInit || !slices.Contains(names, "sshd_config") {
		return nil
	}
	private, public, err := newHostKey()
	if err != nil {
		return err
	}
	const name = "etc/ssh/ssh_host_ed25519_key"
	if err := t.write(file{path: name, mode: 0o600, text: private}, nil); err != nil {
		return err
	}
	return t.write(file{path: name + ".pub", mode: 0o644, text: public}, nil)
}

// newHostKey makes an Ed25519 key as ssh-keygen does (OpenSSH, PROTOCOL.key),
// without a passphrase.
func newHostKey() (private, public string, err error) {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", "", err
	}
	const kind = "ssh-ed25519"
	str := func(b []byte, s string) []byte {
		return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
	}
	blob := str(str(nil, kind), string(pub))
	var check [4]byte
	if _, err := rand.Read(check[:]); err != nil {
		return "", "", err
	}
	inner := append(slices.Clone(check[:]), check[:]...)
	inner = str(str(str(inner, kind), string(pub)), string(priv))
	inner = str(inner, "") // the comment
	for i := byte(1); len(inner)%8 != 0; i++ {
		inner = append(inner, i)
	}
	outer := []byte("openssh-key-v1\x00")
	outer = str(str(str(outer, "none"), "none"), "")
	outer = binary.BigEndian.AppendUint32(outer, 1)
	outer = str(str(outer, string(blob)), string(inner))
	var b bytes.Buffer
	if err := pem.Encode(&b, &pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: outer}); err != nil {
		return "", "", err
	}
	return b.String(), kind + " " + base64.StdEncoding.EncodeToString(blob) + "\n", nil
}

// groupOf is the group that a file belongs to.
func groupOf(st fs.FileInfo) int {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return int(sys.Gid)
	}
	return 0
}
