package install

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/lpmos/lpmos"
)

// callhomeUnit runs the agent once after the first boot. It is part of every
// image that boots with systemd, and removes itself.
const callhomeUnit = `[Unit]
Description=LPMOS: report the first boot
Documentation=file:/etc/lpmos/callhome.json
ConditionPathExists=/etc/lpmos/callhome.json
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStart=/usr/lib/lpmos/agent callhome
Restart=on-failure
RestartPreventExitStatus=2
RestartSec=30s
TimeoutStartSec=35min

[Install]
WantedBy=multi-user.target
`

// systemFiles is everything written into the installed system beside the image
// and the agent. It is a pure function of plan, manifest and boot parts.
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
		{path: "etc/fstab", mode: 0o644, text: fstab(e.Filesystems(), esp.UUID)},
		{path: "boot/grub/grub.cfg", mode: 0o644, text: menu},
	}
	if len(e.Arrays) > 0 {
		// Debian's family reads the one, all others the other.
		for _, p := range []string{"etc/mdadm/mdadm.conf", "etc/mdadm.conf"} {
			files = append(files, file{path: p, mode: 0o644, text: mdadmConf(e.Arrays)})
		}
	}
	identity, err := identityFiles(job, m)
	return append(files, identity...), err
}

// identityFiles are those that any image gets, however it was written.
func identityFiles(job *Job, m *lpmos.ImageManifest) ([]file, error) {
	e := &job.Plan.Effect
	callhome, err := json.MarshalIndent(job.Callhome, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode callhome.json: %w", err)
	}
	files := []file{
		{path: "etc/hostname", mode: 0o644, text: e.Hostname + "\n"},
		{path: "etc/hosts", mode: 0o644, text: hosts(e.Hostname)},
		// Empty means "make one at the first boot" to systemd; a missing file
		// would need a writable /etc early.
		{path: "etc/machine-id", mode: 0o444},
		{path: "var/lib/dbus/machine-id", remove: true},
	}
	if !e.Unverified {
		files = append(files, file{path: "etc/lpmos/callhome.json", mode: 0o600, text: string(callhome) + "\n"})
	}
	if len(e.SSHKeys) > 0 {
		files = append(files, file{path: "root/.ssh/authorized_keys", mode: 0o600, dirMode: 0o700, text: strings.Join(e.SSHKeys, "\n") + "\n"})
	}
	if m.FirstBoot == "systemd" && !e.Unverified {
		files = append(files, file{path: "etc/systemd/system/lpmos-callhome.service", mode: 0o644, text: callhomeUnit})
	}
	switch {
	case m.CloudInit:
		seed, err := cloudSeed(job)
		if err != nil {
			return nil, err
		}
		files = append(files, seed...)
	case m.FirstBoot == "systemd":
		files = append(files, file{path: "etc/systemd/network/10-lpmos.network", mode: 0o644, text: networkd(e.Network)})
	}
	return files, nil
}

// fstab names filesystems by the UUIDs of the plan. Without its EFI system
// partition a system still boots, and does not wait for it: nothing is ordered
// after a nofail mount, so a machine whose devices come slowly may have the
// default of 90 s.
func fstab(fss []lpmos.PlannedFS, esp string) string {
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

// mdadmUUID is a UUID as mdadm writes it: four groups of eight digits.
func mdadmUUID(uuid string) string {
	h := strings.ReplaceAll(uuid, "-", "")
	if len(h) != 32 {
		return uuid
	}
	return h[:8] + ":" + h[8:16] + ":" + h[16:24] + ":" + h[24:]
}

func hosts(hostname string) string {
	own := hostname
	if short, _, ok := strings.Cut(hostname, "."); ok {
		own += " " + short
	}
	return "127.0.0.1 localhost\n127.0.1.1 " + own + "\n\n" +
		"::1 localhost ip6-localhost ip6-loopback\nff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n"
}

// networkd asks for an address on the plan's interfaces, which it knows by
// their MACs: names change with kernels and slots. One of them is enough to be
// online.
func networkd(n lpmos.PlannedNetwork) string {
	var macs []string
	for _, m := range n.MACs {
		macs = append(macs, m.String())
	}
	return "# Written by LPMOS at installation.\n[Match]\nMACAddress=" + strings.Join(macs, " ") +
		"\nType=ether\n\n[Link]\nRequiredForOnline=no\n\n[Network]\nDHCP=yes\n\n[DHCPv4]\nClientIdentifier=mac\n"
}
