// Package debpkg fetches Debian packages at build time and unpacks them
// without installing them: the host's apt works on a private directory, so
// neither the host's package lists nor its installed packages take part.
//
// Signatures are apt's business: the only key ring it is given is that of the
// host's debian-archive-keyring package. Every file is also compared with the
// SHA-256 of the signed index before it is unpacked.
//
// It needs root's apt-get, apt-cache and dpkg-deb, nothing else. A Repo is not
// for concurrent use, and two processes must not share a directory.
package debpkg

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// keyring is what every repository must be signed with.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// Config says where a Repo lives and what it reads.
type Config struct {
	// Dir holds the private package lists and resolutions. It is made if absent.
	Dir string
	// Debs holds the package files; several Repos may share it.
	Debs string
	// Suite is a code name such as "bookworm".
	Suite string
	// Updates adds the suite's -updates and -security archives.
	Updates bool
	// Component is "main" if empty; the parts of Debian's installer are in
	// "main/debian-installer".
	Component string
	// Mirror is the URL of a Debian archive; empty takes the one the host's apt
	// is configured with.
	Mirror string
	// MaxAge is how old the package lists may be before they are fetched
	// again; zero means 12 hours. Lists that cannot be refreshed are used as
	// they are.
	MaxAge time.Duration
}

// Package is one file of the archive.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"` // with its epoch, if any
	File    string `json:"file"`    // base name, as apt stores it
	Bytes   int64  `json:"bytes"`
	SHA256  string `json:"sha256"` // 64 lower-case hex digits
}

// Repo is a suite of the archive with its lists at hand.
type Repo struct {
	cfg   Config
	lists string // digest of the lists' release files
}

// Open prepares cfg.Dir and fetches the package lists if they are missing or
// older than cfg.MaxAge. stale is the reason why old lists are in use, if so.
func Open(ctx context.Context, cfg Config) (r *Repo, stale error, err error) {
	if cfg.MaxAge == 0 {
		cfg.MaxAge = 12 * time.Hour
	}
	cfg.Component = cmp.Or(cfg.Component, "main")
	r = &Repo{cfg: cfg}
	for _, d := range []string{"etc/apt.conf.d", "etc/preferences.d", "etc/sources.list.d", "etc/trusted.gpg.d", "lists/partial", "cache/archives/partial", "resolved"} {
		if err := os.MkdirAll(filepath.Join(cfg.Dir, d), 0o755); err != nil {
			return nil, nil, fmt.Errorf("make apt directory: %w", err)
		}
	}
	if err := os.MkdirAll(cfg.Debs, 0o755); err != nil {
		return nil, nil, fmt.Errorf("make package directory: %w", err)
	}
	if err := os.WriteFile(r.path("status"), nil, 0o644); err != nil {
		return nil, nil, fmt.Errorf("write package status: %w", err)
	}
	if _, err := os.Stat(keyring); err != nil {
		return nil, nil, fmt.Errorf("find archive keys: %w (install debian-archive-keyring)", err)
	}
	if err := r.refresh(ctx, &stale); err != nil {
		return nil, nil, err
	}
	if r.lists, err = r.digestLists(); err != nil {
		return nil, nil, err
	}
	return r, stale, nil
}

// refresh fetches the package lists unless they are of this configuration and
// young enough.
func (r *Repo) refresh(ctx context.Context, stale *error) error {
	heading := fmt.Sprintf("# suite %s %s, updates %t, mirror %q\n", r.cfg.Suite, r.cfg.Component, r.cfg.Updates, r.cfg.Mirror)
	old, _ := os.ReadFile(r.path("etc/sources.list"))
	info, err := os.Stat(r.path("fresh"))
	known := err == nil && bytes.HasPrefix(old, []byte(heading))
	if known && time.Since(info.ModTime()) < r.cfg.MaxAge {
		return nil
	}
	sources, err := sourcesList(ctx, r.cfg)
	if err != nil {
		return err
	}
	if err := os.WriteFile(r.path("etc/sources.list"), append([]byte(heading), sources...), 0o644); err != nil {
		return fmt.Errorf("write sources: %w", err)
	}
	if _, err := run(ctx, "", "/usr/bin/apt-get", r.args("update", "-qq", "--error-on=any")...); err != nil {
		err = fmt.Errorf("update package lists of %s: %w", r.cfg.Suite, err)
		if known && ctx.Err() == nil {
			*stale = err
			return nil
		}
		return err
	}
	if err := os.WriteFile(r.path("fresh"), nil, 0o644); err != nil {
		return fmt.Errorf("mark lists as fresh: %w", err)
	}
	return nil
}

// Resolve returns the packages named in exact, and those in closure together
// with everything they depend on (not what they recommend), sorted by name.
// The answer is remembered for as long as the lists do not change.
func (r *Repo) Resolve(ctx context.Context, closure, exact []string) ([]Package, error) {
	key := sha256.Sum256(fmt.Appendf(nil, "%s %q %q", r.lists, closure, exact))
	memo := r.path("resolved", hex.EncodeToString(key[:])+".json")
	var pkgs []Package
	if b, err := os.ReadFile(memo); err == nil && json.Unmarshal(b, &pkgs) == nil {
		return pkgs, nil
	}
	names := slices.Clone(exact)
	if len(closure) > 0 {
		out, err := run(ctx, "", "/usr/bin/apt-get", r.args(append([]string{"install", "-qq", "--print-uris", "--no-install-recommends"}, closure...)...)...)
		if err != nil {
			return nil, fmt.Errorf("resolve dependencies of %s: %w", strings.Join(closure, " "), err)
		}
		all, err := parseURIs(out)
		if err != nil {
			return nil, err
		}
		for _, p := range all {
			names = append(names, p.Name)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	// apt leaves out what it finds in the directory it runs in.
	out, err := run(ctx, r.path("resolved"), "/usr/bin/apt-get", r.args(append([]string{"download", "-qq", "--print-uris"}, names...)...)...)
	if err != nil {
		return nil, fmt.Errorf("find packages in %s: %w", r.cfg.Suite, err)
	}
	if pkgs, err = parseURIs(out); err != nil {
		return nil, err
	}
	if len(pkgs) != len(names) {
		return nil, fmt.Errorf("find packages in %s: %d of %d answered", r.cfg.Suite, len(pkgs), len(names))
	}
	for _, p := range pkgs {
		if len(p.SHA256) != 2*sha256.Size {
			return nil, fmt.Errorf("find packages in %s: no SHA-256 for %s", r.cfg.Suite, p.Name)
		}
	}
	slices.SortFunc(pkgs, func(a, b Package) int { return strings.Compare(a.Name, b.Name) })
	b, err := json.Marshal(pkgs)
	if err != nil {
		return nil, fmt.Errorf("encode packages: %w", err)
	}
	if err := os.WriteFile(memo, b, 0o644); err != nil {
		return nil, fmt.Errorf("remember packages: %w", err)
	}
	return pkgs, nil
}

// Dependency returns the first package that name depends on whose own name
// starts with prefix. It sees through meta packages such as linux-image-amd64.
func (r *Repo) Dependency(ctx context.Context, name, prefix string) (string, error) {
	memo := r.path("resolved", r.lists+"-"+name+"-"+prefix)
	if b, err := os.ReadFile(memo); err == nil {
		return string(b), nil
	}
	out, err := run(ctx, "", "/usr/bin/apt-cache", r.args("show", "--no-all-versions", name)...)
	if err != nil {
		return "", fmt.Errorf("show package %s: %w", name, err)
	}
	for line := range strings.Lines(string(out)) {
		list, ok := strings.CutPrefix(line, "Depends:")
		if !ok {
			continue
		}
		for dep := range strings.SplitSeq(list, ",") {
			dep, _, _ = strings.Cut(strings.TrimSpace(dep), " ")
			if strings.HasPrefix(dep, prefix) {
				if err := os.WriteFile(memo, []byte(dep), 0o644); err != nil {
					return "", fmt.Errorf("remember dependency: %w", err)
				}
				return dep, nil
			}
		}
	}
	return "", fmt.Errorf("show package %s: depends on no %s*", name, prefix)
}

// Fetch makes sure that every package's file is in the package directory and
// is what the signed index says.
func (r *Repo) Fetch(ctx context.Context, pkgs []Package) error {
	var want []string
	for _, p := range pkgs {
		if p.check(r.cfg.Debs) != nil {
			want = append(want, p.Name+"="+p.Version)
		}
	}
	if len(want) == 0 {
		return nil
	}
	if _, err := run(ctx, r.cfg.Debs, "/usr/bin/apt-get", r.args(append([]string{"download", "-qq"}, want...)...)...); err != nil {
		return fmt.Errorf("download packages: %w", err)
	}
	for _, p := range pkgs {
		if err := p.check(r.cfg.Debs); err != nil {
			return fmt.Errorf("check package %s: %w", p.Name, err)
		}
	}
	return nil
}

// Unpack extracts the files of a fetched package below dir. Maintainer scripts
// do not run.
func (r *Repo) Unpack(ctx context.Context, p Package, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	if _, err := run(ctx, "", "/usr/bin/dpkg-deb", "-x", filepath.Join(r.cfg.Debs, p.File), dir); err != nil {
		return fmt.Errorf("unpack package %s: %w", p.Name, err)
	}
	return nil
}

// check compares the file below dir with the index.
func (p Package) check(dir string) error {
	f, err := os.Open(filepath.Join(dir, p.File))
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return fmt.Errorf("read package file: %w", err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); n != p.Bytes || got != p.SHA256 {
		return fmt.Errorf("%s has %d bytes and digest %s; the index says %d and %s", p.File, n, got, p.Bytes, p.SHA256)
	}
	return nil
}

func (r *Repo) path(elem ...string) string {
	return filepath.Join(append([]string{r.cfg.Dir}, elem...)...)
}

// args puts the options before a command that keep apt inside r's directory.
// The host's own apt.conf still applies, so its proxy does too.
func (r *Repo) args(command ...string) []string {
	options := []string{
		"Dir::Etc=" + r.path("etc"),
		"Dir::Etc::sourcelist=" + r.path("etc/sources.list"),
		"Dir::Etc::netrc=/etc/apt/auth.conf",
		"Dir::Etc::netrcparts=/etc/apt/auth.conf.d",
		"Dir::State::lists=" + r.path("lists"),
		"Dir::State::status=" + r.path("status"),
		"Dir::State::extended_states=" + r.path("extended_states"),
		"Dir::Cache=" + r.path("cache"),
		"APT::Architecture=amd64",
		"APT::Architectures::=amd64",
		// apt's download user could not write below a private directory.
		"APT::Sandbox::User=root",
		"APT::Update::Post-Invoke::=",
		"Acquire::Languages=none",
		"Acquire::Retries=3",
		"Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
		"Acquire::IndexTargets::deb::CNF::DefaultEnabled=false",
	}
	args := make([]string, 0, 2*len(options)+len(command))
	for _, o := range options {
		args = append(args, "-o", o)
	}
	return append(args, command...)
}

// digestLists covers the signed release files, which cover everything else.
func (r *Repo) digestLists() (string, error) {
	names, err := filepath.Glob(r.path("lists", "*Release"))
	if err != nil || len(names) == 0 {
		return "", fmt.Errorf("read package lists of %s: %w", r.cfg.Suite, errors.Join(err, os.ErrNotExist))
	}
	h := sha256.New()
	for _, name := range names { // Glob sorts
		b, err := os.ReadFile(name)
		if err != nil {
			return "", fmt.Errorf("read package list: %w", err)
		}
		fmt.Fprintf(h, "%s %d\n", filepath.Base(name), len(b))
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil))[:32], nil
}

// parseURIs reads apt's --print-uris lines: 'url' file bytes [hash:value].
func parseURIs(out []byte) ([]Package, error) {
	var pkgs []Package
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 3 || !strings.HasPrefix(f[0], "'") {
			continue
		}
		part := strings.Split(strings.TrimSuffix(f[1], ".deb"), "_")
		size, err := strconv.ParseInt(f[2], 10, 64)
		if len(part) != 3 || err != nil {
			return nil, fmt.Errorf("read apt's answer: unexpected line %q", lines.Text())
		}
		p := Package{Name: part[0], Version: strings.ReplaceAll(part[1], "%3a", ":"), File: f[1], Bytes: size}
		if len(f) > 3 {
			p.SHA256, _ = strings.CutPrefix(f[3], "SHA256:")
		}
		pkgs = append(pkgs, p)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read apt's answer: %w", err)
	}
	return pkgs, nil
}
