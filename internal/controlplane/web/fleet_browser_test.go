package web

import (
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
)

// The pages about machines and the catalogue, in both themes, at both widths
// and in both languages: none scrolls sideways, none complains.
func TestBrowserFleet(t *testing.T) {
	s := newSite(t, time.Now())
	b := newTab(t, s)
	b.allow = []string{"404 (Not Found)"}
	pages := []struct{ name, path string }{
		{"machines", "/machines"}, {"machines-none", "/machines?q=nothing"}, {"machine-data", "/machines/" + s.tasks[idData].TargetMAC.String()},
		{"machine-found", "/machines/7c:c2:55:10:99:07"}, {"machine-pending", "/machines/" + s.tasks[idPending].TargetMAC.String()},
		{"regions", "/regions"}, {"images", "/images"}, {"profiles", "/profiles"}, {"profile", "/profiles/db"}, {"templates", "/templates"}, {"template", "/templates/base"},
	}
	for _, view := range []struct {
		name, theme, lang string
		width             int64
	}{{"light-wide", "light", "en", 1280}, {"dark-wide", "dark", "en", 1280}, {"light-phone", "light", "en", 390}, {"dark-phone-zh", "dark", "zh-CN", 390}, {"light-wide-zh", "light", "zh-CN", 1280}} {
		b.do("emulate", chromedp.EmulateViewport(view.width, 844))
		if _, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: view.theme}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := chromedp.Call(b.ctx, network.SetExtraHTTPHeaders, network.SetExtraHTTPHeadersParams{Headers: map[string]any{"Accept-Language": view.lang}}); err != nil {
			t.Fatal(err)
		}
		for _, p := range pages {
			b.open(p.path)
			name := p.name + "-" + view.name
			if over := eval[int](b, `document.documentElement.scrollWidth - document.documentElement.clientWidth`); over > 0 {
				t.Errorf("%s scrolls sideways by %d px", name, over)
			}
			if lang := eval[string](b, `document.documentElement.lang`); lang != view.lang {
				t.Errorf("%s is in %s", name, lang)
			}
			if text := eval[string](b, `document.querySelector('main').innerText`); strings.Contains(text, "%!") || strings.Contains(text, "<no value>") {
				t.Errorf("%s holds a broken text: %s", name, text)
			}
			b.picture(name)
		}
	}
}
