package ra

import (
	"net"
	"net/netip"
	"testing"
)

func TestAnswer(t *testing.T) {
	solicitation := []byte{133, 0, 0, 0, 0, 0, 0, 0}
	with := func(more ...byte) []byte { return append(append([]byte(nil), solicitation...), more...) }
	tests := []struct {
		name   string
		packet []byte
		from   string
		hops   int
		want   string
	}{
		{"answers a host at its link-local address", solicitation, "fe80::1", 255, "fe80::1"},
		{"answers all nodes when the host has no address yet", solicitation, "::", 255, "ff02::1"},
		{"accepts options", with(1, 1, 0, 1, 2, 3, 4, 5), "fe80::1", 255, "fe80::1"},
		{"ignores what came through a router", solicitation, "fe80::1", 254, ""},
		{"ignores addresses of other networks", solicitation, "2001:db8::1", 255, ""},
		{"ignores another type", []byte{134, 0, 0, 0, 0, 0, 0, 0}, "fe80::1", 255, ""},
		{"ignores another code", []byte{133, 1, 0, 0, 0, 0, 0, 0}, "fe80::1", 255, ""},
		{"ignores a short packet", solicitation[:7], "fe80::1", 255, ""},
		{"ignores an option of length zero", with(1, 0), "fe80::1", 255, ""},
		{"ignores an option that runs past the end", with(1, 2, 0, 1, 2, 3, 4, 5), "fe80::1", 255, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := answer(tt.packet, netip.MustParseAddr(tt.from), tt.hops)
			if ok != (tt.want != "") || ok && got.String() != tt.want {
				t.Errorf("answer(% x, %s, %d) = %v, %v; want %q", tt.packet, tt.from, tt.hops, got, ok, tt.want)
			}
		})
	}
}

func TestAdvertisementMakesNobodyUseUs(t *testing.T) {
	b := advertisement(net.HardwareAddr{2, 0, 0, 0, 0, 9})
	if len(b) != 24 || b[0] != 134 || b[5] != 0 || b[6] != 0 || b[7] != 0 {
		t.Errorf("advertisement = % x; want no flags and a router lifetime of 0", b)
	}
	if b[16] != 1 || b[17] != 1 {
		t.Errorf("option = % x; want only the source link-layer address", b[16:])
	}
}

// FuzzAnswer: only a solicitation of the own link is answered, and its sender or
// all are.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte{133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 1, 2, 3, 4, 5}, "fe80::1")
	f.Fuzz(func(t *testing.T, b []byte, from string) {
		a, _ := netip.ParseAddr(from)
		if to, ok := answer(b, a, hopLimit); ok && (b[0] != typeSolicitation || to != a && to != allNodes) {
			t.Fatalf("% x of %s is answered to %s", b, a, to)
		}
	})
}
