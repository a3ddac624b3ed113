package lpmos

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// ksSyntax is what a line of a kickstart file may hold beside its first word.
type ksSyntax struct {
	ours    bool   // not a template's
	words   int    // how many words that are no options; −1: any, options among them
	options string // as documented; those that take a value end in "="
}

// ksCommands are Anaconda's commands, as pykickstart documents them for RHEL 9
// (docs/commands_rhel.rst and its handler of RHEL 9): those that LPMOS writes and
// those that a template may add. What decides about disks, passwords, accounts
// and the end of the installation is LPMOS's, with the options that it writes;
// what is not here is refused.
var ksCommands = map[string]ksSyntax{
	"autopart":   {ours: true, options: "--type= --nohome"},
	"bootloader": {ours: true, options: "--boot-drive= --append="},
	"clearpart":  {ours: true, options: "--all --initlabel --drives="},
	"cmdline":    {ours: true},
	"ignoredisk": {ours: true, options: "--only-use="},
	"reboot":     {ours: true},
	"rootpw":     {ours: true, options: "--lock"},
	"zerombr":    {ours: true},

	"authselect": {words: -1},
	"eula":       {options: "--agreed"},
	"firewall":   {options: "--enable --enabled --disable --disabled --trust= --port= --service= --remove-service= --ssh --ftp --http --smtp --use-system-defaults"},
	"firstboot":  {options: "--enable --enabled --disable --disabled --reconfig"},
	"group":      {options: "--name= --gid="},
	"keyboard":   {words: 1, options: "--vckeymap= --xlayouts= --switch="},
	"lang":       {words: 1, options: "--addsupport="},
	"logging":    {options: "--host= --port="},
	"module":     {options: "--name= --stream= --disable"},
	"network": {options: "--bootproto= --device= --hostname= --activate --no-activate --onboot= --nodefroute --ip= --netmask= --gateway= --nameserver= --nodns --noipv4 --noipv6 --ipv6= --ipv6gateway= --mtu= --ethtool= --dhcpclass= " +
		"--interfacename= --bindto= --bondslaves= --bondopts= --vlanid= --teamslaves= --teamconfig= --bridgeslaves= --bridgeopts="},
	"nfs":        {options: "--server= --dir= --opts="},
	"realm":      {words: -1},
	"repo":       {options: "--name= --baseurl= --mirrorlist= --metalink= --cost= --excludepkgs= --includepkgs= --proxy= --noverifyssl --install --sslcacert= --sslclientcert= --sslclientkey="},
	"rhsm":       {options: "--organization= --activation-key= --connect-to-insights --proxy= --server-hostname= --rhsm-baseurl="},
	"selinux":    {options: "--disabled --enforcing --permissive"},
	"services":   {options: "--disabled= --enabled="},
	"skipx":      {},
	"sshkey":     {words: 1, options: "--username="},
	"syspurpose": {options: "--role= --sla= --usage= --addon="},
	"timesource": {options: "--ntp-server= --ntp-pool= --ntp-disable --nts"},
	"timezone":   {words: 1, options: "--utc --isUtc"},
	"url":        {options: "--url= --mirrorlist= --metalink= --proxy= --noverifyssl --sslcacert= --sslclientcert= --sslclientkey="},
	"xconfig":    {options: "--defaultdesktop= --startxonboot"},
}

// ksSections are its sections, which end at %end, likewise. Of those that hold
// a script, the script is not looked into.
var ksSections = map[string]ksSyntax{
	"%onerror": {ours: true},
	"%pre":     {ours: true, options: "--erroronfail --log="},

	"%addon":    {words: -1},
	"%packages": {options: "--default --excludedocs --exclude-weakdeps --ignorebroken --ignoremissing --inst-langs= --multilib --nocore --retries= --timeout="},
	"%post":     {options: "--erroronfail --interpreter= --log= --logfile="},
}

// ksOwnPost is an option of %post by which it reaches the machine itself.
const ksOwnPost = "--nochroot"

// ksWithin are what no section may hold: pykickstart takes them for its own
// wherever they stand.
var ksWithin = []string{
	"%addon", "%anaconda", "%certificate", "%end", "%include", "%ksappend", "%onerror", "%packages", "%post", "%pre", "%pre-install", "%traceback",
}

// ksPackageRE is a line of %packages: a package, a group or an environment, by
// id, with "-" not to have it.
var ksPackageRE = regexp.MustCompile(`^-?(@\^?[A-Za-z0-9][A-Za-z0-9 ._+/:-]*|[A-Za-z0-9][A-Za-z0-9._+:~*?-]*)$`)

// checkKickstart holds lines against the documented syntax: those that a
// template adds, or those of a whole file.
func checkKickstart(text string, whole bool) error {
	section := ""
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		if section != "" {
			// A script may have lines such as %wheel; "%e'n'd" would end it.
			special := strings.HasPrefix(f[0], "%") && (slices.Contains(ksWithin, f[0]) || strings.HasPrefix(f[0], "%ksappend"))
			quoted := strings.HasPrefix(f[0], "%") && strings.ContainsAny(f[0], "\"'\\")
			switch {
			case f[0] == "%end":
				section = ""
			case special || quoted:
				return badAnswers("%s does not belong into %s", f[0], section)
			case section == "%packages" && !ksPackageRE.MatchString(strings.Join(f, " ")):
				return badAnswers("%q is not a line of %%packages: there is name, @group, @^environment, and each with - in front", strings.Join(f, " "))
			}
			continue
		}
		words, err := ksWords(line)
		if err != nil {
			return badAnswers("%q: %v", strings.TrimSpace(line), err)
		}
		name := words[0]
		syntax, known := ksCommands[name]
		if strings.HasPrefix(name, "%") {
			syntax, known = ksSections[name]
			if section = name; whole && name == "%post" {
				syntax.options += " " + ksOwnPost
			}
		}
		switch {
		case !known && strings.HasPrefix(name, "%"):
			return badAnswers("%s is not a template's: there is %%packages, %%post and %%addon", name)
		case !known || syntax.ours && !whole:
			return badAnswers("%s is not a template's to say: LPMOS decides about disks, commands and passwords. There is %v", name, ksAdds())
		}
		if err := syntax.check(words[1:]); err != nil {
			return badAnswers("%s %v", name, err)
		}
	}
	if section != "" {
		return badAnswers("%s has no %%end", section)
	}
	return nil
}

// ksAdds are the commands that a template may add.
func ksAdds() (names []string) {
	for name, c := range ksCommands {
		if !c.ours {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// check says what is wrong with the words behind a first one.
func (s ksSyntax) check(words []string) error {
	if s.words < 0 {
		return nil
	}
	options := strings.Fields(s.options)
	others := 0
	for i := 0; i < len(words); i++ {
		option, _, given := strings.Cut(words[i], "=")
		switch {
		case !strings.HasPrefix(words[i], "-"):
			others++
		case slices.Contains(options, option+"="):
			if !given {
				i++ // "--name VALUE"
			}
			if i == len(words) {
				return errors.New("has no value for " + option)
			}
		case !slices.Contains(options, words[i]):
			return fmt.Errorf("does not know %q; there is %v", Shorten(words[i], 80), options)
		}
	}
	if others > s.words {
		return errors.New("has more words than it takes")
	}
	return nil
}

// ksWords takes a line apart as pykickstart does, by Python's shlex: blanks
// part words, both kinds of quotes and a backslash quote, "#" begins a comment.
func ksWords(line string) (words []string, err error) {
	var word []byte
	begun := false
	quote := byte(0)
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote == '\'' || quote == '"' && c != '\\':
			word = append(word, c)
		case c == '\\':
			i++
			if i == len(line) || line[i] == '\n' {
				return nil, errors.New("ends with a backslash")
			}
			if quote != 0 && line[i] != quote && line[i] != '\\' {
				word = append(word, '\\')
			}
			word, begun = append(word, line[i]), true
		case c == '"' || c == '\'':
			quote, begun = c, true
		case c == '#' || c == ' ' || c == '\t' || c == '\n':
			if begun {
				words = append(words, string(word))
			}
			word, begun = word[:0], false
			if c == '#' {
				return words, nil
			}
		default:
			word, begun = append(word, c), true
		}
	}
	if quote != 0 {
		return nil, errors.New("has a quote that does not end")
	}
	if begun {
		words = append(words, string(word))
	}
	return words, nil
}
