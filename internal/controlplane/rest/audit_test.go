package rest_test

import (
	"bytes"
	"encoding/json"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
)

type auditPage struct {
	Entries    []lpmos.AuditEntry
	Last       int64
	Signed     *lpmos.AuditHead
	NextCursor string `json:"next_cursor"`
}

func TestAudit(t *testing.T) {
	p := newPlane(t)
	made := want[struct {
		OneTimePassword string `json:"one_time_password"`
	}](p, "POST", "/api/v1/users", `{"name":"anna","role":"viewer"}`, 201)
	want[struct{}](p, "PUT", "/api/v1/users/anna", `{"role":"approver","regions":["dc1"]}`, 200)
	const evil = `<script>alert(1)</script>` + "‮\x1b[2J "
	reason, _ := json.Marshal(evil)
	want[struct{}](p, "PUT", "/api/v1/machines/52:54:00:00:00:01/lock", `{"reason":`+string(reason)+`}`, 200)
	want[struct{}](p, "PUT", "/api/v1/limits", `{"permits_per_minute":3,"protected":[]}`, 200)
	want[struct{}](p, "PUT", "/api/v1/stop", `{"reason":"wrong rack"}`, 200)

	all := want[auditPage](p, "GET", "/api/v1/audit", "", 200)
	if all.Last != int64(len(all.Entries)) || all.Last < 6 || all.NextCursor != "" || all.Signed != nil {
		t.Fatalf("the audit = %d entries, last %d, next %q", len(all.Entries), all.Last, all.NextCursor)
	}
	for i, e := range all.Entries {
		if e.Seq != all.Last-int64(i) {
			t.Errorf("entry %d stands at place %d; want the newest first", e.Seq, i)
		}
	}
	if e := all.Entries[0]; e.Action != "stop.begin" || e.By != "tester" || e.Via != "token test" || string(e.After) != `{"reason":"wrong rack"}` {
		t.Errorf("the newest is %+v", e)
	}
	changed := want[auditPage](p, "GET", "/api/v1/audit?action=user.update&subject=ANNA&by=tester", "", 200)
	if len(changed.Entries) != 1 || string(changed.Entries[0].Before) != `{"role":"viewer"}` || string(changed.Entries[0].After) != `{"regions":["dc1"],"role":"approver"}` {
		t.Errorf("what was changed of anna = %+v", changed.Entries)
	}
	one := want[lpmos.AuditEntry](p, "GET", "/api/v1/audit/"+strconv.FormatInt(changed.Entries[0].Seq, 10), "", 200)
	if one.Hash != changed.Entries[0].Hash {
		t.Errorf("one entry = %+v", one)
	}
	if locked := want[auditPage](p, "GET", "/api/v1/audit?action=machine", "", 200); len(locked.Entries) != 1 || !strings.Contains(string(locked.Entries[0].After), "52:54:00:00:00:01") {
		t.Errorf("locks = %+v", locked.Entries)
	}

	var seen []int64
	for path := "/api/v1/audit?limit=2"; ; {
		page := want[auditPage](p, "GET", path, "", 200)
		for _, e := range page.Entries {
			seen = append(seen, e.Seq)
		}
		if page.NextCursor == "" {
			break
		}
		path = "/api/v1/audit?limit=2&cursor=" + page.NextCursor
	}
	if int64(len(seen)) != all.Last || seen[len(seen)-1] != 1 {
		t.Errorf("page by page: %v; want each once, down to 1", seen)
	}
	at := all.Entries[2].At
	later := want[auditPage](p, "GET", "/api/v1/audit?after="+url.QueryEscape(at.Format("2006-01-02T15:04:05.999999999Z07:00")), "", 200)
	before := want[auditPage](p, "GET", "/api/v1/audit?before="+url.QueryEscape(at.Format("2006-01-02T15:04:05.999999999Z07:00")), "", 200)
	if len(later.Entries) != 3 || len(later.Entries)+len(before.Entries) != len(all.Entries) {
		t.Errorf("since entry %d: %d, before: %d; want 3 and the rest", all.Entries[2].Seq, len(later.Entries), len(before.Entries))
	}
	for _, q := range []string{"limit=0", "limit=x", "limit=1001", "after=yesterday", "before=2026-11-01", "cursor=0", "cursor=x", "cursor=-1", "cursor=01", "by=" + strings.Repeat("a", 257), "action=" + strings.Repeat("a", 257)} {
		p.problem("GET", "/api/v1/audit?"+q, "", 400)
	}
	for _, seq := range []string{"0", "x", "01", "-1", "99999999999", "1%00", "..%2f1"} {
		p.problem("GET", "/api/v1/audit/"+seq, "", 400)
	}
	p.problem("GET", "/api/v1/audit/99999", "", 404)

	// The export is whole, and neither it nor the pages hold what is secret.
	resp, b := p.do("GET", "/api/v1/audit/export", "")
	if resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Disposition"), "attachment; filename=\"lpmos-audit-") {
		t.Fatalf("export = %d, %v", resp.StatusCode, resp.Header)
	}
	v := &lpmos.AuditVerifier{}
	for line := range bytes.Lines(b) {
		var r lpmos.AuditRecord
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatal(err)
		}
		if err := v.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := v.Report(); err != nil || r.Last != all.Last {
		t.Errorf("the export = %+v, %v", r, err)
	}
	if bytes.Contains(b, []byte(made.OneTimePassword)) || bytes.Contains(b, []byte("argon2id")) || bytes.Contains(b, []byte("<script>")) {
		t.Error("the export holds a password, its hash, or what a page would obey")
	}
}
