package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lpmos/lpmos"
)

// volumes are the block devices of a declared layout: partitions, and the
// arrays, open containers and logical volumes made of them.
type volumes struct {
	in     *Installer
	byID   map[string]string // PartUUID, array's or container's name → device
	arrays []string          // devices that run
	crypts []string          // containers that are open, by name
	groups []groupOn         // that are active
}

type groupOn struct {
	name string
	on   []string // devices
}

// buildVolumes makes arrays and volume groups and a filesystem on everything
// that is to have one. close must be called in any case: until then the
// partitions are held by what lies on them.
func (in *Installer) buildVolumes(ctx context.Context, job *Job, targets []target) (v *volumes, fss []mountable, err error) {
	e := &job.Plan.Effect
	v = &volumes{in: in, byID: map[string]string{}}
	for _, t := range targets {
		for _, p := range t.parts {
			v.byID[p.PartUUID] = t.part(p.Number)
		}
	}
	if err := in.still(ctx, targets); err != nil {
		return v, nil, err
	}
	for i, a := range e.Arrays {
		job.step(lpmos.Partitioning, 4, 5, "Making the array "+a.Name)
		if err := v.array(ctx, fmt.Sprintf("/dev/md%d", i), a); err != nil {
			return v, nil, err
		}
	}
	for _, c := range e.Crypts {
		job.step(lpmos.Partitioning, 4, 5, "Making the encrypted container "+c.Name)
		if err := v.crypt(ctx, c, job.Secrets[lpmos.SecretDisk]); err != nil {
			return v, nil, err
		}
	}
	for _, g := range e.Groups {
		job.step(lpmos.Partitioning, 4, 5, "Making the volume group "+g.Name)
		if err := v.group(ctx, g); err != nil {
			return v, nil, err
		}
	}
	for _, fs := range e.Filesystems() {
		dev, ok := v.byID[fs.Name]
		if fs.Kind == "volume" {
			group, volume, _ := strings.Cut(fs.Name, "/")
			dev, ok = "/dev/mapper/"+group+"-"+volume, true
		}
		if !ok {
			return v, nil, &Failure{Code: "plan_invalid", Cause: "The plan has a filesystem on something that it does not make.", NextStep: nextReport}
		}
		job.step(lpmos.Partitioning, 4, 5, "Making the filesystem for "+where(fs))
		if err := in.makeFS(ctx, fs, dev); err != nil {
			return v, nil, err
		}
		fss = append(fss, mountable{PlannedFS: fs, dev: dev})
	}
	return v, fss, nil
}

func where(fs lpmos.PlannedFS) string {
	if fs.FS == "swap" {
		return "swap"
	}
	return fs.Mount
}

// load asks for a kernel module. That it is not there is found by what needs
// it: it may be part of the kernel.
func (in *Installer) load(ctx context.Context, names ...string) {
	for _, name := range names {
		if err := in.run.Run(ctx, nil, in.cfg.Tools.Modprobe, "-q", "--", name); err != nil {
			in.log.Debug("module not loaded", "module", name, "err", err)
		}
	}
}

// array makes a RAID 1. The members are blank, and copied to each other in the
// background: an array says that its halves are equal only when they are.
func (v *volumes) array(ctx context.Context, dev string, a lpmos.PlannedArray) error {
	v.in.load(ctx, "md_mod", "raid1")
	args := []string{"--create", dev, "--run", "--level=1", "--raid-devices=" + fmt.Sprint(len(a.Members)),
		"--metadata=" + a.Metadata, "--uuid=" + mdadmUUID(a.UUID), "--name=" + a.Name, "--homehost=any", "--bitmap=internal"}
	for _, m := range a.Members {
		part, ok := v.byID[m]
		if !ok {
			return &Failure{Code: "plan_invalid", Cause: "The array " + a.Name + " has a member that is no partition of the plan.", NextStep: nextReport}
		}
		args = append(args, part)
	}
	// It asks whether to go on when it thinks that the boot loader cannot read
	// 1.2, or finds something on a member; nothing of the image is there yet.
	if err := v.in.run.Run(ctx, []byte("y\n"), v.in.cfg.Tools.Mdadm, args...); err != nil {
		return commandFailed("Making the array "+a.Name, err)
	}
	v.arrays = append(v.arrays, dev)
	v.byID[a.Name] = dev
	return nil
}

// crypt makes a LUKS2 container and opens it. The passphrase goes to cryptsetup's
// standard input; ciphers, and how much work the passphrase costs on this
// machine (Argon2id), are cryptsetup's own choice.
func (v *volumes) crypt(ctx context.Context, c lpmos.PlannedCrypt, passphrase lpmos.Secret) error {
	// The last are for processors without AES of their own, and for how
	// cryptsetup asks the kernel to encrypt the key.
	v.in.load(ctx, "dm_crypt", "xts", "aesni_intel", "ecb", "algif_skcipher")
	on, ok := v.byID[c.On]
	if !ok {
		return &Failure{Code: "plan_invalid", Cause: "The container " + c.Name + " lies on something that the plan does not make.", NextStep: nextReport}
	}
	for _, args := range [][]string{
		{"luksFormat", "--batch-mode", "--type", "luks2", "--uuid", c.UUID, "--key-file", "-", on},
		{"open", "--type", "luks2", "--key-file", "-", on, c.Name},
	} {
		if err := v.in.run.Run(ctx, []byte(passphrase.Reveal()), v.in.cfg.Tools.Cryptsetup, args...); err != nil {
			return commandFailed("Making the encrypted container "+c.Name, err)
		}
	}
	v.crypts = append(v.crypts, c.Name)
	v.byID[c.Name] = "/dev/mapper/" + c.Name
	return nil
}

// lvmConfig shows LVM the given devices only: a volume group of another disk,
// also one of the same name, is not there for it. Nothing is left to udev,
// which does not run here, and nothing is kept in /etc.
func lvmConfig(devices []string) string {
	var filter []string
	for _, d := range devices {
		filter = append(filter, `"a|^`+d+`$|"`)
	}
	return `devices { global_filter=[` + strings.Join(append(filter, `"r|.*|"`), ",") + `] obtain_device_list_from_udev=0 external_device_info_source="none" use_devicesfile=0 } ` +
		`activation { udev_sync=0 udev_rules=0 monitoring=0 } backup { backup=0 archive=0 } global { use_lvmpolld=0 event_activation=0 }`
}

func (v *volumes) lvm(ctx context.Context, on []string, command string, args ...string) error {
	err := v.in.run.Run(ctx, nil, v.in.cfg.Tools.LVM, append([]string{command, "--config", lvmConfig(on)}, args...)...)
	return err
}

func (v *volumes) group(ctx context.Context, g lpmos.PlannedGroup) error {
	v.in.load(ctx, "dm_mod")
	var on []string
	for _, id := range g.On {
		dev, ok := v.byID[id]
		if !ok {
			return &Failure{Code: "plan_invalid", Cause: "The volume group " + g.Name + " lies on something that the plan does not make.", NextStep: nextReport}
		}
		on = append(on, dev)
	}
	fail := func(err error) error { return commandFailed("Making the volume group "+g.Name, err) }
	if err := v.lvm(ctx, on, "pvcreate", append([]string{"--yes", "-ff"}, on...)...); err != nil {
		return fail(err)
	}
	if err := v.lvm(ctx, on, "vgcreate", append([]string{"--yes", g.Name}, on...)...); err != nil {
		return fail(err)
	}
	v.groups = append(v.groups, groupOn{g.Name, on})
	for _, l := range g.Volumes {
		size := []string{"--extents", "100%FREE"}
		if !l.Rest {
			size = []string{"--size", fmt.Sprintf("%db", l.SizeBytes)}
		}
		if err := v.lvm(ctx, on, "lvcreate", append(size, "--yes", "--wipesignatures", "y", "--zero", "y", "--name", l.Name, g.Name)...); err != nil {
			return fail(err)
		}
	}
	return nil
}

// close takes everything apart again, so that the disks are free. Of what cannot
// be stopped the error says which.
func (v *volumes) close(ctx context.Context) error {
	var errs []error
	ctx = context.WithoutCancel(ctx)
	for _, g := range slices.Backward(v.groups) {
		if err := v.lvm(ctx, g.on, "vgchange", "--activate", "n", g.name); err != nil {
			errs = append(errs, commandFailed("Stopping the volume group "+g.name, err))
		}
	}
	for _, name := range slices.Backward(v.crypts) {
		if err := v.in.run.Run(ctx, nil, v.in.cfg.Tools.Cryptsetup, "close", name); err != nil {
			errs = append(errs, commandFailed("Closing the encrypted container "+name, err))
		}
	}
	for _, dev := range slices.Backward(v.arrays) {
		if err := v.in.run.Run(ctx, nil, v.in.cfg.Tools.Mdadm, "--stop", dev); err != nil {
			errs = append(errs, commandFailed("Stopping the array "+dev, err))
		}
	}
	v.groups, v.crypts, v.arrays = nil, nil, nil
	return errors.Join(errs...)
}

// ext4Features are what every supported system and its boot loader read: GRUB
// 2.06 refuses what it does not know, such as metadata_csum_seed and
// orphan_file, which a newer mke2fs sets by itself.
const ext4Features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg," +
	"sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

// makeFS makes one filesystem. The features of xfs are those of Linux 5.14 and
// later (EL 9, Debian 12, Ubuntu 22.04): nothing newer is switched on because
// the agent's own tools are.
func (in *Installer) makeFS(ctx context.Context, fs lpmos.PlannedFS, dev string) error {
	label := "lpmos-" + strings.Trim(strings.ReplaceAll(where(fs), "/", "-"), "-")
	if fs.Mount == "/" {
		label = "lpmos-root"
	}
	label = label[:min(len(label), 12)]
	var path string
	var args []string
	switch fs.FS {
	case "ext4":
		path, args = in.cfg.Tools.Mke2fs, []string{"-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "1", "-O", ext4Features,
			"-E", "lazy_itable_init=1,lazy_journal_init=0", "-L", label, "-U", fs.UUID, dev}
	case "xfs":
		in.load(ctx, "xfs")
		path, args = in.cfg.Tools.MkfsXFS, []string{"-q", "-f", "-L", label, "-m", "crc=1,reflink=1,uuid=" + fs.UUID, "-i", "nrext64=0", dev}
	case "swap":
		path, args = in.cfg.Tools.Mkswap, []string{"--force", "--label", label, "--uuid", fs.UUID, dev}
	default:
		return &Failure{Code: "plan_invalid", Cause: "The plan has a filesystem that cannot be made: " + fs.FS + ".", NextStep: nextReport}
	}
	if err := in.run.Run(ctx, nil, path, args...); err != nil {
		return commandFailed("Making the filesystem for "+where(fs), err)
	}
	return nil
}

// installTree puts a tree of files onto the disks that were partitioned.
func (in *Installer) installTree(ctx context.Context, job *Job, m *lpmos.ImageManifest, boot *bootParts, targets []target) (err error) {
	v, fss, err := in.buildVolumes(ctx, job, targets)
	defer func() { err = errors.Join(err, v.close(ctx)) }()
	if err != nil {
		return staged(lpmos.Partitioning, err)
	}
	if err := in.unpack(ctx, job, m, fss); err != nil {
		return staged(lpmos.StageInstall, err)
	}
	if err := in.configure(ctx, job, m, boot, fss); err != nil {
		return staged(lpmos.Configuring, err)
	}
	// The disks are opened for nobody else from here on.
	if err := v.close(ctx); err != nil {
		return staged(lpmos.Configuring, err)
	}
	return staged0(lpmos.Configuring, in.complete(ctx, job, boot, targets))
}

// initramfsTools make an initramfs for every kernel of a system, by what they
// find in it. They name each file: on a slow machine that goes on for a quarter
// of an hour, in which nobody is to take it for dead.
var initramfsTools = []struct {
	path string
	args []string
}{
	{"usr/sbin/update-initramfs", []string{"-u", "-v", "-k", "all"}},
	{"usr/bin/dracut", []string{"--force", "--verbose", "--regenerate-all", "--no-hostonly"}},
}

// remakeInitramfs runs the image's own tool where the system starts from an
// array, a container or a volume: the one in the image does not know of them.
func (in *Installer) remakeInitramfs(ctx context.Context, job *Job, m *lpmos.ImageManifest, t tree) error {
	e := &job.Plan.Effect
	if !e.NeedsInitramfs() {
		return nil
	}
	for _, need := range []struct {
		wanted                  bool
		program, what, packages string
	}{
		{len(e.Arrays) > 0, "mdadm", "arrays", "mdadm"}, {len(e.Groups) > 0, "lvm", "volume groups", "lvm2"},
		{len(e.Crypts) > 0, "cryptsetup", "encrypted disks", "cryptsetup (with Debian and Ubuntu, cryptsetup-initramfs)"},
	} {
		lacks := !t.has("usr/sbin/"+need.program) && !t.has("sbin/"+need.program)
		if need.program == "cryptsetup" && t.has("usr/share/initramfs-tools/hook-functions") {
			// The program alone does not come into the initramfs there.
			lacks = lacks || !t.has("usr/share/initramfs-tools/hooks/cryptroot")
		}
		if need.wanted && lacks {
			return &Failure{Code: "image_unsuitable", Cause: "The image has no " + need.program + " for its initramfs, so the installed system could not start from " + need.what + ".",
				NextStep: "Use an image with the package " + need.packages + ", or another layout."}
		}
	}
	for _, tool := range initramfsTools {
		if !t.has(tool.path) {
			continue
		}
		s := Step{Stage: lpmos.Configuring, Done: 2, Total: 6, Message: "Making the initramfs anew with the image's " + filepath.Base(tool.path)}
		job.tell(s)
		if in.cfg.Confined == nil {
			return &Failure{Code: "boot_image_incomplete", Cause: "This agent cannot run a program of the image.", NextStep: nextReport}
		}
		dir, err := in.mountPoint()
		if err != nil {
			return err
		}
		says := func(line string) {
			s.Detail = line
			job.tell(s)
		}
		if err := in.cfg.Confined(ctx, dir, says, "/"+tool.path, tool.args...); err != nil {
			return &Failure{Code: "initramfs_failed", Cause: "The image's " + filepath.Base(tool.path) + " could not make an initramfs: " + err.Error() + ".",
				NextStep: "Read the log of this attempt; the image may lack a package for this layout.", Err: err}
		}
		if _, err := t.Stat(strings.TrimPrefix(m.Initrd, "/")); err != nil {
			return &Failure{Code: "initramfs_failed", Cause: "The image's " + filepath.Base(tool.path) + " left no " + m.Initrd + ".", NextStep: "Import the image again, then retry the task.", Err: err}
		}
		return nil
	}
	return &Failure{Code: "image_unsuitable", Cause: "The image has neither update-initramfs nor dracut, so its initramfs cannot be made to find its root.",
		NextStep: "Use another image, or a layout without arrays, encryption and volume groups."}
}

// has reports whether a program is there, behind links of the tree or not.
func (t tree) has(name string) bool {
	st, err := t.Stat(name)
	if err != nil {
		// An absolute link leads out of an os.Root, and is right all the same.
		st, err = t.Lstat(name)
	}
	return err == nil && st.Mode()&(os.ModeSymlink|0o111) != 0
}
