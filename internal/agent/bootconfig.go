package agent

import (
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
	"github.com/lpmos/lpmos/internal/tpm"
)

const maxBootConfigBytes = 256 << 10

// ReadBootConfig reads what the region told this boot and what the control
// plane put into the boot image; see agentapi.BootConfigPath. The region's file
// is removed from the initramfs, because it holds the credential and nothing
// needs it again.
func ReadBootConfig(path, sitePath string) (agentapi.BootConfig, error) {
	f, err := os.Open(path)
	if err != nil {
		return agentapi.BootConfig{}, fmt.Errorf("read boot configuration: %w", err)
	}
	defer f.Close()
	site, err := os.Open(sitePath)
	if err != nil {
		return agentapi.BootConfig{}, fmt.Errorf("read site configuration: %w (publish the boot image again: lpmos bootimage publish)", err)
	}
	defer site.Close()
	cfg, err := ParseBootConfig(f, site)
	if err == nil {
		os.Remove(path)
	}
	return cfg, err
}

// ParseBootConfig reads a boot configuration and the site's, checks that an
// agent can work with them, and makes the key of this boot.
func ParseBootConfig(r, site io.Reader) (agentapi.BootConfig, error) {
	var cfg agentapi.BootConfig
	var s agentapi.SiteConfig
	if err := lpmos.DecodeJSON(site, maxBootConfigBytes, &s); err != nil {
		return cfg, fmt.Errorf("read site configuration: %w", err)
	}
	if err := lpmos.DecodeJSON(r, maxBootConfigBytes, &cfg); err != nil {
		return cfg, fmt.Errorf("read boot configuration: %w", err)
	}
	if cfg.BootMAC.IsZero() {
		return cfg, fmt.Errorf("read boot configuration: %w", &lpmos.InvalidError{Field: "boot_mac", Problem: "is missing"})
	}
	if cfg.Keys = s.Keys; len(keys(cfg)) == 0 {
		return cfg, fmt.Errorf("read site configuration: %w", &lpmos.InvalidError{Field: "keys", Problem: "hold no public key of the control plane, so no order could be trusted"})
	}
	var err error
	cfg.Key, err = lpmos.NewAgentKey()
	return cfg, err
}

// Unwrap opens the credential of a boot that was wrapped for the machine's TPM;
// of other boots it leaves everything as it is. An agent that cannot asks with
// its plea: it is refused, and the reason reaches a person. t is nil when there
// is no TPM that can be used.
func Unwrap(cfg *agentapi.BootConfig, t *tpm.TPM) error {
	if cfg.Wrapped == nil {
		return nil
	}
	cfg.Credential = cfg.Plea
	if t == nil {
		return fmt.Errorf("unwrap the credential of this boot: %w", tpm.ErrNone)
	}
	secret, err := t.Unwrap(*cfg.Wrapped)
	if err != nil {
		return fmt.Errorf("unwrap the credential of this boot: %w", err)
	}
	cfg.Credential = hex.EncodeToString(secret)
	return nil
}

func keys(cfg agentapi.BootConfig) []ed25519.PublicKey {
	var out []ed25519.PublicKey
	for _, k := range cfg.Keys {
		if len(k) == ed25519.PublicKeySize {
			out = append(out, ed25519.PublicKey(k))
		}
	}
	return out
}

// NewClient is the client for cfg's region and boot.
func NewClient(cfg agentapi.BootConfig, log *slog.Logger) (*agentapi.Client, error) {
	return agentapi.NewClient(agentapi.ClientConfig{URL: cfg.AgentURL, ServerName: cfg.ServerName, CA: cfg.CA, Credential: cfg.Credential, Key: cfg.Key}, log)
}
