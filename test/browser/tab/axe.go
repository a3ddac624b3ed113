package tab

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
)

const axeSum = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"

// AxeSource reads axe-core from a file and checks that it is the one that is
// pinned.
func AxeSource(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != axeSum {
		t.Fatalf("%s has SHA-256 %x; want %s", path, sum, axeSum)
	}
	return string(b)
}

const axeRun = `(async () => {
  const found = await axe.run(document, { resultTypes: ['violations'], runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] })
  return JSON.stringify(found.violations.flatMap((v) => v.nodes.map((n) => v.id + ': ' + v.help + ': ' + n.html.slice(0, 200) + ' (' + (n.any[0] ?? n.all[0] ?? n.none[0])?.message + ')')))
})()`

// Axe looks for what keeps people out (WCAG 2.2 A and AA, and axe's good
// practice) and answers one line for each violation.
func (b *Tab) Axe(source string) []string {
	b.t.Helper()
	if !Eval[bool](b, `typeof axe === 'object'`) {
		Eval[bool](b, source+"\n;true")
	}
	text, err := chromedp.Run(b.ctx, chromedp.Evaluate[string](axeRun, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("run axe: %v", err)
	}
	var out []string
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		b.t.Fatal(err)
	}
	return out
}

// Cookie sets a cookie of the server.
func (b *Tab) Cookie(name, value string) {
	b.t.Helper()
	if _, err := chromedp.Call(b.ctx, network.SetCookie, network.SetCookieParams{Name: name, Value: value, URL: b.URL}); err != nil {
		b.t.Fatal(err)
	}
}

// Prefer sets what the system prefers: "prefers-color-scheme", "dark".
func (b *Tab) Prefer(feature, value string) {
	b.t.Helper()
	if _, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: feature, Value: value}}}); err != nil {
		b.t.Fatal(err)
	}
}

// Paper shows the page as it is printed.
func (b *Tab) Paper() {
	b.t.Helper()
	if _, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Media: "print"}); err != nil {
		b.t.Fatal(err)
	}
}

// WholePicture is all of the page, also what is not in view, as a PNG.
func (b *Tab) WholePicture() []byte {
	b.t.Helper()
	png, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		b.t.Fatalf("take a picture: %v", err)
	}
	return png
}
