package web

import (
	"encoding/csv"
	"net/http"
	"strconv"
	"time"

	"github.com/lpmos/lpmos/internal/controlplane/api"
)

// exportRows is how many lines of an export are taken from memory at once.
const exportRows = 1000

// exportTasks answers all tasks of a query in its order, as CSV. The columns
// are named as in the API.
func (w *Web) exportTasks(rw http.ResponseWriter, r *http.Request) {
	a := w.asked(r.URL.Query())
	if a.Problem != "" {
		http.Error(rw, a.Problem, http.StatusBadRequest)
		return
	}
	cursor := ""
	w.export(rw, "tasks", []string{"id", "status", "hostname", "target_mac", "serial", "region_id", "os_type", "os_version", "arch", "profile", "attempt", "percentage", "error", "created_at", "created_by", "updated_at"}, func() ([][]string, bool) {
		p := w.reader.Tasks(api.Query{Filter: a.Filter, Sort: a.Sort, Limit: exportRows, Cursor: cursor})
		var out [][]string
		for i, t := range p.Tasks {
			percent, failure := "", ""
			if t.Progress != nil {
				percent = strconv.Itoa(t.Progress.Percentage)
			}
			if t.Error != nil {
				failure = t.Error.Cause
			}
			out = append(out, []string{t.ID, string(t.Status), t.Hostname, t.TargetMAC.String(), p.Rows[i].Serial, t.RegionID, t.OSType, t.OSVersion, t.Arch, t.Profile,
				strconv.Itoa(t.Attempt), percent, failure, t.CreatedAt.UTC().Format(time.RFC3339), t.CreatedBy, t.UpdatedAt.UTC().Format(time.RFC3339)})
		}
		cursor = p.NextCursor
		return out, cursor != ""
	})
}

// exportMachines is exportTasks for machines.
func (w *Web) exportMachines(rw http.ResponseWriter, r *http.Request) {
	q := machineQuery(r.URL.Query())
	q.Limit, q.Cursor = exportRows, ""
	w.export(rw, "machines", []string{"mac", "state", "verified", "hostname", "serial", "manufacturer", "model", "arch", "cores", "memory_bytes", "disk_count", "disk_bytes", "region_id", "os", "address", "task_id", "task_count", "uuid", "last_seen"}, func() ([][]string, bool) {
		p := w.reader.Machines(q)
		var out [][]string
		for _, m := range p.Machines {
			seen := ""
			if !m.LastSeen.IsZero() {
				seen = m.LastSeen.UTC().Format(time.RFC3339)
			}
			out = append(out, []string{m.MAC.String(), string(m.State), strconv.FormatBool(m.Verified), m.Hostname, m.Serial, m.Manufacturer, m.Model, m.Arch, known(int64(m.Cores)), known(m.MemoryBytes),
				known(int64(m.DiskCount)), known(m.DiskBytes), m.RegionID, m.OS, m.Address, m.TaskID, strconv.Itoa(m.TaskCount), m.UUID, seen})
		}
		q.Cursor = p.NextCursor
		return out, q.Cursor != ""
	})
}

// known is a figure of a machine, "" before it said so.
func known(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

// export sends lines for as long as next has more of them.
func (w *Web) export(rw http.ResponseWriter, name string, head []string, next func() ([][]string, bool)) {
	h := rw.Header()
	h.Set("Content-Type", "text/csv; charset=utf-8; header=present")
	h.Set("Content-Disposition", `attachment; filename="lpmos-`+name+"-"+w.cfg.Now().UTC().Format(time.DateOnly)+`.csv"`)
	h.Set("Cache-Control", "no-store")
	out := csv.NewWriter(rw)
	lines, more := [][]string{head}, true
	for {
		for _, line := range lines {
			for i := range line {
				line[i] = shownBySpreadsheets(line[i])
			}
		}
		if err := out.WriteAll(lines); err != nil || !more {
			return // an error is that nobody reads any more
		}
		lines, more = next()
	}
}
