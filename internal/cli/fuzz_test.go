package cli

import (
	"bytes"
	"testing"

	"github.com/lpmos/lpmos"
)

// FuzzReadCSV reads whatever a person takes for a file of machines: it is refused
// with a reason, or each of its lines is a machine of its own.
func FuzzReadCSV(f *testing.F) {
	f.Add([]byte("mac,hostname,region,os,version\nb0:7b:25:c6:01:10,app-119,fra-1,debian,12\n"))
	f.Add([]byte("\ufeffMAC;host;secret:token\n# racks\n\"b07b.25c6.0110\";a;\"x\ny\"\n;;\n"))
	f.Add([]byte("mac,addresses,gateway,ssh_key\nb0-7b-25-c6-01-10,10.0.0.1/24 fd00::1/64,10.0.0.254,ssh-ed25519 AAAA a@b\n"))
	base := lpmos.Spec{RegionID: "fra-1", OSType: "debian", OSVersion: "12"}
	f.Fuzz(func(t *testing.T, b []byte) {
		lines, err := readCSV(bytes.NewReader(b), base)
		if (err == nil) != (len(lines) > 0) {
			t.Fatalf("%d lines with %v", len(lines), err)
		}
		macs := map[lpmos.MAC]bool{}
		for i, l := range lines {
			if _, err := l.spec.Normalize(); err != nil || macs[l.spec.TargetMAC] || l.number < 2 || i > 0 && l.number <= lines[i-1].number {
				t.Fatalf("line %d is %+v, %v", l.number, l.spec, err)
			}
			macs[l.spec.TargetMAC] = true
		}
		if base.Secrets != nil || base.SSHKeys != nil || base.Addresses != nil {
			t.Fatal("a line changed what is the same for all")
		}
	})
}
