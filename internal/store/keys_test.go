package store

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
)

// TestKeyspaceDocument holds docs/keyspace.md and Kinds together.
func TestKeyspaceDocument(t *testing.T) {
	b, err := os.ReadFile("../../docs/keyspace.md")
	if err != nil {
		t.Fatal(err)
	}
	var kinds []Kind
	for line := range strings.Lines(string(b)) {
		cells := strings.Split(strings.Trim(line, "|\n "), "|")
		pattern := strings.TrimSpace(cells[0])
		if len(cells) != 5 || !strings.HasPrefix(pattern, "`") {
			continue
		}
		kind := Kind(strings.Trim(pattern, "`"))
		kinds = append(kinds, kind)
		for i, c := range cells {
			if strings.TrimSpace(c) == "" {
				t.Errorf("%s: column %d is empty", kind, i+1)
			}
		}
		example := strings.Trim(strings.TrimSpace(cells[4]), "`")
		if k, ok := ParseKey(example); !ok || k.Kind != kind || k.String() != example {
			t.Errorf("%s: the example %s is read as %+v, %v", kind, example, k, ok)
		}
	}
	if !slices.Equal(kinds, Kinds) {
		t.Errorf("docs/keyspace.md has\n%v\nthe code has\n%v", kinds, Kinds)
	}
}

// sample makes a key of a kind with random valid parts.
func sample(kind Kind, r *rand.Rand) Key {
	name := func(alphabet string, most int) string {
		b := make([]byte, 1+r.IntN(most))
		for i := range b {
			b[i] = alphabet[r.IntN(len(alphabet))]
		}
		return string(b)
	}
	k := Key{Kind: kind}
	for part := range strings.SplitSeq(string(kind), "/") {
		switch part {
		case "{id}":
			k.TaskID = lpmos.NewTaskID()
		case "{uuid}":
			k.UUID = lpmos.NewTaskID()
		case "{region}":
			k.Region = name("abcxyz019", 32)
		case "{mac}":
			for i := range k.MAC {
				k.MAC[i] = byte(r.IntN(256))
			}
			k.MAC[0] = k.MAC[0]&^1 | 2
		case "{os}":
			k.OS = "o" + name("abz09._-", 63)
		case "{version}":
			k.Version = "1" + name("abz09._-", 63)
		case "{arch}":
			k.Arch = "a" + name("abz09._-", 63)
		case "{name}":
			k.Name = "n" + name("abz09._-", 63)
		case "{key}":
			k.Name = strings.TrimPrefix(lpmos.DigestBytes([]byte(name("abc", 60))), "sha256:")
		case "{seq}":
			k.Seq = r.Int64N(1 << 31)
		case "{attempt}":
			k.Attempt = r.IntN(1 << 31)
		case "{chunk}":
			k.Chunk = r.IntN(1 << 31)
		}
	}
	return k
}

// TestKeyRoundTrip is V06: ParseKey(k.String()) is k, and no two keys share a
// spelling.
func TestKeyRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, kind := range Kinds {
		for range 200 {
			k := sample(kind, r)
			s := k.String()
			if got, ok := ParseKey(s); !ok || got != k {
				t.Fatalf("ParseKey(%q) = %+v, %v; want %+v", s, got, ok, k)
			}
			// Any other spelling is not ours, or is another key.
			i := r.IntN(len(s))
			for _, other := range []string{s[:i] + "/" + s[i:], s[:i] + "\x00" + s[i:], s + "/", "/" + s, strings.ToUpper(s), s[:i] + "../" + s[i:], s + "\n", s[:i] + "0" + s[i:]} {
				if got, ok := ParseKey(other); ok && got.String() != other {
					t.Fatalf("ParseKey(%q) = %+v, which is spelled %q", other, got, got)
				}
			}
		}
	}
}

var hostile = []string{
	"", "/", "..", ".", "a/b", "../dc2", "dc1/../dc2", "/dc1", "dc1/", "dc1%2f", "dc1\x00", "dc1\n", "dc１", "-dc1", "Dc1", strings.Repeat("a", 300), "{region}",
	"550e8400-e29b-41d4-a716-446655440000/approval", "550E8400-E29B-41D4-A716-446655440000", "t1/approval",
}

func TestHostileParts(t *testing.T) {
	id := lpmos.NewTaskID()
	for _, h := range hostile {
		for name, build := range map[string]func(){
			"task":        func() { _ = Key{Kind: KindStatus, TaskID: h}.String() },
			"region":      func() { _ = Key{Kind: KindOrder, Region: h, TaskID: id}.String() },
			"scope":       func() { RegionScope(h) },
			"task prefix": func() { taskPrefix(h) },
			"reports":     func() { reportPrefix("dc1", h) },
			"image":       func() { _ = Key{Kind: KindImage, OS: h, Version: "1", Arch: "amd64"}.String() },
			"profile":     func() { _ = Key{Kind: KindProfile, Name: h}.String() },
			"idempotency": func() { _ = Key{Kind: KindIdempotency, Name: h}.String() },
		} {
			if (name == "image" || name == "profile") && lpmos.ValidName(h) {
				continue
			}
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("%s %.40q becomes part of a key", name, h)
					}
				}()
				build()
			}()
		}
		for _, s := range []string{
			"/lpmos/tasks/" + h + "/status", "/lpmos/regions/" + h + "/tasks/" + id, "/lpmos/regions/dc1/tasks/" + h,
			"/lpmos/regions/dc1/reports/" + h + "/1/agent", "/lpmos/agents/" + h + "/info", h,
		} {
			if k, ok := ParseKey(s); ok && k.String() != s {
				t.Errorf("ParseKey(%.80q) = %+v", s, k)
			} else if ok {
				t.Errorf("ParseKey(%.80q) accepts a hostile part", s)
			}
		}
	}
	for _, s := range []string{
		"/lpmos", "/lpmos/", "lpmos/config/global", "/lpmosx/config/global", "/lpmos/config/global/", "/lpmos//config/global",
		"/lpmos/tasks/" + id + "/../status", "/lpmos/tasks/" + id + "/events/1", "/lpmos/tasks/" + id + "/events/+000000001", "/lpmos/tasks/" + id + "/events/-000000001",
		"/lpmos/tasks/" + id + "/events/0x00000001", "/lpmos/tasks/" + id + "/events/９", "/lpmos/regions/dc1/reports/" + id + "/01/agent", "/lpmos/regions/dc1/reports/" + id + "/-1/agent",
		"/lpmos/agents/00:1A:2B:3C:4D:5E/info", "/lpmos/agents/001a2b3c4d5e/info", "/lpmos/agents/01:00:5e:00:00:01/info", "/lpmos/tasks/" + id + "/status2",
	} {
		if k, ok := ParseKey(s); ok {
			t.Errorf("ParseKey(%q) = %+v; want it ignored", s, k)
		}
	}
}

func TestScopesEndInASlash(t *testing.T) {
	for _, s := range []Scope{All, ConfigScope, RegionScope("dc1")} {
		if !strings.HasSuffix(string(s), "/") {
			t.Errorf("scope %s reads its longer neighbors too", s)
		}
	}
}

func TestSupported(t *testing.T) {
	for v, want := range map[string]bool{
		"3.5.30": false, "3.6.0": false, "3.6.13": false, "3.6.14": true, "3.6.20": true, "3.7.0": false, "3.7.0-rc.1": false, "3.7.1": true,
		"3.8.0": true, "3.10.0": true, "4.0.0": true, "2.9.9": false, "": false, "not a version": false, "3.7": false,
	} {
		if got := supported(v); got != want {
			t.Errorf("supported(%q) = %v; want %v", v, got, want)
		}
	}
}

func ExampleKey_String() {
	fmt.Println(Key{Kind: KindOrder, Region: "dc1", TaskID: "550e8400-e29b-41d4-a716-446655440000"})
	// Output: /lpmos/regions/dc1/tasks/550e8400-e29b-41d4-a716-446655440000
}
