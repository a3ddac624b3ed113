package osimage

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// mergedUsr is mmdebstrap's own hook that makes /bin, /sbin and /lib links
// before the first package is unpacked, as debootstrap does.
const mergedUsr = "/usr/share/mmdebstrap/hooks/merged-usr"

// bootstrapSteps are the lines that mmdebstrap prints, by their beginning, and
// how far the build is when it does.
var bootstrapSteps = []struct {
	prefix  string
	step    string
	percent int
}{
	{"I: running apt-get update", "reading package lists", 1},
	{"I: downloading packages", "downloading packages", 5},
	{"I: extracting archives", "unpacking packages", 12},
	{"I: installing essential", "installing essential packages", 18},
	{"I: downloading apt", "installing apt", 25},
	{"I: installing remaining", "installing packages", 30},
	{"I: cleaning", "cleaning up", 78},
}

// bootstrap unpacks, and configures if the recipe wants so, the recipe's
// packages in the new directory root.
func (b *builder) bootstrap(ctx context.Context, root string) error {
	args := []string{
		"--mode=root", "--format=directory", "--variant=" + b.Variant, "--components=main", "--architectures=amd64",
		"--include=" + strings.Join(b.Packages, ","),
		`--aptopt=Apt::Install-Recommends "false"`,
		// What was downloaded is looked at afterwards and removed by finish.
		"--skip=cleanup/apt/lists",
	}
	if b.Variant != "extract" {
		// The initramfs is made while the kernel package is configured, so its
		// settings must be there before.
		laid := filepath.Join(b.work, "overlays")
		if strings.Contains(laid, "'") {
			return fmt.Errorf("use %s: mmdebstrap cannot be given a path with a quote in it", laid)
		}
		if err := os.Mkdir(laid, 0o755); err != nil {
			return err
		}
		for _, dir := range b.Overlays {
			if err := copyOverlay("files/"+dir, laid, b.Modes); err != nil {
				return err
			}
		}
		settings := filepath.Join(laid, "etc/initramfs-tools")
		if err := os.WriteFile(filepath.Join(settings, updateInitramfs), []byte("update_initramfs=no\n"), 0o644); err != nil {
			return err
		}
		args = append(args, "--dpkgopt="+filepath.Join(laid, "etc/dpkg/dpkg.cfg.d/image"),
			// A power failure costs a build, not a system; finish removes the
			// file that these options are in.
			"--dpkgopt=force-unsafe-io",
			"--hook-dir="+mergedUsr,
			"--dpkgopt=force-confold",
			"--essential-hook=copy-in '"+settings+"' /etc")
	}
	for _, o := range b.cfg.AptOptions {
		args = append(args, "--aptopt="+o)
	}
	args = append(args, b.release(), root)
	args = append(args, b.cfg.Mirrors...)
	err := b.run(ctx, func(line string) {
		for _, s := range bootstrapSteps {
			if strings.HasPrefix(line, s.prefix) {
				b.progress(s.step, s.percent)
			}
		}
	}, "mmdebstrap", args...)
	if err != nil || b.Variant == "extract" {
		return err
	}
	kept := filepath.Join(root, "etc/initramfs-tools", updateInitramfs)
	return os.Rename(kept+".dpkg-dist", kept)
}

// updateInitramfs is the file that says whether an initramfs is made anew when
// a package with a part in it is installed. While the image is built it says
// no: the kernel's own installation makes one, after everything has been
// unpacked, and a second would be the same and take as long as all other
// packages together. The package's own file is put back afterwards.
const updateInitramfs = "update-initramfs.conf"

// installed lists the packages of a tree by its dpkg status: "name version
// architecture", sorted. Of packages that were only unpacked there is no such
// list.
func installed(tree string) []string {
	text, err := os.ReadFile(filepath.Join(tree, "var/lib/dpkg/status"))
	if err != nil {
		return nil
	}
	var all []string
	for stanza := range strings.SplitSeq(string(text), "\n\n") {
		f := fields(stanza)
		if f["Package"] != "" {
			all = append(all, f["Package"]+" "+f["Version"]+" "+f["Architecture"])
		}
	}
	slices.Sort(all)
	return all
}

// releases lists the Release files that apt used: "suite date".
func releases(tree string) []string {
	found, _ := filepath.Glob(filepath.Join(tree, "var/lib/apt/lists/*InRelease"))
	var all []string
	for _, p := range found {
		if text, err := os.ReadFile(p); err == nil {
			f := fields(string(text))
			all = append(all, f["Suite"]+" "+f["Codename"]+" "+f["Date"])
		}
	}
	slices.Sort(all)
	return all
}

// fields reads the one-line fields of a Debian control stanza (deb822(5)); the
// first of a name counts.
func fields(stanza string) map[string]string {
	f := make(map[string]string)
	for line := range strings.SplitSeq(stanza, "\n") {
		name, value, ok := strings.Cut(line, ": ")
		if _, seen := f[name]; ok && !seen {
			f[name] = value
		}
	}
	return f
}
