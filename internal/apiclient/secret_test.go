package apiclient

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
)

// A secret encodes as "redacted" everywhere but in the request that gives it.
func TestSecretsAreSent(t *testing.T) {
	s := lpmos.Spec{RegionID: "dc1", Secrets: map[string]lpmos.Secret{"token": lpmos.NewSecret("the value")}}
	b, err := json.Marshal(wireSpec(s))
	if err != nil {
		t.Fatal(err)
	}
	var back lpmos.Spec
	if err := lpmos.UnmarshalJSON(b, &back); err != nil || back.Secrets["token"].Reveal() != "the value" || back.RegionID != "dc1" {
		t.Errorf("the request reads as %+v, %v; want the secret's value in it", back, err)
	}
	if b, err = json.Marshal(s); err != nil || strings.Contains(string(b), "the value") {
		t.Errorf("a spec encodes as %s, %v; want no secret in it", b, err)
	}
}

func TestPasswordsOfProfilesAreSent(t *testing.T) {
	p := lpmos.Profile{Name: "web", OSType: "debian", OSVersion: "12", System: &lpmos.Setup{Timezone: "UTC", Users: []lpmos.Account{
		{Name: "ops", Sudo: true, PasswordHash: lpmos.NewSecret("the hash")}, {Name: "app", Password: true},
	}}}
	b, err := json.Marshal(wireProfile(p))
	if err != nil {
		t.Fatal(err)
	}
	var back lpmos.Profile
	if err := lpmos.UnmarshalJSON(b, &back); err != nil || lpmos.DigestOf(back) != lpmos.DigestOf(p) || back.System.Users[0].PasswordHash.Reveal() != "the hash" || !back.System.Users[1].PasswordHash.IsZero() {
		t.Errorf("the request %s reads as %+v, %v; want the profile, with its hash", b, back, err)
	}
	if b, err = json.Marshal(p); err != nil || strings.Contains(string(b), "the hash") {
		t.Errorf("a profile encodes as %s, %v; want no hash in it", b, err)
	}
}
