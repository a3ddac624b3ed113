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
	root, okRoot := e.Partition("root")
	esp, okESP := e.Partition("esp")
	if !okRoot || !okESP {
		return nil, &Failure{Code: "plan_invalid", Cause: "The plan has no root or no EFI system partition.", NextStep: nextReport}
	}
	menu, err := boot.menu(e, m)
	if err != nil {
		return nil, err
	}
	callhome, err := json.MarshalIndent(job.Callhome, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode callhome.json: %w", err)
	}
	files := []file{
		{path: "etc/fstab", mode: 0o644, text: fstab(root.UUID, esp.UUID)},
		{path: "etc/hostname", mode: 0o644, text: e.Hostname + "\n"},
		{path: "etc/hosts", mode: 0o644, text: hosts(e.Hostname)},
		// Empty means "make one at the first boot" to systemd; a missing file
		// would need a writable /etc early.
		{path: "etc/machine-id", mode: 0o444},
		{path: "var/lib/dbus/machine-id", remove: true},
		{path: "boot/grub/grub.cfg", mode: 0o644, text: menu},
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
func fstab(root, esp string) string {
	return "# Written by LPMOS at installation.\n" +
		"UUID=" + root + " / ext4 defaults,errors=remount-ro 0 1\n" +
		"UUID=" + esp + " /boot/efi vfat umask=0077,nofail 0 2\n"
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
