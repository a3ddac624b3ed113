package browser

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent"
	"github.com/lpmos/lpmos/internal/agent/demo"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/region"
	"github.com/lpmos/lpmos/internal/site"
	"github.com/lpmos/lpmos/internal/store"
	"github.com/lpmos/lpmos/test/fixture"
)

// world is a running site and its machines.
type world struct {
	t    testing.TB
	site *site.Site
	api  *apiclient.Client
	url  string
	boot string
	dir  string

	ctx context.Context // ends with the test
	wg  sync.WaitGroup

	mu      sync.Mutex // guards what follows
	changed []string   // keys of the store that were written or deleted, in order, but for sessions: they are used and tidied up
}

type option func(*site.Config)

func newWorld(t testing.TB, name string, opts ...option) *world {
	t.Helper()
	// t.TempDir may be too deep for the path of a socket.
	dir, err := os.MkdirTemp("", "lpmos-browser-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cfg := site.Config{DataDir: dir, NoFsync: true, Region: region.Config{
		RegionID: "dc1", BootAddr: "127.0.0.1:0", AgentAddr: "127.0.0.1:0", TFTPAddr: "off",
	}}
	cfg.ControlPlane.ListenAddr, cfg.ControlPlane.SiteName = "127.0.0.1:0", name
	for _, o := range opts {
		o(&cfg)
	}
	s, err := site.New(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &world{t: t, site: s, url: s.ControlPlane.URL(), boot: s.Region.BootURL(), dir: dir, ctx: ctx}
	s.ControlPlane.State().Follow(w.note)
	w.wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Errorf("site: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); w.wg.Wait() })
	if w.api, err = apiclient.New(w.url, nil); err != nil {
		t.Fatal(err)
	}
	w.api.UseToken(s.ControlPlane.LocalToken("operator"))
	w.wait("the site", func() bool {
		regions, err := w.api.Regions(ctx)
		return err == nil && w.api.Ready(ctx) == nil && len(regions) == 1 && regions[0].Status == "online"
	})
	return w
}

func (w *world) note(b store.Batch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range b.Changes {
		if !b.Reset && c.Key.Kind != store.KindSignIn {
			w.changed = append(w.changed, c.Key.String())
		}
	}
}

// changes are the keys that were changed so far.
func (w *world) changes() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.changed)
}

// publish makes an image and makes it installable.
func (w *world) publish(os_, version, title string, content int64) lpmos.Image {
	w.t.Helper()
	dir, err := os.MkdirTemp(w.dir, "image-")
	if err != nil {
		w.t.Fatal(err)
	}
	img, err := fixture.Image(w.ctx, dir, os_, version, title, content)
	if err == nil {
		err = fixture.Publish(w.ctx, w.api, dir, img)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return img
}

// power turns a machine on. The returned function turns it off.
func (w *world) power(mac lpmos.MAC, d time.Duration, hw *lpmos.Hardware) func() {
	ctx, off := context.WithCancel(w.ctx)
	m := demo.New(demo.Config{
		RegionURL: w.boot, MAC: mac, Duration: d, Hardware: hw, Version: "1.0",
		Pauses: agent.Pauses{Reboot: 500 * time.Millisecond},
	}, io.Discard, slog.LevelInfo)
	done := make(chan struct{})
	w.wg.Go(func() {
		defer close(done)
		if err := m.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			w.t.Errorf("machine %s: %v", mac, err)
		}
	})
	return func() { off(); <-done }
}

func (w *world) create(spec lpmos.Spec) string {
	w.t.Helper()
	id, err := w.api.CreateTask(w.ctx, spec, "")
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *world) wait(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("%s: not so within a minute", what)
		}
	}
}

func (w *world) until(id string, s ...lpmos.Status) (task lpmos.Task) {
	w.t.Helper()
	w.wait("task "+id, func() bool {
		var err error
		task, err = w.api.Task(w.ctx, id)
		return err == nil && slices.Contains(s, task.Status)
	})
	return task
}

func (w *world) approve(id string) {
	w.t.Helper()
	task := w.until(id, lpmos.AwaitingApproval)
	if _, err := w.api.Decide(w.ctx, id, true, task.Plan.Digest, ""); err != nil {
		w.t.Fatal(err)
	}
}

// completed checks that a task ended well, with a history that holds.
func (w *world) completed(id string) {
	w.t.Helper()
	w.until(id, lpmos.Completed)
	events, err := w.api.Events(w.ctx, id)
	if err == nil {
		err = lpmos.VerifyEvents(events)
	}
	if err != nil {
		w.t.Errorf("history of task %s: %v", id, err)
	}
}

// server is a machine as one stands in racks: two small disks, one of them
// with an old system, two large ones, four ports.
func server(mac lpmos.MAC, serial string) *lpmos.Hardware {
	port := func(n int) lpmos.MAC { m := mac; m[5] += byte(n); return m }
	id := fmt.Sprintf("%02x%02x", mac[5], mac[4])
	h := &lpmos.Hardware{
		BootMode: "uefi", SecureBoot: new(bool),
		System:  lpmos.System{Manufacturer: "Dell Inc.", Product: "PowerEdge R650", Serial: serial, UUID: "4c4c4544-0051-3510-8052-" + mac.String()[0:2] + mac.String()[3:5] + mac.String()[6:8] + mac.String()[9:11] + mac.String()[12:14] + mac.String()[15:17]},
		Board:   lpmos.Board{Manufacturer: "Dell Inc.", Product: "0PYXKY", Serial: "." + serial + ".CNIVC0028G0211."},
		Chassis: lpmos.Chassis{Manufacturer: "Dell Inc.", Type: 23, Serial: serial, AssetTag: "IT-" + serial[:4]},
		BIOS:    lpmos.BIOS{Vendor: "Dell Inc.", Version: "1.14.1", Date: "05/02/2024"},
		CPU:     lpmos.CPU{Model: "Intel(R) Xeon(R) Gold 6330 CPU @ 2.00GHz", Architecture: "amd64", Sockets: 2, Cores: 56, Threads: 112},
		Memory:  lpmos.Memory{TotalBytes: 270_300_000_000},
		Kernel:  "6.1.0-56-amd64", Agent: "1.0",
	}
	for i := range 2 {
		h.Disks = append(h.Disks, lpmos.Disk{Device: []string{"/dev/nvme0n1", "/dev/nvme1n1"}[i], SizeBytes: 480_103_981_056, SectorBytes: 512, PhysicalBytes: 4096,
			Model: "SAMSUNG MZ1L2480HCHQ-00A07", Serial: []string{"S665NE0R" + serial[:4] + "01", "S665NE0R" + serial[:4] + "02"}[i], WWN: "eui.36363530" + id + []string{"00a1", "00a2"}[i], Transport: "nvme"})
	}
	h.Disks[0].Content = lpmos.Content{Table: "gpt", TableID: "1c9a5c53-5a5c-4d69-8d4c-0a5f4d1b2c3d", Partitions: []lpmos.Partition{
		{Number: 1, StartBytes: 1 << 20, SizeBytes: 1 << 30, Type: "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", Name: "EFI System Partition", Filesystem: &lpmos.Filesystem{Type: "vfat", UUID: "6B1F-02E4", SizeBytes: 1 << 30, UsedBytes: 6 << 20}},
		{Number: 2, StartBytes: 1<<30 + 1<<20, SizeBytes: 440 << 30, Type: "0fc63daf-8483-4772-8e79-3d69d8477de4", Filesystem: &lpmos.Filesystem{
			Type: "ext4", Label: "root", UUID: "b7f5b3f2-5e0e-4f0b-8a63-5d3a1c2e4f60", SizeBytes: 440 << 30, UsedBytes: 212_400_000_000, OS: "CentOS Linux 7 (Core)", Hostname: "mysql-old-03",
			WrittenAt: time.Date(2024, 3, 11, 4, 12, 0, 0, time.UTC)}},
	}}
	for i := range 2 {
		h.Disks = append(h.Disks, lpmos.Disk{Device: []string{"/dev/sda", "/dev/sdb"}[i], SizeBytes: 7_681_501_126_656, SectorBytes: 512, PhysicalBytes: 4096,
			Vendor: "DELL", Model: "HFS7T6G3H2X069N", Serial: []string{"ENB8N7" + serial[:4] + "A", "ENB8N7" + serial[:4] + "B"}[i], WWN: "0x5ace42e0" + id + []string{"00a1", "00a2"}[i], Transport: "sas",
			Content: lpmos.Content{Filesystem: &lpmos.Filesystem{Type: "linux_raid_member", Label: "data", UUID: "7e3c9d6e-1b7a-4f3e-9a51-0c5e7f2b6d88"}}})
	}
	for i := range 4 {
		h.NICs = append(h.NICs, lpmos.NIC{Name: []string{"eno1", "eno2", "ens3f0", "ens3f1"}[i], MAC: port(i), Driver: []string{"tg3", "tg3", "mlx5_core", "mlx5_core"}[i],
			Link: i != 1, SpeedMbps: []int{1000, 0, 25000, 25000}[i], Boot: i == 0, PCI: []string{"0000:04:00.0", "0000:04:00.1", "0000:31:00.0", "0000:31:00.1"}[i]})
	}
	return h
}
