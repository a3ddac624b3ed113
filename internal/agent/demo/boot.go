package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agent"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// ErrLocal says that the region sends a machine to its own disk.
var ErrLocal = errors.New("boot the local disk")

// segmentURL finds the initramfs segment of this boot in an iPXE script, siteURL
// the one that is the same for every machine of a site.
var (
	segmentURL = regexp.MustCompile(`(?m)^[ \t]*initrd\b.*?[ \t]((?:https?://[^\s]+)?` + regexp.QuoteMeta(agentapi.PathSegment) + `[^\s]+)`)
	siteURL    = regexp.MustCompile(`(?m)^[ \t]*initrd --name site\.img[ \t]((?:https?://[^\s]+)?` + regexp.QuoteMeta(agentapi.PathBlobs) + `[^\s]+)`)
)

// localBoot are commands that leave the network for a disk.
var localBoot = regexp.MustCompile(`(?m)^[ \t]*(sanboot\b|chain\b.*localboot)`)

const maxBootBytes = 1 << 20

func (m *Machine) boot(ctx context.Context) (agentapi.BootConfig, error) {
	return Boot(ctx, m.cfg.RegionURL, m.cfg.MAC, m.hardware.System.UUID)
}

// Boot asks a region's boot listener for a machine's boot script and follows
// it: the configuration of this boot, or ErrLocal.
func Boot(ctx context.Context, regionURL string, mac lpmos.MAC, uuid string) (agentapi.BootConfig, error) {
	base, err := url.Parse(regionURL)
	if err != nil {
		return agentapi.BootConfig{}, fmt.Errorf("read region address: %w", err)
	}
	ask := base.JoinPath(agentapi.PathBootScript)
	ask.RawQuery = url.Values{"mac": {mac.String()}, "uuid": {uuid}, "platform": {"pcbios"}, "arch": {"x86_64"}}.Encode()
	script, err := get(ctx, ask.String())
	if err != nil {
		return agentapi.BootConfig{}, fmt.Errorf("fetch boot script: %w", err)
	}
	found := segmentURL.FindSubmatch(script)
	if found == nil {
		if localBoot.Match(script) {
			return agentapi.BootConfig{}, ErrLocal
		}
		return agentapi.BootConfig{}, fmt.Errorf("boot script names no segment and no disk: %.200q", script)
	}
	where := siteURL.FindSubmatch(script)
	if where == nil {
		return agentapi.BootConfig{}, errors.New("boot script names no site segment, so no order could be trusted (publish the boot image again: lpmos bootimage publish)")
	}
	var files [2][]byte
	for i, f := range []struct{ name, address, path string }{
		{"site segment", string(where[1]), agentapi.SiteConfigPath}, {"boot segment", string(found[1]), agentapi.BootConfigPath},
	} {
		address, err := base.Parse(f.address)
		if err != nil {
			return agentapi.BootConfig{}, fmt.Errorf("read address of %s: %w", f.name, err)
		}
		archive, err := get(ctx, address.String())
		if err != nil {
			return agentapi.BootConfig{}, fmt.Errorf("fetch %s: %w", f.name, err)
		}
		if files[i], err = fileOfCPIO(archive, strings.TrimPrefix(f.path, "/")); err != nil {
			return agentapi.BootConfig{}, fmt.Errorf("read %s: %w", f.name, err)
		}
	}
	return agent.ParseBootConfig(bytes.NewReader(files[1]), bytes.NewReader(files[0]))
}

func get(ctx context.Context, address string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBootBytes+1))
	switch {
	case err != nil:
		return nil, err
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("region answered %s: %.200s", resp.Status, bytes.TrimSpace(b))
	case len(b) > maxBootBytes:
		return nil, fmt.Errorf("answer is larger than %d bytes", maxBootBytes)
	}
	return b, nil
}

// fileOfCPIO returns a file of an archive in the format newc (Linux,
// Documentation/driver-api/early-userspace/buffer-format.rst).
func fileOfCPIO(b []byte, name string) ([]byte, error) {
	const header = 110
	align := func(n int) int { return (n + 3) &^ 3 }
	for len(b) >= header {
		if !bytes.HasPrefix(b, []byte("070701")) {
			if b[0] == 0 { // padding between archives
				b = b[1:]
				continue
			}
			return nil, errors.New("not a newc archive")
		}
		field := func(i int) int {
			n, err := strconv.ParseUint(string(b[6+8*i:14+8*i]), 16, 32)
			if err != nil {
				return -1
			}
			return int(n)
		}
		size, nameSize := field(6), field(11)
		body := align(header + nameSize)
		if size < 0 || nameSize < 1 || body+size > len(b) {
			return nil, errors.New("archive ends too early")
		}
		if got := string(b[header : header+nameSize-1]); strings.TrimPrefix(got, "/") == name {
			return b[body : body+size], nil
		}
		b = b[min(align(body+size), len(b)):]
	}
	return nil, fmt.Errorf("archive has no %s", name)
}
