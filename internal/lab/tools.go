package lab

import (
	"errors"
	"fmt"
	"os"
)

// Tools are the programs and firmware images the lab uses, by absolute path.
type Tools struct {
	QEMU string // qemu-system-x86_64
	IP   string // iproute2

	// OVMF images, in flash layout. Each Vars file is a template that a
	// machine copies.
	OVMFCode, OVMFVars             string
	OVMFSecureCode, OVMFSecureVars string // Secure Boot with Microsoft's keys; optional

	SWTPM string // TPM emulator; optional
}

// places lists where distributions put the files; the first that exists is
// taken.
var places = []struct {
	name     string
	field    func(*Tools) *string
	paths    []string
	optional bool
}{
	{"qemu-system-x86_64 (package qemu-system-x86)", func(t *Tools) *string { return &t.QEMU },
		[]string{"/usr/bin/qemu-system-x86_64", "/usr/local/bin/qemu-system-x86_64", "/usr/libexec/qemu-kvm"}, false},
	{"ip (package iproute2)", func(t *Tools) *string { return &t.IP },
		[]string{"/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip", "/bin/ip"}, false},
	{"UEFI firmware (package ovmf)", func(t *Tools) *string { return &t.OVMFCode },
		[]string{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/x64/OVMF_CODE.4m.fd"}, false},
	{"UEFI variable store (package ovmf)", func(t *Tools) *string { return &t.OVMFVars },
		[]string{"/usr/share/OVMF/OVMF_VARS_4M.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"}, false},
	{"UEFI firmware with Secure Boot", func(t *Tools) *string { return &t.OVMFSecureCode },
		[]string{"/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd"}, true},
	{"UEFI variable store with Secure Boot keys", func(t *Tools) *string { return &t.OVMFSecureVars },
		[]string{"/usr/share/OVMF/OVMF_VARS_4M.ms.fd", "/usr/share/edk2/ovmf/OVMF_VARS.secboot.fd"}, true},
	{"swtpm (package swtpm)", func(t *Tools) *string { return &t.SWTPM },
		[]string{"/usr/bin/swtpm", "/usr/local/bin/swtpm"}, true},
}

// FindTools looks in the places where distributions install the tools. Its
// error names everything that is missing, one per line, and that root is
// needed when we are not root.
func FindTools() (Tools, error) {
	var t Tools
	var errs []error
	for _, p := range places {
		field := p.field(&t)
		for _, path := range p.paths {
			if _, err := os.Stat(path); err == nil {
				*field = path
				break
			}
		}
		if *field == "" && !p.optional {
			errs = append(errs, fmt.Errorf("missing %s", p.name))
		}
	}
	if os.Geteuid() != 0 {
		errs = append(errs, errors.New("not root, which network namespaces and taps need"))
	}
	return t, errors.Join(errs...)
}
