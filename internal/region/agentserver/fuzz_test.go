package agentserver

import (
	"testing"

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
