// Package tier is for tests that need what a machine may not have: root, a
// browser, an emulator, other shells.
package tier

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// Missing ends a test that cannot run here for want of something. It fails if
// LPMOS_REQUIRE, names separated by commas, has the tier, and is skipped with
// the reason otherwise. docs/testing.md lists the tiers.
func Missing(t testing.TB, name, why string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("LPMOS_REQUIRE"), ","), name) {
		t.Fatalf("tier %s is required and cannot run: %s", name, why)
	}
	t.Skipf("tier %s: %s", name, why)
}
