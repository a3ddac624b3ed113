package cli

import (
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/lpmos/lpmos"
)

// setupLines is a Setup in words, one line for each thing.
func setupLines(s *lpmos.Setup) [][2]string {
	if s == nil {
		return nil
	}
	var out [][2]string
	add := func(name, value string) {
		if value != "" {
			out = append(out, [2]string{name, value})
		}
	}
	if s.Network != nil {
		for _, f := range s.Network.Interfaces {
			add("interface", interfaceWords(f))
		}
		add("DNS", strings.TrimSpace(strings.Join(s.Network.DNS, ", ")+" "+strings.Join(s.Network.Search, " ")))
	}
	for _, u := range s.Users {
		words := []string{u.Name}
		if u.Gecos != "" {
			words[0] += " (" + u.Gecos + ")"
		}
		if len(u.Groups) > 0 {
			words = append(words, "in "+strings.Join(u.Groups, " "))
		}
		if u.Sudo {
			words = append(words, "may act as root")
		}
		if u.Password {
			words = append(words, "has a password")
		}
		words = append(words, count(len(u.SSHKeys), "SSH key", "SSH keys"))
		add("user", strings.Join(words, ", "))
	}
	add("time zone", s.Timezone)
	add("locale", s.Locale)
	add("keyboard", s.Keyboard)
	add("time servers", strings.Join(s.NTP, ", "))
	add("packages", strings.Join(s.Packages, " "))
	add("kernel args", strings.Join(s.Kernel, " "))
	for _, f := range s.Scripts {
		add("first boot", fmt.Sprintf("%s, %s, %s", f.Name, lpmos.FormatBytes(int64(len(f.Text))), lpmos.DigestBytes([]byte(f.Text))[:19]))
	}
	return out
}

func interfaceWords(f lpmos.Interface) string {
	var words []string
	switch {
	case f.Bond != nil:
		words = append(words, f.Name+": bond of "+strings.Join(f.Bond.Members, " ")+" ("+f.Bond.Mode+")")
	case f.VLAN != nil:
		words = append(words, fmt.Sprintf("%s: VLAN %d on %s", f.Name, f.VLAN.ID, f.VLAN.Parent))
	default:
		words = append(words, f.Name+": port "+f.NIC)
	}
	if f.PerMachine {
		words = append(words, "address of each task")
	}
	if f.DHCP4 {
		words = append(words, "DHCP")
	}
	if f.DHCP6 {
		words = append(words, "DHCPv6")
	}
	words = append(words, f.Addresses...)
	for _, g := range f.Gateways {
		words = append(words, "gateway "+g)
	}
	for _, r := range f.Routes {
		words = append(words, r.To+" by "+r.Via)
	}
	if f.MTU > 0 {
		words = append(words, "MTU "+strconv.Itoa(f.MTU))
	}
	return strings.Join(words, ", ")
}

func setupFields(v *table, s *lpmos.Setup) {
	for _, l := range setupLines(s) {
		v.field(l[0], clip(plain(l[1]), 400))
	}
}

// receiptFields is what of a receipt is worth a line each.
func receiptFields(v *table, r *lpmos.Receipt, wide bool) {
	for _, k := range r.HostKeys {
		v.field("host key", plain(k.Type+" "+k.Fingerprint))
	}
	if r.CloudInit != "" {
		v.field("cloud-init", plain(strings.Join(append([]string{r.CloudInit}, r.CloudInitErrors...), ", ")))
	}
	if !wide {
		return
	}
	v.field("kernel args", plain(r.KernelArgs))
	for _, m := range r.Mounts {
		v.field("mount", plain(m.Path+" "+m.FS))
	}
	v.field("time zone", plain(r.Timezone))
	if r.TimeSynced != nil {
		v.field("clock", map[bool]string{true: "follows another", false: "follows no other"}[*r.TimeSynced])
	}
	v.field("accounts", plain(strings.Join(r.Users, ", ")))
	for _, k := range r.KnownHosts() {
		v.field("known_hosts", plain(k))
	}
}

// writeFiles prints files one after the other, each below a line that says what
// it is. Text that a terminal would act on is shown escaped.
func writeFiles(w *tabwriter.Writer, files []lpmos.PlannedFile) {
	for _, f := range files {
		fmt.Fprintf(w, "── %s  %s  %s\n", plain(f.Path), plain(f.Mode), plain(f.What))
		switch {
		case f.Link != "":
			fmt.Fprintf(w, "   a link to %s\n", plain(f.Link))
		case f.Text == "":
			fmt.Fprintln(w, "   made by the agent")
		default:
			owner := ""
			if f.Owner != "" {
				owner = ", of " + plain(f.Owner)
			}
			fmt.Fprintf(w, "   %s%s\n", f.Digest(), owner)
			for _, c := range [][2]string{{"only where the image has ", f.If}, {"not where the image has ", f.Unless}} {
				if c[1] != "" {
					fmt.Fprintf(w, "   %s%s\n", c[0], plain(c[1]))
				}
			}
			for line := range strings.Lines(f.Text) {
				fmt.Fprintf(w, "   │ %s\n", plain(strings.TrimSuffix(line, "\n")))
			}
		}
	}
}
