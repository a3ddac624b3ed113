package web

import (
	"context"
	"errors"
	"maps"
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

// policyAsk is what the approval policy asks of who looks, about one task.
type policyAsk struct {
	Given string   // how far it is: "1 of 2 approvals: anna"; "" where one is enough
	Asks  []string // all it asks for
	Bar   string   // why who looks may not approve, "" if they may
	// Password says that they have to prove who they are, which is remembered for
	// so many minutes: by their password or, where it is not kept here, at SignIn.
	Password bool
	Minutes  int
	SignIn   string
	Name     string // of who looks, for whatever fills in passwords
}

// ask is what the policy asks of who looks; back is the page to return to from
// an identity provider.
func (w *Web) ask(t lpmos.Task, back string) policyAsk {
	n := t.ApprovalNeeds
	if n == nil {
		return policyAsk{}
	}
	var a policyAsk
	if n.Approvers > 1 {
		a.Given = w.given(*n, t.Standing())
		a.Asks = append(a.Asks, w.T("%s people have to approve", count(n.Approvers)))
	}
	if n.NotCreator {
		a.Asks = append(a.Asks, w.T("%s asked for it and may not approve it", orElse(t.CreatedBy, w.T("unknown"))))
	}
	if n.ReauthMinutes > 0 {
		a.Asks = append(a.Asks, w.T("who approves confirms who they are, at most %s min before", count(n.ReauthMinutes)))
	}
	who := w.me.Approver()
	a.Bar = w.barWord(n.Bar(&t, w.me.Name, who.User), t.Standing())
	// A minute is left for reading.
	if n.ReauthMinutes > 0 && !(who.Token && n.AllowTokens) && w.cfg.Now().Sub(who.ProvedAt) > time.Duration(n.ReauthMinutes-1)*time.Minute {
		a.Password, a.Minutes, a.Name = true, n.ReauthMinutes, w.me.Name
		a.SignIn = w.signInAgain(back)
		if !who.User && a.Bar == "" {
			a.Bar = w.barWord(lpmos.BarNobody, nil)
		}
	}
	return a
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// signInAgain is where somebody without a password here proves who they are, ""
// for all others.
func (w *Web) signInAgain(back string) string {
	if w.cfg.People == nil {
		return ""
	}
	if u, ok := w.cfg.People.User(w.me.Name); !ok || u.External == nil {
		return ""
	}
	return "/login/oidc?" + url.Values{"fresh": {"1"}, "return": {back}}.Encode()
}

func (s *tongue) given(n lpmos.ApprovalNeeds, given []lpmos.Consent) string {
	var names []string
	for _, c := range given {
		names = append(names, lpmos.Shorten(c.By, 80))
	}
	if len(names) == 0 {
		return s.T("0 of %s approvals", count(n.Approvers))
	}
	return s.T("%s of %s approvals: %s", count(len(names)), count(max(n.Approvers, len(names))), s.list(names))
}

func (s *tongue) barWord(bar lpmos.ApprovalBar, given []lpmos.Consent) string {
	switch bar {
	case lpmos.BarCreator:
		return s.T("You asked for this task: somebody else has to approve it.")
	case lpmos.BarGiven:
		return s.T("You approved it already: another approver has to agree.")
	case lpmos.BarNobody:
		return s.T("The policy wants people to approve this: sign in as a user.")
	}
	return ""
}

// confirm proves who asks with the password of a form; nothing is asked of a
// form without one. The copy that is answered acts with the proof.
func (w *Web) confirm(ctx context.Context, password string) (*Web, []fieldProblem) {
	if password == "" || w.cfg.People == nil {
		return w, nil
	}
	p, err := w.cfg.People.Reauthenticate(ctx, w.me, password)
	var throttled *auth.ThrottledError
	switch {
	case errors.As(err, &throttled):
		return w, []fieldProblem{{"password", w.joined(w.T("Too many wrong passwords."), w.N(int((throttled.Wait+time.Minute-1)/time.Minute), "Try again in 1 min.", "Try again in %s min."))}}
	case err != nil:
		if _, invalid := errors.AsType[*lpmos.InvalidError](err); !invalid {
			w.log.Error("password not looked at", "err", err)
			return w, []fieldProblem{{"password", w.T("The password could not be checked. Nothing was changed.")}}
		}
		return w, []fieldProblem{{"password", w.T("The password is wrong.")}}
	}
	one := *w
	one.narrow(p)
	return &one, nil
}

// mustConfirm is the problem of a decision that came without the proof that the
// policy asks for; "" where err is another one.
func (w *Web) mustConfirm(err error) string {
	if _, ok := errors.AsType[*api.ReauthError](err); !ok {
		return ""
	}
	return w.T("Type your password: the policy asks who approves.")
}

// The page of the policy itself.

type policyView struct {
	Rules    []policyRule
	Labels   []policyLabel
	Regions  []lpmos.Region
	Form     policyForm
	Problems []fieldProblem
	Off      string // why who looks may not change it
	Command  string
}

func (v policyView) Problem(field string) string { return problemsOf(v.Problems).Of(field) }

type policyRule struct {
	Number         int
	Concerns, Asks string
	Key            string // digest: what is removed is what was shown
}

type policyLabel struct {
	Name     string
	Machines []string
	Text     string // one a line
}

// policyForm is what was typed.
type policyForm struct {
	Regions, Labels         string
	ErasesData, NotCreator  bool
	AllowTokens             bool
	Approvers, Minutes      string
	Label, Machines, Action string
}

func readPolicy(r *http.Request) policyForm {
	f := r.PostForm
	return policyForm{
		Regions: strings.TrimSpace(f.Get("regions")), Labels: strings.TrimSpace(f.Get("labels")), ErasesData: f.Get("erases_data") == "yes", NotCreator: f.Get("not_creator") == "yes",
		AllowTokens: f.Get("allow_tokens") == "yes", Approvers: strings.TrimSpace(f.Get("approvers")), Minutes: strings.TrimSpace(f.Get("minutes")),
		Label: strings.TrimSpace(f.Get("label")), Machines: f.Get("machines"), Action: f.Get("do"),
	}
}

func (w *Web) policy(rw http.ResponseWriter, r *http.Request) {
	w.showPolicy(rw, r, http.StatusOK, policyForm{Approvers: "2"}, nil)
}

func (w *Web) showPolicy(rw http.ResponseWriter, r *http.Request, status int, f policyForm, problems []fieldProblem) {
	p := w.reader.ApprovalPolicy()
	v := policyView{Form: f, Problems: problems, Off: w.no(auth.Administer), Command: "lpmos policy show", Regions: w.reader.Regions()}
	for i, rule := range p.Rules {
		v.Rules = append(v.Rules, policyRule{i + 1, w.concerns(rule), w.asks(rule), lpmos.DigestOf(rule)})
	}
	for _, name := range slices.Sorted(maps.Keys(p.Labels)) {
		v.Labels = append(v.Labels, policyLabel{name, p.Labels[name], strings.Join(p.Labels[name], "\n")})
	}
	w.show(rw, r, status, "policy", page{Title: w.T("Approval policy"), Nav: "policy", Body: v})
}

func (s *tongue) concerns(r lpmos.ApprovalRule) string {
	var parts []string
	if len(r.Regions) > 0 {
		parts = append(parts, s.T("regions %s", s.list(r.Regions)))
	}
	if len(r.Labels) > 0 {
		parts = append(parts, s.T("machines with the label %s", s.list(r.Labels)))
	}
	if r.ErasesData {
		parts = append(parts, s.T("data that was found is erased"))
	}
	if len(parts) == 0 {
		return s.T("every task")
	}
	return strings.Join(parts, s.T("; "))
}

func (s *tongue) asks(r lpmos.ApprovalRule) string {
	var parts []string
	if r.Approvers > 1 {
		parts = append(parts, s.T("%s people have to approve", count(r.Approvers)))
	}
	if r.NotCreator {
		parts = append(parts, s.T("not who asked for it"))
	}
	if r.ReauthMinutes > 0 {
		parts = append(parts, s.T("who approves confirms who they are, at most %s min before", count(r.ReauthMinutes)))
	}
	if r.AllowTokens {
		parts = append(parts, s.T("API tokens need not"))
	}
	return strings.Join(parts, s.T("; "))
}

// changePolicy adds a rule, takes one away, or says which machines have a label.
func (w *Web) changePolicy(rw http.ResponseWriter, r *http.Request) {
	if !readForm(rw, r) {
		return
	}
	f := readPolicy(r)
	p := w.reader.ApprovalPolicy()
	based := p.Tag()
	var problems []fieldProblem
	words := func(s string) []string {
		return strings.FieldsFunc(s, func(c rune) bool { return strings.ContainsRune(", \n\r\t", c) })
	}
	number := func(field, text string) int {
		if text == "" {
			return 0
		}
		n, err := strconv.Atoi(text)
		if err != nil {
			problems = append(problems, fieldProblem{field, w.T("Give a number.")})
		}
		return n
	}
	switch f.Action {
	case "remove":
		p.Rules = slices.DeleteFunc(slices.Clone(p.Rules), func(rule lpmos.ApprovalRule) bool { return lpmos.DigestOf(rule) == r.PostForm.Get("rule") })
	case "label":
		labels := maps.Clone(p.Labels)
		if labels == nil {
			labels = map[string][]string{}
		}
		if labels[f.Label] = words(f.Machines); len(labels[f.Label]) == 0 {
			delete(labels, f.Label)
		}
		p.Labels = labels
	default:
		p.Rules = append(slices.Clone(p.Rules), lpmos.ApprovalRule{
			Regions: words(f.Regions), Labels: words(f.Labels), ErasesData: f.ErasesData,
			Approvers: number("approvers", f.Approvers), NotCreator: f.NotCreator, ReauthMinutes: number("minutes", f.Minutes), AllowTokens: f.AllowTokens,
		})
	}
	if len(problems) == 0 {
		ctx, cancel := actionContext(r)
		defer cancel()
		_, err := w.actions.SetApprovalPolicy(ctx, p, based, w.cfg.Person(r))
		if err == nil {
			http.Redirect(rw, r, "/policy", http.StatusSeeOther)
			return
		}
		var status int
		if status, problems = w.formProblems(err); problems == nil {
			w.fail(rw, r, err)
			return
		}
		w.showPolicy(rw, r, status, f, problems)
		return
	}
	w.showPolicy(rw, r, http.StatusBadRequest, f, problems)
}
