package lpmos

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// FormatInstaller is a distribution's own installer: no image is written, but
// the agent of an approved attempt starts the installer with a file of answers
// that is rendered when the plan is made.
const FormatInstaller = "installer"

// ImageInstaller is what an installer consists of.
type ImageInstaller struct {
	Answers    string `json:"answers"` // the kind of file it reads: TemplatePreseed, TemplateKickstart, TemplateAutoinstall
	Kernel     Blob   `json:"kernel"`
	Initrd     Blob   `json:"initrd"`
	KernelArgs string `json:"kernel_args,omitempty"` // beside those that make it read the answers
	// Repository is where it takes packages from: for a preseed file a mirror
	// ("http://mirror.example/debian"), for kickstart an installation tree.
	Repository string `json:"repository,omitempty"`
}

// MaxInstallerBytes bounds the kernel and the initramfs of an installer, each:
// the agent holds them in RAM.
const MaxInstallerBytes = 512 << 20

// defaultInstallerDisk is the least disk for an installer that does not say.
const defaultInstallerDisk = 4 << 30

var installerArgRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_./-]{0,63}(=[A-Za-z0-9_.,:;/@%+=?&~-]{0,400})?$`)

func (i *ImageInstaller) validate() error {
	bad := func(field, problem string) error { return badManifest("installer."+field, problem) }
	if !slices.Contains(answerKinds, i.Answers) {
		return bad("answers", "is none of "+strings.Join(answerKinds, ", "))
	}
	for name, b := range map[string]Blob{"kernel": i.Kernel, "initrd": i.Initrd} {
		if !ValidDigest(b.SHA256) || b.Bytes <= 0 || b.Bytes > MaxInstallerBytes {
			return bad(name, "is not a blob of at most 512 MiB")
		}
	}
	for arg := range strings.FieldsSeq(i.KernelArgs) {
		if !installerArgRE.MatchString(arg) {
			return bad("kernel_args", fmt.Sprintf("holds %q, which is not one kernel argument", Shorten(arg, 80)))
		}
		if name, _, _ := strings.Cut(arg, "="); slices.Contains(keptInstallerArgs[""], name) || slices.Contains(keptInstallerArgs[i.Answers], name) {
			return bad("kernel_args", "holds "+name+", which is each plan's own")
		}
	}
	if i.Repository != "" && (!repositoryRE.MatchString(i.Repository) || strings.Contains(i.Repository, "/..")) {
		return bad("repository", "is not an http or https address without user, query and fragment")
	}
	return nil
}

var repositoryRE = regexp.MustCompile(`^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~+-]+)*/?$`)

// keptInstallerArgs are arguments by which answers could come from elsewhere:
// of all, and by the kind of answers.
var keptInstallerArgs = map[string][]string{
	"":                  {"init", "rdinit", "BOOTIF"},
	TemplatePreseed:     {"auto", "auto-install/enable", "file", "preseed/file", "preseed/include", "preseed/url", "url"},
	TemplateKickstart:   {"inst.ks", "ks", "inst.repo"},
	TemplateAutoinstall: {"autoinstall", "ds", "subiquity.autoinstallpath", "cloud-config-url"},
}

// CommandLine is the kernel's for a machine that boots from a port.
func (i *ImageInstaller) CommandLine(port MAC) string {
	bootif := "BOOTIF=01-" + strings.ReplaceAll(port.String(), ":", "-")
	var args []string
	switch i.Answers {
	case TemplatePreseed:
		args = []string{"priority=critical", bootif}
	case TemplateKickstart:
		args = []string{"rdinit=" + InstallerAgent, "inst.ks=file:" + i.AnswersPath(), "inst.cmdline", "ip=dhcp", bootif}
		if i.Repository != "" {
			args = append(args, "inst.repo="+i.Repository)
		}
	default:
		args = []string{"rdinit=" + InstallerAgent, "autoinstall", "ip=dhcp", bootif}
	}
	if i.KernelArgs != "" {
		args = append(args, i.KernelArgs)
	}
	return strings.Join(args, " ")
}

// ByID is the name under which an installer's answers speak of the disk. The
// agent gives it to the disk in the installer's own system, after it has found
// the one that has this serial number, WWN and size. "" for a disk that has
// neither number.
func (r DiskRef) ByID() string {
	name := r.Serial
	if name == "" {
		name = r.WWN
	}
	if name == "" {
		return ""
	}
	return "/dev/disk/by-id/lpmos-" + strings.Map(func(c rune) rune {
		if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '.' || c == '-' {
			return c
		}
		return '_'
	}, Prefix(name, 64))
}

// AnswersPath is where the file of answers stands in the installer's
// initramfs.
func (i *ImageInstaller) AnswersPath() string {
	return map[string]string{TemplatePreseed: "/preseed.cfg", TemplateKickstart: "/lpmos/answers.ks", TemplateAutoinstall: "/lpmos/autoinstall.yaml"}[i.Answers]
}

// TargetPath is where the installer has the new system mounted when it is
// done.
func (i *ImageInstaller) TargetPath() string {
	if i.Answers == TemplateKickstart {
		return "/mnt/sysimage"
	}
	return "/target"
}

// RefusesTemplate says why a template of a kind is not for the image, "" if it
// is: a clause that follows the template's name.
func (i Image) RefusesTemplate(kind string) string {
	switch {
	case kind == TemplateUserData && i.Installer != nil:
		return "is user-data for cloud-init, and the image " + i.Name() + " is an installer that reads a " + i.Installer.Answers + " file"
	case kind == TemplateUserData && !i.CloudInit:
		return "is for cloud-init, which the image " + i.Name() + " does not read"
	case kind == TemplateUserData || i.Installer != nil && i.Installer.Answers == kind:
		return ""
	}
	return "is of a " + kind + " file, and the image " + i.Name() + " is not an installer that reads one"
}

// InstallsPackages reports whether packages of a profile are installed: by
// cloud-init or by an installer.
func (i Image) InstallsPackages() bool { return i.CloudInit || i.Installer != nil }

// answer renders the installer's file of answers for a target, or says why
// that cannot be.
func (e *Effect) answer(t *Task, h *Hardware, img Image, target DiskRef) (problem string) {
	if target.ByID() == "" {
		return "The disk (" + target.String() + ") has neither serial number nor WWN, so the installer could not be held to it. Use an image that LPMOS writes itself."
	}
	a := answers{taskID: t.ID, installer: img.Installer, effect: e, setup: e.System, disk: target.ByID(), bootMAC: t.TargetMAC}
	if a.setup == nil {
		a.setup = &Setup{}
	}
	if !h.BootMAC.IsZero() {
		a.bootMAC = h.BootMAC
	}
	if tt := t.TemplateText; tt != nil {
		text, err := tt.Render(FactsOf(t, h))
		if err != nil {
			return "The template " + tt.Ref() + " cannot be rendered: " + err.Error() + "."
		}
		a.template, a.added = tt.Ref(), text
	}
	text, err := a.render()
	if err != nil {
		return "The answers for the installer cannot be written: " + err.Error() + "."
	}
	e.Files = slices.Insert(e.Files, 0, PlannedFile{
		Path: img.Installer.AnswersPath(), Mode: "0600", What: "answers for the installer (" + img.Installer.Answers + "), in its memory only", Text: text, For: ForInstaller,
	})
	return ""
}

// ForInstaller marks a PlannedFile that stands in the installer's memory and
// not in the installed system.
const ForInstaller = "installer"
