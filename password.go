package lpmos

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// The password of an account is known as a hash (crypt(5)), and the hash is a
// secret: a profile keeps it sealed, a task commits to it, and only the agent of
// an approved attempt gets the value, which it writes to /etc/shadow or into
// what cloud-init reads.

// hashRE are the methods that are not guessed at by the million: SHA-512 and
// yescrypt.
var hashRE = regexp.MustCompile(`^(\$6\$(rounds=[1-9][0-9]{3,8}\$)?[./0-9A-Za-z]{1,16}\$[./0-9A-Za-z]{86}|\$y\$[./0-9A-Za-z]{1,16}\$[./0-9A-Za-z]{1,86}\$[./0-9A-Za-z]{43})$`)

// CheckPasswordHash says what is wrong with a password's hash, never quoting
// it: what was given by mistake may be the password.
func CheckPasswordHash(hash string) error {
	bad := func(problem string) error { return &InvalidError{Field: "password_hash", Problem: problem} }
	switch {
	case hashRE.MatchString(hash):
		return nil
	case strings.ContainsAny(hash, ":\n\r\x00"):
		return bad("holds a colon or a line end, which /etc/shadow cannot")
	case strings.HasPrefix(hash, "$6$") || strings.HasPrefix(hash, "$y$"):
		return bad("begins as a crypt(3) hash does and is not a whole one: copy all of it, quoted so that no shell takes the $ away")
	case strings.HasPrefix(hash, "$"):
		return bad("is of a method that is not taken: SHA-512 ($6$) and yescrypt ($y$) are (mkpasswd --method=yescrypt)")
	}
	return bad("is not a crypt(3) hash, and a password itself is not stored anywhere: make one with mkpasswd --method=yescrypt, or openssl passwd -6")
}

const passwordSecret = "password."

// PasswordSecret is the name of the secret of a task that holds the hash.
func (u Account) PasswordSecret() string { return passwordSecret + u.Name }

// passwordPlace is where a hash goes in the text of a plan.
func (u Account) passwordPlace() string { return "@@secret:" + u.PasswordSecret() + "@@" }

// FillSecrets puts password hashes into the places that a plan's text has for
// them. Values that are none stay out: no text of a plan is prepared for them.
func FillSecrets(text string, secrets map[string]Secret) string {
	for name, v := range secrets {
		if user, ok := strings.CutPrefix(name, passwordSecret); ok && CheckPasswordHash(v.Reveal()) == nil {
			text = strings.ReplaceAll(text, Account{Name: user}.passwordPlace(), v.Reveal())
		}
	}
	return text
}

// TakePasswords is the profile without password hashes, and these by the names
// that the secrets of its tasks have. keep are those of the version before, for
// accounts that have a password and say none.
func (p Profile) TakePasswords(keep map[string]Secret) (Profile, map[string]Secret, error) {
	out := map[string]Secret{}
	if p.System == nil {
		return p, out, nil
	}
	s := *p.System
	s.Users, p.System = slices.Clone(s.Users), &s
	for i := range s.Users {
		u := &s.Users[i]
		name := u.PasswordSecret()
		switch was, ok := keep[name]; {
		case !u.PasswordHash.IsZero():
			out[name], u.PasswordHash, u.Password = u.PasswordHash, Secret{}, true
		case u.Password && ok:
			out[name] = was
		case u.Password:
			return p, nil, badSetup(fmt.Sprintf("users[%d].password", i), "is set, and no password_hash was ever given for "+u.Name, "")
		}
	}
	return p, out, nil
}
