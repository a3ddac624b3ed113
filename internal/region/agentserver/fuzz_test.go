package agentserver

import (
	"encoding/base64"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
)

// FuzzHardware takes whatever an agent says its machine is: what is taken is clean
// text, is taken again as it is, and is shown with the digest that it had.
func FuzzHardware(f *testing.F) {
	f.Add([]byte(`{"boot_mode":"uefi","system":{"uuid":"00112233-4455-6677-8899-aabbccddeeff"},"disks":[{"device":"/dev/sda","size_bytes":1,"content":{"table":"gpt"}}]}`))
	f.Add([]byte(`{"boot_mode":"bios","cpu":{"model":"a\nb\u202e"},"nics":[{"name":"eth0","mac":"02:00:00:00:00:01"}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var h lpmos.Hardware
		if lpmos.UnmarshalJSON(body, &h) != nil || checkHardware(&h) != nil {
			return
		}
		digest, whole := h.Digest(), lpmos.DigestOf(h)
		if err := checkHardware(&h); err != nil || lpmos.DigestOf(h) != whole || h.Digest() != digest {
			t.Fatalf("what was taken is changed, or refused, the second time: %v", err)
		}
	})
}

// FuzzUUID compares what two sources say: in either order, and each is like itself.
func FuzzUUID(f *testing.F) {
	f.Add("00112233-4455-6677-8899-aabbccddeeff", "33221100-5544-7766-8899-aabbccddeeff")
	f.Add("00112233445566778899aabbccddeeff0011", "")
	f.Fuzz(func(t *testing.T, a, b string) {
		if sameUUID(a, b) != sameUUID(b, a) || !sameUUID(a, a) || !sameUUID(b, b) {
			t.Fatalf("%q and %q are alike in one order alone, or not like themselves", a, b)
		}
	})
}

// FuzzNonce opens anything that stands where a nonce should: without the secret
// nothing is one, and what was sealed is opened as it was and not when a
// character of it is another.
func FuzzNonce(f *testing.F) {
	secret, other := []byte("the region's"), []byte("another's")
	n := nonce{MAC: lpmos.MustMAC("52:54:00:00:00:01"), Seq: 3, Remote: netip.MustParseAddr("192.0.2.9"), TaskID: "3b1e5f8d-1111-4222-8333-444455556666"}
	f.Add(n.seal(other), n.TaskID, n.Seq, 60)
	f.Add("", "", int64(-1), 0)
	f.Add(base64.RawURLEncoding.EncodeToString(append(nonceMAC(other, []byte("{}")), "{}"...)), "\u2028", int64(1<<62), 1023)
	f.Fuzz(func(t *testing.T, foreign, task string, seq int64, at int) {
		if n, ok := openNonce(foreign, secret); ok {
			t.Fatalf("%q is taken for the nonce %+v", foreign, n)
		}
		n := n
		n.At, n.TaskID, n.Seq = time.Unix(1<<30, 0).UTC(), strings.ToValidUTF8(task, ""), seq
		sealed := n.seal(secret)
		got, ok := openNonce(sealed, secret)
		if len(sealed) > 1024 {
			if ok {
				t.Fatalf("a nonce of %d characters is taken", len(sealed))
			}
			return
		}
		if n.Salt = got.Salt; !ok || len(n.Salt) == 0 || lpmos.DigestOf(got) != lpmos.DigestOf(n) {
			t.Fatalf("%+v is opened as %+v, %v", n, got, ok)
		}
		b := []byte(sealed)
		at = int(uint(at) % uint(len(b)))
		b[at]++
		if n, ok := openNonce(string(b), secret); ok {
			t.Fatalf("with another character at %d it is the nonce %+v", at, n)
		}
	})
}
