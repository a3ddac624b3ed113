package agent

import (
	"bytes"
	"crypto/ed25519"
	"testing"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// FuzzBootConfig reads whatever a region put into a boot image: what is taken
// says which machine it is for and trusts the site's keys and no others, and each
// boot has a key of its own.
func FuzzBootConfig(f *testing.F) {
	key := make([]byte, ed25519.PublicKeySize)
	site := lpmos.CanonicalJSON(agentapi.SiteConfig{Keys: [][]byte{key}})
	f.Add(lpmos.CanonicalJSON(agentapi.BootConfig{BootMAC: lpmos.MustMAC("52:54:00:00:00:01"), AgentURL: "https://192.0.2.1:8443", Credential: "x"}), site)
	f.Add([]byte(`{"boot_mac":"52:54:00:00:00:01","keys":["AAAA"]}`), site)
	f.Add([]byte(`{"boot_mac":"52:54:00:00:00:01"}`), []byte(`{"keys":["","AAAA",null]}`))
	f.Fuzz(func(t *testing.T, boot, site []byte) {
		cfg, err := ParseBootConfig(bytes.NewReader(boot), bytes.NewReader(site))
		if err != nil {
			return
		}
		var s agentapi.SiteConfig
		if err := lpmos.UnmarshalJSON(site, &s); err != nil || len(keys(cfg)) == 0 || lpmos.DigestOf(cfg.Keys) != lpmos.DigestOf(s.Keys) {
			t.Fatalf("the keys %x are trusted, and the site has %x, %v", cfg.Keys, s.Keys, err)
		}
		again, err := ParseBootConfig(bytes.NewReader(boot), bytes.NewReader(site))
		if err != nil || cfg.BootMAC.IsZero() || again.BootMAC != cfg.BootMAC || again.Key.Public().Fingerprint() == cfg.Key.Public().Fingerprint() {
			t.Fatalf("%+v is read as %+v the second time, %v", cfg, again, err)
		}
	})
}
