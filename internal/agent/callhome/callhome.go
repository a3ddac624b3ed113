// Package callhome is the agent in the installed system: it tells the region
// once that the system booted from its disk, and what it is, and removes
// itself. Nothing else proves an installation.
//
// The token it uses can do nothing else and is worthless afterwards.
package callhome

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/agentapi"
)

// Paths in the installed system.
const (
	ConfigPath = "/etc/lpmos/callhome.json"
	AgentPath  = "/usr/lib/lpmos/agent"
	UnitPath   = "/etc/systemd/system/lpmos-callhome.service"
	WantsPath  = "/etc/systemd/system/multi-user.target.wants/lpmos-callhome.service"
)

// Exit codes of `agent callhome`.
const (
	ExitReported    = 0
	ExitUnreachable = 1 // nobody answered; worth starting again
	ExitRefused     = 2 // the region refused, or there is nothing to report with
)

const (
	// Patience is how long one run tries; the task's verify deadline is of the
	// same order.
	Patience = 30 * time.Minute
	// perURL is how long one address is tried before the next.
	perURL = time.Minute
	// maxConfigBytes bounds the configuration.
	maxConfigBytes = 256 << 10
)

// Run reports the system below root ("/", or a directory in a test) and
// removes what the installation left for that. The exit code is for the
// process.
func Run(ctx context.Context, root string, disks func(context.Context) (*lpmos.Hardware, error), log *slog.Logger) int {
	at := func(p string) string { return filepath.Join(root, p) }
	f, err := os.Open(at(ConfigPath))
	if errors.Is(err, fs.ErrNotExist) {
		log.Info("nothing to report: the first boot was reported before")
		return ExitReported
	}
	if err != nil {
		log.Error("configuration not read", "err", err)
		return ExitRefused
	}
	var cfg agentapi.CallhomeConfig
	err = lpmos.DecodeJSON(f, maxConfigBytes, &cfg)
	f.Close()
	if err != nil {
		log.Error("configuration not read", "err", err)
		return ExitRefused
	}
	settle(ctx, root, cfg.AwaitTime)
	collect := func() lpmos.Receipt { return Collect(ctx, root, disks) }
	if err := Post(ctx, cfg, collect, Patience, log); err != nil {
		log.Error("first boot not reported", "err", err)
		if agentapi.Refused(err) != 0 {
			return ExitRefused
		}
		return ExitUnreachable
	}
	log.Info("first boot reported", "task", cfg.TaskID)
	// The token goes first; the program is removed while it runs, which Linux
	// allows.
	for _, p := range []string{ConfigPath, WantsPath, UnitPath, AgentPath} {
		if err := os.Remove(at(p)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			log.Warn("not removed", "file", p, "err", err)
		}
	}
	for _, p := range []string{ConfigPath, AgentPath} {
		os.Remove(filepath.Dir(at(p))) // only if it is empty now
	}
	return ExitReported
}

// Post sends the receipt to the first address that takes it, for at most
// patience. A refusal by one that speaks for the region is final.
func Post(ctx context.Context, cfg agentapi.CallhomeConfig, collect func() lpmos.Receipt, patience time.Duration, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if len(cfg.URLs) == 0 {
		return &lpmos.InvalidError{Field: "urls", Problem: "are missing"}
	}
	var last error
	for ctx.Err() == nil {
		for _, u := range cfg.URLs {
			c, err := agentapi.NewClient(agentapi.ClientConfig{URL: u, ServerName: cfg.ServerName, CA: cfg.CA, Credential: cfg.Token}, log)
			if err != nil {
				return err
			}
			// Addresses and uptime are those of now: the first try may be before
			// the network is up.
			b := agentapi.Booted{MACAddress: cfg.MAC, TaskID: cfg.TaskID, Attempt: cfg.Attempt, Receipt: collect()}
			one, stop := context.WithTimeout(ctx, perURL)
			err = c.Booted(one, b)
			stop()
			c.Close()
			if err == nil || agentapi.Refused(err) != 0 {
				return err
			}
			last = err
		}
	}
	if last == nil {
		last = context.Cause(ctx)
	}
	return fmt.Errorf("report first boot: %w", last)
}
