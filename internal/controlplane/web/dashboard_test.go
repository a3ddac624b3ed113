package web

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/lpmos/lpmos"
)

// addNeeds adds n of a kind of what waits for a person, each an hour older than
// the one before and all older than what is there.
func (s *fakeSite) addNeeds(kind string, n int) {
	for i := range n {
		at := s.now.Add(-time.Duration(100+i) * time.Hour)
		if kind == "offline" {
			s.regions = append(s.regions, lpmos.Region{ID: fmt.Sprintf("off-%d", i), Status: kind, Since: at})
			continue
		}
		t := s.tasks[map[string]string{"failed": idFailed, "stuck": idNeverBooted, "approval": idProblem}[kind]]
		t.ID, t.Hostname, t.UpdatedAt = fmt.Sprintf("%08x-0000-4000-8000-%012x", i, len(s.tasks)), fmt.Sprintf("%s-%02d", kind, i), at
		s.tasks[t.ID] = t
	}
}

var oneNeed = regexp.MustCompile(`<li class="need" data-kind="(\w+)"[^>]*>.*\s*<div><a class="need-title" href="[^"]*"><bdi>([^<]*)`)

// One kind of what waits for a person never hides another, what failed just now
// comes before what failed long ago, and what is not shown is a link.
func TestDashboardHasRoomForEveryKind(t *testing.T) {
	all := []string{"offline", "failed", "stuck", "approval"}
	for name, c := range map[string]struct {
		more  []string // kinds with twelve more
		shown []int    // of each kind
		says  []string
	}{
		"a few of each":        {nil, []int{1, 1, 2, 3}, []string{"7 things need a person"}},
		"many that failed":     {[]string{"failed"}, []int{1, 4, 2, 3}, []string{"19 things need a person", `<a href="/tasks?q=status%3Afailed&amp;sort=-updated">9 more failed</a></div>`}},
		"many that wait":       {[]string{"approval"}, []int{1, 1, 2, 6}, []string{`<a href="/tasks?q=status%3Aawaiting_approval&amp;sort=updated">9 more wait for approval</a></div>`}},
		"many of every kind":   {all, []int{3, 3, 2, 2}, []string{"55 things need a person", `<a href="/regions">10 more regions are offline</a> · `, ">10 more failed</a> · ", `<a href="/tasks?q=is%3Astuck&amp;sort=updated">12 more stand still</a> · `, ">13 more wait for approval</a>"}},
		"many of the last two": {[]string{"stuck", "approval"}, []int{1, 1, 4, 4}, []string{">10 more stand still</a> · ", ">11 more wait for approval</a>"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, testNow)
			for _, kind := range c.more {
				s.addNeeds(kind, 12)
			}
			res, body := get(t, signedIn(newTestWeb(t, s)), "/dashboard")
			checkMarkup(t, body)
			shown := make([]int, len(all))
			var order []string
			newest := ""
			for _, m := range oneNeed.FindAllStringSubmatch(body, -1) {
				shown[slices.Index(all, m[1])]++
				order = append(order, m[1])
				if m[1] == "failed" && newest == "" {
					newest = html.UnescapeString(m[2])
				}
			}
			if !slices.Equal(shown, c.shown) || !slices.IsSortedFunc(order, func(a, b string) int { return slices.Index(all, a) - slices.Index(all, b) }) {
				t.Errorf("shown are %v in the order %v; want %v", shown, order, c.shown)
			}
			if !strings.HasPrefix(newest, "web-031 ") {
				t.Errorf("the first that failed is %q; want the one of 11 minutes ago", newest)
			}
			for _, want := range c.says {
				if res.StatusCode != http.StatusOK || !strings.Contains(body, want) {
					t.Errorf("the dashboard does not say %s", want)
				}
			}
			if len(c.more) == 0 && strings.Contains(body, "more failed") {
				t.Error("the dashboard leads to more where there is none")
			}
		})
	}
}
