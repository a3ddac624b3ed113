package web

import (
	"net/http"
	"slices"
	"strings"
)

// listColumn is a column of a list that this browser may leave out, or put in.
// Its cells are there in any case, with the ID as their data-column; what is
// left out is the table's data-without (app.css).
type listColumn struct {
	ID, Label string
	Extra     bool // left out until it is asked for
	Shown     bool
}

var listColumns = map[string][]listColumn{
	"tasks": {
		{ID: "age", Label: "For"}, {ID: "os", Label: "Installs, requested by"}, {ID: "region", Label: "Region"}, {ID: "mac", Label: "MAC, serial number"},
		{ID: "profile", Label: "Profile", Extra: true}, {ID: "created", Label: "Created at", Extra: true},
	},
	"machines": {
		{ID: "region", Label: "Region, seen"}, {ID: "model", Label: "Model, cores, memory"}, {ID: "disks", Label: "Disks"}, {ID: "system", Label: "System"},
		{ID: "mac", Label: "MAC, address"}, {ID: "tasks", Label: "Tasks"}, {ID: "arch", Label: "Architecture", Extra: true}, {ID: "uuid", Label: "UUID", Extra: true},
	},
}

// chooser is the columns of a list as a browser wants them.
type chooser struct {
	List    string
	Columns []listColumn
}

// Without are the columns that are left out.
func (c chooser) Without() string {
	var ids []string
	for _, col := range c.Columns {
		if !col.Shown {
			ids = append(ids, col.ID)
		}
	}
	return strings.Join(ids, " ")
}

// columns reads what preferences stored: the columns that are shown.
func (w *Web) columns(r *http.Request, list string) chooser {
	c := chooser{List: list, Columns: slices.Clone(listColumns[list])}
	chosen, err := r.Cookie("lpmos_columns_" + list)
	for i := range c.Columns {
		col := &c.Columns[i]
		col.Label, col.Shown = w.T(col.Label), !col.Extra
		if err == nil {
			col.Shown = slices.Contains(strings.Split(chosen.Value, "."), col.ID)
		}
	}
	return c
}

// storeColumns keeps the columns that were ticked.
func storeColumns(rw http.ResponseWriter, r *http.Request) {
	list := r.PostForm.Get("columns")
	if listColumns[list] == nil {
		return
	}
	shown := []string{"0"} // no column, but a choice
	for _, col := range listColumns[list] {
		if slices.Contains(r.PostForm["column"], col.ID) {
			shown = append(shown, col.ID)
		}
	}
	value := strings.Join(shown, ".")
	if r.PostForm.Has("usual") {
		value = ""
	}
	storePreference(rw, r, "columns_"+list, value)
}
