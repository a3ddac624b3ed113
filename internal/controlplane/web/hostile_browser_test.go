package web

import (
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
	"github.com/lpmos/lpmos/internal/controlplane/oidc"
	"github.com/lpmos/lpmos/test/fixture"
)

// strangers are people of whom everything is text from outside: an identity
// provider names them, browsers name themselves.
type strangers struct {
	People
	user    lpmos.User
	token   auth.TokenInfo
	session auth.SignedIn
}

func (s strangers) Users() []lpmos.User                  { return []lpmos.User{s.user} }
func (s strangers) User(string) (lpmos.User, bool)       { return s.user, true }
func (s strangers) Tokens(string) []auth.TokenInfo       { return []auth.TokenInfo{s.token} }
func (s strangers) Sessions(_, _ string) []auth.SignedIn { return []auth.SignedIn{s.session} }

// V03, V04 for what is not of tasks: people and their provider, the approval
// policy, profiles with their accounts, templates, images, regions and the audit,
// all of it as if nothing had ever been refused.
func TestBrowserHostileRecordsAreInert(t *testing.T) {
	for name, text := range hostileTexts {
		if strings.HasPrefix(name, "10 kB") {
			continue // no field of these may be so long
		}
		t.Run(name, func(t *testing.T) {
			s := newSite(t, time.Now())
			var people strangers
			var profile lpmos.Profile
			var template lpmos.Template
			var entry lpmos.AuditEntry
			var region lpmos.Region
			image := s.images[0]
			image.Title, image.Preflight, image.Badges, image.Source = "", nil, nil, nil
			for _, v := range []any{&people.user, &people.token, &people.session, &profile, &template, &entry, &region, &s.policy} {
				fixture.Poison(v, text, "People", "Role", "Layout", "Arch", "BootModes", "Format", "Digest")
			}
			fixture.Poison(&image.Preflight, text)
			fixture.Poison(&image.Badges, text)
			fixture.Poison(&image.Source, text)
			image.Title = text
			people.user.Role, people.token.Role = lpmos.Operator, lpmos.Viewer
			people.user.CreatedAt, people.token.ExpiresAt, people.session.SeenAt = s.now, s.now.Add(time.Hour), s.now
			s.policy.Rules[0].Approvers, s.policy.Rules[0].NotCreator = 2, true
			change, err := json.Marshal(map[string]string{text: text, "reason": text})
			if err != nil {
				t.Fatal(err)
			}
			entry.Seq, entry.At, entry.Before, entry.After = 1, s.now, change, change
			region.ID, region.Status, region.Since = "bj-9", text, s.now
			s.who, s.regions, s.images, s.audit = people, append(s.regions, region), append(s.images, image), []lpmos.AuditEntry{entry}
			profile.Name, template.Name = "odd", "odd"
			s.profiles["odd"], s.templates["odd"] = profile, template
			if s.provider, err = oidc.New(oidc.Config{Issuer: "https://id.example.net", ClientID: "lpmos", Name: text, Grants: []oidc.Grant{{Group: "ops", Role: lpmos.Viewer}}}, slog.New(slog.DiscardHandler)); err != nil {
				t.Fatal(err)
			}
			b := newTab(t, s)
			shown := strings.ReplaceAll(text, "\x00", "\ufffd") // what HTML cannot hold
			quoted, err := json.Marshal(shown)
			if err != nil {
				t.Fatal(err)
			}
			for path, least := range map[string]int{
				"/login": 1, "/policy": 5, "/users": 1, "/users/x": 3, "/tokens": 2, "/account": 1, "/profiles": 2, "/profiles/odd": 10, "/templates": 1, "/templates/odd": 2, "/images": 3, "/regions": 2, "/audit": 6,
				"/tasks/create?mode=many": 0, "/machines": 0,
			} {
				b.open(path)
				eval[bool](b, `[...document.querySelectorAll('main details')].every((d) => d.open = true)`)
				// In texts and in fields of forms, whole.
				n := eval[int](b, `((text) => {
					const fields = [...document.querySelectorAll('input:not([type=hidden]), textarea')].filter((f) => f.value.includes(text.replaceAll('\r', '')))
					return document.body.innerText.split(text.trim()).length - 1 + fields.length
				})(`+string(quoted)+`)`)
				if n < least {
					t.Errorf("%s shows the text %d times; want at least %d", path, n, least)
				}
				if got := eval[[]any](b, strings.Replace(shownAlone, "%s", string(quoted), 1)); got[1].(float64) > 0 {
					t.Errorf("%s: the direction of %v texts reaches beyond them: %s", path, got[1], got[2])
				}
				if n := eval[int](b, `document.querySelectorAll('body :is(img, iframe, style), main script').length`); n > 0 {
					t.Errorf("%s: %d elements were made of text", path, n)
				}
				if over := eval[int](b, `document.documentElement.scrollWidth - document.documentElement.clientWidth`); over > 0 {
					t.Errorf("%s scrolls sideways by %d px: %s", path, over, eval[string](b, `[...document.querySelectorAll('main *')].filter((el) => el.getBoundingClientRect().right > document.documentElement.clientWidth && !el.closest('.scroller')).map((el) => el.tagName + '.' + el.className).join(' ')`))
				}
				b.picture("hostile-" + name + strings.NewReplacer("/", "-", "?", "-", "=", "-").Replace(path))
			}
		})
	}
}
