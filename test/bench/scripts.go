package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/region/httpboot"
	"github.com/lpmos/lpmos/internal/region/netboot"
)

// index is a boot index in memory and what else a boot listener asks for. A
// boot begins at once: storing it is etcd's time, not the listener's.
type index map[lpmos.MAC]lpmos.BootEntry

func (x index) Lookup(m lpmos.MAC) (lpmos.BootEntry, bool) { e, ok := x[m]; return e, ok }
func (index) Synced() bool                                 { return true }
func (x index) Begin(_ context.Context, r httpboot.BootRequest) (lpmos.BootEntry, string, error) {
	return x[r.MAC], "nonce", nil
}
func (index) Segment(context.Context, string, netip.Addr) ([]byte, error) {
	return nil, lpmos.ErrNotFound
}
func (index) Open(context.Context, string) (io.ReadSeekCloser, int64, error) {
	return nil, 0, lpmos.ErrNotFound
}
func (i index) Follow(ctx context.Context, sum string) (io.ReadSeekCloser, int64, error) {
	return i.Open(ctx, sum)
}
func (index) BootImage() (lpmos.BootImage, bool) {
	blob := lpmos.Blob{SHA256: fmt.Sprintf("%064x", 1), Bytes: 1}
	return lpmos.BootImage{Kernel: blob, Initrd: blob, KernelArgs: "quiet", Files: map[string]lpmos.Blob{"localboot.0": blob, "localboot.efi": blob}}, true
}

func macOf(i int) lpmos.MAC { return lpmos.MAC{0x52, 0x54, 1, byte(i >> 16), byte(i >> 8), byte(i)} }

var scriptRate = regexp.MustCompile(`known=(\d+)\S*\s.*?([\d.]+) scripts/s`)

func (b *bench) scripts() error {
	out, err := exec.CommandContext(b.ctx, "go", "test", "-run", "^$", "-bench", "BenchmarkBootScript", "-benchtime", "2s", "./internal/region/httpboot").CombinedOutput()
	if err != nil {
		return fmt.Errorf("run benchmark: %w\n%s", err, out)
	}
	handler := map[string]string{}
	for _, m := range scriptRate.FindAllSubmatch(out, -1) {
		handler[string(m[1])] = string(m[2])
	}
	rows := [][]string{{"machines known", "handler alone", "HTTP, connection kept", "HTTP, connection each"}}
	for _, known := range []int{1, 100_000} {
		row := []string{fmt.Sprint(known), handler[fmt.Sprint(known)] + "/s"}
		for _, keep := range []bool{true, false} {
			rate, err := b.scriptsOverHTTP(known, keep)
			if err != nil {
				return err
			}
			row = append(row, fmt.Sprintf("%.0f/s", rate))
		}
		rows = append(rows, row)
	}
	table("Boot scripts", "BenchmarkBootScript on one processor; then 8 clients on loopback sockets for 3 s, in this very process: half the answers are agent scripts, half local ones. iPXE opens a connection for each.", rows...)
	return nil
}

func (b *bench) scriptsOverHTTP(known int, keep bool) (float64, error) {
	x := make(index, known)
	for i := range known {
		m := macOf(i)
		x[m] = lpmos.BootEntry{MAC: m, Action: []string{lpmos.BootAgent, lpmos.BootLocal}[i%2], TaskID: "00000000-0000-4000-8000-000000000000"}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	url := "http://" + l.Addr().String()
	decider, err := netboot.New(netboot.Config{BootURL: url, NextServer: netip.MustParseAddr("127.0.0.1"), Unknown: netboot.Ignore}, x)
	if err != nil {
		return 0, err
	}
	h := httpboot.New(httpboot.Deps{Decider: decider, Boots: x, Segments: x, Blobs: x, Images: x,
		Patch: func(b []byte, _ string) ([]byte, error) { return b, nil }}, slog.New(slog.DiscardHandler))
	srv := httpboot.NewServer(h)
	go srv.Serve(l)
	defer srv.Close()
	const clients, length = 8, 3 * time.Second
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: !keep, MaxIdleConnsPerHost: clients}}
	defer client.CloseIdleConnections()
	var done atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, clients)
	began := time.Now()
	for c := range clients {
		wg.Go(func() {
			for i := c; time.Since(began) < length && errs[c] == nil; i += clients + 1 {
				errs[c] = fetch(client, url+"/boot.ipxe?mac="+macOf(i%known).String()+"&uuid=00000000-0000-4000-8000-000000000001&platform=pcbios&arch=x86_64")
				done.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(done.Load()) / time.Since(began).Seconds(), errors.Join(errs...)
}

func fetch(c *http.Client, url string) error {
	resp, err := c.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || n < 100) {
		err = fmt.Errorf("boot script: %s, %d bytes", resp.Status, n)
	}
	return err
}
