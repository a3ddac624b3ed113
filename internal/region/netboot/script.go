package netboot

import (
	"fmt"
	"strings"

	"github.com/lpmos/lpmos"
)

// Scripts writes iPXE scripts for one boot URL. The zero value is not usable.
type Scripts struct {
	bootURL string
}

// Scripts returns a writer for the decider's boot URL.
func (d *Decider) Scripts() Scripts { return Scripts{d.cfg.BootURL} }

// Machine is whom a script is for. Values come from the machine; those that
// could mean something to iPXE make the script fail, not the machine obey.
type Machine struct {
	MAC      lpmos.MAC
	UUID     string // as iPXE sent it, or ""
	Platform Platform
	Arch     string // iPXE's ${buildarch}, or ""
}

// retryAfter is how long a machine waits before it asks again, in seconds: time
// to read the message on a console.
const retryAfter = "10"

// Agent starts the agent: kernel and initramfs by digest, and behind them the
// segment that makes this boot this machine's. A nonce may serve once only, so
// whatever goes wrong, the machine comes back for another script.
func (s Scripts) Agent(m Machine, img lpmos.BootImage, nonce string) (string, error) {
	if !lpmos.ValidDigest(img.Kernel.SHA256) || !lpmos.ValidDigest(img.Initrd.SHA256) || nonce == "" {
		return "", fmt.Errorf("write agent script: %w: there is no boot image", lpmos.ErrUnavailable)
	}
	w := s.begin()
	w.line("echo LPMOS: % starts the agent", m.MAC.String())
	// iPXE of 2019 on UEFI hands the kernel several initrds only if the command
	// line names each of them; newer ones work with the names as well.
	w.raw("kernel --name vmlinuz ")
	w.value(s.bootURL)
	w.raw("/blobs/")
	w.value(img.Kernel.SHA256)
	// The site's segment is last: of two files of one name the kernel keeps the
	// later, so this boot's segment cannot say whom the agent trusts.
	w.raw(" initrd=base.img initrd=machine.img")
	if img.Site.SHA256 != "" {
		w.raw(" initrd=site.img")
	}
	for arg := range strings.FieldsSeq(img.KernelArgs) {
		w.raw(" ")
		w.value(arg)
	}
	w.raw(" || goto failed\n")
	w.line("initrd --name base.img %/blobs/% || goto failed", s.bootURL, img.Initrd.SHA256)
	w.line("initrd --name machine.img %/boot/segment/% || goto failed", s.bootURL, nonce)
	if img.Site.SHA256 != "" {
		w.line("initrd --name site.img %/blobs/% || goto failed", s.bootURL, img.Site.SHA256)
	}
	w.line("boot || goto failed")
	s.again(w, m, "the agent could not be loaded", retryAfter)
	return w.result("agent")
}

// Local boots the installed system. When the entry names a disk, a helper
// searches the filesystem of that disk, because the firmware's first disk may
// hold an older system. When nothing boots, firmware goes on with its list.
func (s Scripts) Local(m Machine, e lpmos.BootEntry) (string, error) {
	var uuid string
	if e.Disk != nil {
		uuid = e.Disk.RootUUID
		if uuid == "" {
			uuid = e.Disk.ESPUUID
		}
	}
	start, ok := localBoot[m.Platform]
	if !ok {
		return "", fmt.Errorf("write local boot script: %w", &lpmos.InvalidError{Field: "platform", Problem: "is neither pcbios nor efi", Value: string(m.Platform)})
	}
	w := s.begin()
	w.line("echo LPMOS: % boots its own disk", m.MAC.String())
	start(s, w, uuid)
	// "exit 0" tells UEFI that all is well, and firmware opens its menu.
	w.line("exit 1")
	return w.result("local boot")
}

// localBoot holds the lines that start the disk with the given filesystem, or
// the first disk when uuid is "". How the helpers take the UUID is described in
// package bootimage.
var localBoot = map[Platform]func(s Scripts, w *writer, uuid string){
	BIOS: func(s Scripts, w *writer, uuid string) {
		if uuid != "" {
			w.line("set netX/18:string %", uuid)
			w.line("chain --autofree %/boot/localboot.0 || echo LPMOS: no local boot helper", s.bootURL)
		}
		w.line("sanboot --no-describe --drive 0x80 || exit 1")
	},
	EFI: func(s Scripts, w *writer, uuid string) {
		w.line("chain --autofree %/boot/localboot.efi?uuid=% || exit 1", s.bootURL, uuid)
	},
}

// Wait shows a message and asks again later. The message must be a constant.
func (s Scripts) Wait(m Machine, message string) (string, error) {
	w := s.begin()
	s.again(w, m, message, "30")
	return w.result("wait")
}

// Refuse shows why this machine cannot be served and lets its firmware go on.
func (s Scripts) Refuse(m Machine) (string, error) {
	w := s.begin()
	w.line("echo LPMOS: % cannot be booted, only x86 machines are supported", m.MAC.String())
	w.line("sleep %", retryAfter)
	w.line("exit 1")
	return w.result("refusal")
}

// Introduce makes iPXE ask again with all that the region wants to know of it:
// for chains from a site's own boot server, which need to name nothing but
// /boot.ipxe.
func (s Scripts) Introduce() string {
	w := s.begin()
	w.raw(":again\n")
	w.chainSelf(s)
	w.raw(" ||\necho LPMOS: the region does not answer, asking again\nsleep " + retryAfter + "\ngoto again\n")
	return w.b.String()
}

// Autoexec is the script iPXE loads by the name autoexec.ipxe from where it was
// itself loaded. It configures the network by itself and so needs no DHCP
// server that recognizes iPXE.
func (s Scripts) Autoexec() string {
	w := s.begin()
	w.raw(":again\ndhcp || goto later\n")
	w.chainSelf(s)
	w.raw(" ||\n:later\necho LPMOS: the region does not answer, asking again\nsleep " + retryAfter + "\ngoto again\n")
	return w.b.String()
}

func (w *writer) chainSelf(s Scripts) {
	w.raw("chain --replace --autofree ")
	w.value(s.bootURL)
	w.raw("/boot.ipxe?mac=${netX/mac}&uuid=${uuid}&platform=${platform}&arch=${buildarch}")
}

func (s Scripts) begin() *writer {
	w := new(writer)
	w.b.Grow(1024)
	w.raw("#!ipxe\n")
	return w
}

// again ends a script: a message, a pause, and the region's newest answer.
func (s Scripts) again(w *writer, m Machine, message, seconds string) {
	w.raw(":failed\n")
	w.raw("echo LPMOS: " + message + ", asking again in " + seconds + " seconds\n")
	w.raw("sleep " + seconds + "\nimgfree\n")
	w.raw("chain --replace --autofree ")
	w.value(s.bootURL)
	w.raw("/boot.ipxe?mac=")
	w.value(m.MAC.String())
	w.raw("&platform=")
	w.value(string(m.Platform))
	w.raw("&arch=")
	w.value(m.Arch)
	w.raw("&uuid=")
	w.value(m.UUID)
	w.raw(" || goto failed\n")
}

// writer collects a script and the first value that must not be in one.
type writer struct {
	b   strings.Builder
	bad string
}

func (w *writer) raw(text string) { w.b.WriteString(text) }

func (w *writer) value(v string) {
	if !safe(v) && w.bad == "" {
		w.bad = v
	}
	w.b.WriteString(v)
}

// line writes one line in which each % stands for the next value.
func (w *writer) line(format string, values ...string) {
	for part := range strings.SplitSeq(format, "%") {
		w.raw(part)
		if len(values) > 0 {
			w.value(values[0])
			values = values[1:]
		}
	}
	w.raw("\n")
}

func (w *writer) result(what string) (string, error) {
	if w.bad != "" {
		return "", fmt.Errorf("write %s script: %w", what,
			&lpmos.InvalidError{Problem: "has characters that mean something to iPXE", Value: w.bad})
	}
	return w.b.String(), nil
}

// safe reports whether s is only of [A-Za-z0-9._:/@%+=,-].
func safe(s string) bool {
	for i := range len(s) {
		if !safeByte[s[i]] {
			return false
		}
	}
	return true
}

var safeByte = func() (t [256]bool) {
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:/@%+=,-") {
		t[c] = true
	}
	return t
}()
