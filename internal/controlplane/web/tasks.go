package web

import (
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/query"
)

// The list of tasks. Without scripts it is pages of pageRows, by cursor. With
// them task-table.js asks once for the order (all ids, 16 bytes each) and then
// for the rows that come into view, so that a hundred thousand tasks scroll
// like a hundred and none of them moves.
const (
	pageRows  = 100
	orderRows = 200_000 // ids in an order, 3.2 MB
)

type listView struct {
	Views   []view
	Facets  []facet
	Rows    []row
	Total   int
	Query   string // as typed
	Sort    string
	Sorts   []sortChoice
	Heads   map[string]head
	Keys    []query.Key
	Next    string // address of the next page
	Self    string // address of the first page
	First   bool   // no cursor was given
	Empty   bool   // there is no task at all
	Problem string // why Query cannot be read
	Most    int    // tasks that may be changed at once
	Actions []string
	Blank   row // for the scripts' <template>
	Chooser chooser
	Own     ownViews
	Command string
	Export  string // address of all that matches, as CSV; "" where that is nothing
}

// Selectable is how many tasks "all" selects.
func (v listView) Selectable() int { return min(v.Total, v.Most) }

// view is one of a list's usual views.
type view struct {
	Label   string
	Link    string
	Count   int
	Current bool
	Warn    bool
	Status  lpmos.Status // whose count is kept up to date; "" for none
}

// facet is one region with the number of matching tasks in it.
type facet struct {
	Label   string
	Link    string
	Count   int
	Current bool
}

// sortChoice is an order the list can have.
type sortChoice struct {
	Value, Label string
	Current      bool
}

// head is the head of a column that can be sorted by.
type head struct{ Label, Link, Sort, Aria string }

// wanted is what a request for tasks wants.
type wanted struct {
	Text    string // as typed, or what it means where an address had parts of it
	Filter  query.Filter
	Sort    api.Sort
	Problem string // why Text cannot be read
}

// asked reads q, sort, and the status and region_id of older addresses.
func (w *Web) asked(v url.Values) wanted {
	a := wanted{Text: strings.TrimSpace(lpmos.Shorten(v.Get("q"), query.MaxBytes-3))}
	var err error
	if a.Filter, err = query.Parse(a.Text); err != nil {
		a.Problem = w.Said("The search " + strings.TrimPrefix(err.Error(), "q ") + ".")
		a.Filter = query.Filter{}
		return a
	}
	if s := lpmos.Status(v.Get("status")); s.Valid() {
		a.Filter = a.Filter.With("status", string(s))
		a.Text = a.Filter.String()
	}
	if id := v.Get("region_id"); lpmos.ValidRegionID(id) {
		a.Filter = a.Filter.With("region", id)
		a.Text = a.Filter.String()
	}
	// An order nobody knows is no reason to show nothing.
	a.Sort, _ = api.ParseSort(v.Get("sort"))
	return a
}

// listAddress is the page of the list that shows a query.
func listAddress(text string, sort api.Sort, cursor string) string {
	u := url.Values{}
	for name, value := range map[string]string{"q": text, "sort": sort.String(), "cursor": cursor} {
		if value != "" {
			u.Set(name, value)
		}
	}
	if len(u) == 0 {
		return "/tasks"
	}
	return "/tasks?" + u.Encode()
}

// sortWords are what a list can be ordered by, for people.
var sortWords = []struct{ sort, label string }{
	{"", "Newest first"}, {"created", "Oldest first"}, {"-updated", "Changed last"}, {"updated", "Unchanged for longest"},
	{"host", "Machine"}, {"status", "Status"}, {"region", "Region"}, {"os", "System"}, {"-progress", "Furthest first"},
}

// viewStatuses are the statuses in the order in which a person looks for them.
var viewStatuses = []lpmos.Status{lpmos.AwaitingApproval, lpmos.Failed, lpmos.Installing, lpmos.Verifying, lpmos.Pending, lpmos.Approved, lpmos.Completed, lpmos.Rejected, lpmos.Canceled}

func (w *Web) taskList(rw http.ResponseWriter, r *http.Request) {
	rev, cursor := w.rev(), r.URL.Query().Get("cursor")
	a := w.asked(r.URL.Query())
	v := listView{Query: a.Text, Sort: a.Sort.String(), Problem: a.Problem, First: cursor == "", Self: listAddress(a.Text, a.Sort, ""),
		Keys: query.Keys, Most: bulkMost, Actions: bulkActions, Blank: row{Link: "/tasks", Run: &run{}}, Heads: map[string]head{}, Chooser: w.columns(r, "tasks")}
	all := 0
	for _, n := range w.reader.Counts() {
		all += n
	}
	v.Empty = all == 0
	var found api.Page
	if v.Problem == "" {
		found = w.reader.Tasks(api.Query{Filter: a.Filter, Sort: a.Sort, Limit: pageRows, Cursor: cursor, Groups: true})
	}
	v.Rows, v.Total, v.Own = w.rows(found), found.Total, w.ownViews(r, "tasks", v.Self)
	if found.NextCursor != "" {
		v.Next = listAddress(a.Text, a.Sort, found.NextCursor)
	}
	if found.Groups != nil {
		w.group(&v, a, found.Groups)
	}
	for _, s := range sortWords {
		v.Sorts = append(v.Sorts, sortChoice{s.sort, w.T(s.label), s.sort == v.Sort})
	}
	for _, h := range []struct{ by, label, first string }{
		{"status", w.T("Status"), ""}, {"host", w.T("Machine"), ""}, {"progress", w.T("Now"), "-"}, {"updated", w.T("For"), "-"},
		{"os", w.T("Installs"), ""}, {"region", w.T("Region"), ""},
	} {
		v.Heads[h.by] = w.newHead(a, h.by, h.label, h.first == "-")
	}
	nav, status := "tasks", a.Filter.Values("status")
	if len(status) == 1 && lpmos.Status(status[0]) == lpmos.AwaitingApproval {
		nav = "approvals"
	}
	if v.Total > 0 {
		v.Export = strings.Replace(v.Self, "/tasks", "/tasks/export", 1)
	}
	v.Command = "lpmos task list"
	if a.Text != "" {
		v.Command += " -q " + shellQuoted(a.Text)
	}
	code := http.StatusOK
	if v.Problem != "" {
		code = http.StatusBadRequest
	}
	w.show(rw, r, code, "tasks", page{Title: w.T("Tasks"), Nav: nav, Watch: "all", Rev: rev, Search: v.Query, Body: v})
}

func (w *Web) newHead(a wanted, by, label string, descending bool) head {
	h := head{Label: label, Sort: by, Aria: "none"}
	next := api.Sort{By: by, Desc: descending}
	if a.Sort.By == by {
		h.Aria = "ascending"
		if a.Sort.Desc {
			h.Aria = "descending"
		}
		next.Desc = !a.Sort.Desc
	}
	h.Link = listAddress(a.Text, next, "")
	return h
}

// group makes the views and the regions of what was found.
func (w *Web) group(v *listView, a wanted, g *api.Groups) {
	rest := a.Filter.Without("status")
	chosen := a.Filter.Values("status")
	all := 0
	for _, n := range g.Status {
		all += n
	}
	v.Views = append(v.Views, view{Label: w.T("All"), Link: listAddress(rest.String(), a.Sort, ""), Count: all, Current: !a.Filter.Has("status")})
	for _, s := range viewStatuses {
		one := view{Label: w.statusWord(s), Link: listAddress(rest.With("status", string(s)).String(), a.Sort, ""), Count: g.Status[s],
			Current: len(chosen) == 1 && chosen[0] == string(s), Warn: s == lpmos.AwaitingApproval && g.Status[s] > 0}
		if len(rest.Terms) == 0 {
			one.Status = s // the counts that are sent are of everything
		}
		v.Views = append(v.Views, one)
	}
	if len(g.Region) < 2 && !a.Filter.Has("region") {
		return
	}
	here, anywhere := a.Filter.Values("region"), a.Filter.Without("region")
	if a.Filter.Has("region") {
		v.Facets = append(v.Facets, facet{Label: w.T("all regions"), Link: listAddress(anywhere.String(), a.Sort, ""), Count: -1})
	}
	ids := make([]string, 0, len(g.Region))
	for id := range g.Region {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b string) int {
		if c := g.Region[b] - g.Region[a]; c != 0 {
			return c
		}
		return strings.Compare(a, b)
	})
	for _, id := range ids[:min(len(ids), 12)] {
		v.Facets = append(v.Facets, facet{Label: id, Link: listAddress(anywhere.With("region", id).String(), a.Sort, ""), Count: g.Region[id],
			Current: len(here) == 1 && here[0] == id})
	}
}

// taskOrder answers the ids of a query, in its order, 16 bytes each.
func (w *Web) taskOrder(rw http.ResponseWriter, r *http.Request) {
	a := w.asked(r.URL.Query())
	if a.Problem != "" {
		http.Error(rw, a.Problem, http.StatusBadRequest)
		return
	}
	ids, total := w.reader.IDs(api.Query{Filter: a.Filter, Sort: a.Sort, Limit: orderRows})
	out := make([]byte, 0, 16*len(ids))
	for _, id := range ids {
		b, err := hex.DecodeString(strings.ReplaceAll(id, "-", ""))
		if err != nil || len(b) != 16 {
			continue // no id of ours
		}
		out = append(out, b...)
	}
	h := rw.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("Lpmos-Total", strconv.Itoa(total))
	rw.Write(out)
}

// rowJSON is one row in the words of the page.
type rowJSON struct {
	ID      string   `json:"id"`
	Link    string   `json:"link"`
	Host    string   `json:"host"`
	Status  string   `json:"status"`
	Word    string   `json:"word"`
	Attempt int      `json:"attempt"`
	Summary string   `json:"summary"`
	Run     *runJSON `json:"run,omitempty"`
	Updated string   `json:"updated"`
	UTC     string   `json:"utc"`
	Age     string   `json:"age"`
	OS      string   `json:"os"`
	Region  string   `json:"region"`
	Profile string   `json:"profile"`
	Created string   `json:"created"`
	MAC     string   `json:"mac"`
	Serial  string   `json:"serial"`
	By      string   `json:"by"`
	Event   string   `json:"event"` // what became of it last
	Note    string   `json:"note"`
}

type runJSON struct {
	Stage   string `json:"stage"`
	Percent int    `json:"percent"`
	AsOf    string `json:"as_of,omitempty"` // RFC 3339, when the figures are old
}

// taskRows answers the rows of the ids it is given, at most pageRows of them.
// With q, only those that match it. Tasks that are gone are left out.
func (w *Web) taskRows(rw http.ResponseWriter, r *http.Request) {
	ids := strings.Split(r.URL.Query().Get("ids"), ",")
	ids = slices.DeleteFunc(ids, func(id string) bool { return !lpmos.ValidTaskID(id) })
	if len(ids) == 0 || len(ids) > pageRows {
		http.Error(rw, w.T("Ask for 1 to %s tasks.", count(pageRows)), http.StatusBadRequest)
		return
	}
	var rows []row
	if r.URL.Query().Has("q") {
		a := w.asked(r.URL.Query())
		if a.Problem != "" {
			http.Error(rw, a.Problem, http.StatusBadRequest)
			return
		}
		a.Filter.Terms = append(slices.Clip(a.Filter.Terms), query.Term{Key: "id", Values: ids})
		rows = w.rows(w.reader.Tasks(api.Query{Filter: a.Filter, Sort: a.Sort, Limit: pageRows}))
	} else {
		rows = w.rows(w.reader.Rows(ids))
	}
	out := make([]rowJSON, 0, len(rows))
	for _, x := range rows {
		out = append(out, w.rowJSON(x))
	}
	w.sendJSON(rw, map[string]any{"rev": w.rev(), "rows": out})
}

func (w *Web) rowJSON(x row) rowJSON {
	at, h := w.moment(x.UpdatedAt), w.newHappening(x)
	j := rowJSON{ID: x.ID, Link: x.Link, Host: x.Hostname, Status: string(x.Status), Word: w.statusWord(x.Status), Attempt: x.Attempt, Summary: x.Summary,
		Updated: at.RFC, UTC: at.UTC, Age: x.Age, OS: x.OS, Region: x.RegionID, Profile: x.Profile, Created: w.moment(x.CreatedAt).RFC, MAC: x.TargetMAC.String(), Serial: x.Serial, By: x.CreatedBy, Event: h.Text, Note: h.Note}
	if x.Run != nil {
		j.Run = &runJSON{x.Run.Stage, x.Run.Percent, x.Run.AsOf.RFC}
	}
	return j
}
