package cli

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
)

// labOn is a lab that follows two machines on a plane, the first of which waits
// for approval, and whose approvals are refused.
func labOn(t *testing.T) (*labRun, *apiclient.Client, []*labMachine) {
	t.Helper()
	p := newPlane(t)
	site, err := url.Parse(p.site.ControlPlane.URL())
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(site)
	proxy.FlushInterval = -1
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/approve") {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusForbidden)
			io.WriteString(w, `{"title":"no","status":403,"detail":"nobody may approve here"}`)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	c, err := apiclient.New(srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.UseToken(p.token)
	var machines []*labMachine
	for i, mac := range []string{"02:4c:50:00:01:01", "02:4c:50:00:01:02"} {
		m := &labMachine{name: []string{"lab-01", "lab-02"}[i], trial: trials[i], mac: lpmos.MustMAC(mac), marks: map[string]time.Time{}}
		m.task, err = p.api.CreateTask(t.Context(), lpmos.Spec{RegionID: "dc1", TargetMAC: m.mac, OSType: "debian", OSVersion: "12", Hostname: m.name}, "")
		if err != nil {
			t.Fatal(err)
		}
		machines = append(machines, m)
	}
	p.boot("02:4c:50:00:01:01")
	p.until("the first machine waits for approval", func() bool {
		task, err := p.api.Task(t.Context(), machines[0].task)
		return err == nil && task.Status == lpmos.AwaitingApproval
	})
	return &labRun{app: &app{out: io.Discard, err: io.Discard}, out: &labOut{w: io.Discard}}, c, machines
}

// TestLabSaysWhatWentWrong has the reason for its end be the error, and not what
// broke off because of it; of an image that is tried, such an end says nothing.
func TestLabSaysWhatWentWrong(t *testing.T) {
	r, c, machines := labOn(t)
	over := errors.New("the lab did not finish in time")
	for _, tt := range []struct {
		name string
		auto bool
		want string
	}{{"an approval is refused", true, "lab-01: "}, {"its time is over", false, over.Error()}} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			r.cfg.auto = tt.auto
			if !tt.auto {
				time.AfterFunc(500*time.Millisecond, func() { cancel(over) })
			}
			err := r.watch(ctx, c, NewScreen(io.Discard), machines)
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) || tt.auto && !strings.Contains(err.Error(), "nobody may approve here") || strings.Contains(err.Error(), "context canceled") {
				t.Errorf("the lab ended with %v; want %q", err, tt.want)
			}
			badges, err := results(machines, "sha256:x")
			if len(badges) != 0 || err == nil || !strings.Contains(err.Error(), "uefi") {
				t.Errorf("results = %+v, %v; want none", badges, err)
			}
		})
	}
}

// Where nobody looks, a plan that cannot be carried out is not waited for.
func TestLabEndsWithAPlanThatCannotBe(t *testing.T) {
	task := lpmos.Task{Status: lpmos.AwaitingApproval, Plan: &lpmos.Plan{Problem: "Every disk is too small."}}
	r := &labRun{app: &app{out: io.Discard, err: io.Discard}}
	if err := r.seen(t.Context(), nil, &labMachine{}, task); err != nil {
		t.Errorf("a person looks at it: %v; want no end", err)
	}
	r.cfg.auto = true
	if err := r.seen(t.Context(), nil, &labMachine{}, task); err == nil || !strings.Contains(err.Error(), "Every disk is too small.") {
		t.Errorf("nobody looks at it: %v; want the problem", err)
	}
}
