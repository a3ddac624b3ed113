package install

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/lpmos/lpmos"
)

// Marker says that an attempt wrote everything. It stands in the free MiB
// before the first partition, half-way between the table and the partition,
// where neither firmware nor boot loader nor partitioning tools put anything:
// the table ends before 24 KiB, and GRUB uses the bios_grub partition. It is
// the last thing an attempt writes and the first the next one erases.
//
// On disk it is a block of 4096 bytes: magic, JSON, zeros, and the SHA-256 of
// the 4064 bytes before in the last 32.
type Marker struct {
	TaskID     string    `json:"task_id"`
	Attempt    int       `json:"attempt"`
	PlanDigest string    `json:"plan_digest"`
	WrittenAt  time.Time `json:"written_at"`
}

const (
	markerOffset = 512 << 10
	markerBytes  = 4096
	markerMagic  = "LPMOS installed 1\n"
)

func (m Marker) encode() ([]byte, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode marker: %w", err)
	}
	b := make([]byte, markerBytes)
	if n := copy(b[copy(b, markerMagic):markerBytes-sha256.Size], text); n < len(text) {
		return nil, fmt.Errorf("encode marker: %d bytes do not fit", len(text))
	}
	sum := sha256.Sum256(b[:markerBytes-sha256.Size])
	copy(b[markerBytes-sha256.Size:], sum[:])
	return b, nil
}

func readMarker(r io.ReaderAt) (Marker, bool) {
	b := make([]byte, markerBytes)
	if _, err := r.ReadAt(b, markerOffset); err != nil {
		return Marker{}, false
	}
	body, want := b[:markerBytes-sha256.Size], b[markerBytes-sha256.Size:]
	text, ok := bytes.CutPrefix(bytes.TrimRight(body, "\x00"), []byte(markerMagic))
	if sum := sha256.Sum256(body); !ok || !bytes.Equal(sum[:], want) {
		return Marker{}, false
	}
	var m Marker
	if err := lpmos.UnmarshalJSON(text, &m); err != nil {
		return Marker{}, false
	}
	return m, true
}

// writeMarker makes the installation count, once everything before is on the
// disk.
func (d *device) writeMarker(m Marker) error {
	b, err := m.encode()
	if err != nil {
		return err
	}
	if err := d.flush(); err != nil {
		return err
	}
	if _, err := d.WriteAt(b, markerOffset); err != nil {
		return err
	}
	if err := d.flush(); err != nil {
		return err
	}
	if got, ok := readMarker(d); !ok || got.TaskID != m.TaskID || got.Attempt != m.Attempt {
		return fmt.Errorf("marker reads back as %+v", got)
	}
	return nil
}
