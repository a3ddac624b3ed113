package bootimage

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// requiredModules must exist as a module or in the kernel itself, in every
// flavour; without one of them no machine installs.
var requiredModules = []string{
	"virtio_pci", "virtio_net", "virtio_blk", "virtio_scsi", "nvme", "sd_mod",
	"ext4", "vfat", "nls_cp437", "nls_ascii", "efivarfs", "loop",
}

// wantedModules are taken where the flavour has them: the "cloud" kernel lacks
// the drivers of real servers.
var wantedModules = []string{
	// Virtual machines.
	"virtio_balloon", "virtio_mmio", "virtio_rng", "ahci", "ata_piix", "ata_generic", "sr_mod", "sg",
	"e1000", "e1000e", "vmxnet3", "vmw_pvscsi", "mptspi", "mptsas", "hv_netvsc", "hv_storvsc",
	// Filesystems, and what mounting them asks for.
	"xfs", "btrfs", "overlay", "squashfs", "isofs", "nls_utf8", "nls_iso8859_1",
	// What makes their checksums fast, where the processor can do it.
	"crc32c_intel", "crct10dif_pclmul",
	// Firmware tables: the BIOS disk order.
	"edd",
	// Block layers.
	"dm_mod", "dm_crypt", "xts", "ecb", "algif_skcipher", "aesni_intel", "dm_thin_pool", "raid0", "raid1", "raid10", "raid456", "nvme_tcp",
	// Network cards of servers.
	"igb", "igbvf", "igc", "ixgbe", "ixgbevf", "i40e", "iavf", "ice", "tg3", "bnx2", "bnxt_en", "bnx2x", "be2net",
	"mlx4_en", "mlx5_core", "qede", "r8169", "enic", "cxgb4", "sfc", "atlantic", "ena", "8021q", "bonding",
	// Storage controllers of servers.
	"megaraid_sas", "mpt3sas", "hpsa", "smartpqi", "aacraid", "qla2xxx", "lpfc", "isci", "arcmsr", "vmd",
	// Management, trusted platform module, console keyboard, USB disks.
	"ipmi_si", "ipmi_devintf", "ipmi_ssif", "tpm_tis", "tpm_crb",
	"xhci_pci", "ehci_pci", "uhci_hcd", "ohci_pci", "usbhid", "hid_generic", "usb_storage", "uas",
}

// impliedModules are needed at run time by modules that do not say so: the
// kernel would ask /sbin/modprobe, and an initramfs of ours has none. FAT reads
// its names through the kernel's default tables (CONFIG_FAT_DEFAULT_CODEPAGE
// and CONFIG_FAT_DEFAULT_IOCHARSET).
var impliedModules = map[string][]string{
	"vfat": {"nls_cp437", "nls_ascii", "nls_utf8"},
}

// module is what .modinfo says of one kernel object.
type module struct {
	name    string // with underscores
	file    string // relative to the release's directory: kernel/fs/ext4/ext4.ko
	depends []string
	soft    []string // softdep "pre:", by name or alias
	aliases []string // shell patterns over modaliases
}

// moduleSet is every module of a kernel package.
type moduleSet struct {
	dir     string // …/lib/modules/<release>
	release string
	byName  map[string]*module
	builtin map[string]bool
	exact   map[string][]string // alias without wildcards → module names
	served  map[string]bool     // aliases of what the kernel has built in
}

// readModules reads the .modinfo of every module below root/lib/modules.
func readModules(root string) (*moduleSet, error) {
	dirs, err := filepath.Glob(filepath.Join(root, "lib/modules/*"))
	if err == nil && len(dirs) == 0 {
		dirs, err = filepath.Glob(filepath.Join(root, "usr/lib/modules/*"))
	}
	if err != nil || len(dirs) != 1 {
		return nil, fmt.Errorf("find kernel modules: %d releases below %s", len(dirs), root)
	}
	s := &moduleSet{dir: dirs[0], release: filepath.Base(dirs[0]), byName: map[string]*module{}, builtin: map[string]bool{}, exact: map[string][]string{}, served: map[string]bool{}}
	list, err := os.ReadFile(filepath.Join(s.dir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("read built-in modules: %w", err)
	}
	for line := range strings.Lines(string(list)) {
		s.builtin[moduleName(line)] = true
	}
	info, err := os.ReadFile(filepath.Join(s.dir, "modules.builtin.modinfo"))
	if err != nil {
		return nil, fmt.Errorf("read built-in modules: %w", err)
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if _, alias, ok := strings.Cut(string(field), ".alias="); ok {
			s.served[alias] = true
		}
	}
	err = filepath.WalkDir(filepath.Join(s.dir, "kernel"), func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, ".ko") {
			return err
		}
		m, err := readModule(name)
		if err != nil {
			return fmt.Errorf("read module %s: %w", d.Name(), err)
		}
		m.file = strings.TrimPrefix(name, s.dir+"/")
		s.byName[m.name] = m
		for _, a := range m.aliases {
			if !strings.ContainsAny(a, "*?[") {
				s.exact[a] = append(s.exact[a], m.name)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read kernel modules: %w", err)
	}
	if len(s.byName) == 0 {
		return nil, fmt.Errorf("read kernel modules: no uncompressed module below %s", s.dir)
	}
	return s, nil
}

// moduleName is the name modules.dep's readers compare: without directory and
// suffix, with underscores.
func moduleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(path.Base(strings.TrimSpace(file)), ".ko"), "-", "_")
}

func readModule(file string) (*module, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	return parseModinfo(moduleName(file), info), nil
}

// parseModinfo reads the NUL-separated key=value strings of a .modinfo section.
func parseModinfo(name string, info []byte) *module {
	m := &module{name: name}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		key, value, _ := strings.Cut(string(field), "=")
		switch key {
		case "depends":
			for dep := range strings.SplitSeq(value, ",") {
				if dep != "" {
					m.depends = append(m.depends, moduleName(dep))
				}
			}
		case "alias":
			m.aliases = append(m.aliases, value)
		case "softdep":
			pre := false
			for word := range strings.FieldsSeq(value) {
				switch {
				case word == "pre:":
					pre = true
				case word == "post:":
					pre = false
				case pre:
					m.soft = append(m.soft, word)
				}
			}
		}
	}
	return m
}

// needs lists the modules that m wants loaded before itself: what it links to,
// its soft dependencies, and impliedModules. What the kernel has built in or
// the package lacks (of the latter two kinds) is left out.
func (s *moduleSet) needs(m *module) ([]*module, error) {
	var need []*module
	for _, name := range m.depends {
		d, ok := s.byName[name]
		if !ok {
			return nil, fmt.Errorf("module %s depends on %s, which the package does not have", m.name, name)
		}
		need = append(need, d)
	}
	for _, soft := range append(slices.Clone(m.soft), impliedModules[m.name]...) {
		for _, name := range append([]string{moduleName(soft)}, s.providers(soft)...) {
			if d, ok := s.byName[name]; ok && d != m {
				need = append(need, d)
			}
		}
	}
	return need, nil
}

// providers lists the modules with this alias, none if the kernel itself
// provides it. Of several implementations of
// an algorithm only the generic one counts: the others refuse to load on some
// processors, which would look like a failed dependency; where they fit, the
// processor's own modalias brings them.
func (s *moduleSet) providers(alias string) []string {
	if s.served[alias] {
		return nil
	}
	names := s.exact[alias]
	if i := slices.IndexFunc(names, func(n string) bool { return strings.HasSuffix(n, "_generic") }); i >= 0 {
		return names[i : i+1]
	}
	return names
}

// order returns everything m needs, in the order in which it must be loaded,
// without m.
func (s *moduleSet) order(m *module) ([]*module, error) {
	var list []*module
	seen := map[*module]bool{m: true}
	var visit func(*module) error
	visit = func(m *module) error {
		need, err := s.needs(m)
		if err != nil {
			return err
		}
		for _, d := range need {
			if seen[d] {
				continue
			}
			seen[d] = true
			if err := visit(d); err != nil {
				return err
			}
			list = append(list, d)
		}
		return nil
	}
	return list, visit(m)
}

// pick returns the required and wanted modules with everything they need, by
// name, and the wanted ones that this kernel does not have.
func (s *moduleSet) pick() (chosen map[string]*module, absent []string, err error) {
	chosen = map[string]*module{}
	for i, name := range slices.Concat(requiredModules, wantedModules) {
		m, ok := s.byName[name]
		switch {
		case ok:
			deps, err := s.order(m)
			if err != nil {
				return nil, nil, err
			}
			chosen[m.name] = m
			for _, d := range deps {
				chosen[d.name] = d
			}
		case s.builtin[name]:
		case i < len(requiredModules):
			return nil, nil, fmt.Errorf("kernel %s has no %s", s.release, name)
		default:
			absent = append(absent, name)
		}
	}
	return chosen, absent, nil
}

// stage puts the chosen modules and their indexes into t.
//
// modules.dep has a line "file: dep dep …" for each module in the form depmod
// writes: paths relative to the release's directory, all dependencies, to be
// loaded from the last to the first. Unlike depmod's it includes soft
// dependencies, so following it is all a loader has to do. modules.alias has
// "alias pattern module"; the pattern is a glob as in fnmatch(3).
func (s *moduleSet) stage(t tree, chosen map[string]*module) error {
	root := "/usr/lib/modules/" + s.release
	var dep, alias strings.Builder
	for _, name := range slices.Sorted(maps.Keys(chosen)) {
		m := chosen[name]
		b, err := os.ReadFile(filepath.Join(s.dir, m.file))
		if err != nil {
			return fmt.Errorf("read module: %w", err)
		}
		t.file(root+"/"+m.file, 0o644, b)
		order, err := s.order(m)
		if err != nil {
			return err
		}
		dep.WriteString(m.file + ":")
		for _, d := range slices.Backward(order) {
			dep.WriteString(" " + d.file)
		}
		dep.WriteString("\n")
		for _, a := range m.aliases {
			fmt.Fprintf(&alias, "alias %s %s\n", a, m.name)
		}
	}
	t.file(root+"/modules.dep", 0o644, []byte(dep.String()))
	t.file(root+"/modules.alias", 0o644, []byte(alias.String()))
	var builtin strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s.builtin)) {
		builtin.WriteString(name + "\n")
	}
	t.file(root+"/modules.builtin", 0o644, []byte(builtin.String()))
	return nil
}
