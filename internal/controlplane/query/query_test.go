package query

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lpmos/lpmos"
)

func TestParse(t *testing.T) {
	term := func(key string, values ...string) Term { return Term{Key: key, Values: values} }
	not := func(t Term) Term { t.Not = true; return t }
	exact := func(t Term) Term { t.Exact = true; return t }
	for _, tt := range []struct {
		text string
		want []Term
	}{
		{"", nil},
		{" \t\n", nil},
		{"web", []Term{term("", "web")}},
		{"web db01", []Term{term("", "web"), term("", "db01")}},
		{"web,db", []Term{term("", "web", "db")}},
		{`"rack 7"`, []Term{term("", "rack 7")}},
		{`say" "hi`, []Term{term("", "say hi")}},
		{`"a\"b\\c\d"`, []Term{term("", `a"b\c\d`)}},
		{"-web !db", []Term{not(term("", "web")), not(term("", "db"))}},
		{"- !", []Term{term("", "-"), term("", "!")}},
		{"!-x", []Term{not(term("", "-x"))}},
		{"status:failed", []Term{term("status", "failed")}},
		{"Status:FAILED", []Term{term("status", "failed")}},
		{"status:awaiting-approval,pending", []Term{term("status", "awaiting_approval", "pending")}},
		{"!status:failed -region:dc1", []Term{not(term("status", "failed")), not(term("region", "dc1"))}},
		{"host:=web", []Term{exact(term("host", "web"))}},
		{`host:"a b",c`, []Term{term("host", "a b", "c")}},
		{`host:"=x"`, []Term{term("host", "=x")}},
		{`host:"a,b"`, []Term{term("host", "a,b")}},
		{"host:a,,b,", []Term{term("host", "a", "b")}},
		{"52:54:00", []Term{term("", "52:54:00")}},
		{"aa:bb:cc:dd:ee:ff", []Term{term("", "aa:bb:cc:dd:ee:ff")}},
		{"!aa:bb", []Term{not(term("", "aa:bb"))}},
		{"mac:AA-bb.cc", []Term{term("mac", "AA-bb.cc")}},
		{`"key:value"`, []Term{term("", "key:value")}},
		{"10.0.0.1:80", []Term{term("", "10.0.0.1:80")}},
		{"after:2h before:2026-11-01", []Term{term("after", "2h"), term("before", "2026-11-01")}},
		{"updated:<10m created:>=2026-11-01T10:00", []Term{term("updated", "<10m"), term("created", ">=2026-11-01T10:00")}},
		{"attempt:>1,1", []Term{term("attempt", ">1", "1")}},
		{"is:stuck,live", []Term{term("is", "stuck", "live")}},
		{"stage:downloading id:550E batch:0a-", []Term{term("stage", "downloading"), term("id", "550e"), term("batch", "0a-")}},
		{"主机 host:机房", []Term{term("", "主机"), term("host", "机房")}},
		{"web status:failed", []Term{term("", "web"), term("status", "failed")}},
	} {
		f, err := Parse(tt.text)
		if err != nil {
			t.Errorf("Parse(%q): %v", tt.text, err)
			continue
		}
		if d := cmp.Diff(tt.want, f.Terms); d != "" {
			t.Errorf("Parse(%q) differs (-want +got):\n%s", tt.text, d)
		}
		again, err := Parse(f.String())
		if d := cmp.Diff(f, again); d != "" || err != nil {
			t.Errorf("Parse(%q) of %q: %v\n%s", f.String(), tt.text, err, d)
		}
	}
}

// What cannot be read is named, with what there is instead.
func TestParseRefuses(t *testing.T) {
	for text, want := range map[string][]string{
		"colour:red":                   {`unknown key "colour"`, "status, is, region", "quotation marks"},
		"http://x":                     {`unknown key "http"`},
		"status:open":                  {"status:open", "pending, awaiting_approval"},
		"status:":                      {"status: has no value", "pending"},
		"host:":                        {"host: has no value", "part of the host name"},
		"is:late":                      {"stuck, live, ended"},
		"stage:x":                      {"partitioning, downloading"},
		"attempt:one":                  {"attempt:one", ">1"},
		"attempt:-1":                   {"is not a number"},
		"after:soon":                   {"after:soon", "2h"},
		"after:<2h":                    {"is not a time"},
		"after:2026-13-01":             {"is not a time"},
		"after:0h":                     {"is not a time"},
		"after:99999999999999h":        {"is not a time"},
		"updated:x":                    {"with < or >"},
		"mac:xyz":                      {"no part of a MAC"},
		"id:../x":                      {"no part of an id"},
		`"open`:                        {"not closed"},
		`""`:                           {"empty term"},
		",":                            {"empty term"},
		"\xff":                         {"UTF-8"},
		strings.Repeat("x", 1025):      {"longer than 1024 bytes"},
		strings.Repeat("x ", 33):       {"more than 32 terms"},
		strings.Repeat("x,", 65) + "x": {"more than 64 values"},
	} {
		_, err := Parse(text)
		var inv *lpmos.InvalidError
		if !errors.As(err, &inv) || inv.Field != "q" {
			t.Errorf("Parse(%q) = %v; want an InvalidError on q", text, err)
			continue
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("Parse(%q) says %q; want %q in it", text, err, w)
			}
		}
	}
}

func TestMoment(t *testing.T) {
	for v, want := range map[string]Comparison{
		"2h":                        {Age: 2 * time.Hour},
		"<1h30m":                    {Op: "<", Age: 90 * time.Minute},
		">=3d":                      {Op: ">=", Age: 72 * time.Hour},
		"1w":                        {Age: 168 * time.Hour},
		"2026-11-01":                {At: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)},
		"2026-11-01t15:04z":         {At: time.Date(2026, 11, 1, 15, 4, 0, 0, time.UTC)},
		"2026-11-01T15:04:05+08:00": {At: time.Date(2026, 11, 1, 7, 4, 5, 0, time.UTC)},
	} {
		got, ok := Moment(v)
		if !ok || got.Op != want.Op || got.Age != want.Age || !got.At.Equal(want.At) {
			t.Errorf("Moment(%q) = %+v, %v; want %+v", v, got, ok, want)
		}
	}
	for _, v := range []string{"", "h", "2", "2y", "<", "-2h", "1e3h", "2h2"} {
		if got, ok := Moment(v); ok {
			t.Errorf("Moment(%q) = %+v; want none", v, got)
		}
	}
}

func TestFilterEdits(t *testing.T) {
	f, err := Parse("status:failed web !region:dc1 region:dc2")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ what, got, want string }{
		{"Without(status)", f.Without("status").String(), "web !region:dc1 region:dc2"},
		{"With(status)", f.With("status", "pending", "approved").String(), "web !region:dc1 region:dc2 status:pending,approved"},
		{"Values(status)", strings.Join(f.Values("status"), ","), "failed"},
		{"Values(region)", strings.Join(f.Values("region"), ","), ""},
	} {
		if tt.got != tt.want {
			t.Errorf("%s = %q; want %q", tt.what, tt.got, tt.want)
		}
	}
	if !f.Has("region") || f.Has("host") {
		t.Error("Has is wrong")
	}
}

// FuzzParse: whatever is typed is either refused as the person's mistake or
// means the same when it is spelled anew.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"web", `status:failed,pending !os:"debian 12"`, "after:2h -x 52:54", `"a\"b"`, "host:=x", "机,\u202e", `!"-"`, ":", "a:b:c", "host:<x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		q, err := Parse(text)
		if err != nil {
			var inv *lpmos.InvalidError
			if !errors.As(err, &inv) {
				t.Fatalf("Parse(%q) = %v; want an InvalidError", text, err)
			}
			return
		}
		spelled := q.String()
		if len(spelled) > MaxBytes {
			return // quotation marks made it too long
		}
		again, err := Parse(spelled)
		if err != nil {
			t.Fatalf("Parse(%q), which is how %q is spelled: %v", spelled, text, err)
		}
		if d := cmp.Diff(q, again); d != "" {
			t.Fatalf("%q spelled as %q means something else:\n%s", text, spelled, d)
		}
	})
}
