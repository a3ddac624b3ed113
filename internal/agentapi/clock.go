package agentapi

import (
	"crypto/x509"
	"encoding/pem"
	"time"
)

// sane makes a clock for checking certificates out of now: never before the
// pinned authority's own beginning. The installed system of a machine with a
// dead battery calls home in 1980, before anything has set its clock, and
// would otherwise refuse its region for ever.
func sane(ca string, now func() time.Time) func() time.Time {
	var begin time.Time
	for block, rest := pem.Decode([]byte(ca)); block != nil; block, rest = pem.Decode(rest) {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil && c.NotBefore.After(begin) {
			begin = c.NotBefore
		}
	}
	return func() time.Time {
		if t := now(); t.After(begin) {
			return t
		}
		return begin
	}
}
