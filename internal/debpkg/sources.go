package debpkg

import (
	"context"
	"fmt"
	"strings"
)

// sourcesList is the sources.list of a Repo. Mirrors come from cfg or else
// from the host's own apt configuration, whatever its suites are: a Debian 12
// host can build from Debian 13.
func sourcesList(ctx context.Context, cfg Config) ([]byte, error) {
	out, err := run(ctx, "", "/usr/bin/apt-get", "indextargets", "--format", "$(CREATED_BY)|$(ORIGIN)|$(LABEL)|$(REPO_URI)")
	if err != nil {
		return nil, fmt.Errorf("read the host's apt sources: %w", err)
	}
	mirrors := parseTargets(string(out))
	if cfg.Mirror != "" {
		mirrors["Debian"] = cfg.Mirror
	}
	if mirrors["Debian"] == "" {
		return nil, fmt.Errorf("read the host's apt sources: no Debian archive among them (run apt-get update, or name a mirror)")
	}
	var b strings.Builder
	line := func(label, suite string) {
		if mirrors[label] != "" {
			fmt.Fprintf(&b, "deb [signed-by=%s arch=amd64] %s %s %s\n", keyring, mirrors[label], suite, cfg.Component)
		}
	}
	line("Debian", cfg.Suite)
	if cfg.Updates {
		line("Debian", cfg.Suite+"-updates")
		line("Debian-Security", cfg.Suite+"-security")
	}
	return []byte(b.String()), nil
}

// parseTargets returns the first archive of origin Debian for each label.
func parseTargets(out string) map[string]string {
	mirrors := map[string]string{}
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) == 4 && f[0] == "Packages" && f[1] == "Debian" && mirrors[f[2]] == "" {
			mirrors[f[2]] = f[3]
		}
	}
	return mirrors
}
