package web

import (
	"net/url"
	"testing"

	"github.com/lpmos/lpmos"
)

// FuzzForms reads what a person uploads and types: a file of machines, and the form
// of a profile, which is taken as it is or made so once.
func FuzzForms(f *testing.F) {
	en, err := newTongue("en")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(goodCSV, "users-0-name=ops&users-0-ssh_keys=ssh-ed25519+AAAA&interfaces-0-nic=boot&interfaces-0-mtu=9000&interfaces-1-kind=vlan&interfaces-1-vlan-id=x&dns=192.0.2.53&scripts-0-name=motd&scripts-0-text=%23!/bin/sh%0d%0a")
	f.Add("\ufeffmac;hostname\n\"", "packages=vim,tmux&timezone=Europe/Berlin&ntp=a+b&interfaces-0-routes=x+via+y")
	f.Fuzz(func(t *testing.T, file, form string) {
		lines, problems := en.parseCSV(file)
		if len(lines) > lpmos.MaxBatchLines {
			t.Fatalf("%d lines, %d problems", len(lines), len(problems))
		}
		p, err := url.ParseQuery(form)
		if err != nil {
			return
		}
		_, s := readSetup(p)
		if s == nil {
			return
		}
		once, err := s.Normalize()
		if err != nil {
			return
		}
		if again, err := once.Normalize(); err != nil || lpmos.DigestOf(again) != lpmos.DigestOf(once) {
			t.Fatalf("%q becomes %+v, and that %+v, %v", form, once, again, err)
		}
	})
}
