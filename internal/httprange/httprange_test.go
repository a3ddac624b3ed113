package httprange

import (
	"fmt"
	"testing"
)

func TestContent(t *testing.T) {
	for header, want := range map[string][2]int64{"bytes 0-0/1": {0, 1}, "bytes 10-99/100": {10, 100}, "bytes 5-9/*": {5, -1}, "bytes 0-9223372036854775806/9223372036854775807": {0, 1<<63 - 1}} {
		if from, total, ok := Content(header); !ok || from != want[0] || total != want[1] {
			t.Errorf("Content(%q) = %d, %d, %v; want %v", header, from, total, ok, want)
		}
	}
	for _, header := range []string{"", "bytes", "bytes */100", "bytes 1-2", "bytes -5/10", "bytes 5-/10", "bytes 9-5/10", "bytes 5-10/10", "bytes +1-2/3", "bytes 1-2/-1", "bytes 1-2/9223372036854775808", "items 1-2/3", "bytes 1-2/3 "} {
		if from, total, ok := Content(header); ok {
			t.Errorf("Content(%q) = %d, %d; want it refused", header, from, total)
		}
	}
}

// FuzzContent: what is read is a range, and written again it is what was read.
func FuzzContent(f *testing.F) {
	f.Add("bytes 0-99/200", int64(99))
	f.Add("bytes 5-9/*", int64(5))
	f.Fuzz(func(t *testing.T, header string, to int64) {
		from, total, ok := Content(header)
		if ok && (from < 0 || total < -1 || total >= 0 && from >= total) {
			t.Fatalf("%q is a stretch from %d of %d bytes", header, from, total)
		}
		if !ok || to < from || total >= 0 && to >= total {
			return
		}
		whole := "*"
		if total >= 0 {
			whole = fmt.Sprint(total)
		}
		if again, size, ok := Content(fmt.Sprintf("bytes %d-%d/%s", from, to, whole)); !ok || again != from || size != total {
			t.Fatalf("%q is %d of %d, and read again %d of %d, %v", header, from, total, again, size, ok)
		}
	})
}
