package web

import (
	"errors"
	"net/url"
	"slices"

	"github.com/lpmos/lpmos"
)

// secretAsk is a secret that tasks take. It is asked for on the summary, in the
// form that creates them, so that no page ever carries it.
type secretAsk struct {
	Name, Label, Hint string
	Required          bool
	Passphrase        bool // not a hash
	Problem           string
}

// Field is its name in the form.
func (a secretAsk) Field() string { return secretField + a.Name }

const secretField = "secret-"

// secretsOf are the secrets that a task has a place for: the passphrase of disks
// that are encrypted, and password hashes of accounts of its profile.
func (w *Web) secretsOf(s lpmos.Spec) (out []secretAsk) {
	if p, ok := w.profileNamed(s.Profile); ok {
		s = p.Apply(s)
	}
	if s.Layout.Encrypted() {
		out = append(out, secretAsk{Name: lpmos.SecretDisk, Label: w.T("Passphrase of the encrypted disks"), Required: true, Passphrase: true,
			Hint: w.T("The machine asks for it at its console at every start. It is shown to nobody again, so keep it.")})
	}
	if x := w.setupOf(s); x != nil {
		for _, u := range x.Users {
			if u.Password {
				out = append(out, secretAsk{Name: u.PasswordSecret(), Label: w.T("Password hash of %s", u.Name),
					Hint: w.T("Instead of the one its profile has. By mkpasswd or openssl passwd -6, never the password itself.")})
			}
		}
	}
	return out
}

// setupOf is what the profile of a task configures, nil if nothing.
func (w *Web) setupOf(s lpmos.Spec) *lpmos.Setup {
	p, _ := w.profileNamed(s.Profile)
	return p.System
}

// secretAsks are the secrets of all of some tasks, each once.
func (w *Web) secretAsks(specs []lpmos.Spec) (out []secretAsk) {
	for _, s := range specs {
		for _, a := range w.secretsOf(s) {
			if slices.ContainsFunc(out, func(b secretAsk) bool { return a.Name == b.Name }) {
				continue
			}
			if len(specs) > 1 {
				a.Hint = w.joined(a.Hint, w.T("All these machines get the same."))
			}
			out = append(out, a)
		}
	}
	return out
}

// giveSecrets puts what was typed into the tasks that have a place for it, or
// says what is wrong with it.
func (w *Web) giveSecrets(form url.Values, specs []lpmos.Spec) (problems []fieldProblem) {
	values := map[string]lpmos.Secret{}
	for _, a := range w.secretAsks(specs) {
		v := form.Get(a.Field())
		if v == "" {
			if a.Required {
				problems = append(problems, fieldProblem{a.Field(), w.T("This is missing.")})
			}
			continue
		}
		values[a.Name] = lpmos.NewSecret(v)
		_, err := lpmos.NewSecretSet(map[string]lpmos.Secret{a.Name: values[a.Name]})
		if invalid, ok := errors.AsType[*lpmos.InvalidError](err); ok {
			problems = append(problems, fieldProblem{a.Field(), w.T("It %s.", w.Said(invalid.Problem))})
		}
	}
	for i := range specs {
		for _, a := range w.secretsOf(specs[i]) {
			if v, ok := values[a.Name]; ok {
				if specs[i].Secrets == nil {
					specs[i].Secrets = map[string]lpmos.Secret{}
				}
				specs[i].Secrets[a.Name] = v
			}
		}
	}
	return problems
}
