package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/lpmos/lpmos"
)

// secretFlags are how secrets are given to a command: by a file, by standard
// input or at the terminal, never as an argument, which every user of the
// computer can read while the command runs.
type secretFlags struct {
	ask   []string // names
	files []string // NAME=FILE
}

func (s *secretFlags) flags(f *pflag.FlagSet) {
	f.StringArrayVar(&s.ask, "secret", nil, "name of a secret that only the installed machine may see; its value is asked for at the terminal")
	f.StringArrayVar(&s.files, "secret-file", nil, "secret as NAME=FILE: its value is the file's content without the last line end; - is standard input")
}

// read gets the values. stdin says that standard input is spoken for.
func (s *secretFlags) read(a *app, stdin bool) (map[string]lpmos.Secret, error) {
	if len(s.ask)+len(s.files) == 0 {
		return nil, nil
	}
	out := map[string]lpmos.Secret{}
	add := func(flag, name, value string) error {
		switch {
		case !lpmos.ValidName(name):
			return usageError{fmt.Errorf("%s %q is not the name of a secret (lower-case letters, digits, dots, hyphens)", flag, lpmos.Shorten(name, 64))}
		case !out[name].IsZero():
			return usageError{fmt.Errorf("the secret %s is given twice", name)}
		case value == "":
			return usageError{fmt.Errorf("the secret %s is empty", name)}
		case len(value) > lpmos.MaxSecretBytes:
			return usageError{fmt.Errorf("the secret %s is longer than %s", name, lpmos.FormatBytes(lpmos.MaxSecretBytes))}
		}
		out[name] = lpmos.NewSecret(value)
		return nil
	}
	for _, f := range s.files {
		name, path, ok := strings.Cut(f, "=")
		if !ok {
			return nil, usageError{errors.New("--secret-file takes NAME=FILE; the value itself is never an argument")}
		}
		if path == "-" && stdin {
			return nil, usageError{errors.New("standard input can be read once: give --from-csv or --secret-file a file")}
		}
		stdin = stdin || path == "-"
		value, err := readSecret(a.in, path)
		if err != nil {
			return nil, fmt.Errorf("read secret %s: %w", name, err)
		}
		if err := add("--secret-file", name, value); err != nil {
			return nil, err
		}
	}
	for _, name := range s.ask {
		if stdin {
			return nil, usageError{errors.New("standard input is a file, so nothing can be asked for at the terminal: give --secret-file for every secret")}
		}
		value, err := a.prompt("Secret "+name+": ", true)
		if err != nil {
			return nil, err
		}
		if err := add("--secret", name, value); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// readSecret reads a file, or in for "-", up to what a secret may be long.
func readSecret(in io.Reader, path string) (string, error) {
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, lpmos.MaxSecretBytes+3))
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r"), nil
}
