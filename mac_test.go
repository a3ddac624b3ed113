package lpmos_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
)

// TestParseMAC is V05: every usual spelling gives one value, everything else is
// refused.
func TestParseMAC(t *testing.T) {
	const want = "00:1a:2b:3c:4d:5e"
	for _, s := range []string{
		"00:1a:2b:3c:4d:5e", "00:1A:2B:3C:4D:5E", "00-1A-2B-3C-4D-5E", "00-1a-2b-3c-4d-5e", "001a.2b3c.4d5e", "001A.2B3C.4D5E", "001a2b3c4d5e", "001A2B3C4D5E",
	} {
		m, err := lpmos.ParseMAC(s)
		if err != nil || m.String() != want {
			t.Errorf("ParseMAC(%q) = %s, %v; want %s", s, m, err, want)
		}
	}
	for name, s := range map[string]string{
		"empty": "", "zero": "00:00:00:00:00:00", "broadcast": "ff:ff:ff:ff:ff:ff", "multicast": "01:00:5e:00:00:01",
		"IPv6 multicast": "33:33:00:00:00:01", "InfiniBand": "00:11:22:33:44:55:66:77", "0x": "0x001a2b3c4d5e", "0x in twelve": "0x1a2b3c4d5e",
		"leading space": " 00:1a:2b:3c:4d:5e", "trailing newline": "00:1a:2b:3c:4d:5e\n", "mixed separators": "00:1a-2b:3c-4d:5e",
		"short pair": "0:1a:2b:3c:4d:5e", "not hexadecimal": "00:1g:2b:3c:4d:5e", "eleven digits": "001a2b3c4d5", "dots in pairs": "00.1a.2b.3c.4d.5e",
		"separator moved": "001:a:2b:3c:4d:5e", "wide digits": "００:1a:2b:3c:4d", "path": "../../../etc/pw", "huge": strings.Repeat("00:", 3<<20),
	} {
		m, err := lpmos.ParseMAC(s)
		var invalid *lpmos.InvalidError
		if !errors.As(err, &invalid) || !m.IsZero() {
			t.Errorf("ParseMAC of %s = %s, %v; want an InvalidError", name, m, err)
		} else if len(err.Error()) > 300 {
			t.Errorf("ParseMAC of %s answers with %d bytes; want what was given shortened", name, len(err.Error()))
		}
	}
}

func TestMACText(t *testing.T) {
	m := lpmos.MustMAC("001A2B3C4D5E")
	b, err := json.Marshal(map[string]any{"mac": m, "none": lpmos.MAC{}})
	if got, want := string(b), `{"mac":"00:1a:2b:3c:4d:5e","none":""}`; err != nil || got != want {
		t.Errorf("Marshal = %s, %v; want %s", got, err, want)
	}
	var back struct{ Mac, None lpmos.MAC }
	if err := json.Unmarshal(b, &back); err != nil || back.Mac != m || !back.None.IsZero() {
		t.Errorf("Unmarshal = %+v, %v", back, err)
	}
}
