package install

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/lpmos/lpmos"
)

// callhomeUnit runs the agent once after the first boot. It is part of every
// image that boots with systemd, and removes itself. It says what became of
// the first boot, so it runs after what configures the system; without default
// dependencies multi-user.target does not wait for it, as the last part of
// cloud-init waits for that target.
const callhomeUnit = `[Unit]
Description=LPMOS: report the first boot
Documentation=file:/etc/lpmos/callhome.json
ConditionPathExists=/etc/lpmos/callhome.json
DefaultDependencies=no
Wants=network-online.target
After=basic.target network-online.target lpmos-first-boot.service
Conflicts=shutdown.target
Before=shutdown.target

[Service]
Type=oneshot
ExecStart=/usr/lib/lpmos/agent callhome
Restart=on-failure
RestartPreventExitStatus=2
RestartSec=30s
TimeoutStartSec=45min

[Install]
WantedBy=multi-user.target
`

// systemFiles is everything written into the installed system beside the image
// and the agent: what the plan has the text of, and what only the agent can
// make. It is a pure function of plan, manifest and boot parts.
func systemFiles(job *Job, m *lpmos.ImageManifest, boot *bootParts) ([]file, error) {
	e := &job.Plan.Effect
	esp, ok := e.Partition("esp")
	if !ok {
		return nil, &Failure{Code: "plan_invalid", Cause: "The plan has no EFI system partition.", NextStep: nextReport}
	}
	menu, err := boot.menu(e, m)
	if err != nil {
		return nil, err
	}
	files := []file{
		{path: "etc/fstab", mode: 0o644, text: fstabText(e.Filesystems(), esp.UUID)},
		{path: "boot/grub/grub.cfg", mode: 0o644, text: menu},
	}
	if len(e.Arrays) > 0 {
		// Debian's family reads the one, all others the other.
		for _, p := range []string{"etc/mdadm/mdadm.conf", "etc/mdadm.conf"} {
			files = append(files, file{path: p, mode: 0o644, text: mdadmConf(e.Arrays)})
		}
	}
	if len(e.Crypts) > 0 {
		files = append(files, file{path: "etc/crypttab", mode: 0o644, text: crypttab(e.Crypts)})
	}
	identity, err := identityFiles(job, m)
	return append(files, identity...), err
}

// identityFiles are those that any image gets, however it was written.
func identityFiles(job *Job, m *lpmos.ImageManifest) ([]file, error) {
	own, err := ownFiles(job, m)
	return append([]file{
		// Empty means "make one at the first boot" to systemd; a missing file
		// would need a writable /etc early.
		{path: "etc/machine-id", mode: 0o444},
		{path: "var/lib/dbus/machine-id", remove: true},
	}, own...), err
}

// ownFiles are those that any system gets, also one that an installer made: what
// has its files labelled, what reports the first boot, and what the plan has the
// text of.
func ownFiles(job *Job, m *lpmos.ImageManifest) ([]file, error) {
	e := &job.Plan.Effect
	// What is written here has no labels; with SELinux nobody could log in
	// without them.
	files := []file{{path: ".autorelabel", mode: 0o644, when: "/etc/selinux/config"}}
	if !e.Unverified {
		callhome, err := json.MarshalIndent(job.Callhome, "", "  ")
		if err != nil {
			return nil, fmt.Errorf("encode callhome.json: %w", err)
		}
		files = append(files, file{path: "etc/lpmos/callhome.json", mode: 0o600, text: string(callhome) + "\n"})
	}
	if m.FirstBoot == "systemd" && !e.Unverified {
		files = append(files, file{path: "etc/systemd/system/lpmos-callhome.service", mode: 0o644, text: callhomeUnit})
	}
	planned, err := plannedFiles(e, job.Secrets)
	return append(files, planned...), err
}

// plannedFiles are those that the plan has the text of, with the values of
// secrets in the places that are left for them.
func plannedFiles(e *lpmos.Effect, secrets map[string]lpmos.Secret) ([]file, error) {
	var files []file
	for _, p := range e.Files {
		if p.Text == "" && p.Link == "" || p.For != "" {
			continue // for people to read, the agent makes it otherwise; or it is none of this system's
		}
		mode, err := strconv.ParseUint(p.Mode, 8, 12)
		name := strings.TrimPrefix(p.Path, "/")
		if err != nil || !strings.HasPrefix(p.Path, "/") || !fs.ValidPath(name) || name == "." {
			return nil, &Failure{Code: "plan_invalid", Cause: fmt.Sprintf("The plan has a file %q of mode %q, which cannot be written.", lpmos.Shorten(p.Path, 120), p.Mode), NextStep: nextReport}
		}
		f := file{path: name, mode: fs.FileMode(mode), text: lpmos.FillSecrets(p.Text, secrets), link: p.Link, owner: p.Owner, when: p.If, unless: p.Unless}
		if path.Base(path.Dir(name)) == ".ssh" {
			f.dirMode = 0o700
		}
		files = append(files, f)
	}
	return files, nil
}

// fstabText names filesystems by the UUIDs of the plan. Without its EFI system
// partition a system still boots, and does not wait for it: nothing is ordered
// after a nofail mount, so a machine whose devices come slowly may have the
// default of 90 s.
func fstabText(fss []lpmos.PlannedFS, esp string) string {
	var b strings.Builder
	b.WriteString("# Written by LPMOS at installation.\n")
	for _, fs := range fss {
		switch {
		case fs.FS == "swap":
			b.WriteString("UUID=" + fs.UUID + " none swap sw 0 0\n")
		case fs.FS == "ext4" && fs.Mount == "/":
			b.WriteString("UUID=" + fs.UUID + " / ext4 defaults,errors=remount-ro 0 1\n")
		case fs.FS == "ext4":
			b.WriteString("UUID=" + fs.UUID + " " + fs.Mount + " ext4 defaults 0 2\n")
		default:
			b.WriteString("UUID=" + fs.UUID + " " + fs.Mount + " " + fs.FS + " defaults 0 0\n")
		}
	}
	b.WriteString("UUID=" + esp + " /boot/efi vfat umask=0077,nofail 0 2\n")
	return b.String()
}

// mdadmConf names the arrays by UUID. The system assembles these, and a foreign
// one that comes with another disk only when somebody asks.
func mdadmConf(arrays []lpmos.PlannedArray) string {
	var b strings.Builder
	b.WriteString("# Written by LPMOS at installation.\nHOMEHOST <ignore>\nMAILADDR root\nAUTO -all\n")
	for i, a := range arrays {
		fmt.Fprintf(&b, "ARRAY /dev/md%d metadata=%s UUID=%s\n", i, a.Metadata, mdadmUUID(a.UUID))
	}
	return b.String()
}

// crypttab has the containers opened by their UUID, with what is typed at the
// console. "initramfs" takes them into the initramfs although nothing shows
// there, where it is made, that the root filesystem lies on one.
func crypttab(crypts []lpmos.PlannedCrypt) string {
	var b strings.Builder
	b.WriteString("# Written by LPMOS at installation.\n")
	for _, c := range crypts {
		b.WriteString(c.Name + " UUID=" + c.UUID + " none luks,initramfs\n")
	}
	return b.String()
}

// mdadmUUID is a UUID as mdadm writes it: four groups of eight digits.
func mdadmUUID(uuid string) string {
	h := strings.ReplaceAll(uuid, "-", "")
	if len(h) != 32 {
		return uuid
	}
	return h[:8] + ":" + h[8:16] + ":" + h[16:24] + ":" + h[24:]
}
