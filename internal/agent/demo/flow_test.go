package demo

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// TestDemoFromPowerOnToCallhome plays a whole task: script, segment, report,
// approval of the plan for the hardware that was reported, permit, image,
// result, local boot, call home.
func TestDemoFromPowerOnToCallhome(t *testing.T) {
	const task = "3b1e5f8d-1111-4222-8333-444455556666"
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	var (
		mu       sync.Mutex // guards what follows
		status   = lpmos.Pending
		plan     lpmos.Plan
		decision lpmos.Approval
		stages   []lpmos.Stage
		receipt  *lpmos.Receipt
		fetched  int64

		fingerprint string // of the agent's key
	)
	blobs := map[string][]byte{}
	put := func(b []byte) string {
		sum := sha256.Sum256(b)
		blobs[hex.EncodeToString(sum[:])] = b
		return hex.EncodeToString(sum[:])
	}
	chunk := bytes.Repeat([]byte("stored"), 1000)
	sum := sha256.Sum256(chunk)
	m := lpmos.ImageManifest{Format: "ext4", SizeBytes: 8192, UsedBytes: 8192, FirstBoot: "exec", Kernel: "/k", Initrd: "/i", OS: "testos", Version: "1", Arch: "amd64",
		Pack: lpmos.Blob{SHA256: put(append(bytes.Clone(chunk), chunk...)), Bytes: 12000}}
	for i := range int64(2) {
		m.Chunks = append(m.Chunks, lpmos.Chunk{Offset: 4096 * i, Bytes: 4096, StoredOffset: 6000 * i, StoredBytes: 6000, SHA256: hex.EncodeToString(sum[:])})
	}
	text, _ := json.Marshal(m)
	img := lpmos.Image{OS: "testos", Version: "1", Arch: "amd64", Digest: "sha256:" + put(text), SizeBytes: 8192, UsedBytes: 8192, BootModes: []string{"bios"}}

	api := http.NewServeMux()
	answer := func(path string, f func(body io.Reader) any) {
		api.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			want := "Bearer credential"
			if r.URL.Path == agentapi.PathBooted {
				want = "Bearer token"
			}
			if r.Header.Get("Authorization") != want {
				t.Errorf("%s with %q; want %q", r.URL.Path, r.Header.Get("Authorization"), want)
			}
			mu.Lock()
			defer mu.Unlock()
			json.NewEncoder(w).Encode(f(r.Body))
		})
	}
	decode := func(r io.Reader, v any) {
		if err := lpmos.DecodeJSON(r, agentapi.MaxReportBytes, v); err != nil {
			t.Error(err)
		}
	}
	answer("POST "+agentapi.PathReport, func(r io.Reader) any {
		var v agentapi.Report
		decode(r, &v)
		fingerprint = v.AgentKey.Fingerprint()
		plan = lpmos.NewPlan(&lpmos.Task{ID: task, Spec: lpmos.Spec{Hostname: "demo-1"}}, v.Hardware, img)
		if plan.Problem != "" {
			t.Error(plan.Problem)
		}
		decision = lpmos.Approval{TaskID: task, Approved: true, By: "someone", At: time.Now().UTC(), PlanDigest: plan.Digest, HardwareDigest: plan.HardwareDigest,
			ExpiresAt: time.Now().Add(time.Hour).UTC(), FirstAttempt: 1, LastAttempt: 3}
		decision.Sign(key)
		status = lpmos.Approved
		return agentapi.ReportAnswer{TaskID: task, Status: status, Attempt: 1}
	})
	answer("GET "+agentapi.PathApproval+"{mac}", func(io.Reader) any {
		return agentapi.Approval{Approved: true, TaskID: task, Status: status, Attempt: 1, Plan: &plan, Decision: &decision}
	})
	answer("POST "+agentapi.PathPermit, func(r io.Reader) any {
		var v agentapi.PermitRequest
		decode(r, &v)
		status = lpmos.Installing
		p := &lpmos.Permit{TaskID: task, Attempt: 1, Nonce: v.Nonce, AgentKey: fingerprint, PlanDigest: v.PlanDigest, HardwareDigest: v.HardwareDigest}
		p.Sign(key)
		return agentapi.PermitAnswer{Permit: p, CallhomeToken: "token"}
	})
	answer("POST "+agentapi.PathProgress, func(r io.Reader) any {
		var v agentapi.Progress
		decode(r, &v)
		if n := len(stages); n == 0 || stages[n-1] != v.Stage {
			stages = append(stages, v.Stage)
		}
		return struct{}{}
	})
	answer("POST "+agentapi.PathLogs, func(io.Reader) any { return struct{}{} })
	answer("POST "+agentapi.PathResult, func(r io.Reader) any {
		var v agentapi.Result
		decode(r, &v)
		if !v.OK {
			t.Errorf("result = %+v", v.Failure)
		}
		status = lpmos.Verifying
		return agentapi.ResultAnswer{Status: status}
	})
	answer("POST "+agentapi.PathBooted, func(r io.Reader) any {
		var v agentapi.Booted
		decode(r, &v)
		receipt, status = &v.Receipt, lpmos.Completed
		return struct{}{}
	})
	tls := httptest.NewTLSServer(api)
	defer tls.Close()

	site := put(agentapi.Segment(agentapi.SiteConfigPath, lpmos.CanonicalJSON(agentapi.SiteConfig{Keys: [][]byte{key.Public().(ed25519.PublicKey)}})))
	boot := http.NewServeMux()
	boot.HandleFunc("GET "+agentapi.PathBootScript, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if status == lpmos.Verifying {
			io.WriteString(w, "#!ipxe\nsanboot --no-describe --drive 0x80 || exit 1\n")
			return
		}
		io.WriteString(w, "#!ipxe\ninitrd --name machine.img /boot/segment/n || goto failed\ninitrd --name site.img /blobs/"+site+" || goto failed\n")
	})
	boot.HandleFunc("GET "+agentapi.PathBlobs+"{sum}", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		b, ok := blobs[r.PathValue("sum")]
		fetched += int64(len(b))
		mu.Unlock()
		if !ok {
			http.NotFound(w, r)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	})
	plain := httptest.NewServer(boot)
	defer plain.Close()
	boot.HandleFunc("GET "+agentapi.PathSegment+"n", func(w http.ResponseWriter, r *http.Request) {
		cfg := agentapi.BootConfig{RegionID: "dc1", AgentURL: tls.URL, ServerName: "example.com", BootURL: plain.URL,
			CA: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tls.Certificate().Raw})), TaskID: task, Attempt: 1, BootSeq: 1, BootMAC: DefaultMAC, Credential: "credential", Time: time.Now()}
		w.Write(newc([2]string{"lpmos/boot.json", string(lpmos.CanonicalJSON(cfg))}))
	})

	const ms = time.Millisecond
	var out bytes.Buffer
	machine := New(Config{RegionURL: plain.URL, Duration: 300 * ms, Pauses: agent.Pauses{Wait: 100 * ms, Breath: 10 * ms, Again: 10 * ms, Reboot: 10 * ms, Report: 50 * ms, LogEvery: 10 * ms, ProgEvery: 10 * ms}}, &out, slog.LevelInfo)
	began := time.Now()
	if err := machine.Run(t.Context()); err != nil {
		t.Fatalf("Run = %v\n%s", err, out.String())
	}
	if took := time.Since(began); took < 250*ms {
		t.Errorf("the demo took %v; want at least about 300 ms, so that a person can watch", took)
	}
	mu.Lock()
	defer mu.Unlock()
	root, _ := plan.Effect.Partition("root")
	if receipt == nil || receipt.RootFSUUID != root.UUID || receipt.RootDisk != plan.Effect.Target || receipt.Hostname != "demo-1" {
		t.Errorf("receipt = %+v", receipt)
	}
	if len(stages) != 4 {
		t.Errorf("stages = %v; want all four", stages)
	}
	if fetched < m.Pack.Bytes {
		t.Errorf("%d bytes fetched; want the whole image", fetched)
	}
	if !strings.Contains(out.String(), "the demo is complete") || strings.Contains(out.String(), "Bearer") {
		t.Errorf("log:\n%s", out.String())
	}
}
