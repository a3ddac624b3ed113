package web

import (
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
)

func policyTask(s *fakeSite, needs lpmos.ApprovalNeeds, given ...string) lpmos.Task {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, t := range s.tasks {
		if t.Status != lpmos.AwaitingApproval || t.Plan == nil || t.Plan.Problem != "" || t.Plan.ErasesData() {
			continue
		}
		t.CreatedBy, t.ApprovalNeeds, t.Approvals = "olga", &needs, nil
		for _, by := range given {
			t.Approvals = append(t.Approvals, lpmos.Consent{By: by, PlanDigest: t.Plan.Digest, HardwareDigest: t.Plan.HardwareDigest})
		}
		s.tasks[id] = t
		return t
	}
	panic("the site has no task that waits with a blank disk")
}

func TestApprovePageSaysWhatThePolicyAsks(t *testing.T) {
	open := func(t *testing.T, who auth.Principal, needs lpmos.ApprovalNeeds, given ...string) string {
		t.Helper()
		s := newSite(t, testNow)
		task := policyTask(s, needs, given...)
		rec := httptest.NewRecorder()
		auth.As(who, newTestWeb(t, s).Handler()).ServeHTTP(rec, httptest.NewRequest("GET", "/tasks/"+task.ID+"/approve", nil))
		return rec.Body.String()
	}
	const button = `name="approved" value="true"`
	who := auth.Principal{Kind: auth.Session, Name: "anna", Role: lpmos.Approver, ProvedAt: testNow.Add(-time.Hour)}
	two := lpmos.ApprovalNeeds{Approvers: 2, NotCreator: true}
	for name, tt := range map[string]struct {
		who   auth.Principal
		needs lpmos.ApprovalNeeds
		given []string
		want  []string
		not   []string
	}{
		"nothing":                  {who, lpmos.ApprovalNeeds{Approvers: 1}, nil, []string{button}, []string{"The approval policy asks", "1 approvals", `name="password"`}},
		"two, and none yet":        {who, two, nil, []string{button, "0 of 2 approvals", "2 people have to approve", "olga asked for it"}, nil},
		"two, and one of another":  {who, two, []string{"ben"}, []string{button, "1 of 2 approvals: ben"}, nil},
		"two, and one's own":       {who, two, []string{"anna"}, []string{"1 of 2 approvals: anna", "You approved it already", "Reject, erase nothing"}, []string{button}},
		"who asked for it":         {auth.Principal{Kind: auth.Session, Name: "olga", Role: lpmos.Approver}, two, nil, []string{"You asked for this task: somebody else has to approve it."}, []string{button}},
		"a program of the host":    {auth.Principal{Kind: auth.Token, Name: "local", Role: lpmos.Admin, Own: true}, two, nil, []string{"sign in as a user"}, []string{button}},
		"a password":               {who, lpmos.ApprovalNeeds{Approvers: 1, ReauthMinutes: 5}, nil, []string{button, `name="password"`, "remembered for 5 min"}, nil},
		"a password that is fresh": {auth.Principal{Kind: auth.Session, Name: "anna", Role: lpmos.Approver, ProvedAt: testNow}, lpmos.ApprovalNeeds{Approvers: 1, ReauthMinutes: 5}, nil, []string{button}, []string{`name="password"`}},
	} {
		body := open(t, tt.who, tt.needs, tt.given...)
		for _, w := range tt.want {
			if !strings.Contains(body, w) {
				t.Errorf("%s: the page lacks %q", name, w)
			}
		}
		for _, w := range tt.not {
			if strings.Contains(body, w) {
				t.Errorf("%s: the page has %q", name, w)
			}
		}
	}
}

func TestDecisionThatThePolicyRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		fail   error
		status int
		want   string
	}{
		"asked who it is":        {&api.ReauthError{Minutes: 5}, 400, "the policy asks who approves"},
		"asked for the task":     {&api.BarError{Bar: lpmos.BarCreator, By: "chen.yu"}, 403, "somebody else has to approve it"},
		"approved a moment ago":  {&api.BarError{Bar: lpmos.BarGiven, By: "chen.yu"}, 303, ""},
		"may not approve at all": {&auth.DeniedError{Text: "region dc1 is not one of yours (dc2)"}, 403, "dc1"},
	} {
		s := newSite(t, testNow)
		task := policyTask(s, lpmos.ApprovalNeeds{Approvers: 1})
		s.fail = tt.fail
		r := httptest.NewRequest("POST", "/tasks/"+task.ID+"/approve", strings.NewReader(url.Values{"approved": {"true"}, "plan_digest": {task.Plan.Digest}, "notes": {"as agreed"}}.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		rec := httptest.NewRecorder()
		signedIn(newTestWeb(t, s)).ServeHTTP(rec, r)
		if body := rec.Body.String(); rec.Code != tt.status || !strings.Contains(body, tt.want) {
			t.Errorf("%s = %d; want %d and %q", name, rec.Code, tt.status, tt.want)
		} else if tt.status == 400 && !(strings.Contains(body, `name="password"`) && strings.Contains(body, "as agreed") && strings.Contains(body, task.Plan.Digest)) {
			t.Errorf("%s: the page lacks the field for the password, what was typed, or the digest", name)
		}
	}
}

func TestPolicyPage(t *testing.T) {
	s := newSite(t, testNow)
	h := signedIn(newTestWeb(t, s))
	post := func(form url.Values) *httptest.ResponseRecorder {
		r := httptest.NewRequest("POST", "/policy", strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		return rec
	}
	page := func() string {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest("GET", "/policy", nil))
		return rec.Body.String()
	}
	if body := page(); !strings.Contains(body, "One approver decides") {
		t.Errorf("the page of no policy says\n%s", body)
	}
	if rec := post(url.Values{"do": {"label"}, "label": {"production"}, "machines": {"52-54-00-AA-BB-01\n52:54:00:aa:bb:02"}}); rec.Code != 303 {
		t.Fatalf("a label = %d %s", rec.Code, rec.Body)
	}
	if rec := post(url.Values{"do": {"add"}, "regions": {"bj-1, sh-1"}, "labels": {"production"}, "approvers": {"2"}, "minutes": {"10"}, "not_creator": {"yes"}}); rec.Code != 303 {
		t.Fatalf("a rule = %d %s", rec.Code, rec.Body)
	}
	p := s.ApprovalPolicy()
	if len(p.Rules) != 1 || p.Rules[0].Approvers != 2 || p.Rules[0].ReauthMinutes != 10 || !p.Rules[0].NotCreator || len(p.Rules[0].Regions) != 2 || len(p.Labels["production"]) != 2 {
		t.Errorf("stored is %+v", p)
	}
	if body := page(); !strings.Contains(body, "2 people have to approve; not who asked for it; who approves confirms who they are, at most 10 min before") {
		t.Errorf("the page says\n%s", body)
	}
	for name, tt := range map[string]struct {
		form url.Values
		want string
	}{
		"nothing asked for":   {url.Values{"do": {"add"}, "approvers": {"1"}}, "nothing that it asks for"},
		"no number":           {url.Values{"do": {"add"}, "approvers": {"two"}}, "Give a number."},
		"a label nobody has":  {url.Values{"do": {"add"}, "approvers": {"2"}, "labels": {"prod"}}, "a label that is not defined"},
		"what is no machine":  {url.Values{"do": {"label"}, "label": {"x"}, "machines": {"web-01"}}, "neither a MAC address nor a UUID"},
		"a label in use gone": {url.Values{"do": {"label"}, "label": {"production"}, "machines": {" "}}, "a label that is not defined"},
	} {
		if rec := post(tt.form); rec.Code != 400 || !strings.Contains(rec.Body.String(), tt.want) {
			t.Errorf("%s = %d; want 400 and %q", name, rec.Code, tt.want)
		}
	}
	if rec := post(url.Values{"do": {"remove"}, "rule": {"sha256:another"}}); rec.Code != 303 || len(s.ApprovalPolicy().Rules) != 1 {
		t.Errorf("removing a rule that is not there = %d, %d rules", rec.Code, len(s.ApprovalPolicy().Rules))
	}
	if rec := post(url.Values{"do": {"remove"}, "rule": {lpmos.DigestOf(p.Rules[0])}}); rec.Code != 303 || len(s.ApprovalPolicy().Rules) != 0 {
		t.Errorf("removing the rule = %d, %d rules", rec.Code, len(s.ApprovalPolicy().Rules))
	}
}

func TestBrowserWord(t *testing.T) {
	w := newTestWeb(t, newSite(t, testNow))
	for agent, want := range map[string]string{
		"Mozilla/5.0 (X11; Linux x86_64; rv:144.0) Gecko/20100101 Firefox/144.0":                                                                  "Firefox 144, Linux",
		"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36 Edg/141.0.0.0":           "Edge 141, Windows",
		"Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.6 Mobile/15E148 Safari/604.1": "Safari 18, iOS",
		"Go-http-client/2.0":            "Go-http-client/2.0",
		"Mozilla/5.0 Chrome/<script>.1": "Chrome <script>",
		"":                              "",
	} {
		if got := w.browserWord(agent); got != want {
			t.Errorf("%q is %q; want %q", agent, got, want)
		}
	}
}
