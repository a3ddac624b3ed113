package grubboot

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

func bootSector() []byte {
	b := make([]byte, SectorSize)
	b[driveCheck], b[driveCheck+1] = 0xeb, 0x05
	b[bootSignature], b[bootSignature+1] = 0x55, 0xaa
	return b
}

func TestPatchBootImg(t *testing.T) {
	b := bootSector()
	for _, lba := range []uint64{CoreLBA, 1<<40 + 7} {
		if err := PatchBootImg(b, lba); err != nil {
			t.Fatalf("PatchBootImg(%d) = %v", lba, err)
		}
		if got := binary.LittleEndian.Uint64(b[0x5c:]); got != lba {
			t.Errorf("sector at 0x5c = %d; want %d", got, lba)
		}
		if b[0x66] != 0x90 || b[0x67] != 0x90 {
			t.Errorf("code at 0x66 = % x; want two NOPs", b[0x66:0x68])
		}
	}
	want := bootSector()
	copy(want[0x5c:0x68], b[0x5c:0x68])
	if !bytes.Equal(b, want) {
		t.Error("PatchBootImg changed bytes beyond the sector and the drive check")
	}

	t.Run("refuses what is not boot.img", func(t *testing.T) {
		unsigned, other := bootSector(), bootSector()
		unsigned[bootSignature] = 0
		other[driveCheck] = 0x74
		for name, b := range map[string][]byte{"short": make([]byte, 440), "unsigned": unsigned, "other code": other} {
			before := bytes.Clone(b)
			if PatchBootImg(b, CoreLBA) == nil {
				t.Errorf("PatchBootImg(%s) = nil; want an error", name)
			}
			if !bytes.Equal(b, before) {
				t.Errorf("PatchBootImg(%s) changed what it refused", name)
			}
		}
	})
}

func TestPatchCoreImg(t *testing.T) {
	core := make([]byte, 3*SectorSize+1)
	binary.LittleEndian.PutUint16(core[blockList+10:], loadSegment)
	if err := PatchCoreImg(core, 4096); err != nil {
		t.Fatal(err)
	}
	if got := binary.LittleEndian.Uint64(core[0x1f4:]); got != 4097 {
		t.Errorf("first sector of the rest = %d; want 4097", got)
	}
	if got := binary.LittleEndian.Uint16(core[0x1fc:]); got != 3 {
		t.Errorf("sectors of the rest = %d; want 3, the last one begun", got)
	}

	t.Run("refuses what is not core.img", func(t *testing.T) {
		for name, core := range map[string][]byte{
			"empty": nil, "one sector": make([]byte, SectorSize), "no segment": make([]byte, 4*SectorSize),
			"too long for its memory": append(bytes.Clone(core), make([]byte, MaxCoreBytes)...),
		} {
			if PatchCoreImg(core, CoreLBA) == nil {
				t.Errorf("PatchCoreImg(%s) = nil; want an error", name)
			}
		}
	})
}

func TestPatchLocalBoot(t *testing.T) {
	img := []byte("before set uuid=" + LocalBootPlaceholder + "\nafter")
	for _, uuid := range []string{"", "1A2B-3C4D", "11111111-2222-4333-8444-bbbbbbbbbbbb"} {
		got, err := PatchLocalBoot(img, uuid)
		if err != nil {
			t.Fatalf("PatchLocalBoot(%q) = %v", uuid, err)
		}
		want := "before set uuid=" + uuid + strings.Repeat(" ", 36-len(uuid)) + "\nafter"
		if string(got) != want {
			t.Errorf("PatchLocalBoot(%q) = %q; want %q", uuid, got, want)
		}
	}
	if !bytes.Contains(img, []byte(LocalBootPlaceholder)) {
		t.Error("PatchLocalBoot changed the image it was given")
	}

	t.Run("lets nothing but a UUID into the script", func(t *testing.T) {
		for _, uuid := range []string{"x", "1A2B-3C4D\nhalt", "$(halt)", "a b", strings.Repeat("a", 37)} {
			if got, err := PatchLocalBoot(img, uuid); err == nil {
				t.Errorf("PatchLocalBoot(%q) = %q; want an error", uuid, got)
			}
		}
	})
	t.Run("refuses an image without its placeholder", func(t *testing.T) {
		patched, err := PatchLocalBoot(img, "AAAA-BBBB")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := PatchLocalBoot(patched, "AAAA-BBBB"); err == nil {
			t.Error("patching twice = nil; want an error")
		}
	})
}

func TestStubConfig(t *testing.T) {
	got, err := StubConfig("11111111-2222-4333-8444-bbbbbbbbbbbb")
	if err != nil || !strings.Contains(got, "--fs-uuid --set=root 11111111-2222-4333-8444-bbbbbbbbbbbb\n") {
		t.Errorf("StubConfig = %q, %v", got, err)
	}
	for _, uuid := range []string{"", "a;halt"} {
		if _, err := StubConfig(uuid); err == nil {
			t.Errorf("StubConfig(%q) = nil; want an error", uuid)
		}
	}
}
