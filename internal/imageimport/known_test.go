package imageimport

import (
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/lpmos/lpmos/internal/preflight"
)

// TestCatalogueIsWellFormed holds the list of official artefacts to its form.
// Whether an address still is right cannot be tested without the internet.
func TestCatalogueIsWellFormed(t *testing.T) {
	all := Catalogue()
	for _, want := range []string{"ubuntu/22.04", "ubuntu/24.04", "debian/12", "debian/13", "rocky/9", "almalinux/9", "opensuse/15.6", "opensuse/16.0"} {
		for _, arch := range []string{"amd64", "arm64"} {
			if _, err := FindKnown(want + "/" + arch); err != nil {
				t.Error(err)
			}
		}
		if k, err := FindKnown(want); err != nil || k.Arch != "amd64" {
			t.Errorf("FindKnown(%q) = %+v, %v; want the one for amd64", want, k, err)
		}
	}
	if _, err := FindKnown("slackware/15"); err == nil {
		t.Error("FindKnown(slackware/15) found something")
	}
	names := map[string]bool{}
	for _, k := range all {
		if names[k.Name()] {
			t.Errorf("%s is listed twice", k.Name())
		}
		names[k.Name()] = true
		r := Request{From: k.URL, Format: k.Format, Compression: k.Compression, Want: preflight.Want{OS: k.OS, Version: k.Version, Arch: k.Arch}}
		if err := r.Validate(); err != nil || k.Title == "" {
			t.Errorf("%s: %v", k.Name(), err)
		}
		for _, s := range []string{k.URL, k.Checksums, k.Signature} {
			if s == "" || s == "inline" {
				continue
			}
			u, err := url.Parse(s)
			if err != nil || (Guard{}).CheckURL(u) != nil || strings.Contains(u.Path, "//") || strings.HasSuffix(u.Path, "/") {
				t.Errorf("%s: the address %q is not one to fetch from", k.Name(), s)
			}
		}
		if k.Checksums == "" {
			t.Errorf("%s has nothing to be verified by", k.Name())
		}
		if !slices.Contains([]string{"amd64", "arm64"}, k.Arch) {
			t.Errorf("%s is for no machine of ours", k.Name())
		}
	}
}
