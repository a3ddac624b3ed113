package osimage

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/imagepack"
)

// cacheKey is the SHA-256, as hex digits, of what this program and its
// configuration contribute to an image.
func cacheKey(r recipe, cfg Config) (string, error) {
	h := sha256.New()
	err := json.NewEncoder(h).Encode(struct {
		Builder         int
		Suite, Features string
		Epoch           int64
		Recipe          recipe // without its function; Builder stands for code
		Mirrors         []string
	}{builderVersion, r.release(), features, sourceEpoch, r, cfg.Mirrors})
	if err != nil {
		return "", err
	}
	overlays := slices.Clone(r.Overlays)
	if r.arrange != nil {
		overlays = append(overlays, tinyInitrd)
	}
	for _, dir := range overlays {
		err := fs.WalkDir(files, "files/"+dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			text, err := files.ReadFile(name)
			fmt.Fprintf(h, "%s %d\n%s\n", name, len(text), text)
			return err
		})
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// cache is a directory of records, <name>-<key>.json, and the blobs they name.
type cache struct{ dir string }

func (c cache) path(name, key string) string {
	return filepath.Join(c.dir, name+"-"+key[:16]+".json")
}

// find returns the record of an image whose blobs are all there.
func (c cache) find(name, key string) (Record, bool) {
	text, err := os.ReadFile(c.path(name, key))
	if err != nil {
		return Record{}, false
	}
	var rec Record
	if json.Unmarshal(text, &rec) != nil {
		return Record{}, false
	}
	m, err := imagepack.Load(c.dir, rec.Image.Digest)
	if err != nil {
		return Record{}, false
	}
	info, err := os.Stat(c.blob(m.Pack.SHA256))
	return rec, err == nil && info.Size() == m.Pack.Bytes
}

// put records an image whose blobs are in the cache. Records of the same name,
// made by an older recipe or mirror state, go, and their blobs with them.
func (c cache) put(name, key string, rec Record) error {
	keep := c.blobs(rec.Image)
	old, err := filepath.Glob(filepath.Join(c.dir, name+"-????????????????.json"))
	if err != nil {
		return err
	}
	for _, p := range old {
		var o Record
		if text, err := os.ReadFile(p); err == nil && json.Unmarshal(text, &o) == nil {
			for sum := range c.blobs(o.Image) {
				if !keep[sum] {
					os.Remove(c.blob(sum))
				}
			}
		}
		if err := os.Remove(p); err != nil {
			return err
		}
	}
	text, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(c.dir, ".record-"+name)
	if err := os.WriteFile(tmp, append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, c.path(name, key))
}

func (c cache) blob(sum string) string { return filepath.Join(c.dir, "blobs", sum) }

// blobs are the digests of an image's manifest and pack, as far as the cache
// has them.
func (c cache) blobs(image lpmos.Image) map[string]bool {
	m, err := imagepack.Load(c.dir, image.Digest)
	if err != nil {
		return nil
	}
	return map[string]bool{strings.TrimPrefix(image.Digest, "sha256:"): true, m.Pack.SHA256: true}
}

// export puts the blobs of an image into dir/blobs, as links where the
// filesystem allows it.
func (c cache) export(image lpmos.Image, dir string) error {
	to := filepath.Join(dir, "blobs")
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for sum := range c.blobs(image) {
		from, dst := c.blob(sum), filepath.Join(to, sum)
		src, err := os.Stat(from)
		if err != nil {
			return err
		}
		// A blob that is there in full is the same one: its name says so.
		if have, err := os.Stat(dst); err == nil && have.Size() == src.Size() {
			continue
		}
		tmp := filepath.Join(to, ".new-"+sum)
		os.Remove(tmp)
		if os.Link(from, tmp) != nil {
			if err := copyFile(from, tmp); err != nil {
				os.Remove(tmp)
				return err
			}
		}
		if err := os.Rename(tmp, dst); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if _, err := io.Copy(dst, src); err != nil {
		dst.Close()
		return err
	}
	return dst.Close()
}
