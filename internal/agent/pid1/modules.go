package pid1

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// Modules knows which kernel module serves which device, and what it needs. It
// is read from modules.alias, modules.dep, and if they are there
// modules.softdep and modules.builtin (depmod(8), modules.dep(5)).
type Modules struct {
	files   map[string]string   // module name → file relative to the directory
	needs   map[string][]string // module name → module names or aliases to load before
	builtin map[string]bool

	// Patterns by what comes before their first wildcard. An alias is looked
	// up by each of its beginnings that has such a length, so that it meets a
	// few patterns instead of twenty thousand.
	patterns map[string][]pattern
	lengths  []int // of the beginnings, ascending
}

type pattern struct{ glob, module string }

// maxListBytes bounds each list; a distribution's modules.alias has 1.3 MB.
const maxListBytes = 32 << 20

// ReadModules reads the lists in dir, which is /lib/modules/<release>.
func ReadModules(dir fs.FS) (*Modules, error) {
	m := &Modules{files: map[string]string{}, needs: map[string][]string{}, builtin: map[string]bool{}, patterns: map[string][]pattern{}}
	read := func(name string) (string, error) {
		b, err := fs.ReadFile(dir, name)
		if len(b) > maxListBytes {
			return "", fmt.Errorf("%s has %d bytes", name, len(b))
		}
		return string(b), err
	}
	dep, err := read("modules.dep")
	if err != nil {
		return nil, fmt.Errorf("read modules.dep: %w", err)
	}
	for line := range strings.Lines(dep) {
		file, needs, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok || !filepath.IsLocal(file) {
			continue
		}
		name := moduleName(file)
		m.files[name] = file
		for _, n := range strings.Fields(needs) {
			m.needs[name] = append(m.needs[name], moduleName(n))
		}
		// What is needed by more comes later in the list and first in life.
		slices.Reverse(m.needs[name])
	}
	alias, err := read("modules.alias")
	if err != nil {
		return nil, fmt.Errorf("read modules.alias: %w", err)
	}
	lengths := map[int]bool{}
	for line := range strings.Lines(alias) {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] != "alias" {
			continue
		}
		glob := dashless(f[1])
		start, _, _ := cutAny(glob, "*?[\\")
		m.patterns[start] = append(m.patterns[start], pattern{glob, moduleName(f[2])})
		lengths[len(start)] = true
	}
	m.lengths = slices.Sorted(maps.Keys(lengths))
	// The two others are conveniences: a soft dependency may also be among the
	// hard ones, and what is built in fails to be found, which is harmless.
	soft, _ := read("modules.softdep")
	for line := range strings.Lines(soft) {
		f := strings.Fields(line)
		if len(f) < 3 || f[0] != "softdep" {
			continue
		}
		name, before := moduleName(f[1]), false
		for _, w := range f[2:] {
			switch w {
			case "pre:", "post:":
				before = w == "pre:"
			default:
				if before {
					m.needs[name] = append(m.needs[name], w)
				}
			}
		}
	}
	builtin, _ := read("modules.builtin")
	for line := range strings.Lines(builtin) {
		m.builtin[moduleName(strings.TrimSpace(line))] = true
	}
	return m, nil
}

// cutAny is strings.Cut at the first of some bytes.
func cutAny(s, chars string) (before, after string, found bool) {
	if i := strings.IndexAny(s, chars); i >= 0 {
		return s[:i], s[i:], true
	}
	return s, "", false
}

// moduleName is the name of a module file: without directory and suffixes, and
// with underscores, because the kernel takes - and _ for the same.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// dashless replaces dashes outside brackets, where they are ranges.
func dashless(s string) string {
	b, depth := []byte(s), 0
	for i, c := range b {
		switch {
		case c == '[':
			depth++
		case c == ']' && depth > 0:
			depth--
		case c == '-' && depth == 0:
			b[i] = '_'
		}
	}
	return string(b)
}

// Match lists the modules for a modalias, a module alias or a module's own
// name, in the order of the lists, each once.
func (m *Modules) Match(alias string) []string {
	if name := strings.ReplaceAll(alias, "-", "_"); m.files[name] != "" {
		return []string{name}
	}
	alias = dashless(alias)
	var found []string
	for _, n := range m.lengths {
		if n > len(alias) {
			break
		}
		for _, p := range m.patterns[alias[:n]] {
			if !slices.Contains(found, p.module) && fnmatch(p.glob, alias) {
				found = append(found, p.module)
			}
		}
	}
	return found
}

// fnmatch is fnmatch(3) without flags: * matches slashes too. Its time is
// bounded by the product of both lengths, because only the last star is ever
// tried again.
func fnmatch(glob, s string) bool {
	g, i := 0, 0
	star, retry := -1, 0
	for i < len(s) {
		if g < len(glob) && glob[g] == '*' {
			star, retry = g, i
			g++
			continue
		}
		if n, ok := matchOne(glob[g:], s[i]); ok {
			g, i = g+n, i+1
			continue
		}
		if star < 0 {
			return false
		}
		retry++
		g, i = star+1, retry
	}
	return strings.Trim(glob[g:], "*") == ""
}

// matchOne matches the first element of a pattern with one byte and returns
// how long the element is.
func matchOne(glob string, c byte) (n int, ok bool) {
	switch {
	case glob == "":
		return 0, false
	case glob[0] == '?':
		return 1, true
	case glob[0] == '\\' && len(glob) > 1:
		return 2, glob[1] == c
	case glob[0] == '[':
		end := strings.IndexByte(glob[1:], ']')
		if end <= 0 {
			break
		}
		set := glob[1 : 1+end]
		not := set[0] == '!' || set[0] == '^'
		if not {
			set = set[1:]
		}
		in := false
		for i := 0; i < len(set); i++ {
			if i+2 < len(set) && set[i+1] == '-' {
				in = in || set[i] <= c && c <= set[i+2]
				i += 2
			} else {
				in = in || set[i] == c
			}
		}
		return end + 2, in != not
	}
	return 1, glob[0] == c
}

// loader loads modules and remembers which.
type loader struct {
	modules *Modules
	dir     string
	insert  func(file string) error
	log     *slog.Logger

	loaded map[string]bool // false: tried in vain
}

// load loads what an alias or name stands for and what that needs. A module
// that cannot be loaded is logged; the machine may not need it.
func (l *loader) load(alias string) {
	for _, name := range l.modules.Match(alias) {
		l.module(name)
	}
}

func (l *loader) module(name string) {
	if l.loaded == nil {
		l.loaded = map[string]bool{}
	}
	if _, tried := l.loaded[name]; tried || l.modules.builtin[name] {
		return
	}
	file, ok := l.modules.files[name]
	if !ok {
		return
	}
	l.loaded[name] = false // also ends a circle of soft dependencies
	for _, n := range l.modules.needs[name] {
		l.load(n)
	}
	began := time.Now()
	err := l.insert(filepath.Join(l.dir, file))
	if took := time.Since(began); took >= slowModule {
		l.log.Info("module took long", "file", file, "took", took.Round(time.Millisecond))
	}
	switch {
	case err == nil || errors.Is(err, syscall.EEXIST):
		l.loaded[name] = true
	case errors.Is(err, syscall.ENODEV):
		// The module looked and there is nothing for it: a driver for a
		// processor feature, for example.
		l.log.Debug("load module", "file", file, "err", err)
	default:
		l.log.Warn("load module", "file", file, "err", err)
	}
}

// slowModule is worth a line: loading waits until the driver has looked at its
// devices, and a card without firmware can take a minute.
const slowModule = time.Second

const (
	coldplugRounds = 16
	coldplugPause  = 100 * time.Millisecond
)

// coldplug loads modules for all devices, again while that makes new devices
// appear: a bus driver finds the cards behind it.
func (l *loader) coldplug(ctx context.Context, sys fs.FS) {
	seen := map[string]bool{}
	for range coldplugRounds {
		fresh := 0
		for _, alias := range modaliases(sys) {
			if !seen[alias] {
				seen[alias] = true
				fresh++
				l.load(alias)
			}
		}
		if fresh == 0 {
			return
		}
		// A device is often announced by a kernel thread just after the
		// module's loading returns.
		select {
		case <-time.After(coldplugPause):
		case <-ctx.Done():
			return
		}
	}
}

// modaliases are those of all devices on a bus, and of the processor. That is
// every modalias below /sys/devices that a module may serve, without walking
// the tens of thousands of directories there.
func modaliases(sys fs.FS) []string {
	var all []string
	add := func(name string) {
		if b, err := fs.ReadFile(sys, name); err == nil {
			for alias := range strings.Lines(string(b)) {
				if a := strings.TrimSpace(alias); a != "" {
					all = append(all, a)
				}
			}
		}
	}
	buses, _ := fs.ReadDir(sys, "bus")
	for _, bus := range buses {
		dir := "bus/" + bus.Name() + "/devices"
		devices, _ := fs.ReadDir(sys, dir)
		for _, d := range devices {
			add(dir + "/" + d.Name() + "/modalias")
		}
	}
	add("devices/system/cpu/modalias")
	slices.Sort(all)
	return slices.Compact(all)
}

// insertModule is finit_module(2).
func insertModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	const compressed = 4 // MODULE_INIT_COMPRESSED_FILE
	var flags uintptr
	if !strings.HasSuffix(file, ".ko") {
		flags = compressed
	}
	params := [1]byte{}
	if _, _, errno := syscall.Syscall(sysFinitModule, f.Fd(), uintptr(unsafe.Pointer(&params)), flags); errno != 0 {
		if errno == syscall.ENOENT { // of finit_module, not of a file
			return errors.New("a module it needs is not loaded")
		}
		return errno
	}
	return nil
}

// useAsModprobe makes the kernel call this program when it wants a module.
func useAsModprobe() error {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/kernel/modprobe", []byte(self), 0)
}

// modprobe loads what name stands for and returns the exit status. It says
// nothing: the kernel asks for much that does not exist.
func modprobe(name string) int {
	dir := "/lib/modules/" + release()
	m, err := ReadModules(os.DirFS(dir))
	if err != nil {
		return 1
	}
	l := &loader{modules: m, dir: dir, insert: insertModule, log: slog.New(slog.DiscardHandler)}
	l.load(name)
	for _, ok := range l.loaded {
		if ok {
			return 0
		}
	}
	return 1
}
