package imageimport

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

//go:embed known.json
var knownJSON []byte

// Known is an official artefact of a distribution: where it is and what vouches
// for it. The addresses are those of the distributions' own documentation; they
// move, and nothing here has been fetched from them.
type Known struct {
	OS          string `json:"os"`
	Version     string `json:"version"`
	Arch        string `json:"arch"`
	Title       string `json:"title"`
	URL         string `json:"url"`
	Format      string `json:"format"`
	Compression string `json:"compression"`
	Checksums   string `json:"checksums"`
	Signature   string `json:"signature,omitempty"` // of the checksums; "" when they are published unsigned, "inline" when signed in themselves
	Notes       string `json:"notes,omitempty"`
}

// Name is "ubuntu/24.04/amd64".
func (k Known) Name() string { return k.OS + "/" + k.Version + "/" + k.Arch }

// Catalogue lists the known artefacts by name.
func Catalogue() []Known {
	var all []Known
	if err := json.Unmarshal(knownJSON, &all); err != nil {
		panic("imageimport: known.json: " + err.Error())
	}
	slices.SortFunc(all, func(a, b Known) int { return strings.Compare(a.Name(), b.Name()) })
	return all
}

// FindKnown takes os/version or os/version/arch; without the architecture it is
// amd64.
func FindKnown(name string) (Known, error) {
	var names []string
	for _, k := range Catalogue() {
		if k.Name() == name || k.Name() == name+"/amd64" {
			return k, nil
		}
		names = append(names, k.Name())
	}
	return Known{}, fmt.Errorf("no artefact is known for %q; known are %s", name, strings.Join(names, ", "))
}
