// Package web is the operator's browser interface: complete, server-rendered
// HTML pages that work without JavaScript, kept live by small custom elements
// (static/js). Forms post to the same actions as the REST API.
//
// It is not the API and holds no state of its own beyond the last few form
// submissions: pages are drawn from a Reader, decided by Actions. The rules are
// contract.md §§2–5 and the visual language of design/ui-mock. All exported
// functions may be called concurrently.
package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
	"github.com/lpmos/lpmos/internal/controlplane/oidc"
)

// Reader is the read model in memory. Its answers are never changed after
// they were given, and it does not block.
type Reader interface {
	Rev() int64      // of the store; every change up to it is in the answers that follow
	StoreID() string // changes when the store is another one, so revisions mean nothing
	Task(id string) (lpmos.Task, bool)
	Tasks(api.Query) api.Page
	Rows(ids []string) api.Page              // as a page shows them, without those that are gone
	IDs(api.Query) (ids []string, total int) // at most Limit of them, in order
	Counts() map[lpmos.Status]int
	RegionCounts(region string) map[lpmos.Status]int
	Estimate(id string) *api.ETA // what earlier runs say of a task, nil where nothing is known
	Trend(id string) []int64     // bytes per second for each api.TrendEvery, the newest last
	Pace() api.Pace
	Regions() []lpmos.Region // by id
	Images() []lpmos.Image   // by name
	Machines(api.MachineQuery) api.MachinePage
	Machine(mac lpmos.MAC) (lpmos.Machine, bool) // by any of its addresses
	Profiles() []lpmos.Profile                   // by name
	Profile(name string) (lpmos.Profile, bool)
	Templates() []lpmos.Template // by name
	Template(name string) (lpmos.Template, bool)
	ProfileUse(name string) api.Use
	TemplateUse(name string) api.Use
	ImageUse(os, version, arch string) api.Use
	RegionLoad(id string) map[lpmos.Status]int
	Stopped() *lpmos.Stop // the emergency stop, nil when there is none
	ApprovalPolicy() lpmos.ApprovalPolicy
}

// History reads what is too long for memory, in order, oldest first.
type History interface {
	Events(ctx context.Context, taskID string) ([]lpmos.Event, error)
	Logs(ctx context.Context, taskID string) ([]string, error)
	Audit(ctx context.Context, q api.AuditQuery) (api.AuditPage, error) // newest first
}

// Actions change tasks. Each returns the task as it is afterwards. Errors are
// those of package lpmos: ErrNotFound, ErrConflict, ErrUnavailable,
// *InvalidError. by is the person, as Config.Person names them.
type Actions interface {
	Create(ctx context.Context, spec lpmos.Spec, by, idempotencyKey string) (lpmos.Task, error)
	Decide(ctx context.Context, taskID string, d api.Decision, by string) (lpmos.Task, error)
	Cancel(ctx context.Context, taskID, reason, by string) (lpmos.Task, error)
	Retry(ctx context.Context, taskID, by string) (lpmos.Task, error)
	Delete(ctx context.Context, taskID, by string) error

	// Stop keeps every machine from beginning to write, until Resume.
	Stop(ctx context.Context, reason, by string) (lpmos.Stop, error)
	Resume(ctx context.Context, by string) error
	// SetApprovalPolicy is based on the policy with a tag; an ErrChanged says that
	// it is another one now.
	SetApprovalPolicy(ctx context.Context, p lpmos.ApprovalPolicy, based, by string) (lpmos.ApprovalPolicy, error)

	// Lock keeps a machine as it is, until Unlock; ForgetTPM lets its next
	// approval decide which TPM it has.
	Lock(ctx context.Context, mac lpmos.MAC, reason, by string) (lpmos.Lock, error)
	Unlock(ctx context.Context, mac lpmos.MAC, by string) error
	ForgetTPM(ctx context.Context, mac lpmos.MAC, by string) error

	// Changes of profiles and templates are based on a version, 0 for none; an
	// ErrConflict says that it is not the newest any more. What is in use is
	// not deleted, which is an ErrConflict too.
	PutProfile(ctx context.Context, p lpmos.Profile, based int, by string) (lpmos.Profile, error)
	DeleteProfile(ctx context.Context, name string, based int, by string) error
	PutTemplate(ctx context.Context, t lpmos.Template, based int, by string) (lpmos.Template, error)
	DeleteTemplate(ctx context.Context, name string, based int, by string) error
	Preview(template, taskID string) (string, error)                                       // "" for a sample machine
	DeleteImage(ctx context.Context, os, version, arch string, rev int64, by string) error // rev -1 for any
}

// Config is all that differs between installations. Its zero value works.
type Config struct {
	Version  string                     // shown at the foot of the rail
	SiteName string                     // shown under the product's name
	Person   func(*http.Request) string // who is asking; nil means the name of auth.Of
	Now      func() time.Time           // nil means time.Now

	// Insecure says on every page that whoever is on the path can read along.
	Insecure bool
	// View is what one principal sees and may do; nil: everybody the same.
	View func(auth.Principal) View
	// Provider is the identity provider that people may sign in with; nil: none.
	Provider *oidc.Provider
	// People is who may sign in. nil: nobody can here, and the pages about them
	// are not found.
	People People

	Batches Batches // nil: one task at a time
}

// Web serves the pages. Make one with New.
//
// Handlers are methods of a copy that speaks the language of the request:
// everything but tongue and pages is the same in all copies.
type Web struct {
	*tongue
	reader  Reader
	history History
	actions Actions
	cfg     Config
	log     *slog.Logger
	pages   map[string]*template.Template
	static  assets
	mux     *http.ServeMux
	in      map[string]*Web // by tag
	me      auth.Principal  // who asks, in the copy for a request
}

// View is what one principal sees and may do.
type View struct {
	Reader
	History
	Actions
	Batches
}

// New parses the templates and prepares the static files; it fails only when
// those that were built in are broken.
func New(reader Reader, history History, actions Actions, cfg Config, log *slog.Logger) (*Web, error) {
	if cfg.Person == nil {
		cfg.Person = func(r *http.Request) string { return auth.Of(r.Context()).Name }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	static, err := newAssets()
	if err != nil {
		return nil, fmt.Errorf("read static files: %w", err)
	}
	mux, in := http.NewServeMux(), map[string]*Web{}
	for _, tag := range tagNames {
		s, err := newTongue(tag)
		if err != nil {
			return nil, fmt.Errorf("read translations: %w", err)
		}
		w := &Web{tongue: s, reader: reader, history: history, actions: actions, cfg: cfg, log: log, static: static, mux: mux, in: in}
		if w.pages, err = w.parse(); err != nil {
			return nil, fmt.Errorf("parse templates: %w", err)
		}
		in[tag] = w
	}
	w := in[tagNames[0]]
	for _, r := range routes {
		mux.HandleFunc(r.pattern, func(rw http.ResponseWriter, req *http.Request) {
			w := w.speaking(req)
			if err := w.me.May(r.need); err != nil {
				w.refuse(rw, req, err)
				return
			}
			r.handler(w, rw, req)
		})
	}
	return w, nil
}

// speaking is the copy for a request: in its language, and with what who asks
// sees.
func (w *Web) speaking(r *http.Request) *Web {
	one := *w.in[tagOf(r)]
	one.narrow(auth.Of(r.Context()))
	return &one
}

// narrow makes a copy that of somebody, with what they see and may do.
func (w *Web) narrow(me auth.Principal) {
	w.me = me
	if w.cfg.View != nil {
		v := w.cfg.View(me)
		w.reader, w.history, w.actions, w.cfg.Batches = v.Reader, v.History, v.Actions, v.Batches
	}
}

type route struct {
	pattern string // of http.ServeMux: method and path
	need    auth.Permission
	handler func(*Web, http.ResponseWriter, *http.Request)
}

var routes = func() []route {
	home := func(_ *Web, rw http.ResponseWriter, r *http.Request) {
		http.Redirect(rw, r, "/dashboard", http.StatusFound)
	}
	// What was selected was sent, and is gone with the page.
	toList := func(_ *Web, rw http.ResponseWriter, r *http.Request) {
		http.Redirect(rw, r, "/tasks", http.StatusSeeOther)
	}
	asset := func(w *Web, rw http.ResponseWriter, r *http.Request) { w.static.serve(rw, r) }
	return []route{
		{"GET /{$}", auth.Self, home},
		{"GET /dashboard", auth.See, (*Web).dashboard},
		{"GET /tasks", auth.See, (*Web).taskList},
		{"GET /tasks/order", auth.See, (*Web).taskOrder},
		{"GET /tasks/export", auth.See, (*Web).exportTasks},
		{"GET /tasks/rows", auth.See, (*Web).taskRows},
		{"GET /tasks/bulk", auth.See, toList},
		{"GET /tasks/bulk/run", auth.See, toList},
		{"POST /tasks/bulk", auth.Operate, (*Web).bulk},
		{"POST /tasks/bulk/counts", auth.See, (*Web).bulkCounts},
		{"POST /tasks/bulk/run", auth.Operate, (*Web).bulkRun},
		{"GET /tasks/create", auth.Operate, (*Web).createForm},
		{"POST /tasks/create", auth.Operate, (*Web).create},
		{"GET /batches/{id}", auth.See, (*Web).batch},
		{"GET /tasks/approve", auth.See, (*Web).togetherForm},
		{"POST /tasks/approve", auth.Approve, (*Web).together},
		{"GET /tasks/{id}", auth.See, (*Web).task},
		{"GET /tasks/{id}/approve", auth.See, (*Web).approveForm},
		{"POST /tasks/{id}/approve", auth.Approve, (*Web).decide},
		{"POST /tasks/{id}/cancel", auth.Operate, (*Web).cancel},
		{"POST /tasks/{id}/retry", auth.Operate, (*Web).retry},
		{"POST /tasks/{id}/delete", auth.Operate, (*Web).delete},
		{"GET /tasks/{id}/log", auth.See, (*Web).taskLog},
		{"GET /stop", auth.See, (*Web).stopPage},
		{"POST /stop", auth.Operate, (*Web).stop},
		{"POST /resume", auth.Approve, (*Web).resume},
		{"GET /policy", auth.See, (*Web).policy},
		{"POST /policy", auth.Administer, (*Web).changePolicy},
		{"GET /regions", auth.See, (*Web).regions},
		{"GET /machines", auth.See, (*Web).machineList},
		{"GET /machines/export", auth.See, (*Web).exportMachines},
		{"GET /machines/{mac}", auth.See, (*Web).machine},
		{"POST /machines/{mac}/lock", auth.Operate, (*Web).lock},
		{"POST /machines/{mac}/unlock", auth.Approve, (*Web).unlock},
		{"POST /machines/{mac}/forget-tpm", auth.Approve, (*Web).forgetTPM},
		{"GET /images", auth.See, (*Web).images},
		{"POST /images/{os}/{version}/{arch}/delete", auth.Administer, (*Web).deleteImage},
		{"GET /profiles", auth.See, (*Web).profileList},
		{"POST /profiles", auth.Configure, (*Web).putProfile},
		{"GET /profiles/{name}", auth.See, (*Web).profile},
		{"POST /profiles/{name}", auth.Configure, (*Web).putProfile},
		{"POST /profiles/{name}/delete", auth.Configure, (*Web).deleteProfile},
		{"GET /templates", auth.See, (*Web).templateList},
		{"POST /templates", auth.Configure, (*Web).putTemplate},
		{"GET /templates/{name}", auth.See, (*Web).templatePage},
		{"POST /templates/{name}", auth.Configure, (*Web).putTemplate},
		{"POST /templates/{name}/delete", auth.Configure, (*Web).deleteTemplate},
		{"POST /preferences", auth.Public, (*Web).preferences},
		{"GET /login", auth.Public, (*Web).loginForm},
		{"POST /login", auth.Public, (*Web).login},
		{"GET /login/oidc", auth.Public, (*Web).beginExternal},
		{"GET /login/oidc/callback", auth.Public, (*Web).finishExternal},
		{"POST /logout", auth.Public, (*Web).logout},
		{"GET /account", auth.Self, (*Web).account},
		{"POST /account/password", auth.Self, (*Web).changePassword},
		{"POST /account/sessions/{id}/end", auth.Self, (*Web).endSession},
		{"GET /users", auth.Administer, (*Web).userList},
		{"POST /users", auth.Administer, (*Web).createUser},
		{"GET /users/{name}", auth.Administer, (*Web).user},
		{"POST /users/{name}", auth.Administer, (*Web).setAccess},
		{"POST /users/{name}/reset", auth.Administer, (*Web).resetPassword},
		{"POST /users/{name}/delete", auth.Administer, (*Web).deleteUser},
		{"GET /tokens", auth.See, (*Web).tokenList},
		{"POST /tokens", auth.See, (*Web).createToken},
		{"POST /tokens/{id}/delete", auth.See, (*Web).deleteToken},
		{"GET /audit", auth.Review, (*Web).audit},
		{"GET /static/{hash}/{path...}", auth.Public, asset},
		{"GET /sw.js", auth.Public, func(w *Web, rw http.ResponseWriter, r *http.Request) { w.static.serveWorker(rw, r) }},
	}
}()

// Routes lists what Handler serves as patterns of http.ServeMux, such as
// "GET /tasks/{id}", for a router that mounts it beside other routes.
func (w *Web) Routes() []string {
	var out []string
	for _, r := range routes {
		out = append(out, r.pattern)
	}
	return out
}

// Handler serves the pages with their security headers, and a problem page for
// every other path.
func (w *Web) Handler() http.Handler {
	return Headers(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w := w.speaking(r)
		_, pattern := w.mux.Handler(r)
		if pattern != "" {
			w.mux.ServeHTTP(rw, r)
			return
		}
		if !w.me.SignedIn() { // what is there and what is not is nobody's business
			w.refuse(rw, r, w.me.May(auth.Self))
			return
		}
		// The mux knows whether another method would do; only its header and
		// status are kept, the page is ours.
		probe := &headOnly{header: http.Header{}}
		w.mux.ServeHTTP(probe, r)
		if probe.status == http.StatusMethodNotAllowed {
			rw.Header().Set("Allow", probe.header.Get("Allow"))
			w.showProblem(rw, r, problem{
				Status: probe.status, Icon: "stop", Title: w.methodTitle(r.Method),
				Text: w.T("Nothing was changed. Changes are sent by the buttons of a page."),
			})
			return
		}
		w.showProblem(rw, r, w.notFoundPage(r.URL.Path))
	}))
}

func (s *tongue) methodTitle(method string) string {
	if method == http.MethodGet || method == http.MethodHead {
		return s.T("This page cannot be opened, only sent to")
	}
	return s.T("This page cannot be sent to")
}

// headOnly takes what the mux says of a request that no route serves.
type headOnly struct {
	header http.Header
	status int
}

func (h *headOnly) Header() http.Header { return h.header }
func (h *headOnly) WriteHeader(s int) {
	if h.status == 0 {
		h.status = s
	}
}
func (h *headOnly) Write(b []byte) (int, error) { h.WriteHeader(http.StatusOK); return len(b), nil }

// page is what the layout needs; Body is the page's own.
type page struct {
	Title    string
	Nav      string // the rail link that is this page: dashboard, approvals, tasks, machines, regions, images, profiles, templates
	Watch    string // what live.js subscribes to: "all", a task id, or "" for nothing
	Site     string
	Version  string
	Person   string
	Insecure bool // anyone on the path can read along
	Theme    string
	Lang     string
	Return   string // this page again, after a preference was stored
	Search   string
	Awaiting int
	Rev      int64
	StoreID  string
	Stop     *lpmos.Stop // shown on every page while it stands
	Now      time.Time
	Body     any

	Me      auth.Principal
	Role    string // what it may do and where, in words
	NoLogin bool   // everybody is let in
	web     *Web
}

// No says why who looks may not do what needs a permission; "" if they may.
func (p page) No(need string) string { return p.web.no(auth.Permission(need)) }

// show renders a page completely before it answers, so that a broken template
// is a 500 and not half a page.
func (w *Web) show(rw http.ResponseWriter, r *http.Request, status int, name string, p page) {
	p.Me, p.web, p.NoLogin = w.me, w, w.me.Kind == auth.Open
	if w.me.Role != "" {
		p.Role = w.accessWord(w.me.Role) + ", " + w.regionsWord(w.me.Regions)
	}
	p.Site, p.Version, p.Person = w.cfg.SiteName, w.cfg.Version, w.cfg.Person(r)
	p.Insecure = w.cfg.Insecure
	p.Theme, p.Lang, p.Return, p.Now = theme(r), w.tag, "/dashboard", w.cfg.Now()
	switch {
	case r.Method != http.MethodGet:
	case r.URL.Path == "/login" || strings.HasPrefix(r.URL.Path, "/login/"):
		// The codes of a link or a provider that came along stay out of the page.
		p.Return = "/login"
		if back := r.URL.Query().Get("return"); back != "" {
			p.Return += "?" + url.Values{"return": {localPath(back)}}.Encode()
		}
	default:
		p.Return = r.URL.RequestURI()
	}
	p.Awaiting = w.reader.Counts()[lpmos.AwaitingApproval]
	p.StoreID, p.Stop = w.reader.StoreID(), w.reader.Stopped()
	if p.Rev == 0 {
		p.Rev = w.reader.Rev()
	}
	var b bytes.Buffer
	if err := w.pages[name].ExecuteTemplate(&b, "layout", p); err != nil {
		w.log.Error("page not rendered", "page", name, "err", err)
		http.Error(rw, w.T("This page could not be drawn. Nothing was changed."), http.StatusInternalServerError)
		return
	}
	h := rw.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Language", p.Lang)
	h.Set("Vary", "Accept-Language, Cookie")
	// What waits for a decision must never come from a cache, not even on Back.
	h.Set("Cache-Control", "no-store")
	rw.WriteHeader(status)
	rw.Write(b.Bytes())
}

// sendJSON answers a script of the pages.
func (w *Web) sendJSON(rw http.ResponseWriter, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		w.log.Error("answer not encoded", "err", err)
		http.Error(rw, "", http.StatusInternalServerError)
		return
	}
	rw.Header().Set("Content-Type", "application/json")
	rw.Header().Set("Cache-Control", "no-store")
	rw.Write(b)
}

// rev is taken before a page reads anything: live.js asks for what came after
// it, so a change during rendering is seen twice rather than not at all.
func (w *Web) rev() int64 { return w.reader.Rev() }

// find answers the task of the request's path.
func (w *Web) find(r *http.Request) (lpmos.Task, error) {
	id := r.PathValue("id")
	if lpmos.ValidTaskID(id) {
		if t, ok := w.reader.Task(id); ok {
			return t, nil
		}
	}
	return lpmos.Task{}, fmt.Errorf("task %q: %w", lpmos.Shorten(id, 64), lpmos.ErrNotFound)
}

// problem is a whole page about one thing that is not as it was asked for.
type problem struct {
	Status    int
	Icon      string
	Title     string
	Text      string
	Link      string // the next step, with its words; "" for the list of tasks
	LinkLabel string
}

func (s *tongue) notFoundPage(path string) problem {
	return problem{Status: http.StatusNotFound, Icon: "search", Title: s.T("There is no page here"),
		Text: s.T("%s is not a page of this site. It may have been typed wrongly.", lpmos.Shorten(path, 80)), Link: "/dashboard", LinkLabel: s.T("Overview")}
}

// fail is where errors of readers and actions become pages.
func (w *Web) fail(rw http.ResponseWriter, r *http.Request, err error) {
	invalid, isInvalid := errors.AsType[*lpmos.InvalidError](err)
	p := problem{Link: "/tasks", LinkLabel: w.T("All tasks")}
	if id := r.PathValue("id"); lpmos.ValidTaskID(id) {
		p.Link, p.LinkLabel = "/tasks/"+id, w.T("Open the task")
	}
	switch {
	case errors.Is(err, lpmos.ErrForbidden):
		p.Status, p.Icon, p.Title, p.Text = http.StatusForbidden, "lock", w.T("This is not yours to do"), w.T("%s Nothing was changed.", w.refusal(err))
	case errors.Is(err, lpmos.ErrNotFound):
		p.Status, p.Icon, p.Title = http.StatusNotFound, "search", w.T("There is no such task")
		p.Text = w.T("It may have been deleted, or the address is incomplete: ids have 32 hexadecimal digits.")
		p.Link, p.LinkLabel = "/tasks", w.T("All tasks")
	case isInvalid:
		p.Status, p.Icon, p.Title, p.Text = http.StatusBadRequest, "warning", w.T("This was not accepted"), w.T("Nothing was changed: %s.", w.invalid(invalid))
	case errors.Is(err, lpmos.ErrConflict):
		p.Status, p.Icon, p.Title = http.StatusConflict, "info", w.T("This is not possible now")
		p.Text = w.T("%s Nothing was changed by you.", w.Said(sentence(err.Error())))
	case errors.Is(err, lpmos.ErrUnavailable):
		p.Status, p.Icon, p.Title = http.StatusServiceUnavailable, "clock", w.T("The store does not answer")
		p.Text = w.T("Nothing you sent was stored. Running installs go on without it. The same request may be repeated.")
		rw.Header().Set("Retry-After", "5")
	case errors.Is(err, context.Canceled):
		return // nobody is there to read a page
	default:
		w.log.Error("request not served", "path", r.URL.Path, "err", err)
		p.Status, p.Icon, p.Title = http.StatusInternalServerError, "warning", w.T("Something in the control plane went wrong")
		p.Text = w.T("The cause is in its log. What you sent may not have been stored: look before you repeat it.")
	}
	w.showProblem(rw, r, p)
}

func (w *Web) showProblem(rw http.ResponseWriter, r *http.Request, p problem) {
	if p.Link == "" {
		p.Link, p.LinkLabel = "/tasks", w.T("All tasks")
	}
	w.show(rw, r, p.Status, "problem", page{Title: p.Title, Body: p})
}
