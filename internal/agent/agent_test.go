package agent

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent/install"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// tlsBlobs reads blobs through a plain HTTP proxy in front of the region, as
// the boot listener is plain.
type tlsBlobs struct{ b *bench }

func (p tlsBlobs) Open(ctx context.Context, sum string, part agentapi.Part) (*agentapi.BlobReader, error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(p.b.ca))
	target, _ := url.Parse("https://" + p.b.addr)
	front := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) { http.Error(w, err.Error(), 502) }, ErrorLog: nil,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: serverName}, DisableKeepAlives: true}})
	context.AfterFunc(ctx, func() { go front.Close() })
	p.b.t.Cleanup(front.Close)
	blobs, err := agentapi.NewBlobs(front.URL, 500*time.Millisecond)
	if err != nil {
		return nil, err
	}
	return blobs.Open(ctx, sum, part)
}

func (b *bench) wantOneResult(t *testing.T) agentapi.Result {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.results) == 0 {
		t.Fatal("no result was told")
	}
	return b.results[len(b.results)-1]
}

func (b *bench) wantRebooted(t *testing.T, why string) {
	t.Helper()
	if len(b.host.rebooted) != 1 || !strings.Contains(b.host.rebooted[0], why) {
		t.Errorf("reboots: %q; want one because %q", b.host.rebooted, why)
	}
}

func TestInstallFromReportToReboot(t *testing.T) {
	b := newBench(t)
	b.boot(t)
	r := b.wantOneResult(t)
	if !r.OK || !r.Written || r.Attempt != 1 || r.TaskID != testTask || r.MACAddress != testMAC {
		t.Errorf("result = %+v", r)
	}
	b.wantRebooted(t, "boots its own disk")
	if len(b.host.clock) != 1 || b.host.clock[0].IsZero() {
		t.Errorf("clock set %d times; want once, before TLS", len(b.host.clock))
	}
	if n := len(b.reports); n != 1 {
		t.Errorf("%d reports; want 1", n)
	}
	last := b.progress[len(b.progress)-1]
	if last.Percentage != 100 || last.Stage != lpmos.Configuring {
		t.Errorf("last progress = %+v; want 100 %%", last)
	}
	if len(b.late) > 0 {
		t.Errorf("progress goes back: %q", b.late)
	}
	job := b.disk.jobs[0]
	if job.Callhome.Token != testToken || job.Callhome.RootUUID == "" || job.Callhome.URLs[0] != b.cfg.AgentURL {
		t.Errorf("callhome = %+v", job.Callhome)
	}
	all := strings.Join(b.lines, "\n")
	if !strings.Contains(all, "permit verified") || !strings.Contains(all, "attempt succeeded") {
		t.Errorf("shipped log lacks what happened:\n%s", all)
	}
	for _, secret := range []string{testSecret, testToken} {
		if strings.Contains(all, secret) {
			t.Error("a secret is in the shipped log")
		}
	}
}

// TestRegionRestarts stops the region in the middle of everything.
func TestRegionRestarts(t *testing.T) {
	for _, path := range []string{agentapi.PathReport, agentapi.PathApproval, agentapi.PathPermit, agentapi.PathProgress, agentapi.PathResult, agentapi.PathBlobs} {
		t.Run("at "+path, func(t *testing.T) {
			b := newBench(t)
			var hit atomic.Bool
			b.spoil = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasPrefix(r.URL.Path, path) || hit.Swap(true) {
					return false
				}
				go func() {
					b.stop()
					<-time.After(150 * time.Millisecond)
					b.start()
				}()
				panic(http.ErrAbortHandler)
			}
			b.boot(t)
			if r := b.wantOneResult(t); !r.OK || r.Attempt != 1 {
				t.Errorf("result = %+v", r)
			}
			if b.disk.written != 1 {
				t.Errorf("written %d times; want once", b.disk.written)
			}
			if !hit.Load() {
				t.Error("the region was never stopped")
			}
		})
	}
}

func TestRegionAnswersWithErrorsForAWhile(t *testing.T) {
	b := newBench(t)
	var n atomic.Int64
	b.spoil = func(w http.ResponseWriter, r *http.Request) bool {
		// Two of three questions go wrong, in turns.
		switch n.Add(1) % 6 {
		case 1:
			problem(w, 503, "no quorum")
		case 2:
			http.Error(w, "<html>oops", 500)
		case 3:
			w.Header().Set("Retry-After", "0")
			problem(w, 429, "slower")
		case 4:
			if r.URL.Path == agentapi.PathLogs || r.URL.Path == agentapi.PathProgress || strings.HasPrefix(r.URL.Path, agentapi.PathBlobs) {
				return false // they have no JSON that could be cut
			}
			io.WriteString(w, `{"unexpected":`)
		default:
			return false
		}
		return true
	}
	b.disk.stall = 10 * time.Second
	b.boot(t)
	if r := b.wantOneResult(t); !r.OK {
		t.Errorf("result = %+v %+v", r, r.Failure)
	}
}

func TestCanceledWhileWaiting(t *testing.T) {
	b := newBench(t)
	b.status = lpmos.AwaitingApproval
	var polls atomic.Int64
	b.spoil = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, agentapi.PathApproval) && polls.Add(1) == 3 {
			b.mu.Lock()
			b.status = lpmos.Canceled
			b.mu.Unlock()
		}
		return false
	}
	b.boot(t)
	b.wantRebooted(t, "ended (canceled)")
	if b.disk.written != 0 || len(b.results) != 0 {
		t.Errorf("written %d, results %v; want none", b.disk.written, b.results)
	}
}

func TestCanceledBeforeThePermit(t *testing.T) {
	b := newBench(t)
	b.spoil = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == agentapi.PathPermit {
			b.mu.Lock()
			b.status = lpmos.Canceled
			b.mu.Unlock()
		}
		return false
	}
	b.boot(t)
	b.wantRebooted(t, "ended (canceled)")
	if b.disk.written != 0 {
		t.Error("the disk was written without a permit")
	}
}

func TestReportsAgainWhenAsked(t *testing.T) {
	b := newBench(t)
	b.status = lpmos.Pending
	b.spoil = func(w http.ResponseWriter, r *http.Request) bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.reports) == 3 {
			b.status = lpmos.Approved
			b.spoil = nil
		}
		return false
	}
	b.boot(t)
	if len(b.reports) != 3 {
		t.Errorf("%d reports; want 3", len(b.reports))
	}
	if r := b.wantOneResult(t); !r.OK {
		t.Errorf("result = %+v", r)
	}
}

func TestMachineWithoutATask(t *testing.T) {
	b := newBench(t)
	b.cfg.TaskID = ""
	order := b.order
	b.order = agentapi.Approval{}
	b.status = ""
	b.spoil = func(w http.ResponseWriter, r *http.Request) bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.reports) == 3 {
			b.order, b.status, b.spoil = order, lpmos.Approved, nil
		}
		return false
	}
	b.boot(t)
	b.wantRebooted(t, "it boots again for it")
	if len(b.reports) < 3 || b.disk.written != 0 {
		t.Errorf("%d reports, written %d; want three or more, and nothing", len(b.reports), b.disk.written)
	}
}

func TestVerifyingWithoutADisk(t *testing.T) {
	b := newBench(t)
	b.status = lpmos.Verifying
	b.boot(t)
	b.wantRebooted(t, "reported already")
	if len(b.results) != 0 || b.disk.written != 0 {
		t.Errorf("results %+v, written %d; want none", b.results, b.disk.written)
	}
}

func TestTaskIsGone(t *testing.T) {
	b := newBench(t)
	b.order, b.status = agentapi.Approval{}, ""
	b.boot(t)
	b.wantRebooted(t, "task of this machine is gone")
}

func TestRevokedBoot(t *testing.T) {
	b := newBench(t)
	b.cfg.Credential = strings.Repeat("0", 64)
	b.boot(t)
	b.wantRebooted(t, "no longer accepts this boot")
}

// TestRefusesToWrite holds everything that is not exactly what was approved to
// "the disk is untouched and the region is told why".
func TestRefusesToWrite(t *testing.T) {
	_, other, _ := ed25519.GenerateKey(rand.Reader)
	for _, c := range []struct {
		name string
		edit func(b *bench)
		code string
	}{
		{"approval signed by another key", func(b *bench) { b.order.Decision.Sign(other) }, "signature_invalid"},
		{"approval altered", func(b *bench) { b.order.Decision.LastAttempt = 9 }, "signature_invalid"},
		{"approval of another task", func(b *bench) {
			b.order.Decision.TaskID = strings.Replace(testTask, "3", "4", 1)
			b.order.Decision.Sign(b.key)
		}, "approval_mismatch"},
		{"plan altered", func(b *bench) { b.order.Plan.Effect.Target = b.host.hw.Disks[1].Ref() }, "approval_mismatch"},
		{"approval expired", func(b *bench) {
			b.order.Decision.ExpiresAt = time.Now().Add(-time.Minute).UTC()
			b.order.Decision.Sign(b.key)
		}, "approval_mismatch"},
		{"decision was to reject", func(b *bench) { b.order.Decision.Approved = false; b.order.Decision.Sign(b.key) }, "approval_mismatch"},
		{"something was written to the target since", func(b *bench) { b.host.hw.Disks[0].Content.Table = "gpt" }, "approval_mismatch"},
		{"another disk's content changed", func(b *bench) {
			b.host.hw.Disks[1].Content.Filesystem = &lpmos.Filesystem{Type: "ext4"}
		}, "approval_mismatch"},
		{"target was pulled", func(b *bench) { b.host.hw.Disks = b.host.hw.Disks[1:] }, "disk_missing"},
		{"target shrank", func(b *bench) { b.host.hw.Disks[0].SizeBytes /= 2 }, "disk_too_small"},
		{"a NIC was exchanged", func(b *bench) { b.host.hw.NICs[0].MAC = lpmos.MustMAC("52:54:00:00:00:99") }, "approval_mismatch"},
		{"permit signed by another key", func(b *bench) { b.signer = other }, "signature_invalid"},
		{"permit for another nonce", func(b *bench) {
			b.permit = func(_ agentapi.PermitRequest, p *lpmos.Permit) { p.Nonce = strings.Repeat("0", 64) }
		}, "approval_mismatch"},
		{"permit for another plan", func(b *bench) {
			b.permit = func(_ agentapi.PermitRequest, p *lpmos.Permit) { p.PlanDigest = "sha256:0" }
		}, "approval_mismatch"},
		{"permit for more attempts than approved", func(b *bench) {
			b.permit = func(_ agentapi.PermitRequest, p *lpmos.Permit) { p.Attempt = 4 }
		}, "approval_mismatch"},
		{"target changes while the permit is awaited", func(b *bench) {
			b.permit = func(agentapi.PermitRequest, *lpmos.Permit) {
				b.host.mu.Lock()
				b.host.hw.Disks[0].Content.Table = "mbr"
				b.host.mu.Unlock()
			}
		}, "approval_mismatch"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			c.edit(b)
			b.boot(t)
			if b.disk.written != 0 || len(b.disk.jobs) != 0 {
				t.Fatal("the installer was called")
			}
			r := b.wantOneResult(t)
			if r.OK || r.Written || r.Failure == nil || r.Failure.Code != c.code || r.Failure.Cause == "" || r.Failure.NextStep == "" {
				t.Errorf("result = %+v, failure %+v; want %s", r, r.Failure, c.code)
			}
			b.wantRebooted(t, "ended (failed)")
		})
	}
}

func TestFailedInstallation(t *testing.T) {
	for _, c := range []struct {
		name    string
		edit    func(b *bench)
		code    string
		written bool
	}{
		{"pack is gone", func(b *bench) { delete(b.blobs, b.image.Pack.SHA256) }, "image_missing", true},
		{"manifest is gone", func(b *bench) {
			d, _ := lpmos.TrimDigest(b.plan.Effect.Image.Digest)
			delete(b.blobs, d)
		}, "image_missing", false},
		{"pack is damaged for good", func(b *bench) { b.blobs[b.image.Pack.SHA256][20_500] ^= 1 }, "image_corrupt", true},
		{"installer panics", func(b *bench) { b.disk.during = func() { panic("impossible") } }, "agent_panic", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			c.edit(b)
			if c.code == "agent_panic" {
				// A panic on the installer's own goroutine.
				b.disk.during = nil
				b.disk.blobs = panicking{}
				c.written = false
			}
			b.boot(t)
			r := b.wantOneResult(t)
			if r.OK || r.Failure == nil || r.Failure.Code != c.code || r.Written != c.written {
				t.Errorf("result = %+v, failure %+v; want %s, written %v", r, r.Failure, c.code, c.written)
			}
			b.wantRebooted(t, "ended (failed)")
		})
	}
}

type panicking struct{}

func (panicking) Open(context.Context, string, agentapi.Part) (*agentapi.BlobReader, error) {
	panic("impossible")
}

func TestSecondAttemptAfterPowerLoss(t *testing.T) {
	b := newBench(t)
	b.status, b.attempt = lpmos.Installing, 1
	b.host.hw.Disks[0].Content.Table = "gpt" // half written
	b.boot(t)
	if r := b.wantOneResult(t); !r.OK || r.Attempt != 2 {
		t.Errorf("result = %+v; want attempt 2", r)
	}
	if b.disk.written != 1 {
		t.Errorf("written %d times; want 1", b.disk.written)
	}
}

func TestNoFourthAttempt(t *testing.T) {
	b := newBench(t)
	b.status, b.attempt = lpmos.Installing, 3
	b.boot(t)
	if r := b.wantOneResult(t); r.OK || r.Attempt != 3 || r.Failure.Code != "approval_mismatch" || b.disk.written != 0 {
		t.Errorf("result = %+v, %+v; written %d", r, r.Failure, b.disk.written)
	}
}

// TestResumesAtTheResult is a machine that lost power between the marker and
// the result.
func TestResumesAtTheResult(t *testing.T) {
	good := func(b *bench) install.Marker {
		return install.Marker{TaskID: testTask, Attempt: 1, PlanDigest: b.plan.Digest}
	}
	for _, c := range []struct {
		name   string
		status lpmos.Status
		edit   func(*install.Marker)
		resume bool
	}{
		{"while installing", lpmos.Installing, func(*install.Marker) {}, true},
		{"while verifying", lpmos.Verifying, func(*install.Marker) {}, true},
		{"not after a new approval", lpmos.Approved, func(*install.Marker) {}, false},
		{"not with the marker of another task", lpmos.Installing, func(m *install.Marker) { m.TaskID = strings.Replace(testTask, "3", "4", 1) }, false},
		{"not with the marker of another plan", lpmos.Installing, func(m *install.Marker) { m.PlanDigest = "sha256:1" }, false},
		{"not with the marker of a later attempt", lpmos.Installing, func(m *install.Marker) { m.Attempt = 2 }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			b.status = c.status
			m := good(b)
			c.edit(&m)
			b.disk.marker = &m
			b.boot(t)
			if resumed := b.disk.written == 0; resumed != c.resume {
				t.Errorf("written %d times; want resumed %v", b.disk.written, c.resume)
			}
			if r := b.wantOneResult(t); !r.OK || !r.Written {
				t.Errorf("result = %+v", r)
			}
			b.wantRebooted(t, "boots its own disk")
		})
	}
}

func TestRegionAwayDuringTheInstallation(t *testing.T) {
	b := newBench(t)
	b.disk.during = func() {
		b.stop()
		go func() {
			<-time.After(400 * time.Millisecond)
			b.start()
		}()
	}
	b.boot(t)
	if r := b.wantOneResult(t); !r.OK || b.disk.written != 1 {
		t.Errorf("result = %+v %+v, written %d", r, r.Failure, b.disk.written)
	}
}

func TestUntrustedRegion(t *testing.T) {
	b := newBench(t)
	stranger := newRegion(t)
	b.cfg.CA = stranger.ca
	client, err := NewClient(b.cfg, quiet())
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Progress(t.Context(), agentapi.Progress{}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a region of another authority is trusted: %v", err)
	}
	b.cfg.CA, b.cfg.ServerName = b.ca, "agent.dc2.lpmos"
	if client, err = NewClient(b.cfg, quiet()); err != nil {
		t.Fatal(err)
	}
	if err := client.Progress(t.Context(), agentapi.Progress{}); err == nil || !strings.Contains(err.Error(), "agent.dc2.lpmos") {
		t.Errorf("another region's certificate is trusted: %v", err)
	}
}

func TestReadBootConfig(t *testing.T) {
	b := newBench(t)
	p := filepath.Join(t.TempDir(), "boot.json")
	text := string(lpmos.CanonicalJSON(b.cfg))
	os.WriteFile(p, []byte(text), 0o600)
	site := filepath.Join(t.TempDir(), "site.json")
	siteText := string(lpmos.CanonicalJSON(agentapi.SiteConfig{Keys: b.cfg.Keys}))
	if _, err := ReadBootConfig(p, site); err == nil || !strings.Contains(err.Error(), "bootimage publish") {
		t.Errorf("ReadBootConfig without a site = %v; want what to do", err)
	}
	os.WriteFile(site, []byte(siteText), 0o600)
	got, err := ReadBootConfig(p, site)
	if err != nil || got.Credential != testSecret || got.Key == nil || len(got.Keys) != 1 {
		t.Fatalf("ReadBootConfig = %+v, %v", got, err)
	}
	if _, err := os.Stat(p); !errors.Is(err, os.ErrNotExist) {
		t.Error("the credential is still in the initramfs")
	}
	again, err := ParseBootConfig(strings.NewReader(text), strings.NewReader(siteText))
	if err != nil || again.Key.Public().Fingerprint() == got.Key.Public().Fingerprint() {
		t.Errorf("a second boot has the key of the first, %v", err)
	}
	keys := string(lpmos.CanonicalJSON(agentapi.SiteConfig{Keys: b.cfg.Keys}))[1:]
	for name, bad := range map[string][2]string{
		"no keys":                   {text, `{"keys":[]}`},
		"a key that is none":        {text, strings.Replace(siteText, `"keys":["`, `"keys":["AA`, 1)},
		"an unknown field":          {strings.Replace(text, "{", `{"x":1,`, 1), siteText},
		"keys that the region says": {"{" + strings.TrimSuffix(keys, "}") + "," + text[1:], siteText},
		"nothing":                   {"", siteText},
		"nothing of the site":       {text, ""},
	} {
		if _, err := ParseBootConfig(strings.NewReader(bad[0]), strings.NewReader(bad[1])); err == nil {
			t.Errorf("ParseBootConfig with %s = nil", name)
		}
	}
}

// What a step is made of is shown with it, one thing at a time, and not logged.
func TestProgressShowsDetails(t *testing.T) {
	var log strings.Builder
	p := newProgress(nil, systemClock{}, time.Second, agentapi.Progress{}, slog.New(slog.NewTextHandler(&log, nil)))
	s := install.Step{Stage: lpmos.Configuring, Done: 2, Total: 6, Message: "Making the initramfs"}
	p.step(s)
	for _, s.Detail = range []string{"adding dm-crypt", "adding ext4"} {
		p.step(s)
		if want := "Making the initramfs: " + s.Detail; p.now.Message != want || !p.fresh {
			t.Errorf("progress = %+v; want %q", p.now, want)
		}
	}
	if strings.Contains(log.String(), "adding") || strings.Count(log.String(), "Making") != 1 {
		t.Errorf("the log has\n%s", log.String())
	}
}
