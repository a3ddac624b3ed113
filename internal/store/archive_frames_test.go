package store

import (
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/lpmos/lpmos"
)

// What was archived with a dictionary can be read with that one alone.
func TestArchiveDictionaryStaysAsItIs(t *testing.T) {
	const want = "sha256:f7bae4e1405e0adf82324d0bb82907b34f814570082d524dcd47ed23fec59d84"
	if got := lpmos.DigestBytes(dictionary); got != want {
		t.Errorf("archive.dict is %s and was %s: a better dictionary is another file with another number, beside this one", got, want)
	}
}

// Earlier versions archived without a dictionary, and that can still be read.
func TestArchivedWithoutDictionary(t *testing.T) {
	const id = "550e8400-e29b-41d4-a716-446655440000"
	parts := []Change{
		{Key: Key{Kind: KindHardware, TaskID: id}, Value: []byte(`{"boot_mode":"uefi"}`), Rev: 3},
		{Key: Key{Kind: KindStatus, TaskID: id}, Value: []byte("completed"), Rev: 4},
	}
	now := []byte(archivedText(parts))
	head, rest, err := frames(now)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	again := func(frame []byte) []byte {
		t.Helper()
		text, err := decompressor().DecodeAll(frame, nil)
		if err != nil {
			t.Fatal(err)
		}
		return plain.EncodeAll(text, nil)
	}
	head, rest = again(head), again(rest)
	before := append(append(binary.AppendUvarint(nil, uint64(len(head))), head...), rest...)
	for name, value := range map[string][]byte{"now": now, "before": before} {
		got, err := archivedParts(id, value)
		if err != nil {
			t.Fatalf("archived %s: %v", name, err)
		}
		byKind := map[Kind]Change{}
		for _, c := range got {
			byKind[c.Key.Kind] = c
		}
		if d := cmp.Diff(map[Kind]Change{KindHardware: parts[0], KindStatus: parts[1]}, byKind); d != "" {
			t.Errorf("archived %s, it is read as something else (-want +got):\n%s", name, d)
		}
	}
	if len(before) <= len(now) {
		t.Errorf("the dictionary makes %d bytes of %d", len(now), len(before))
	}
}
