package lpmos

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"
)

// The answers of an installer are made here and not in templates: what decides
// which disk is written, how progress is reported, and how the installed system
// comes to call home, is in every file, whatever a template says. A template
// adds to it. There is one encoder for each kind of value; each gives a text
// that its reader takes for exactly the value it was given, or an error.

// answerKinds are the kinds of template that an installer reads.
var answerKinds = []string{TemplatePreseed, TemplateKickstart, TemplateAutoinstall}

// encoders are by the name that a template calls them by.
var encoders = map[string]func(string) (string, error){
	"json":      func(v string) (string, error) { return quoteJSON(v), nil },
	"preseed":   preseedValue,
	"kickstart": kickstartWord,
	"shell":     shellWord,
}

// Encoders names the encoders of templates, sorted.
func Encoders() []string { return slices.Sorted(maps.Keys(encoders)) }

var errOneLine = errors.New("holds a line end or a control character")

// preseedValue is a value of a preseed file: the rest of a line, in which
// nothing can be quoted (debconf-set-selections(1)).
func preseedValue(v string) (string, error) {
	switch {
	case !plainLine(v) || strings.Contains(v, "\t"):
		return "", errOneLine
	case strings.TrimSpace(v) != v:
		return "", errors.New("begins or ends with a blank, which a preseed file cannot say")
	case strings.HasSuffix(v, `\`):
		return "", errors.New(`ends with \, which continues the line in a preseed file`)
	}
	return v, nil
}

// kickstartWord is one word of a kickstart command, which is taken apart as a
// POSIX shell would (pykickstart uses Python's shlex).
func kickstartWord(v string) (string, error) {
	if !plainLine(v) || strings.Contains(v, "\t") {
		return "", errOneLine
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(v) + `"`, nil
}

// shellWord is one word of a POSIX shell command on one line.
func shellWord(v string) (string, error) {
	if !plainLine(v) || strings.Contains(v, "\t") {
		return "", errOneLine
	}
	return "'" + strings.ReplaceAll(v, "'", `'\''`) + "'", nil
}

// answers is what a file of answers is made of.
type answers struct {
	taskID    string
	installer *ImageInstaller
	effect    *Effect
	setup     *Setup
	disk      string // by-id
	bootMAC   MAC
	template  string // of what is added
	added     string
}

func (a answers) render() (string, error) {
	var text string
	var err error
	switch a.installer.Answers {
	case TemplatePreseed:
		text, err = a.preseed()
	case TemplateKickstart:
		if text, err = a.kickstart(); err == nil {
			err = checkKickstart(text, true)
		}
	default:
		text, err = a.autoinstall()
	}
	if err == nil && len(text) > MaxAnswersBytes {
		err = &InvalidError{Field: "text", Problem: "is longer than 256 KiB"}
	}
	return text, err
}

// MaxAnswersBytes bounds a file of answers.
const MaxAnswersBytes = 256 << 10

func (a answers) locale() string {
	if a.setup.Locale == "" {
		return "C.UTF-8"
	}
	return a.setup.Locale
}

func (a answers) keyboard() string {
	if a.setup.Keyboard == "" {
		return "us"
	}
	return a.setup.Keyboard
}

func (a answers) timezone() string {
	if a.setup.Timezone == "" {
		return "UTC"
	}
	return a.setup.Timezone
}

// InstallerAgent is where the agent stands in the memory of an installer.
const InstallerAgent = "/lpmos/agent"

// preseed is for Debian's installer. Root has no password and no user is made:
// accounts are added by the last command, as they are to an image.
func (a answers) preseed() (string, error) {
	var b strings.Builder
	var failed error
	say := func(question, typ, value string) {
		v, err := preseedValue(value)
		if err != nil && failed == nil {
			failed = fmt.Errorf("%s: %w", question, err)
		}
		owner := "d-i"
		if name, _, _ := strings.Cut(question, "/"); name == "tasksel" || name == "popularity-contest" {
			owner = name
		}
		b.WriteString(strings.TrimRight(owner+" "+question+" "+typ+" "+v, " ") + "\n")
	}
	note := func(text string) { b.WriteString("\n# " + text + "\n") }

	b.WriteString("# Written by LPMOS for task " + a.taskID + ".\n")
	// Without a country in the locale it asks for one. The locale that was meant
	// is written by the last command.
	locale := a.setup.Locale
	if _, rest, ok := strings.Cut(locale, "_"); !ok || len(rest) < 2 {
		locale = "en_US.UTF-8"
	}
	language, rest, _ := strings.Cut(locale, "_")
	say("debian-installer/language", "string", language)
	say("debian-installer/country", "string", rest[:2])
	say("debian-installer/locale", "string", locale)
	say("keyboard-configuration/xkb-keymap", "select", a.keyboard())
	say("netcfg/choose_interface", "select", "auto") // the one of BOOTIF on the command line
	host, domain, _ := strings.Cut(a.effect.Hostname, ".")
	say("netcfg/get_hostname", "string", host)
	say("netcfg/get_domain", "string", domain)
	say("netcfg/hostname", "string", host)
	say("netcfg/wireless_wep", "string", "")
	// What DHCP says counts; where it names no router or no name server, a mirror
	// in the machine's own network needs none.
	say("netcfg/no_default_route", "boolean", "true")
	say("netcfg/get_nameservers", "string", "")
	say("hw-detect/load_firmware", "boolean", "true")
	if a.installer.Repository != "" {
		u, err := url.Parse(a.installer.Repository)
		if err != nil {
			return "", err
		}
		note("Packages.")
		say("mirror/country", "string", "manual")
		say("mirror/protocol", "select", u.Scheme)
		say("mirror/"+u.Scheme+"/hostname", "string", u.Host)
		say("mirror/"+u.Scheme+"/directory", "string", "/"+strings.Trim(u.Path, "/"))
		say("mirror/"+u.Scheme+"/proxy", "string", "")
	}
	say("tasksel/first", "multiselect", "standard, ssh-server")
	say("pkgsel/include", "string", strings.Join(append([]string{"openssh-server", "ca-certificates"}, a.setup.Packages...), " "))
	say("pkgsel/upgrade", "select", "none")
	say("popularity-contest/participate", "boolean", "false")
	note("Accounts are added by the last command.")
	say("passwd/root-login", "boolean", "true")
	say("passwd/root-password-crypted", "password", "!")
	say("passwd/make-user", "boolean", "false")
	say("clock-setup/utc", "boolean", "true")
	say("time/zone", "string", a.timezone())
	if len(a.setup.NTP) > 0 {
		say("clock-setup/ntp", "boolean", "true")
		say("clock-setup/ntp-server", "string", a.setup.NTP[0])
	} else {
		say("clock-setup/ntp", "boolean", "false")
	}
	if a.added != "" {
		note("From the template " + a.template + ".")
		b.WriteString(strings.TrimRight(a.added, "\n") + "\n")
	}
	note("The one disk. Its name is given to it after it was found by number and size; all others are read-only by then.")
	for _, q := range preseedOwned {
		value := q.value
		if value == "DISK" {
			value = a.disk
		}
		if q.question == "debian-installer/add-kernel-opts" {
			if value = strings.Join(a.setup.Kernel, " "); value == "" {
				continue
			}
		}
		if q.typ != "" {
			say(q.question, q.typ, value)
		}
	}
	return b.String(), failed
}

// preseedOwned are the questions that no template answers. Those without a
// type are not answered at all. They come last, because the last answer
// counts.
var preseedOwned = []struct{ question, typ, value string }{
	{"partman-auto/disk", "string", "DISK"},
	{"partman-auto/method", "string", "regular"},
	{"partman-auto/choose_recipe", "select", "atomic"},
	{"partman-lvm/device_remove_lvm", "boolean", "true"},
	{"partman-md/device_remove_md", "boolean", "true"},
	{"partman-lvm/confirm", "boolean", "true"},
	{"partman-lvm/confirm_nooverwrite", "boolean", "true"},
	{"partman-partitioning/confirm_write_new_label", "boolean", "true"},
	{"partman-partitioning/choose_label", "select", "gpt"},
	{"partman-partitioning/default_label", "string", "gpt"},
	{"partman/choose_partition", "select", "finish"},
	{"partman/confirm", "boolean", "true"},
	{"partman/confirm_nooverwrite", "boolean", "true"},
	{"partman/mount_style", "select", "uuid"},
	{"partman-efi/non_efi_system", "boolean", "true"},
	{"grub-installer/only_debian", "boolean", "true"},
	{"grub-installer/with_other_os", "boolean", "false"},
	{"grub-installer/bootdev", "string", "DISK"},
	// Boards forget their boot entries; the path that needs none stays.
	{"grub-installer/force-efi-extra-removable", "boolean", "true"},
	{"debian-installer/add-kernel-opts", "string", ""},
	{"partman/early_command", "string", InstallerAgent + " installer disk"},
	{"preseed/early_command", "string", InstallerAgent + " installer watch"},
	{"preseed/late_command", "string", InstallerAgent + " installer finish"},
	{"finish-install/reboot_in_progress", "note", ""},
	{"preseed/run", "", ""}, {"preseed/include", "", ""}, {"preseed/include_command", "", ""}, {"preseed/url", "", ""}, {"preseed/file", "", ""},
	{"partman-auto/expert_recipe", "", ""}, {"partman-auto/expert_recipe_file", "", ""}, {"partman-auto-raid/recipe", "", ""}, {"partman-auto/init_automatically_partition", "", ""},
	{"passwd/root-password", "", ""}, {"passwd/root-password-again", "", ""}, {"passwd/user-password", "", ""}, {"passwd/user-password-again", "", ""},
	{"debian-installer/exit/halt", "", ""}, {"debian-installer/exit/poweroff", "", ""},
}

// checkPreseed holds what a template adds against the grammar and against what
// is not a template's.
func checkPreseed(text string) error {
	var logical string
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if part, more := strings.CutSuffix(line, `\`); more && !strings.HasPrefix(strings.TrimSpace(line), "#") {
			logical += part
			continue
		}
		line, logical = logical+line, ""
		f := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' })
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		if len(f) < 3 {
			return badAnswers("%q is not a line of a preseed file: owner, question, type and value", line)
		}
		for _, q := range preseedOwned {
			if f[1] == q.question {
				return badAnswers("%s is not a template's to answer: LPMOS decides about disks, commands and passwords", f[1])
			}
		}
	}
	if logical != "" {
		return badAnswers(`it ends with \, which would swallow the line after it`)
	}
	return nil
}

func badAnswers(format string, args ...any) error {
	for i, a := range args {
		if s, ok := a.(string); ok {
			args[i] = Shorten(s, 80)
		}
	}
	return &InvalidError{Field: "text", Problem: "cannot be used: " + fmt.Sprintf(format, args...)}
}

// kickstart is for Anaconda.
func (a answers) kickstart() (string, error) {
	var b strings.Builder
	var failed error
	// command writes a command whose words with a value, "--x=", have it quoted.
	command := func(name string, words ...string) {
		b.WriteString(name)
		for i := 0; i < len(words); i++ {
			b.WriteString(" " + words[i])
			if strings.HasSuffix(words[i], "=") || words[i] == "" {
				i++
				v, err := kickstartWord(words[i])
				if err != nil && failed == nil {
					failed = fmt.Errorf("%s: %w", name, err)
				}
				b.WriteString(v)
			}
		}
		b.WriteString("\n")
	}
	disk := strings.TrimPrefix(a.disk, "/dev/")
	b.WriteString("# Written by LPMOS for task " + a.taskID + ".\n")
	command("cmdline")
	command("lang", a.locale())
	command("keyboard", "--xlayouts=", a.keyboard())
	command("timezone", a.timezone(), "--utc")
	for _, n := range a.setup.NTP {
		command("timesource", "--ntp-server=", n)
	}
	command("network", "--bootproto=dhcp", "--device=", a.bootMAC.String(), "--activate", "--hostname=", a.effect.Hostname)
	command("rootpw", "--lock")
	command("firstboot", "--disable")
	command("skipx")
	if a.installer.Repository != "" {
		command("url", "--url=", a.installer.Repository)
	}
	b.WriteString("\n# The one disk. Its name is given to it after it was found by number and size; all others are read-only by then.\n")
	command("ignoredisk", "--only-use=", disk)
	command("zerombr")
	command("clearpart", "--all", "--initlabel", "--drives=", disk)
	command("autopart", "--type=plain", "--nohome")
	boot := []string{"--boot-drive=", disk}
	if len(a.setup.Kernel) > 0 {
		boot = append(boot, "--append=", strings.Join(a.setup.Kernel, " "))
	}
	command("bootloader", boot...)
	command("reboot")
	if a.added != "" {
		b.WriteString("\n# From the template " + a.template + ".\n" + strings.TrimRight(a.added, "\n") + "\n")
	}
	b.WriteString("\n%packages\n@^minimal-environment\nopenssh-server\n" + strings.Join(append(slices.Clone(a.setup.Packages), "%end\n"), "\n"))
	b.WriteString("\n%pre --erroronfail --log=/tmp/lpmos-pre.log\n" + InstallerAgent + " installer watch\n" + InstallerAgent + " installer disk\nudevadm trigger --action=change --subsystem-match=block\nudevadm settle\n%end\n")
	b.WriteString("\n%post --nochroot --erroronfail --log=/tmp/lpmos-post.log\n" + InstallerAgent + " installer finish\n%end\n")
	b.WriteString("\n%onerror\n" + InstallerAgent + " installer failed\n%end\n")
	return b.String(), failed
}

// autoinstall is for Ubuntu's installer (subiquity): one document, in JSON,
// which is YAML.
func (a answers) autoinstall() (string, error) {
	doc := map[string]any{}
	if a.added != "" {
		if err := UnmarshalJSON([]byte(a.added), &doc); err != nil {
			return "", err
		}
	}
	packages := a.setup.Packages
	if more, ok := doc["packages"].([]any); ok {
		for _, p := range more {
			if s, ok := p.(string); ok {
				packages = append(slices.Clip(packages), s)
			}
		}
	}
	for k, v := range map[string]any{
		"version": 1, "interactive-sections": []string{},
		"locale": a.locale(), "keyboard": map[string]any{"layout": a.keyboard()}, "timezone": a.timezone(),
		"network": cloudNetwork(nil, a.effect.Network.MACs),
		"storage": map[string]any{"layout": map[string]any{"name": "direct", "match": map[string]any{"path": a.disk}}},
		"ssh":     map[string]any{"install-server": true, "allow-pw": false},
		// Accounts are added by the last command.
		"user-data":      map[string]any{"hostname": a.effect.Hostname, "disable_root": false, "users": []any{}},
		"early-commands": [][]string{{InstallerAgent, "installer", "watch"}, {InstallerAgent, "installer", "disk"}},
		"late-commands":  [][]string{{InstallerAgent, "installer", "finish"}},
		"error-commands": [][]string{{InstallerAgent, "installer", "failed"}},
		"shutdown":       "reboot",
	} {
		doc[k] = v
	}
	if len(packages) > 0 {
		doc["packages"] = packages
	}
	if a.installer.Repository != "" {
		doc["apt"] = map[string]any{"mirror-selection": map[string]any{"primary": []any{map[string]any{"uri": a.installer.Repository}}}}
	}
	return "# Written by LPMOS for task " + a.taskID + ".\n" + jsonText(doc), nil
}

// autoinstallAdds are the sections that a template may add.
var autoinstallAdds = []string{"apt", "codecs", "debconf-selections", "drivers", "kernel", "oem", "packages", "proxy", "refresh-installer", "snaps", "source", "ubuntu-pro", "updates"}

func checkAutoinstall(text string) error {
	doc := map[string]any{}
	if err := UnmarshalJSON([]byte(text), &doc); err != nil {
		return badAnswers("a template for autoinstall is a JSON object (which is YAML) of sections: %v", err)
	}
	for k := range doc {
		if !slices.Contains(autoinstallAdds, k) {
			return badAnswers("%s is not a section that a template adds; there is %s", k, strings.Join(autoinstallAdds, ", "))
		}
	}
	return nil
}

// checkAnswers holds rendered text against the grammar of its kind.
func checkAnswers(kind, text string) error {
	if !utf8.ValidString(text) {
		return badAnswers("it is not valid UTF-8")
	}
	if kind == TemplatePreseed || kind == TemplateKickstart {
		// Installers do not agree on what ends a line: Anaconda does as Python.
		for line := range strings.Lines(text) {
			if !plainLine(strings.ReplaceAll(strings.TrimSuffix(line, "\n"), "\t", " ")) {
				return badAnswers("%q has a control character; a line ends with a line feed alone", line)
			}
		}
	}
	switch kind {
	case TemplatePreseed:
		return checkPreseed(text)
	case TemplateKickstart:
		return checkKickstart(text, false)
	case TemplateAutoinstall:
		return checkAutoinstall(text)
	}
	return checkUserData(text)
}
