package web

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/lpmos/lpmos"
)

// A view is what a list is asked for, under a name. Those that a person made are
// kept in their browser, as its columns are: a cookie a list, of the form of a
// query, with the query of the list's address as the value of each name.

// viewParams are what of a list's address a view keeps.
var viewParams = map[string][]string{"tasks": {"q", "sort"}, "machines": {"q", "region_id", "state"}}

const (
	mostViews     = 12
	viewNameRunes = 40
	viewBytes     = 3 << 10 // of a list's cookie
)

// ownView is a view that a person made.
type ownView struct {
	Name, Link string
	Current    bool
}

// ownViews are those of a list, by name.
type ownViews struct {
	List  string
	Now   string // the query of the page that is shown; "" is nothing to keep
	Views []ownView
}

// ownViews reads what preferences stored. address is that of the page.
func (w *Web) ownViews(r *http.Request, list, address string) ownViews {
	_, now, _ := strings.Cut(address, "?")
	out := ownViews{List: list, Now: now}
	kept := keptViews(r, list)
	for _, name := range slices.Sorted(maps.Keys(kept)) {
		q := kept.Get(name)
		out.Views = append(out.Views, ownView{Name: name, Link: "/" + list + "?" + q, Current: q == now})
	}
	return out
}

// keptViews are the names of a list's views and their queries.
func keptViews(r *http.Request, list string) url.Values {
	out := url.Values{}
	c, err := r.Cookie("lpmos_views_" + list)
	if err != nil {
		return out
	}
	kept, err := url.ParseQuery(c.Value)
	if err != nil {
		return out
	}
	for name := range kept {
		if q := viewQuery(list, kept.Get(name)); q != "" && len(out) < mostViews {
			out.Set(name, q)
		}
	}
	return out
}

// viewQuery is what of a query makes a view of a list.
func viewQuery(list, q string) string {
	given, err := url.ParseQuery(q)
	if err != nil {
		return ""
	}
	out := url.Values{}
	for _, p := range viewParams[list] {
		if v := given.Get(p); v != "" {
			out.Set(p, v)
		}
	}
	return out.Encode()
}

// storeView keeps a view, or takes one away. What this browser cannot keep is an
// error that says what to do.
func storeView(rw http.ResponseWriter, r *http.Request) error {
	list := r.PostForm.Get("views")
	if viewParams[list] == nil {
		return nil
	}
	kept := keptViews(r, list)
	if gone := r.PostForm.Get("remove"); gone != "" {
		kept.Del(gone)
	} else {
		name, q := strings.TrimSpace(strings.ToValidUTF8(r.PostForm.Get("name"), "")), viewQuery(list, r.PostForm.Get("query"))
		switch {
		case name == "":
			return &lpmos.InvalidError{Field: "name", Problem: "is missing: it is how the view is found again"}
		case utf8.RuneCountInString(name) > viewNameRunes:
			return &lpmos.InvalidError{Field: "name", Problem: "is longer than 40 characters"}
		case q == "":
			return &lpmos.InvalidError{Field: "query", Problem: "is missing: filter or sort the list first"}
		}
		kept.Set(name, q)
		if len(kept) > mostViews || len(kept.Encode()) > viewBytes {
			return &lpmos.InvalidError{Field: "name", Problem: "has no room: this browser keeps 12 views of a list, or 3 KiB; remove one first"}
		}
	}
	storePreference(rw, r, "views_"+list, kept.Encode())
	return nil
}
