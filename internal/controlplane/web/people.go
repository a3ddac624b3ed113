package web

import (
	"context"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
)

// People is who may sign in, and how.
type People interface {
	Login(ctx context.Context, name, password, from, agent string) (secret string, p auth.Principal, err error)
	Redeem(ctx context.Context, code, from, agent string) (secret string, p auth.Principal, err error)
	Logout(ctx context.Context, p auth.Principal) error
	Reauthenticate(ctx context.Context, p auth.Principal, password string) (auth.Principal, error)
	SetCookie(w http.ResponseWriter, r *http.Request, secret string)
	Origin(r *http.Request) string
	SignInExternal(ctx context.Context, id auth.Identity, from, agent string) (secret string, p auth.Principal, err error)
	SetAttempt(w http.ResponseWriter, r *http.Request, value string, life time.Duration)
	Attempt(r *http.Request) string
	Sessions(user, current string) []auth.SignedIn
	EndSession(ctx context.Context, user, publicID string) error
	ChangePassword(ctx context.Context, p auth.Principal, current, password, agent string) (secret string, now auth.Principal, err error)
	Users() []lpmos.User
	User(name string) (lpmos.User, bool)
	CreateUser(ctx context.Context, name string, role lpmos.Role, regions []string) (u lpmos.User, password string, err error)
	SetAccess(ctx context.Context, name string, to auth.Access, based string) (lpmos.User, error)
	ResetPassword(ctx context.Context, name string) (password string, err error)
	DeleteUser(ctx context.Context, name string) error
	Tokens(user string) []auth.TokenInfo
	CreateToken(ctx context.Context, p auth.Principal, n auth.NewToken) (secret string, t auth.TokenInfo, err error)
	DeleteToken(ctx context.Context, p auth.Principal, publicID string) error
}

// no says why who asks may not do what needs a permission; "" if they may.
func (w *Web) no(need auth.Permission) string {
	err := w.me.May(need)
	if err == nil {
		return ""
	}
	return w.refusal(err)
}

// refusal is why something was refused, in this language.
func (w *Web) refusal(err error) string {
	denied, ok := errors.AsType[*auth.DeniedError](err)
	bar, barred := errors.AsType[*api.BarError](err)
	switch {
	case barred:
		return w.barWord(bar.Bar, bar.Given)
	case !ok && errors.Is(err, lpmos.ErrForbidden):
		return w.Said(sentence(err.Error()))
	case !ok:
		return w.T("Nobody is signed in.")
	case w.me.MustChange:
		return w.T("Choose a password of your own first.")
	case denied.Need == "":
		return w.Said(sentence(denied.Text))
	case w.me.Role.Includes(denied.Need):
		return w.T("This changes all regions, and you are limited to %s.", strings.Join(w.me.Regions, ", "))
	}
	return w.T("This needs the role %s; you are %s.", w.accessWord(denied.Need), w.accessWord(w.me.Role))
}

func (s *tongue) accessWord(r lpmos.Role) string {
	switch r {
	case lpmos.Viewer:
		return s.T("viewer")
	case lpmos.Operator:
		return s.T("operator")
	case lpmos.Approver:
		return s.T("approver")
	case lpmos.Admin:
		return s.T("admin")
	}
	return string(r)
}

// allowed marks what who asks may not do with a task: it stays visible and says
// why.
func (w *Web) allowed(all []action, ask policyAsk) []action {
	for i := range all {
		if all[i].ID == "approve" {
			if ask.Bar != "" && !all[i].Off {
				all[i].Note = ask.Bar
			}
			continue // the page may be looked at; its button says the rest
		}
		if why := w.no(auth.Operate); why != "" {
			all[i].Off, all[i].Note = true, why
		}
	}
	return all
}

// asksAsPage reports whether a person's browser wants a page, rather than a
// script of one that is open, or a program.
func asksAsPage(r *http.Request) bool {
	mode := r.Header.Get("Sec-Fetch-Mode")
	return mode == "navigate" || mode == "" && r.Header.Get("X-Requested-With") == ""
}

// refuse answers whoever may not have a page.
func (w *Web) refuse(rw http.ResponseWriter, r *http.Request, err error) {
	asPage := asksAsPage(r)
	get := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case !asPage:
		auth.Problem(rw, auth.StatusOf(err), w.T("This is not yours to do"), w.refusal(err), 0)
	case errors.Is(err, lpmos.ErrSignedOut) && get && r.Header.Get("Sec-Fetch-Site") == "cross-site" && !w.me.Bad:
		// A link on another site: browsers withhold the cookie from what such a
		// page starts (SameSite=Strict). This page's own step has it.
		w.show(rw, r, http.StatusOK, "login", page{Title: w.T("Sign in"), Body: loginView{Again: r.URL.RequestURI()}})
	case errors.Is(err, lpmos.ErrSignedOut) && get:
		q := url.Values{}
		if at := r.URL.RequestURI(); at != "/" {
			q.Set("return", at)
		}
		if w.me.Bad {
			q.Set("why", "ended")
		}
		to := "/login"
		if len(q) > 0 {
			to += "?" + q.Encode()
		}
		rw.Header().Set("Cache-Control", "no-store")
		http.Redirect(rw, r, to, http.StatusSeeOther)
	case errors.Is(err, lpmos.ErrSignedOut):
		// What was sent is not done by signing in: it has to be looked at again.
		w.showLogin(rw, r, http.StatusUnauthorized, loginView{Return: refererPath(r), Why: w.T("You were signed out. Nothing was changed: sign in and do it again.")})
	case w.me.MustChange && get:
		http.Redirect(rw, r, "/account", http.StatusSeeOther)
	default:
		w.fail(rw, r, err)
	}
}

// refererPath is the page that a form was on.
func refererPath(r *http.Request) string {
	u, err := url.Parse(r.Referer())
	if err != nil || u.Host != r.Host {
		return "/dashboard"
	}
	return localPath(u.RequestURI())
}

type loginView struct {
	Name     string
	Return   string
	Why      string // what happened before
	Problem  string
	Left     string // how many more tries
	Again    string // the page to ask for once more, from here
	Provider string // identity provider to sign in with, "" for none
	With     string // where that begins
	Idle     string
	Absolute string
}

func (w *Web) loginForm(rw http.ResponseWriter, r *http.Request) {
	if w.cfg.People == nil {
		w.showProblem(rw, r, w.notFoundPage(r.URL.Path))
		return
	}
	q := r.URL.Query()
	if code := q.Get("code"); code != "" && r.Method == http.MethodGet {
		w.redeem(rw, r, code)
		return
	}
	if w.me.SignedIn() {
		http.Redirect(rw, r, localPath(q.Get("return")), http.StatusSeeOther)
		return
	}
	v := loginView{Return: localPath(q.Get("return"))}
	switch q.Get("why") {
	case "ended":
		v.Why = w.T("Your session has ended. Sign in again.")
	case "out":
		v.Why = w.T("You are signed out.")
	}
	w.showLogin(rw, r, http.StatusOK, v)
}

func (w *Web) showLogin(rw http.ResponseWriter, r *http.Request, status int, v loginView) {
	if p := w.cfg.Provider; p != nil {
		v.Provider, v.With = p.Name(), "/login/oidc"
		if v.Return != "" {
			v.With += "?" + url.Values{"return": {v.Return}}.Encode()
		}
	}
	v.Idle, v.Absolute = strconv.Itoa(int(auth.IdleLimit/time.Minute)), strconv.Itoa(int(auth.AbsoluteLimit/time.Hour))
	w.show(rw, r, status, "login", page{Title: w.T("Sign in"), Body: v})
}

// redeem is the one GET that changes something: the link in the terminal that
// started this, which works once.
func (w *Web) redeem(rw http.ResponseWriter, r *http.Request, code string) {
	back := localPath(r.URL.Query().Get("return"))
	secret, _, err := w.cfg.People.Redeem(r.Context(), code, w.me.From, r.UserAgent())
	switch {
	case err == nil:
		w.cfg.People.SetCookie(rw, r, secret)
		rw.Header().Set("Cache-Control", "no-store")
		http.Redirect(rw, r, back, http.StatusSeeOther)
	case w.me.SignedIn(): // the link was opened before, in this browser
		http.Redirect(rw, r, back, http.StatusSeeOther)
	case errors.Is(err, lpmos.ErrSignedOut):
		w.showLogin(rw, r, http.StatusUnauthorized, loginView{Return: back, Why: w.T("This link was used already, or is too old. Sign in with a password.")})
	default:
		w.fail(rw, r, err)
	}
}

func (w *Web) login(rw http.ResponseWriter, r *http.Request) {
	if w.cfg.People == nil || !readForm(rw, r) {
		return
	}
	f := r.PostForm
	v := loginView{Name: strings.TrimSpace(f.Get("username")), Return: localPath(f.Get("return"))}
	secret, p, err := w.cfg.People.Login(r.Context(), v.Name, f.Get("password"), w.me.From, r.UserAgent())
	var wrong *auth.WrongError
	var throttled *auth.ThrottledError
	switch {
	case err == nil:
		if w.me.Kind == auth.Session {
			if err := w.cfg.People.Logout(r.Context(), w.me); err != nil {
				w.log.Warn("end the session before", "err", err)
			}
		}
		w.cfg.People.SetCookie(rw, r, secret)
		if p.MustChange {
			v.Return = "/account"
		}
		http.Redirect(rw, r, v.Return, http.StatusSeeOther)
	case errors.As(err, &wrong):
		v.Problem = w.T("User name or password is wrong.")
		v.Left = w.N(wrong.Left, "1 more try, then this account waits 15 min.", "%s more tries, then this account waits 15 min.")
		w.showLogin(rw, r, http.StatusUnauthorized, v)
	case errors.As(err, &throttled):
		rw.Header().Set("Retry-After", auth.RetryAfter(throttled.Wait))
		v.Problem = w.T("Too many wrong passwords.")
		v.Left = w.N(int((throttled.Wait+time.Minute-1)/time.Minute), "Try again in 1 min.", "Try again in %s min.")
		w.showLogin(rw, r, http.StatusTooManyRequests, v)
	default:
		w.fail(rw, r, err)
	}
}

func (w *Web) logout(rw http.ResponseWriter, r *http.Request) {
	if w.cfg.People == nil {
		return
	}
	if w.me.Kind == auth.Session {
		if err := w.cfg.People.Logout(r.Context(), w.me); err != nil {
			w.fail(rw, r, err)
			return
		}
	}
	w.cfg.People.SetCookie(rw, r, "")
	// What this browser kept of the pages is nobody's any more.
	rw.Header().Set("Clear-Site-Data", `"cache"`)
	http.Redirect(rw, r, "/login?why=out", http.StatusSeeOther)
}

type accountView struct {
	User     lpmos.User
	Role     string
	Regions  string
	Sessions []auth.SignedIn
	First    bool // a password has to be chosen before anything else
	Current  bool // and the one before is asked for
	Can      bool // there is a user whose password can be changed
	Problems []fieldProblem
	Done     string
	Least    string
}

func (v accountView) Problem(field string) string { return problemsOf(v.Problems).Of(field) }

// browserWord is what a browser calls itself, as people call it: "Firefox 144,
// Windows". What is not known stays as it is.
func (s *tongue) browserWord(agent string) string {
	// The order matters: Edge says that it is Chrome, which says that it is Safari.
	for _, b := range []struct{ mark, name string }{{"Edg/", "Edge"}, {"OPR/", "Opera"}, {"Firefox/", "Firefox"}, {"HeadlessChrome/", "Chrome"}, {"Chrome/", "Chrome"}, {"Version/", "Safari"}} {
		_, rest, ok := strings.Cut(agent, b.mark)
		if !ok || !strings.HasPrefix(agent, "Mozilla/") {
			continue
		}
		version, _, _ := strings.Cut(rest, ".")
		out := b.name + " " + lpmos.Shorten(version, 8)
		for _, os := range []struct{ mark, name string }{{"Windows", "Windows"}, {"Android", "Android"}, {"iPhone", "iOS"}, {"iPad", "iOS"}, {"Mac OS X", "macOS"}, {"CrOS", "ChromeOS"}, {"Linux", "Linux"}} {
			if strings.Contains(agent, os.mark) {
				return s.list([]string{out, os.name})
			}
		}
		return out
	}
	return agent
}

func (w *Web) regionsWord(regions []string) string {
	if regions == nil {
		return w.T("all regions")
	}
	return strings.Join(regions, ", ")
}

func (w *Web) account(rw http.ResponseWriter, r *http.Request) {
	done := ""
	if r.URL.Query().Get("done") == "password" {
		done = w.T("The password is changed, and all other sessions have ended.")
	}
	w.showAccount(rw, r, http.StatusOK, nil, done)
}

func (w *Web) showAccount(rw http.ResponseWriter, r *http.Request, status int, problems []fieldProblem, done string) {
	v := accountView{Role: w.accessWord(w.me.Role), Regions: w.regionsWord(w.me.Regions), First: w.me.MustChange, Current: true, Problems: problems, Done: done,
		Least: strconv.Itoa(lpmos.MinPassword)}
	if w.cfg.People != nil {
		v.User, v.Can = w.cfg.People.User(w.me.Name)
		v.Can = v.Can && v.User.External == nil
		v.Sessions = w.cfg.People.Sessions(w.me.Name, w.me.ID)
		for _, s := range v.Sessions {
			if s.Current && s.ByLink && v.User.MustChange {
				v.Current = false
			}
		}
	}
	w.show(rw, r, status, "account", page{Title: w.T("Account"), Nav: "account", Body: v})
}

func (w *Web) changePassword(rw http.ResponseWriter, r *http.Request) {
	if w.cfg.People == nil || !readForm(rw, r) {
		return
	}
	f := r.PostForm
	if f.Get("password") != f.Get("again") {
		w.showAccount(rw, r, http.StatusBadRequest, []fieldProblem{{"again", w.T("The two are not the same.")}}, "")
		return
	}
	ctx, cancel := actionContext(r)
	defer cancel()
	secret, _, err := w.cfg.People.ChangePassword(ctx, w.me, f.Get("current"), f.Get("password"), r.UserAgent())
	if err == nil {
		w.cfg.People.SetCookie(rw, r, secret)
		to := "/account?done=password"
		if w.me.MustChange {
			to = "/dashboard"
		}
		http.Redirect(rw, r, to, http.StatusSeeOther)
		return
	}
	var throttled *auth.ThrottledError
	if errors.As(err, &throttled) {
		rw.Header().Set("Retry-After", auth.RetryAfter(throttled.Wait))
		w.showAccount(rw, r, http.StatusTooManyRequests, []fieldProblem{{"current_password", w.T("Too many wrong passwords.")}}, "")
		return
	}
	status, problems := w.formProblems(err)
	if problems == nil {
		w.fail(rw, r, err)
		return
	}
	w.showAccount(rw, r, status, problems, "")
}

func (w *Web) endSession(rw http.ResponseWriter, r *http.Request) {
	if w.cfg.People == nil {
		return
	}
	ctx, cancel := actionContext(r)
	defer cancel()
	if err := w.cfg.People.EndSession(ctx, w.me.Name, r.PathValue("id")); err != nil && !errors.Is(err, lpmos.ErrNotFound) {
		w.fail(rw, r, err)
		return
	}
	http.Redirect(rw, r, "/account", http.StatusSeeOther)
}

type userRow struct {
	lpmos.User
	Role     string
	Regions  string
	Sessions int
	Me       bool
}

// userForm is what was typed.
type userForm struct {
	Name     string
	Role     lpmos.Role
	Limited  bool
	Regions  string // separated by spaces or commas
	Disabled bool
	Based    string // tag of what the form showed first
}

func readUser(r *http.Request) userForm {
	f := r.PostForm
	return userForm{Name: strings.TrimSpace(f.Get("name")), Role: lpmos.Role(f.Get("role")), Limited: f.Get("where") == "some", Regions: strings.TrimSpace(f.Get("regions")), Disabled: f.Get("disabled") == "yes", Based: f.Get("based")}
}

// in is what a form says of regions: nil for all.
func (f userForm) in() []string {
	if !f.Limited {
		return nil
	}
	out := strings.FieldsFunc(f.Regions, func(c rune) bool { return c == ',' || c == ' ' || c == '\n' || c == '\r' || c == '\t' })
	slices.Sort(out)
	return append([]string{}, slices.Compact(out)...)
}

type usersView struct {
	Rows     []userRow
	Form     userForm
	Roles    []roleChoice
	Regions  []lpmos.Region // for a list to choose from
	Problems []fieldProblem
	New      bool
	Row      *userRow
	Told     *toldOnce
	Command  string
}

// toldOnce is a secret that was just made.
type toldOnce struct {
	Title  string
	Text   template.HTML
	Secret string
}

type roleChoice struct {
	Role      lpmos.Role
	Name, Can string
	Chosen    bool
}

func (v usersView) Problem(field string) string { return problemsOf(v.Problems).Of(field) }

func (w *Web) roleChoices(now lpmos.Role) []roleChoice {
	can := map[lpmos.Role]string{
		lpmos.Viewer: w.T("looks at everything"), lpmos.Operator: w.T("also creates, cancels and retries tasks"),
		lpmos.Approver: w.T("also approves, which erases disks"), lpmos.Admin: w.T("also images, users and tokens"),
	}
	var out []roleChoice
	for _, r := range lpmos.Roles {
		out = append(out, roleChoice{r, w.accessWord(r), can[r], r == now})
	}
	return out
}

func (w *Web) userRow(u lpmos.User) userRow {
	return userRow{User: u, Role: w.accessWord(u.Role), Regions: w.regionsWord(u.Regions), Sessions: len(w.cfg.People.Sessions(u.Name, "")), Me: u.Name == w.me.Name}
}

func (w *Web) userList(rw http.ResponseWriter, r *http.Request) {
	w.showUsers(rw, r, http.StatusOK, userForm{Role: lpmos.Viewer}, nil, nil)
}

func (w *Web) showUsers(rw http.ResponseWriter, r *http.Request, status int, f userForm, problems []fieldProblem, told *toldOnce) {
	v := usersView{Form: f, Roles: w.roleChoices(f.Role), Regions: w.reader.Regions(), Problems: problems, New: true, Told: told, Command: "lpmos user list"}
	if w.cfg.People != nil {
		for _, u := range w.cfg.People.Users() {
			v.Rows = append(v.Rows, w.userRow(u))
		}
	}
	w.show(rw, r, status, "users", page{Title: w.T("Users"), Nav: "users", Body: v})
}

func (w *Web) createUser(rw http.ResponseWriter, r *http.Request) {
	if w.cfg.People == nil || !readForm(rw, r) {
		return
	}
	f := readUser(r)
	ctx, cancel := actionContext(r)
	defer cancel()
	u, password, err := w.cfg.People.CreateUser(ctx, f.Name, f.Role, f.in())
	if err != nil {
		status, problems := w.formProblems(err)
		if problems == nil {
			w.fail(rw, r, err)
			return
		}
		w.showUsers(rw, r, status, f, problems, nil)
		return
	}
	w.showUsers(rw, r, http.StatusCreated, userForm{Role: lpmos.Viewer}, nil, w.oneTime(u.Name, password))
}

func (w *Web) oneTime(name, password string) *toldOnce {
	return &toldOnce{w.T("One-time password of %s", name), w.rich("It is shown only now. %s signs in with it and then chooses another.", strong(name)), password}
}

func (w *Web) user(rw http.ResponseWriter, r *http.Request) {
	w.showUser(rw, r, http.StatusOK, r.PathValue("name"), nil, nil, nil)
}

func (w *Web) showUser(rw http.ResponseWriter, r *http.Request, status int, name string, f *userForm, problems []fieldProblem, told *toldOnce) {
	var u lpmos.User
	ok := false
	if w.cfg.People != nil {
		u, ok = w.cfg.People.User(name)
	}
	if !ok {
		w.missing(rw, r, w.T("There is no such user"), "/users", w.T("All users"))
		return
	}
	if f == nil {
		f = &userForm{Name: u.Name, Role: u.Role, Limited: u.Regions != nil, Regions: strings.Join(u.Regions, ", "), Disabled: u.Disabled, Based: auth.AccessOf(u).Tag()}
	}
	row := w.userRow(u)
	v := usersView{Form: *f, Roles: w.roleChoices(f.Role), Regions: w.reader.Regions(), Problems: problems, Row: &row, Told: told, Command: "lpmos user show " + u.Name}
	w.show(rw, r, status, "user", page{Title: u.Name, Nav: "users", Body: v})
}

func (w *Web) setAccess(rw http.ResponseWriter, r *http.Request) {
	if w.cfg.People == nil || !readForm(rw, r) {
		return
	}
	f, name := readUser(r), r.PathValue("name")
	ctx, cancel := actionContext(r)
	defer cancel()
	_, err := w.cfg.People.SetAccess(ctx, name, auth.Access{Role: f.Role, Regions: f.in(), Disabled: f.Disabled}, f.Based)
	if errors.Is(err, lpmos.ErrChanged) {
		w.userDone(rw, r, name, nil, err) // with what it is now
		return
	}
	w.userDone(rw, r, name, &f, err)
}

func (w *Web) userDone(rw http.ResponseWriter, r *http.Request, name string, f *userForm, err error) {
	status, problems := w.formProblems(err)
	switch {
	case err == nil:
		http.Redirect(rw, r, "/users", http.StatusSeeOther)
	case errors.Is(err, lpmos.ErrNotFound):
		w.missing(rw, r, w.T("There is no such user"), "/users", w.T("All users"))
	case problems != nil:
		w.showUser(rw, r, status, name, f, problems, nil)
	default:
		w.fail(rw, r, err)
	}
}

func (w *Web) resetPassword(rw http.ResponseWriter, r *http.Request) {
	if w.cfg.People == nil || !readForm(rw, r) {
		return
	}
	name := r.PathValue("name")
	ctx, cancel := actionContext(r)
	defer cancel()
	password, err := w.cfg.People.ResetPassword(ctx, name)
	if err != nil {
		w.userDone(rw, r, name, nil, err)
		return
	}
	w.showUser(rw, r, http.StatusOK, name, nil, nil, w.oneTime(name, password))
}

func (w *Web) deleteUser(rw http.ResponseWriter, r *http.Request) {
	if w.cfg.People == nil || !readForm(rw, r) {
		return
	}
	ctx, cancel := actionContext(r)
	defer cancel()
	w.userDone(rw, r, r.PathValue("name"), nil, w.cfg.People.DeleteUser(ctx, r.PathValue("name")))
}

type tokenRow struct {
	auth.TokenInfo
	Role    string
	Regions string
	Expired bool
	Me      bool
}

type tokensView struct {
	Rows     []tokenRow
	All      bool // of all users
	Name     string
	Days     string
	Roles    []roleChoice
	Problems []fieldProblem
	Told     *toldOnce
	Command  string
	Off      string // why none can be made
}

func (v tokensView) Problem(field string) string { return problemsOf(v.Problems).Of(field) }

func (w *Web) tokenList(rw http.ResponseWriter, r *http.Request) {
	w.showTokens(rw, r, http.StatusOK, tokensView{Days: "90"}, lpmos.Viewer)
}

func (w *Web) showTokens(rw http.ResponseWriter, r *http.Request, status int, v tokensView, role lpmos.Role) {
	v.Command, v.All = "lpmos token list", w.me.May(auth.Administer) == nil
	for _, c := range w.roleChoices(role) {
		if w.me.Role.Includes(c.Role) {
			v.Roles = append(v.Roles, c)
		}
	}
	if w.cfg.People != nil {
		of := w.me.Name
		if v.All {
			of = ""
		}
		for _, t := range w.cfg.People.Tokens(of) {
			v.Rows = append(v.Rows, tokenRow{t, w.accessWord(t.Role), w.regionsWord(t.Regions), !w.cfg.Now().Before(t.ExpiresAt), t.User == w.me.Name})
		}
		if _, ok := w.cfg.People.User(w.me.Name); !ok {
			v.Off = w.T("Only users have tokens.")
		}
	}
	w.show(rw, r, status, "tokens", page{Title: w.T("API tokens"), Nav: "tokens", Body: v})
}

func (w *Web) createToken(rw http.ResponseWriter, r *http.Request) {
	if w.cfg.People == nil || !readForm(rw, r) {
		return
	}
	f := r.PostForm
	v := tokensView{Name: strings.TrimSpace(f.Get("name")), Days: strings.TrimSpace(f.Get("days"))}
	role := lpmos.Role(f.Get("role"))
	days, err := strconv.Atoi(v.Days)
	if err != nil || days < 1 || days > 366 {
		v.Problems = []fieldProblem{{"days", w.T("Give a number of days from 1 to 366.")}}
		w.showTokens(rw, r, http.StatusBadRequest, v, role)
		return
	}
	ctx, cancel := actionContext(r)
	defer cancel()
	secret, t, err := w.cfg.People.CreateToken(ctx, w.me, auth.NewToken{Name: v.Name, Role: role, For: time.Duration(days) * 24 * time.Hour})
	if err != nil {
		status, problems := w.formProblems(err, "expires_in", "days")
		if problems == nil {
			w.fail(rw, r, err)
			return
		}
		v.Problems = problems
		w.showTokens(rw, r, status, v, role)
		return
	}
	w.showTokens(rw, r, http.StatusCreated, tokensView{Days: "90", Told: &toldOnce{w.T("Token %s", t.Name), w.rich("It is shown only now. Programs send it as %s.", code("Authorization: Bearer …")), secret}}, lpmos.Viewer)
}

func (w *Web) deleteToken(rw http.ResponseWriter, r *http.Request) {
	if w.cfg.People == nil || !readForm(rw, r) {
		return
	}
	ctx, cancel := actionContext(r)
	defer cancel()
	if err := w.cfg.People.DeleteToken(ctx, w.me, r.PathValue("id")); err != nil && !errors.Is(err, lpmos.ErrNotFound) {
		w.fail(rw, r, fmt.Errorf("delete token: %w", err))
		return
	}
	http.Redirect(rw, r, "/tokens", http.StatusSeeOther)
}
