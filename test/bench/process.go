package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/controlplane"
	"github.com/lpmos/lpmos/test/fixture"
)

// site is a running `lpmos up`.
type site struct {
	cmd   *exec.Cmd
	api   *apiclient.Client
	url   string
	ready time.Duration
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// up starts `lpmos up` and waits until it is ready.
func (b *bench) up(data string) (*site, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	s := &site{cmd: exec.CommandContext(b.ctx, b.path("lpmos"), "up", "--data-dir", data, "--listen-addr", addr, "--boot-addr", "127.0.0.1:0",
		"--agent-addr", "127.0.0.1:0", "--tftp-addr", "off", "--bootimage-dir", filepath.Join(b.dir, "none"))}
	var said bytes.Buffer
	s.cmd.Stdout, s.cmd.Stderr = &said, &said
	s.url = "http://" + addr
	if s.api, err = apiclient.New(s.url, nil); err != nil {
		return nil, err
	}
	s.api.UseTokenFile(filepath.Join(data, controlplane.LocalTokenFile))
	began := time.Now()
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	for s.api.Ready(b.ctx) != nil {
		if time.Since(began) > time.Minute {
			s.cmd.Process.Kill()
			s.cmd.Wait()
			return nil, fmt.Errorf("lpmos up is not ready after a minute:\n%s", &said)
		}
		time.Sleep(2 * time.Millisecond)
	}
	s.ready = time.Since(began)
	return s, nil
}

func (s *site) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return s.cmd.Wait()
}

// rss is the resident memory in bytes.
func (s *site) rss() (int64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(s.cmd.Process.Pid) + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("no VmRSS in status")
}

func (b *bench) processes() error {
	const runs, idle = 5, 5 * time.Second
	rows := [][]string{{"tasks", "start to ready", "all runs", "RSS after 5 s idle", "all runs"}}
	for _, tasks := range []int{0, 1000} {
		data := filepath.Join(b.dir, "site-"+strconv.Itoa(tasks))
		if tasks > 0 {
			if err := b.fill(data, tasks); err != nil {
				return err
			}
		}
		var ready []time.Duration
		var rss []int64
		for i := range runs {
			dir := data
			if tasks == 0 {
				dir += "-" + strconv.Itoa(i) // a first start each
			}
			s, err := b.up(dir)
			if err != nil {
				return err
			}
			time.Sleep(idle)
			n, err := s.rss()
			if err != nil {
				return err
			}
			if err := s.stop(); err != nil {
				return fmt.Errorf("stop: %w", err)
			}
			ready, rss = append(ready, s.ready), append(rss, n)
		}
		slices.Sort(ready)
		slices.Sort(rss)
		row := []string{strconv.Itoa(tasks), fmt.Sprintf("%d ms", ready[runs/2].Milliseconds()), "", fmt.Sprintf("%.0f MiB", float64(rss[runs/2])/(1<<20)), ""}
		for i := range runs {
			row[2] += fmt.Sprintf("%d ", ready[i].Milliseconds())
			row[4] += fmt.Sprintf("%.0f ", float64(rss[i])/(1<<20))
		}
		rows = append(rows, row)
	}
	table("lpmos up", "Median of 5 processes: from exec until /readyz answers 200 (control plane, etcd and region in one process, fsync on). Without tasks each is a first start on an empty directory; with tasks the same directory each time.", rows...)
	return nil
}

// fill makes tasks, each with the hardware of a machine that has reported.
func (b *bench) fill(data string, tasks int) error {
	s, err := b.up(data)
	if err != nil {
		return err
	}
	defer s.stop()
	dir := filepath.Join(b.dir, "image")
	img, err := fixture.Image(b.ctx, dir, "tiny", "1", "Tiny 1", 1<<20)
	if err != nil {
		return err
	}
	if err := fixture.Publish(b.ctx, s.api, dir, img); err != nil {
		return err
	}
	if err := s.online(b.ctx); err != nil {
		return err
	}
	for i := range tasks {
		if _, err := s.api.CreateTask(b.ctx, lpmos.Spec{RegionID: "dc1", TargetMAC: macOf(i), OSType: "tiny", OSVersion: "1"}, ""); err != nil {
			return err
		}
	}
	return nil
}

func (s *site) online(ctx context.Context) error {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		regions, err := s.api.Regions(ctx)
		if err == nil && len(regions) == 1 && regions[0].Status == "online" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("region is not online: %+v, %v", regions, err)
		}
	}
}

func (b *bench) sizes() error {
	rows := [][]string{{"file", "bytes", ""}}
	for name, what := range map[string]string{"agent": "static, stripped", "lpmos": "static, stripped"} {
		st, err := os.Stat(b.path(name))
		if err != nil {
			return err
		}
		rows = append(rows, []string{name, strconv.FormatInt(st.Size(), 10), what})
	}
	slices.SortFunc(rows[1:], func(x, y []string) int { return strings.Compare(x[0], y[0]) })
	text, err := os.ReadFile(filepath.Join(b.cache, "bootimage", "bootimage.json"))
	if err != nil {
		rows = append(rows, []string{"boot image", "not built", err.Error()})
	} else {
		var img lpmos.BootImage
		if err := json.Unmarshal(text, &img); err != nil {
			return err
		}
		rows = append(rows, []string{"boot image kernel", strconv.FormatInt(img.Kernel.Bytes, 10), img.Version},
			[]string{"boot image initrd", strconv.FormatInt(img.Initrd.Bytes, 10), "modules, tools, agent"})
	}
	table("Sizes", "CGO_ENABLED=0 go build -trimpath -ldflags '-s -w'; the boot image as `lpmos bootimage build` made it last.", rows...)
	return nil
}
