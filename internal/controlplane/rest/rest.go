// Package rest is the control plane's REST API (contract §4, api/openapi.yaml):
// plain Gin handlers over the read model and the orchestrator. gin.Context does
// not leave this package.
package rest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
)

// Limits of request bodies, in bytes.
const (
	maxBody  = 256 << 10
	maxLimit = 1000
)

// Reader is the read model.
type Reader interface {
	Ready() bool
	Rev() int64
	StoreID() string
	Task(id string) (lpmos.Task, bool)
	Status(id string) (lpmos.Status, bool)
	Tasks(api.Query) api.Page
	IDs(api.Query) (ids []string, total int)
	ValidCursor(cursor string, sort api.Sort) bool
	Estimate(id string) *api.ETA
	Logs(id string) ([]string, bool)
	Regions() []lpmos.Region
	Region(id string) (lpmos.Region, bool)
	Images() []lpmos.Image
	Machines(api.MachineQuery) api.MachinePage
	Machine(mac lpmos.MAC) (lpmos.Machine, bool)
	Profiles() []lpmos.Profile
	Profile(name string) (lpmos.Profile, bool)
	Templates() []lpmos.Template
	Template(name string) (lpmos.Template, bool)
	ProfileUse(name string) api.Use
	TemplateUse(name string) api.Use
	ImageRev(os, version, arch string) (lpmos.Image, int64, bool)
	Stopped() *lpmos.Stop
	Limits() lpmos.Limits
	ApprovalPolicy() lpmos.ApprovalPolicy
}

// Actions is the orchestrator.
type Actions interface {
	Create(ctx context.Context, spec lpmos.Spec, by, idempotencyKey string) (lpmos.Task, error)
	Decide(ctx context.Context, id string, d api.Decision, by string) (lpmos.Task, error)
	Cancel(ctx context.Context, id, reason, by string) (lpmos.Task, error)
	Retry(ctx context.Context, id, by string) (lpmos.Task, error)
	Delete(ctx context.Context, id, by string) error
	PutProfile(ctx context.Context, p lpmos.Profile, based int, by string) (lpmos.Profile, error)
	DeleteProfile(ctx context.Context, name string, based int, by string) error
	PutTemplate(ctx context.Context, t lpmos.Template, based int, by string) (lpmos.Template, error)
	DeleteTemplate(ctx context.Context, name string, based int, by string) error
	// SignImage signs an entry that is about to be stored.
	SignImage(i *lpmos.Image)
	// DeleteImage removes the entry that rev wrote; -1 stands for any.
	DeleteImage(ctx context.Context, os, version, arch string, rev int64, by string) error
	Preview(template, taskID string) (string, error)
	CheckBatch(specs []lpmos.Spec) ([]lpmos.Spec, error)
	CreateBatch(ctx context.Context, specs []lpmos.Spec, by, idempotencyKey string) (lpmos.Batch, error)
	Batch(ctx context.Context, id string) (lpmos.Batch, error)
	// Stop holds every permit in every region from its own revision on.
	Stop(ctx context.Context, reason, by string) (lpmos.Stop, error)
	Resume(ctx context.Context, by string) error
	Lock(ctx context.Context, mac lpmos.MAC, reason, by string) (lpmos.Lock, error)
	Unlock(ctx context.Context, mac lpmos.MAC, by string) error
	ForgetTPM(ctx context.Context, mac lpmos.MAC, by string) error
	SetLimits(ctx context.Context, l lpmos.Limits, based, by string) (lpmos.Limits, error)
	SetApprovalPolicy(ctx context.Context, p lpmos.ApprovalPolicy, based, by string) (lpmos.ApprovalPolicy, error)
}

// Store is what goes to the store without a decision.
type Store interface {
	Events(ctx context.Context, id string) ([]lpmos.Event, error)
	Healthy(ctx context.Context) error
	// PutImageIf changes an entry of the catalogue only if it is still the one
	// that rev wrote (0: none, -1: whatever is there).
	PutImageIf(ctx context.Context, i lpmos.Image, rev int64) (int64, error)
	Audit(ctx context.Context, q api.AuditQuery) (api.AuditPage, error)
	AuditEntry(ctx context.Context, seq int64) (lpmos.AuditEntry, error)
	ExportAudit(ctx context.Context, yield func(lpmos.AuditRecord) error) error
}

// Blobs are files by content.
type Blobs interface {
	Open(ctx context.Context, digest string) (*os.File, int64, error)
	Put(ctx context.Context, digest string, r io.Reader) (lpmos.Blob, error)
	Has(digest string) bool
}

// API serves /api/v1 and the health pages.
type API struct {
	read  Reader
	act   Actions
	store Store
	blobs Blobs
	boot  func(context.Context, lpmos.BootImage) error
	spec  []byte
	docs  *docs
	log   *slog.Logger
	view  func(auth.Principal) View
	who   People

	enroll  Enroller
	metrics http.Handler
	observe func(method, route string, status int, took time.Duration)
}

// New makes the API. publish registers a boot image; spec is api/openapi.yaml.
func New(read Reader, act Actions, store Store, blobs Blobs, publish func(context.Context, lpmos.BootImage) error, spec []byte, log *slog.Logger) *API {
	return &API{
		read: read, act: act, store: store, blobs: blobs, boot: publish, spec: spec, docs: &docs{}, log: log,
		metrics: http.NotFoundHandler(), observe: func(string, string, int, time.Duration) {},
	}
}

// Measure serves metrics at /metrics and tells observe of every request. It
// must be called before Handler.
func (a *API) Measure(metrics http.Handler, observe func(method, route string, status int, took time.Duration)) {
	a.metrics, a.observe = metrics, observe
}

// Route is one entry of the route table.
type Route struct {
	Method, Path string // Path as Gin spells it
	Need         auth.Permission
	handler      func(*API, *gin.Context)
}

func (a *API) routes() []Route {
	const v1 = "/api/v1"
	return []Route{
		{"GET", "/healthz", auth.Public, (*API).healthz},
		{"GET", "/readyz", auth.Public, (*API).readyz},
		{"GET", "/metrics", auth.Monitor, (*API).serveMetrics},
		{"GET", v1 + "/openapi.yaml", auth.Public, (*API).openapi},
		{"GET", v1 + "/docs", auth.Public, (*API).reference},
		{"GET", v1 + "/docs/style.css", auth.Public, (*API).referenceStyle},
		{"POST", v1 + "/tasks", auth.Operate, (*API).createTask},
		{"GET", v1 + "/tasks", auth.See, (*API).listTasks},
		{"GET", v1 + "/tasks/ids", auth.See, (*API).listTaskIDs},
		{"POST", v1 + "/tasks/batch", auth.Operate, (*API).createBatch},
		{"GET", v1 + "/batches/:id", auth.See, (*API).getBatch},
		{"GET", v1 + "/tasks/:id", auth.See, (*API).getTask},
		{"DELETE", v1 + "/tasks/:id", auth.Operate, (*API).deleteTask},
		{"PUT", v1 + "/tasks/:id/approve", auth.Approve, (*API).approveTask},
		{"POST", v1 + "/tasks/:id/cancel", auth.Operate, (*API).cancelTask},
		{"POST", v1 + "/tasks/:id/retry", auth.Operate, (*API).retryTask},
		{"GET", v1 + "/tasks/:id/events", auth.See, (*API).taskEvents},
		{"GET", v1 + "/tasks/:id/logs", auth.See, (*API).taskLogs},
		{"GET", v1 + "/tasks/:id/plan", auth.See, (*API).taskPlan},
		{"GET", v1 + "/regions", auth.See, (*API).listRegions},
		{"GET", v1 + "/regions/:id", auth.See, (*API).getRegion},
		{"POST", v1 + "/regions/:id/enroll", auth.Administer, (*API).enrollRegion},
		// The token in the body, or the certificate of the connection, is the
		// credential.
		{"POST", v1 + "/regions/:id/certificate", auth.Public, (*API).regionCertificate},
		{"POST", v1 + "/regions/:id/rotate", auth.Administer, (*API).rotateRegion},
		{"POST", v1 + "/regions/:id/revoke", auth.Administer, (*API).revokeRegion},
		{"GET", v1 + "/machines", auth.See, (*API).listMachines},
		{"GET", v1 + "/machines/:mac", auth.See, (*API).getMachine},
		{"PUT", v1 + "/machines/:mac/lock", auth.Operate, (*API).lockMachine},
		{"DELETE", v1 + "/machines/:mac/lock", auth.Approve, (*API).unlockMachine},
		{"DELETE", v1 + "/machines/:mac/tpm", auth.Approve, (*API).forgetTPM},
		{"GET", v1 + "/stop", auth.See, (*API).getStop},
		{"PUT", v1 + "/stop", auth.Operate, (*API).putStop},
		{"DELETE", v1 + "/stop", auth.Approve, (*API).deleteStop},
		{"GET", v1 + "/limits", auth.See, (*API).getLimits},
		{"PUT", v1 + "/limits", auth.Administer, (*API).putLimits},
		{"GET", v1 + "/approval-policy", auth.See, (*API).getApprovalPolicy},
		{"PUT", v1 + "/approval-policy", auth.Administer, (*API).putApprovalPolicy},
		{"GET", v1 + "/profiles", auth.See, (*API).listProfiles},
		{"GET", v1 + "/profiles/:name", auth.See, (*API).getProfile},
		{"PUT", v1 + "/profiles/:name", auth.Configure, (*API).putProfile},
		{"DELETE", v1 + "/profiles/:name", auth.Configure, (*API).deleteProfile},
		{"GET", v1 + "/templates", auth.See, (*API).listTemplates},
		{"GET", v1 + "/templates/:name", auth.See, (*API).getTemplate},
		{"PUT", v1 + "/templates/:name", auth.Configure, (*API).putTemplate},
		{"DELETE", v1 + "/templates/:name", auth.Configure, (*API).deleteTemplate},
		{"POST", v1 + "/templates/:name/preview", auth.See, (*API).previewTemplate},
		{"GET", v1 + "/images", auth.See, (*API).listImages},
		{"GET", v1 + "/images/:os/:version/:arch", auth.See, (*API).getImage},
		{"PUT", v1 + "/images/:os/:version/:arch", auth.Administer, (*API).putImage},
		{"DELETE", v1 + "/images/:os/:version/:arch", auth.Administer, (*API).deleteImage},
		{"PUT", v1 + "/bootimage", auth.Administer, (*API).putBootImage},
		{"GET", v1 + "/blobs/:sha256", auth.Fetch, (*API).getBlob},
		{"HEAD", v1 + "/blobs/:sha256", auth.Fetch, (*API).getBlob},
		{"PUT", v1 + "/blobs/:sha256", auth.Administer, (*API).putBlob},
		{"POST", v1 + "/login", auth.Public, (*API).login},
		{"POST", v1 + "/logout", auth.Self, (*API).logout},
		{"GET", v1 + "/me", auth.Self, (*API).me},
		{"PUT", v1 + "/me/password", auth.Self, (*API).changePassword},
		{"DELETE", v1 + "/me/sessions/:id", auth.Self, (*API).endSession},
		{"GET", v1 + "/users", auth.Administer, (*API).listUsers},
		{"POST", v1 + "/users", auth.Administer, (*API).createUser},
		{"GET", v1 + "/users/:name", auth.Administer, (*API).getUser},
		{"PUT", v1 + "/users/:name", auth.Administer, (*API).putUser},
		{"DELETE", v1 + "/users/:name", auth.Administer, (*API).deleteUser},
		{"POST", v1 + "/users/:name/reset-password", auth.Administer, (*API).resetPassword},
		{"GET", v1 + "/tokens", auth.See, (*API).listTokens},
		{"POST", v1 + "/tokens", auth.See, (*API).createToken},
		{"DELETE", v1 + "/tokens/:id", auth.See, (*API).deleteToken},
		{"GET", v1 + "/audit", auth.Review, (*API).listAudit},
		{"GET", v1 + "/audit/export", auth.Review, (*API).exportAudit},
		{"GET", v1 + "/audit/:seq", auth.Review, (*API).getAudit},
	}
}

// Routes is the route table, for the test that compares it with the contract.
func (a *API) Routes() []Route { return a.routes() }

// Handler serves the API; everything that is not its goes to other.
func (a *API) Handler(other http.Handler) http.Handler {
	gin.SetMode(gin.ReleaseMode)
	e := gin.New()
	e.RedirectTrailingSlash, e.HandleMethodNotAllowed, e.UseRawPath = false, true, true
	if err := e.SetTrustedProxies(nil); err != nil {
		panic("rest: trust no proxy: " + err.Error())
	}
	e.Use(a.measure, a.recover)
	for _, r := range a.routes() {
		e.Handle(r.Method, r.Path, func(c *gin.Context) {
			p := auth.Of(c.Request.Context())
			if err := p.May(r.Need); err != nil {
				a.fail(c, err)
				return
			}
			r.handler(a.of(p), c)
		})
	}
	e.NoMethod(func(c *gin.Context) {
		if strings.HasPrefix(c.Request.URL.Path, "/api/") {
			a.problem(c, http.StatusMethodNotAllowed, "Method not allowed", c.Request.Method+" is not a method of this resource; see /api/v1/docs for those it has")
			return
		}
		other.ServeHTTP(c.Writer, c.Request)
	})
	e.NoRoute(func(c *gin.Context) {
		if strings.HasPrefix(c.Request.URL.Path, "/api/") {
			a.problem(c, http.StatusNotFound, "Not found", "there is no "+lpmos.Shorten(c.Request.URL.Path, 200)+"; see /api/v1/docs")
			return
		}
		c.Status(http.StatusOK) // NoRoute begins with 404
		other.ServeHTTP(c.Writer, c.Request)
	})
	return e
}

// View is what one principal sees and may do.
type View struct {
	Reader
	Actions
	Store
}

// Narrow makes every request see no more than view gives its principal. It must
// be called before Handler.
func (a *API) Narrow(view func(auth.Principal) View) { a.view = view }

// of is the API as p may use it.
func (a *API) of(p auth.Principal) *API {
	if a.view == nil {
		return a
	}
	v, b := a.view(p), *a
	b.read, b.act, b.store = v.Reader, v.Actions, v.Store
	return &b
}

func (a *API) serveMetrics(c *gin.Context) { a.metrics.ServeHTTP(c.Writer, c.Request) }

// measure tells how long each route took. Pages are one route here: they count
// themselves if they like.
func (a *API) measure(c *gin.Context) {
	start := time.Now()
	c.Next()
	route := c.FullPath()
	if route == "" {
		route = "other"
	}
	a.observe(c.Request.Method, route, c.Writer.Status(), time.Since(start))
}

func (a *API) recover(c *gin.Context) {
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			a.log.Error("handler panicked", "path", c.Request.URL.Path, "err", p)
			a.problem(c, http.StatusInternalServerError, "Internal error", internal)
		}
	}()
	c.Next()
}

// Problem is an RFC 9457 body.
type Problem struct {
	Type       string       `json:"type"`
	Title      string       `json:"title"`
	Status     int          `json:"status"`
	Detail     string       `json:"detail,omitempty"`
	Field      string       `json:"field,omitempty"`       // of the request, that cannot be accepted
	TaskStatus lpmos.Status `json:"task_status,omitempty"` // that was in the way
	PlanDigest string       `json:"plan_digest,omitempty"` // of the plan as it is now
	Plan       *lpmos.Plan  `json:"plan,omitempty"`
	// Lines are all lines of a batch that cannot be accepted.
	Lines []lpmos.BatchLine `json:"lines,omitempty"`
	// NeedRole is the role that may do what was refused, TriesLeft how many more
	// passwords will be looked at.
	NeedRole  lpmos.Role `json:"need_role,omitempty"`
	TriesLeft *int       `json:"tries_left,omitempty"`
	// Reauth says that the same request with the person's password may be
	// accepted.
	Reauth bool `json:"reauth,omitempty"`
}

func (a *API) problem(c *gin.Context, status int, title, detail string) {
	a.send(c, Problem{Type: "about:blank", Title: title, Status: status, Detail: detail})
}

func (a *API) send(c *gin.Context, p Problem) {
	c.Header("Content-Type", "application/problem+json")
	c.AbortWithStatusJSON(p.Status, p)
}

// internal is all that is said of a fault; the rest is in the log.
const internal = "the control plane could not do this; its log says why"

// stale is how the orchestrator says that the plan is another one now.
type stale interface {
	error
	CurrentPlan() lpmos.Plan
}

// fail is the one place where errors become answers.
func (a *API) fail(c *gin.Context, err error) {
	p := Problem{Type: "about:blank", Detail: err.Error()}
	var invalid *lpmos.InvalidError
	var conflict *lpmos.ConflictError
	var old stale
	var batch *lpmos.BatchError
	var denied *auth.DeniedError
	var throttled *auth.ThrottledError
	var reauth *api.ReauthError
	var barred *api.BarError
	switch {
	case errors.As(err, &batch):
		p.Title, p.Status, p.Lines = "Lines cannot be accepted", http.StatusBadRequest, batch.Lines
	case errors.Is(err, lpmos.ErrChanged):
		p.Title, p.Status = "Changed meanwhile", http.StatusPreconditionFailed
	case errors.As(err, &old):
		plan := old.CurrentPlan()
		p.Title, p.Status, p.Plan, p.PlanDigest = "The plan is not the one that was approved", http.StatusConflict, &plan, plan.Digest
	case errors.As(err, &invalid):
		p.Title, p.Status, p.Field = "Invalid request", http.StatusBadRequest, invalid.Field
	case errors.Is(err, lpmos.ErrTooLarge):
		p.Title, p.Status = "Request too large", http.StatusRequestEntityTooLarge
	case errors.As(err, &conflict):
		p.Title, p.Status, p.TaskStatus = "Conflict", http.StatusConflict, conflict.Status
	case errors.Is(err, lpmos.ErrConflict):
		p.Title, p.Status = "Conflict", http.StatusConflict
	case errors.Is(err, api.ErrGone):
		p.Title, p.Status = "Gone", http.StatusGone
	case errors.Is(err, lpmos.ErrNotFound):
		p.Title, p.Status = "Not found", http.StatusNotFound
	case errors.Is(err, lpmos.ErrSignedOut):
		c.Header("WWW-Authenticate", `Bearer realm="lpmos"`)
		p.Title, p.Status = "Not signed in", http.StatusUnauthorized
		if wrong, ok := errors.AsType[*auth.WrongError](err); ok {
			p.TriesLeft = &wrong.Left
		}
	case errors.As(err, &reauth):
		p.Title, p.Status, p.Reauth = "Confirm who you are", http.StatusForbidden, true
	case errors.As(err, &barred):
		p.Title, p.Status = "Somebody else has to approve", http.StatusForbidden
		if barred.Bar == lpmos.BarGiven {
			p.Title, p.Status, p.TaskStatus = "Approved already", http.StatusConflict, lpmos.AwaitingApproval
		}
	case errors.As(err, &denied):
		p.Title, p.Status, p.NeedRole = "Not allowed", http.StatusForbidden, denied.Need
	case errors.Is(err, lpmos.ErrForbidden):
		p.Title, p.Status = "Not allowed", http.StatusForbidden
	case errors.As(err, &throttled):
		c.Header("Retry-After", auth.RetryAfter(throttled.Wait))
		p.Title, p.Status = "Too many wrong passwords", http.StatusTooManyRequests
	case errors.Is(err, lpmos.ErrUnavailable):
		c.Header("Retry-After", "2")
		p.Title, p.Status = "Unavailable", http.StatusServiceUnavailable
	default:
		a.log.Error("request", "path", c.Request.URL.Path, "err", err)
		p.Title, p.Status, p.Detail = "Internal error", http.StatusInternalServerError, internal
	}
	a.send(c, p)
}

func (a *API) decode(c *gin.Context, v any) bool { return a.decodeUpTo(c, maxBody, v) }

func (a *API) decodeUpTo(c *gin.Context, limit int64, v any) bool {
	if c.Request.ContentLength > limit {
		a.fail(c, fmt.Errorf("%w: more than %s", lpmos.ErrTooLarge, lpmos.FormatBytes(limit)))
		return false
	}
	if ct := c.ContentType(); ct != "application/json" {
		a.problem(c, http.StatusUnsupportedMediaType, "Unsupported media type", "send the body as JSON, with Content-Type: application/json")
		return false
	}
	if err := lpmos.DecodeJSON(c.Request.Body, limit, v); err != nil {
		a.fail(c, err)
		return false
	}
	return true
}

// who is the person behind a request.
func who(c *gin.Context) string { return auth.Of(c.Request.Context()).Name }

func (a *API) healthz(c *gin.Context) { c.String(http.StatusOK, "ok\n") }

func (a *API) readyz(c *gin.Context) {
	ctx, cancel := context.WithTimeout(c.Request.Context(), 2*time.Second)
	defer cancel()
	if !a.read.Ready() {
		a.problem(c, http.StatusServiceUnavailable, "Not ready", "the tasks are not in memory yet; ask again in a second")
		return
	}
	if err := a.store.Healthy(ctx); err != nil {
		a.fail(c, err)
		return
	}
	c.String(http.StatusOK, "ready\n")
}

func (a *API) openapi(c *gin.Context) { c.Data(http.StatusOK, "application/yaml", a.spec) }

func intQuery(c *gin.Context, name string, least, most int) (int, error) {
	v := c.Query(name)
	if v == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < least || n > most {
		return 0, &lpmos.InvalidError{Field: name, Problem: fmt.Sprintf("is not a number from %d to %d", least, most), Value: v}
	}
	return n, nil
}

// list makes JSON say [] where there is nothing.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
