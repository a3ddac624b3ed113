package dhcpd

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
)

// journal is the file of leases: one JSON object per line, the last one of a
// machine or address counts. It is appended to and synced, and rewritten when
// most of it is history.
type journal struct {
	path  string
	f     *os.File
	lines int
	torn  bool // an append went wrong, so the end of the file may be half a line
}

// readJournal yields what is in the file. A missing file is empty. A line that
// cannot be read is skipped and counted: a crash leaves at most the last one so.
func readJournal(path string, each func(Lease)) (skipped int, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read leases: %w", err)
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 64<<10)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil && err != io.EOF && err != bufio.ErrBufferFull {
			return skipped, fmt.Errorf("read leases: %w", err)
		}
		if len(line) > 0 {
			var l Lease
			if json.Unmarshal(line, &l) != nil || l.MAC.IsZero() || !l.Address.Is4() {
				skipped++
			} else {
				each(l)
			}
		}
		if err == io.EOF {
			return skipped, nil
		}
	}
}

// rewrite replaces the file by one that holds leases only, and opens it for
// appending. At any time the file is whole: the old one or the new one.
func (j *journal) rewrite(leases iter.Seq[Lease]) error {
	fail := func(err error) error { return fmt.Errorf("write leases: %w", err) }
	f, err := os.CreateTemp(filepath.Dir(j.path), filepath.Base(j.path)+".*.tmp")
	if err != nil {
		return fail(err)
	}
	defer os.Remove(f.Name()) // gone already when all went well
	lines := 0
	w := bufio.NewWriter(f)
	enc := json.NewEncoder(w)
	for l := range leases {
		if err == nil {
			err = enc.Encode(l)
		}
		lines++
	}
	err = errors.Join(err, w.Flush())
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(f.Name(), j.path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(j.path))
	}
	if err != nil {
		f.Close()
		return fail(err)
	}
	j.close()
	j.f, j.lines, j.torn = f, lines, false
	return nil
}

// append writes leases and returns when they are on disk.
func (j *journal) append(leases []Lease) error {
	var b []byte
	for _, l := range leases {
		line, err := json.Marshal(l)
		if err != nil {
			return fmt.Errorf("encode lease: %w", err)
		}
		b = append(append(b, line...), '\n')
	}
	_, err := j.f.Write(b)
	if err == nil {
		err = j.f.Sync()
	}
	if err != nil {
		j.torn = true
		return fmt.Errorf("write leases: %w", err)
	}
	j.lines += len(leases)
	return nil
}

func (j *journal) close() {
	if j.f != nil {
		j.f.Close()
		j.f = nil
	}
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
