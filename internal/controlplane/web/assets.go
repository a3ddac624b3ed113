package web

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"
)

//go:embed static
var staticFiles embed.FS

//go:embed templates
var templateFiles embed.FS

// assets are the static files under a directory named for the content of all
// of them: a browser may keep them for ever, and a module's relative imports
// stay within one version.
type assets struct {
	dir   string // "/static/0123456789ab"
	hash  string
	files map[string][]byte
}

func newAssets() (assets, error) {
	a := assets{files: map[string][]byte{}}
	sum := sha256.New()
	err := fs.WalkDir(staticFiles, "static", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := staticFiles.ReadFile(name)
		name = name[len("static/"):]
		a.files[name] = b
		one := sha256.Sum256(b)
		sum.Write([]byte(name))
		sum.Write([]byte{0})
		sum.Write(one[:])
		return err
	})
	a.hash = hex.EncodeToString(sum.Sum(nil))[:12]
	a.dir = "/static/" + a.hash
	return a, err
}

// serveWorker answers the service worker, which must come from the root to see
// requests for static files. It names the files of this version, so that a new
// version is another text, which is how browsers notice.
func (a assets) serveWorker(rw http.ResponseWriter, r *http.Request) {
	var names []string
	for name := range a.files {
		if name != workerFile {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	list, _ := json.Marshal(names) // strings cannot fail
	body := fmt.Sprintf("const DIR = %q\nconst FILES = %s\n\n%s", a.dir, list, a.files[workerFile])
	rw.Header().Set("Cache-Control", "no-cache")
	rw.Header().Set("Content-Type", contentType(workerFile))
	http.ServeContent(rw, r, "", time.Time{}, strings.NewReader(body))
}

const workerFile = "sw.js"

// serve answers under the current hash only: under another one the content is
// not what the page that asks was made for.
func (a assets) serve(rw http.ResponseWriter, r *http.Request) {
	name := r.PathValue("path")
	b, ok := a.files[name]
	if !ok || r.PathValue("hash") != a.hash {
		rw.Header().Set("Cache-Control", "no-store")
		http.Error(rw, "no such file in this version", http.StatusNotFound)
		return
	}
	rw.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	rw.Header().Set("Content-Type", contentType(name))
	http.ServeContent(rw, r, "", time.Time{}, bytes.NewReader(b))
}

// contentType does not ask the machine's own table for the types that matter:
// some have none for JavaScript, and nosniff then stops every module.
func contentType(name string) string {
	switch path.Ext(name) {
	case ".js":
		return "text/javascript; charset=utf-8"
	case ".css":
		return "text/css; charset=utf-8"
	case ".svg":
		return "image/svg+xml"
	}
	return mime.TypeByExtension(path.Ext(name))
}
