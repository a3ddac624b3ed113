package browser

import (
	"bytes"
	"fmt"
	"image/png"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/site"
	"github.com/lpmos/lpmos/test/browser/tab"
)

const (
	pictureWidth = 1280
	pictureBytes = 300 << 10
)

// TestScreenshots runs a small fleet and looks at it in the middle of its
// installs. The pictures go where LPMOS_SCREENSHOTS says, relative to the
// repository; without it they are checked and forgotten.
func TestScreenshots(t *testing.T) {
	tab.Chromium(t)
	w := newWorld(t, "Frankfurt", func(c *site.Config) { c.Region.RegionID = "fra-1" })
	w.publish("debian", "12", "Debian 12 (bookworm)", 768<<20)
	serial := func(n int) string {
		return []string{"7GXK2M3", "9BTQ4N3", "F2LR8P3", "H6ZW1M3", "3CVD9R3", "J8NT5M3", "B4FS7Q3", "5KWX3N3", "D1PH6M3"}[n]
	}
	mac := func(n int) lpmos.MAC { return lpmos.MAC{0xb0, 0x7b, 0x25, 0xc4, 0x1a, byte(n << 4)} }
	var ids []string
	add := func(n int, host string) string {
		id := w.create(lpmos.Spec{RegionID: "fra-1", TargetMAC: mac(n), OSType: "debian", OSVersion: "12", Hostname: host,
			SSHKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEJ5c3RlbUtleUZvckRvY3VtZW50YXRpb25Pbmx5MDE= ops@bastion"}})
		ids = append(ids, id)
		return id
	}

	// Two that are done, one that was not wanted after all.
	for n, host := range []string{"web-01", "web-02"} {
		id := add(n, host)
		w.power(mac(n), time.Second, server(mac(n), serial(n)))
		w.approve(id)
	}
	canceled := add(2, "web-03")
	if _, err := w.api.Cancel(w.ctx, canceled, "wrong rack"); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids[:2] {
		w.completed(id)
	}
	// One that nobody has turned on, one whose disk is too small, one that has
	// data on its only small disk, and three at work.
	add(3, "gpu-01")
	small := server(mac(4), serial(4))
	small.Disks = small.Disks[:1]
	small.Disks[0].SizeBytes, small.Disks[0].Content = 512<<20, lpmos.Content{}
	w.power(mac(4), time.Second, small)
	w.until(add(4, "edge-09"), lpmos.AwaitingApproval)
	data := server(mac(5), serial(5))
	data.Disks = append(data.Disks[:1], data.Disks[2:]...)
	w.power(mac(5), time.Second, data)
	dataID := add(5, "db-07")
	w.until(dataID, lpmos.AwaitingApproval)
	var running []string
	for i := range 3 {
		n := 6 + i
		running = append(running, add(n, fmt.Sprintf("app-%d", 112+i)))
		w.power(mac(n), 45*time.Second, server(mac(n), serial(n)))
		w.approve(running[i])
		w.until(running[i], lpmos.Installing)
		time.Sleep(6 * time.Second)
	}

	b := tab.New(t, w.url)
	b.SignIn(w.api, "operator")
	for _, p := range []struct {
		name, path string
		height     int64
		ready      string
	}{
		{"dashboard", "/dashboard", 800, `document.querySelectorAll('.list tr[data-task]').length === 3`},
		{"task-running", "/tasks/" + running[1], 1000, `parseInt(document.querySelector('[data-part=percent]').textContent) > 25`},
		{"approve", "/tasks/" + dataID + "/approve", 1100, `document.querySelector('#sn4') !== null`},
	} {
		b.Width(pictureWidth, p.height)
		b.Open(p.path)
		b.Live()
		b.Until("show "+p.name, 30*time.Second, p.ready)
		if over := tab.Eval[int](b, `document.documentElement.scrollWidth - document.documentElement.clientWidth`); over > 0 {
			t.Errorf("%s scrolls sideways by %d px", p.name, over)
		}
		picture := b.Picture()
		cfg, err := png.DecodeConfig(bytes.NewReader(picture))
		if err != nil || cfg.Width != pictureWidth || len(picture) > pictureBytes {
			t.Errorf("picture of %s is %d px wide and has %d bytes, %v; want %d px and at most %d bytes", p.name, cfg.Width, len(picture), err, pictureWidth, pictureBytes)
		}
		if dir := os.Getenv("LPMOS_SCREENSHOTS"); dir != "" {
			if !filepath.IsAbs(dir) {
				dir = filepath.Join("..", "..", dir)
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, p.name+".png"), picture, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, id := range running {
		w.completed(id)
	}
}
