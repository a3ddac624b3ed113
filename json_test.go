package lpmos_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
)

type request struct {
	Approved bool              `json:"approved"`
	Notes    string            `json:"notes,omitempty"`
	Digest   string            `json:"digest"`
	Disk     *lpmos.DiskRef    `json:"disk"`
	MAC      lpmos.MAC         `json:"mac"`
	Numbers  []int             `json:"numbers"`
	Files    map[string]string `json:"files"`
	At       time.Time         `json:"at"`
	Any      any               `json:"any"`
	hidden   int
}

func TestDecodeJSON(t *testing.T) {
	const good = `{"approved":true,"notes":"ünï","digest":"d","disk":{"serial":"s","size_bytes":5},"mac":"00-1A-2B-3C-4D-5E",` +
		`"numbers":[1,2],"files":{"a":"1","A":"2"},"at":"2026-01-02T03:04:05Z","any":{"x":[{"y":null}]}} ` + "\n"
	var r request
	if err := lpmos.DecodeJSON(strings.NewReader(good), 1<<10, &r); err != nil {
		t.Fatal(err)
	}
	if !r.Approved || r.Disk.SizeBytes != 5 || r.MAC != lpmos.MustMAC("001a2b3c4d5e") || len(r.Files) != 2 || r.hidden != 0 {
		t.Errorf("decoded %+v", r)
	}
}

// TestDecodeJSONRefuses is V01 and V02.
func TestDecodeJSONRefuses(t *testing.T) {
	deep := func(n int) string { return `{"any":` + strings.Repeat("[", n) + strings.Repeat("]", n) + `}` }
	tests := map[string]struct{ body, want string }{
		"another case":             {`{"approved":false,"APPROVED":true}`, "APPROVED is not a field"},
		"only another case":        {`{"Approved":true}`, "is not a field"},
		"twice":                    {`{"approved":false,"approved":true}`, "given twice"},
		"twice in a deeper object": {`{"disk":{"serial":"a","serial":"b"}}`, "disk.serial is given twice"},
		"twice, once escaped":      {`{"approved":false,"\u0061pproved":true}`, "given twice"},
		"twice in anything":        {`{"any":{"a":1,"a":2}}`, "given twice"},
		"long s":                   {`{"dige` + "ſ" + `t":"x"}`, "is not a field"},
		"kelvin sign":              {`{"dis` + "K" + `":null}`, "is not a field"},
		"an unknown field":         {`{"approved":true,"force":true}`, "force is not a field"},
		"an unknown deeper field":  {`{"disk":{"device":"/dev/sda"}}`, "disk.device is not a field"},
		"an unexported field":      {`{"hidden":1}`, "is not a field"},
		"a second value":           {`{"approved":true}{"approved":false}`, "something follows"},
		"a trailing bracket":       {`{"approved":true}]`, "something follows"},
		"a trailing word":          {`{"approved":true} true`, "something follows"},
		"invalid UTF-8":            {"{\"notes\":\"\xff\"}", "not valid UTF-8"},
		"an overlong NUL":          {"{\"notes\":\"\xc0\x80\"}", "not valid UTF-8"},
		"a byte order mark":        {"\ufeff{}", "not JSON"},
		"UTF-16":                   {"\xff\xfe{\x00}\x00", "not valid UTF-8"},
		"a control character":      {"{\"notes\":\"\x00\"}", "not JSON"},
		"too deep":                 {deep(lpmos.MaxJSONDepth), "deeper than 20"},
		"five million deep":        {deep(5e6), "deeper than 20"},
		"nothing":                  {``, "ends too early"},
		"blanks":                   {`   `, "ends too early"},
		"half an object":           {`{"approved":`, "not JSON"},
		"no closing bracket":       {`{"approved":true`, "not JSON"},
		"a word for a boolean":     {`{"approved":"true"}`, "cannot be a string"},
		"a number for text":        {`{"notes":1}`, "cannot be a number"},
		"an array":                 {`[]`, "cannot be a array"},
		"1e400":                    {`{"numbers":[1e400]}`, "cannot be a number"},
		"a fraction":               {`{"numbers":[1.5]}`, "cannot be a number"},
		"NaN":                      {`{"numbers":[NaN]}`, "not JSON"},
		"a leading zero":           {`{"numbers":[01]}`, "not JSON"},
		"a comment":                {`{/* */}`, "not JSON"},
		"a trailing comma":         {`{"approved":true,}`, "not JSON"},
		"a multicast address":      {`{"mac":"01:00:5e:00:00:01"}`, "multicast"},
	}
	for name, tt := range tests {
		var r request
		err := lpmos.DecodeJSON(strings.NewReader(tt.body), 32<<20, &r)
		var invalid *lpmos.InvalidError
		if !errors.As(err, &invalid) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want an InvalidError with %q", name, err, tt.want)
		}
	}
	ok := deep(lpmos.MaxJSONDepth - 1)
	if err := lpmos.DecodeJSON(strings.NewReader(ok), 1<<10, &request{}); err != nil {
		t.Errorf("the deepest that is allowed: %v", err)
	}
}

// endless never ends, as a hostile body would.
type endless struct{ read int }

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	e.read += len(p)
	return len(p), nil
}

func TestDecodeJSONReadsNoMoreThanItsLimit(t *testing.T) {
	e := &endless{}
	if err := lpmos.DecodeJSON(e, 1000, &request{}); !errors.Is(err, lpmos.ErrTooLarge) {
		t.Errorf("DecodeJSON of an endless body = %v; want ErrTooLarge", err)
	}
	if e.read > 8<<10 {
		t.Errorf("%d bytes were read; want little more than the limit of 1000", e.read)
	}
	body := `{"notes":"` + strings.Repeat("x", 88) + `"}`
	if err := lpmos.DecodeJSON(strings.NewReader(body), int64(len(body)), &request{}); err != nil {
		t.Errorf("a body of exactly the limit: %v", err)
	}
	if err := lpmos.DecodeJSON(strings.NewReader(body), int64(len(body))-1, &request{}); !errors.Is(err, lpmos.ErrTooLarge) {
		t.Errorf("a body one byte over the limit = %v; want ErrTooLarge", err)
	}
}

func TestTaskRoundTripIsStrict(t *testing.T) {
	s, _ := goodSpec().Normalize()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var back lpmos.Spec
	if err := lpmos.UnmarshalJSON(b, &back); err != nil || lpmos.DigestOf(back) != lpmos.DigestOf(s) {
		t.Errorf("a Spec as we write it = %+v, %v; want it read back", back, err)
	}
	// Embedded structs are read strictly too.
	var task lpmos.Task
	if err := lpmos.UnmarshalJSON([]byte(`{"task_id":"x","region_id":"dc1","Region_ID":"dc2"}`), &task); err == nil {
		t.Error("a field of the embedded Spec in another case is accepted")
	}
}

// FuzzUnmarshalJSON: what the strict reader accepts, the standard one reads as
// the same value, and writing it out gives something that is accepted again.
func FuzzUnmarshalJSON(f *testing.F) {
	for _, s := range []string{`{}`, `{"approved":true}`, `{"any":[[[]]]}`, `{"disk":{"size_bytes":1}}`, `{"APPROVED":true}`, `{"any":1e5}`, "{\"notes\":\"\xff\"}", `{"files":{"a":"b"}}`, `null`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r request
		if err := lpmos.UnmarshalJSON(b, &r); err != nil {
			var invalid *lpmos.InvalidError
			if !errors.As(err, &invalid) {
				t.Fatalf("refused with %T: %v", err, err)
			}
			return
		}
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		var std request
		if err := d.Decode(&std); err != nil {
			t.Fatalf("accepted what encoding/json refuses: %v", err)
		}
		if a, b := lpmos.DigestOf(r), lpmos.DigestOf(std); a != b {
			t.Fatalf("read as another value")
		}
		out, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := lpmos.UnmarshalJSON(out, &request{}); err != nil {
			t.Fatalf("its own output %s is refused: %v", out, err)
		}
	})
}

func TestCanonicalJSON(t *testing.T) {
	a := struct {
		Z string `json:"z"`
		A int64  `json:"a"`
		M map[string]any
	}{"<&>\u2028é", 1 << 60, map[string]any{"y": nil, "b": []int{3, 1}}}
	const want = `{"M":{"b":[3,1],"y":null},"a":1152921504606846976,"z":"<&>\u2028é"}`
	if got := string(lpmos.CanonicalJSON(a)); got != want {
		t.Errorf("CanonicalJSON = %s; want %s", got, want)
	}
	b := struct {
		M map[string]any
		A int64  `json:"a"`
		Z string `json:"z"`
	}{a.M, a.A, a.Z}
	if lpmos.DigestOf(a) != lpmos.DigestOf(b) {
		t.Error("the order of fields changes the digest")
	}
	if got, want := lpmos.DigestBytes(nil), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"; got != want {
		t.Errorf("DigestBytes(nil) = %s; want %s", got, want)
	}
}

func TestTrimDigest(t *testing.T) {
	digits := strings.Repeat("0a", 32)
	for _, s := range []string{digits, "sha256:" + digits} {
		if got, err := lpmos.TrimDigest(s); err != nil || got != digits {
			t.Errorf("TrimDigest(%s) = %s, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "sha256:", strings.ToUpper(digits), digits[1:], digits + "0", "sha512:" + digits, "../" + digits[3:], digits[:63] + "\n"} {
		if _, err := lpmos.TrimDigest(s); err == nil {
			t.Errorf("TrimDigest(%q) is accepted", s)
		}
	}
}

func TestFormatBytes(t *testing.T) {
	for n, want := range map[int64]string{
		-1: "unknown", 0: "0 B", 999: "999 B", 1000: "1 kB", 1500: "1.5 kB", 999_499: "999 kB", 999_600: "1 MB", 68719476: "69 MB",
		4 << 30: "4.3 GB", 8e9: "8 GB", 9_940_000_000: "9.9 GB", 9_960_000_000: "10 GB", 480_103_981_056: "480 GB", 960e9: "960 GB", 960_197_124_096: "960 GB",
		1e12: "1 TB", 1_920_383_410_176: "1.92 TB", 3_840_755_982_336: "3.84 TB", 7_681_501_126_656: "7.68 TB", 9_996e9: "10 TB", 15_360_950_534_144: "15.4 TB",
		20_000_588_955_648: "20 TB", 122_880e9: "123 TB", 2_500e12: "2.5 PB",
	} {
		if got := lpmos.FormatBytes(n); got != want {
			t.Errorf("FormatBytes(%d) = %q; want %q", n, got, want)
		}
	}
}

func TestFormatDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 41*time.Second + 900*time.Millisecond: "41 s", 15 * time.Minute: "15 min", 47 * time.Hour: "47 h", 49 * time.Hour: "2 days",
	} {
		if got := lpmos.FormatDuration(d); got != want {
			t.Errorf("FormatDuration(%s) = %q; want %q", d, got, want)
		}
	}
}

func TestShorten(t *testing.T) {
	for _, tt := range []struct {
		s    string
		n    int
		want string
	}{{"abc", 3, "abc"}, {"abcd", 3, "abc…"}, {"aéb", 2, "a…"}, {"😀", 2, "…"}} {
		if got := lpmos.Shorten(tt.s, tt.n); got != tt.want {
			t.Errorf("Shorten(%q, %d) = %q; want %q", tt.s, tt.n, got, tt.want)
		}
	}
}
