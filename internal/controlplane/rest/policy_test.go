package rest_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
)

func TestApprovalPolicyOverREST(t *testing.T) {
	p := newPlane(t)
	p.registerImage()
	if got := want[lpmos.ApprovalPolicy](p, "GET", "/api/v1/approval-policy", "", 200); got.Rules == nil || got.Labels == nil {
		t.Errorf("no policy = %+v; want [] and {}", got)
	}
	p.problem("PUT", "/api/v1/approval-policy", `{"rules":[{"approvers":1}]}`, 400)
	p.problem("PUT", "/api/v1/approval-policy", strings.Repeat(" ", 300<<10), 413)
	p.problem("PUT", "/api/v1/approval-policy", `{}`, 415, "Content-Type", "text/plain")
	got := want[lpmos.ApprovalPolicy](p, "PUT", "/api/v1/approval-policy", `{"rules":[{"regions":["dc1"],"approvers":2,"not_creator":true,"reauth_minutes":5}],"labels":{"production":["52-54-00-AA-BB-01"]}}`, 200)
	if got.Labels["production"][0] != mac {
		t.Errorf("policy = %+v; want addresses in the one spelling", got)
	}
	p.eventually("everybody knows", func() bool { return len(p.state.ApprovalPolicy().Rules) == 1 })
	p.keepsOthers("/api/v1/approval-policy", `{"rules":[{"approvers":3}]}`, `{"rules":[{"regions":["dc1"],"approvers":2,"not_creator":true,"reauth_minutes":5}],"labels":{"production":["52-54-00-AA-BB-01"]}}`)
	p.eventually("everybody knows again", func() bool { return p.state.ApprovalPolicy().Tag() == got.Tag() })
	p.as(somebody(lpmos.Viewer, "dc1"))
	if got := want[lpmos.ApprovalPolicy](p, "GET", "/api/v1/approval-policy", "", 200); len(got.Rules) != 1 || len(got.Labels["production"]) != 0 {
		t.Errorf("who sees dc1 alone = %+v; want no machines", got)
	}

	// Two approvers with passwords, and who asked for the task.
	const password = "correct horse battery staple"
	people := map[string]auth.Principal{}
	for _, name := range []string{"anna", "ben", "olga"} {
		_, once, err := p.auth.CreateUser(t.Context(), name, lpmos.Approver, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, who, err := p.auth.Login(t.Context(), name, once, "192.0.2.1", "")
		if err == nil {
			_, who, err = p.auth.ChangePassword(t.Context(), who, once, password, "")
		}
		if err != nil {
			t.Fatal(err)
		}
		// A token of theirs asks.
		people[name] = auth.Principal{Kind: auth.Token, Name: who.Name, Role: who.Role, Label: "cli", ID: name}
	}
	as := func(name string) { p.as(people[name]) }
	as("olga")
	id := p.create(mac)
	plan := p.report(id, mac, lpmos.Content{}).Plan
	body := func(password string) string {
		return fmt.Sprintf(`{"approved":true,"plan_digest":%q,"password":%q}`, plan.Digest, password)
	}
	approve := "/api/v1/tasks/" + id + "/approve"
	// What a policy asks of a task is in its answer, and is new content.
	p.as(somebody(lpmos.Admin))
	resp, _ := p.do("GET", "/api/v1/tasks/"+id, "")
	tag := resp.Header.Get("ETag")
	p.empty("GET", "/api/v1/tasks/"+id, 304, "If-None-Match", tag)
	want[lpmos.ApprovalPolicy](p, "PUT", "/api/v1/approval-policy", `{"rules":[{"regions":["dc1"],"approvers":3,"not_creator":true,"reauth_minutes":5}]}`, 200)
	p.eventually("three are asked for", func() bool { return p.state.ApprovalPolicy().Rules[0].Approvers == 3 })
	if resp, _ := p.do("GET", "/api/v1/tasks/"+id, "", "If-None-Match", tag); resp.StatusCode != 200 || resp.Header.Get("ETag") == tag {
		t.Errorf("the task after the policy changed = %d, ETag %s; want 200 and another", resp.StatusCode, resp.Header.Get("ETag"))
	}
	want[lpmos.ApprovalPolicy](p, "PUT", "/api/v1/approval-policy", `{"rules":[{"regions":["dc1"],"approvers":2,"not_creator":true,"reauth_minutes":5}],"labels":{"production":["52-54-00-AA-BB-01"]}}`, 200)
	p.eventually("two are asked for", func() bool { return p.state.ApprovalPolicy().Tag() == got.Tag() })
	as("olga")
	if pr := p.problem("PUT", approve, body(password), 403); pr.Reauth || !strings.Contains(pr.Detail, "ask another approver") {
		t.Errorf("who asked for it = %+v; want who to ask", pr)
	}
	as("anna")
	if pr := p.problem("PUT", approve, body(""), 403); !pr.Reauth || !strings.Contains(pr.Detail, "password") {
		t.Errorf("a token alone = %+v; want reauth", pr)
	}
	if pr := p.problem("PUT", approve, body("wrong"), 400); pr.Field != "password" {
		t.Errorf("a wrong password = %+v", pr)
	}
	first := want[lpmos.Task](p, "PUT", approve, body(password), 200)
	if first.Status != lpmos.AwaitingApproval || len(first.Approvals) != 1 || first.Approvals[0].By != "anna" {
		t.Errorf("the first of two = %s, %+v", first.Status, first.Approvals)
	}
	if pr := p.problem("PUT", approve, body(password), 409); pr.TaskStatus != lpmos.AwaitingApproval || !strings.Contains(pr.Detail, "1 of 2 approvals: anna") {
		t.Errorf("the same person once more = %+v", pr)
	}
	p.eventually("the task says so", func() bool { x, _ := p.state.Task(id); return len(x.Approvals) == 1 })
	if got := want[lpmos.Task](p, "GET", "/api/v1/tasks/"+id, "", 200); got.ApprovalNeeds == nil || got.ApprovalNeeds.Approvers != 2 || len(got.Approvals) != 1 {
		t.Errorf("the task says %+v, %+v", got.ApprovalNeeds, got.Approvals)
	}
	as("ben")
	second := want[lpmos.Task](p, "PUT", approve, body(password), 200)
	if second.Status != lpmos.Approved || len(second.Approval.Approvers) != 2 {
		t.Errorf("the second of two = %s, %+v", second.Status, second.Approval)
	}
}
