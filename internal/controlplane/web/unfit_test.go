package web

import (
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
)

// TestUnfit holds what keeps an image from being chosen: what was found in it, and
// how it did when it was tried.
func TestUnfit(t *testing.T) {
	en, err := newTongue("en")
	if err != nil {
		t.Fatal(err)
	}
	image := func(modes []string, badges ...lpmos.Badge) lpmos.Image {
		return lpmos.Image{Arch: "amd64", Digest: "sha256:1", BootModes: modes, Badges: badges}
	}
	both := []string{"bios", "uefi"}
	for name, c := range map[string]struct {
		image lpmos.Image
		boot  string
		want  string
	}{
		"no loader for UEFI":                      {image([]string{"bios"}), "uefi", "this image cannot boot a UEFI machine"},
		"no loader for a BIOS":                    {image([]string{"uefi"}), "bios", "this image cannot boot a BIOS machine"},
		"both":                                    {image(both), "uefi", ""},
		"both, and it failed":                     {image(both, lpmos.Badge{Firmware: "uefi", Digest: "sha256:1"}), "uefi", "this image cannot boot a UEFI machine"},
		"both, and it failed by other firmware":   {image(both, lpmos.Badge{Firmware: "bios", Digest: "sha256:1"}), "uefi", ""},
		"both, and it passed":                     {image(both, lpmos.Badge{Firmware: "uefi", Digest: "sha256:1", Passed: true}), "uefi", ""},
		"both, and an earlier image of it failed": {image(both, lpmos.Badge{Firmware: "uefi", Digest: "sha256:0"}), "uefi", ""},
		"a machine of which that is not known":    {image([]string{"bios"}), "", ""},
	} {
		if got := en.unfit(c.image, &lpmos.Hardware{BootMode: c.boot, CPU: lpmos.CPU{Architecture: "amd64"}}); got != c.want {
			t.Errorf("%s: %q; want %q", name, got, c.want)
		}
	}
	s := newSite(t, testNow)
	s.addDiscovered()
	_, body := get(t, signedIn(newTestWeb(t, s)), "/tasks/create?target_mac=7c:c2:55:10:92:01&region_id=bj-1")
	_, card, _ := strings.Cut(body, `name="image" value="ubuntu/24.04/amd64"`)
	card, _, _ = strings.Cut(card, "</label>")
	if !strings.HasPrefix(card, " disabled>") || !strings.Contains(card, "this image cannot boot a UEFI machine") {
		t.Errorf("in the form, that of Ubuntu is %s", card)
	}
}
