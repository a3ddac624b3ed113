package httpboot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
	"github.com/lpmos/lpmos/internal/region/netboot"
)

// Decider decides how machines boot and writes their scripts.
type Decider interface {
	Boot(lpmos.MAC) (e lpmos.BootEntry, known bool, err error)
	Scripts() netboot.Scripts
}

// BootRequest is a machine that is about to start the agent.
type BootRequest struct {
	MAC      lpmos.MAC
	UUID     string // as iPXE sent it, at most 64 bytes, or ""
	Remote   netip.Addr
	Platform netboot.Platform
	Known    bool // the machine is in the boot index
}

// Boots begins boots of the agent.
type Boots interface {
	// Begin opens a new boot and returns the nonce of its segment, letters,
	// digits, "-" and "_". An error that wraps lpmos.ErrConflict holds the
	// machine (it asks again later); every other is "not now".
	Begin(context.Context, BootRequest) (lpmos.BootEntry, string, error)
}

// Segments makes what is appended to a machine's initramfs.
type Segments interface {
	// Segment returns a cpio archive. An error that wraps lpmos.ErrNotFound or
	// lpmos.ErrConflict means never for this nonce and address; every other is
	// "not now".
	Segment(ctx context.Context, nonce string, remote netip.Addr) ([]byte, error)
}

// Blobs are files by content.
type Blobs interface {
	// Open may wait until the region has fetched the blob. An error that wraps
	// lpmos.ErrNotFound means that nobody has it. Size is in bytes.
	Open(ctx context.Context, sha256 string) (r io.ReadSeekCloser, size int64, err error)
	// Follow may give what is there of a blob that is still being fetched, before
	// its digest is known; reading waits for the rest.
	Follow(ctx context.Context, sha256 string) (r io.ReadSeekCloser, size int64, err error)
}

// Images names the boot image.
type Images interface {
	// BootImage returns what the control plane published; false when nothing.
	BootImage() (lpmos.BootImage, bool)
}

// PatchFunc returns a copy of a local boot helper that starts the disk with the
// given filesystem, or the first disk for "".
type PatchFunc func(img []byte, fsUUID string) ([]byte, error)

// Deps is what a handler calls. All are required.
type Deps struct {
	Decider  Decider
	Boots    Boots
	Segments Segments
	Blobs    Blobs
	Images   Images
	// Patch is applied to localboot.efi.
	Patch PatchFunc
}

// patched is the one boot file that is made for each machine.
const patched = "localboot.efi"

// maxPatched bounds what is held in memory of it.
const maxPatched = 16 << 20

// ErrNoBootImage is what every machine meets in a region of a new site.
var ErrNoBootImage = fmt.Errorf("no boot image was published (run lpmos bootimage publish): %w", lpmos.ErrUnavailable)

// retryAfter is for everything that passes by itself, in seconds.
const retryAfter = "5"

// Handler serves one region. It may be used concurrently.
type Handler struct {
	d   Deps
	log *slog.Logger
	mux *http.ServeMux

	refused, agents, locals, waits, unavailable, segments, segmentsRefused, files atomic.Int64
}

// Stats counts since the start.
type Stats struct {
	Refused         int64 // requests that no client of ours sends
	AgentScripts    int64
	LocalScripts    int64
	WaitScripts     int64 // scripts that make a machine ask again, or refuse it
	Unavailable     int64 // answers 503
	Segments        int64
	SegmentsRefused int64
	Files           int64 // boot files and blobs
}

// Stats returns a copy.
func (h *Handler) Stats() Stats {
	return Stats{h.refused.Load(), h.agents.Load(), h.locals.Load(), h.waits.Load(), h.unavailable.Load(),
		h.segments.Load(), h.segmentsRefused.Load(), h.files.Load()}
}

// New returns the handler.
func New(d Deps, log *slog.Logger) *Handler {
	h := &Handler{d: d, log: log, mux: http.NewServeMux()}
	h.mux.HandleFunc("GET "+agentapi.PathBootScript, onlyGet(h.script))
	h.mux.HandleFunc("GET "+agentapi.PathSegment+"{nonce}", onlyGet(h.segment))
	h.mux.HandleFunc("GET "+agentapi.PathBlobs+"{sha256}", h.blob)
	h.mux.HandleFunc("GET /boot/{name}", h.bootFile)
	return h
}

// maxNonce bounds a nonce, which carries a sealed promise of about 270 bytes.
const maxNonce = 512

// maxURL bounds what is looked at.
const maxURL = 1024

// ServeHTTP refuses what no client of ours sends before anything interprets it:
// bodies, proxy requests, and paths that mean another path.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p := r.URL.Path
	if r.ContentLength != 0 || len(r.TransferEncoding) > 0 || r.URL.IsAbs() || r.URL.Host != "" || len(r.RequestURI) > maxURL ||
		!strings.HasPrefix(p, "/") || path.Clean(p) != p || r.URL.RawPath != "" || strings.Contains(r.URL.EscapedPath(), "%") {
		h.refused.Add(1)
		w.Header().Set("Connection", "close")
		http.Error(w, "not a request this server answers", http.StatusBadRequest)
		return
	}
	out := steady(w)
	out.extend()
	h.mux.ServeHTTP(out, r)
}

func onlyGet(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			w.Header().Set("Allow", http.MethodGet)
			http.Error(w, "only GET", http.StatusMethodNotAllowed)
			return
		}
		next(w, r)
	}
}

// script answers iPXE. A machine that does not introduce itself is told how to.
func (h *Handler) script(w http.ResponseWriter, r *http.Request) {
	scripts := h.d.Decider.Scripts()
	q := r.URL.Query()
	if q.Get("mac") == "" || q.Get("platform") == "" {
		h.waits.Add(1)
		writeScript(w, scripts.Introduce())
		return
	}
	m, err := machine(q.Get)
	if err != nil {
		h.refused.Add(1)
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	e, known, err := h.d.Decider.Boot(m.MAC)
	var text string
	switch {
	case err != nil:
	case e.Action != lpmos.BootAgent:
		h.locals.Add(1)
		text, err = scripts.Local(m, e)
	case !netboot.Supported(m.Arch):
		h.waits.Add(1)
		text, err = scripts.Refuse(m)
	default:
		text, err = h.agent(r, scripts, m, known)
	}
	if err != nil {
		h.notNow(w, r, "boot script refused", fmt.Errorf("boot %s: %w", m.MAC, err))
		return
	}
	writeScript(w, text)
}

// agent begins a boot and writes its script.
func (h *Handler) agent(r *http.Request, scripts netboot.Scripts, m netboot.Machine, known bool) (string, error) {
	img, ok := h.d.Images.BootImage()
	if !ok {
		return "", ErrNoBootImage
	}
	e, nonce, err := h.d.Boots.Begin(r.Context(), BootRequest{MAC: m.MAC, UUID: m.UUID, Remote: remote(r), Platform: m.Platform, Known: known})
	if errors.Is(err, lpmos.ErrConflict) {
		h.waits.Add(1)
		h.log.Warn("machine is held", "mac", m.MAC, "addr", r.RemoteAddr, "err", err)
		return scripts.Wait(m, "this machine is held, see the control plane")
	}
	if err != nil {
		return "", err
	}
	if e.Action == lpmos.BootLocal {
		// Decided anew between the two questions.
		h.locals.Add(1)
		return scripts.Local(m, e)
	}
	h.agents.Add(1)
	h.log.Info("agent boot begins", "mac", m.MAC, "task", e.TaskID, "addr", r.RemoteAddr, "platform", m.Platform)
	return scripts.Agent(m, img, nonce)
}

// machine reads the query. UUIDs are compared elsewhere; here they only have to
// be harmless.
func machine(get func(string) string) (netboot.Machine, error) {
	mac, err := lpmos.ParseMAC(get("mac"))
	if err != nil {
		return netboot.Machine{}, err
	}
	m := netboot.Machine{MAC: mac, UUID: get("uuid"), Arch: get("arch")}
	var ok bool
	if m.Platform, ok = netboot.ParsePlatform(get("platform")); !ok {
		return m, &lpmos.InvalidError{Field: "platform", Problem: "is neither pcbios nor efi", Value: get("platform")}
	}
	if !word(m.UUID, 64) {
		return m, &lpmos.InvalidError{Field: "uuid", Problem: "is not a UUID", Value: m.UUID}
	}
	if !word(m.Arch, 16) {
		return m, &lpmos.InvalidError{Field: "arch", Problem: "is not an architecture", Value: m.Arch}
	}
	return m, nil
}

// word reports whether s has only letters, digits, "-" and "_", at most n.
func word(s string, n int) bool {
	for _, c := range []byte(s) {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '_') {
			return false
		}
	}
	return len(s) <= n
}

func writeScript(w http.ResponseWriter, text string) {
	head := w.Header()
	head.Set("Content-Type", "text/plain; charset=us-ascii")
	head.Set("Cache-Control", "no-store")
	head.Set("Content-Length", strconv.Itoa(len(text)))
	_, _ = io.WriteString(w, text)
}

// segment delivers a boot's segment.
func (h *Handler) segment(w http.ResponseWriter, r *http.Request) {
	nonce := r.PathValue("nonce")
	if nonce == "" || !word(nonce, maxNonce) {
		h.refused.Add(1)
		http.Error(w, "not a segment", http.StatusBadRequest)
		return
	}
	b, err := h.d.Segments.Segment(r.Context(), nonce, remote(r))
	switch {
	case errors.Is(err, lpmos.ErrNotFound), errors.Is(err, lpmos.ErrConflict):
		h.segmentsRefused.Add(1)
		h.log.Warn("boot segment refused", "addr", r.RemoteAddr, "err", err)
		http.Error(w, "this segment is not to be had", http.StatusGone)
		return
	case err != nil:
		h.notNow(w, r, "boot segment not available", err)
		return
	}
	h.segments.Add(1)
	head := w.Header()
	head.Set("Content-Type", "application/octet-stream")
	head.Set("Cache-Control", "no-store")
	head.Set("Content-Length", strconv.Itoa(len(b)))
	w.Write(b)
}

func (h *Handler) blob(w http.ResponseWriter, r *http.Request) {
	if sum := r.PathValue("sha256"); lpmos.ValidDigest(sum) {
		open := h.d.Blobs.Open
		if r.Header.Get(agentapi.HeaderEarly) != "" {
			open = h.d.Blobs.Follow
		}
		h.serveBlob(w, r, sum, open)
		return
	}
	h.refused.Add(1)
	http.Error(w, "not a SHA-256", http.StatusNotFound)
}

// bootFile serves the boot image's files by name.
func (h *Handler) bootFile(w http.ResponseWriter, r *http.Request) {
	img, ok := h.d.Images.BootImage()
	if !ok {
		h.notNow(w, r, "boot file not available", ErrNoBootImage)
		return
	}
	name := r.PathValue("name")
	blob, ok := img.Files[name]
	switch name {
	case "kernel":
		blob, ok = img.Kernel, true
	case "initrd":
		blob, ok = img.Initrd, true
	}
	switch {
	case !ok || !lpmos.ValidDigest(blob.SHA256):
		http.NotFound(w, r)
	case name == patched:
		h.servePatched(w, r, blob.SHA256)
	default:
		h.serveBlob(w, r, blob.SHA256, h.d.Blobs.Open)
	}
}

func (h *Handler) serveBlob(w http.ResponseWriter, r *http.Request, sum string, open func(context.Context, string) (io.ReadSeekCloser, int64, error)) {
	f, _, err := open(r.Context(), sum)
	if err != nil {
		h.notNow(w, r, "blob not available", err)
		return
	}
	defer f.Close()
	// The content never changes, so a download that broke may go on where it was.
	w.Header().Set("Etag", `"`+sum+`"`)
	h.content(w, r, f)
}

func (h *Handler) servePatched(w http.ResponseWriter, r *http.Request, sum string) {
	f, size, err := h.d.Blobs.Open(r.Context(), sum)
	if err != nil {
		h.notNow(w, r, "blob not available", err)
		return
	}
	defer f.Close()
	img := make([]byte, min(max(size, 0), maxPatched))
	if _, err = io.ReadFull(f, img); err != nil {
		h.notNow(w, r, "blob not available", err)
		return
	}
	img, err = h.d.Patch(img, r.URL.Query().Get("uuid"))
	if err != nil {
		h.refused.Add(1)
		h.log.Warn("local boot helper not made", "addr", r.RemoteAddr, "err", err)
		http.Error(w, "cannot be made for this filesystem", http.StatusBadRequest)
		return
	}
	h.content(w, r, bytes.NewReader(img))
}

// content serves HEAD, GET and Range.
func (h *Handler) content(w http.ResponseWriter, r *http.Request, f io.ReadSeeker) {
	h.files.Add(1)
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, f)
}

// notNow maps an error to an answer: 404 for what does not exist, 400 for what
// was asked wrongly, and otherwise 503.
func (h *Handler) notNow(w http.ResponseWriter, r *http.Request, event string, err error) {
	if invalid, ok := errors.AsType[*lpmos.InvalidError](err); ok {
		h.refused.Add(1)
		h.log.Warn(event, "addr", r.RemoteAddr, "err", err)
		http.Error(w, invalid.Error(), http.StatusBadRequest)
		return
	}
	if errors.Is(err, lpmos.ErrNotFound) {
		http.NotFound(w, r)
		return
	}
	if r.Context().Err() != nil {
		return // nobody waits for the answer
	}
	h.unavailable.Add(1)
	h.log.Warn(event, "addr", r.RemoteAddr, "err", err)
	w.Header().Set("Retry-After", retryAfter)
	http.Error(w, "not now", http.StatusServiceUnavailable)
}

// remote is the address of the other end; the zero value when it has none.
func remote(r *http.Request) netip.Addr {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap().WithZone("")
}
