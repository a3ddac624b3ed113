package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/sim"
	"github.com/lpmos/lpmos/test/fixture"
)

// stops measures the emergency stop: how long after it was said a machine still
// gets permission to write, while many ask.
func (b *bench) stops() error {
	const runs, machines, quiet = 3, 60, 3 * time.Second
	rows := [][]string{{"run", "permits before", "stop answered after", "last permit after the stop was said", "permits in 3 s after the answer"}}
	for run := range runs {
		row, err := b.stopOnce(filepath.Join(b.dir, fmt.Sprintf("stop-%d", run)), machines, quiet)
		if err != nil {
			return err
		}
		rows = append(rows, append([]string{fmt.Sprint(run + 1)}, row...))
	}
	table("Emergency stop", fmt.Sprintf("`lpmos up` with %d simulated machines that are approved and ask to write, no limit a minute; the stop is said when a third has its permit. Aim: no permit later than 2 s. By the events' times, same clock.", machines), rows...)
	return nil
}

func (b *bench) stopOnce(data string, machines int, quiet time.Duration) (row []string, err error) {
	s, err := b.up(data)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	ctx, cancel := context.WithTimeout(b.ctx, 3*time.Minute)
	defer cancel()
	dir := filepath.Join(b.dir, "image")
	img, err := fixture.Image(ctx, dir, "tiny", "1", "Tiny 1", 1<<20)
	if err != nil {
		return nil, err
	}
	if err := fixture.Publish(ctx, s.api, dir, img); err != nil {
		return nil, err
	}
	if err := s.online(ctx); err != nil {
		return nil, err
	}
	if _, err := s.api.SetLimits(ctx, lpmos.Limits{PermitsPerMinute: 100_000}, ""); err != nil {
		return nil, err
	}
	regions, err := s.api.Regions(ctx)
	if err != nil {
		return nil, err
	}
	fleet, err := sim.New(sim.Config{RegionURL: regions[0].Capabilities.BootURL, Machines: machines, Ramp: 4 * time.Second, Install: time.Minute}, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	op := sim.NewOperator(s.api, lpmos.Spec{RegionID: "dc1", OSType: "tiny", OSVersion: "1"}, fleet.MACs())
	ids, err := op.Create(ctx)
	if err != nil {
		return nil, err
	}
	going, off := context.WithCancel(ctx)
	done := make(chan error, 2)
	go func() { done <- fleet.Run(going) }()
	go func() { done <- op.Approve(going) }()
	defer func() { off(); <-done; <-done }()

	for fleet.Snapshot().Phases[sim.Installing] < machines/3 {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return nil, fmt.Errorf("machines do not begin: %s", fleet.Snapshot())
		}
	}
	said := time.Now()
	if _, err := s.api.Stop(ctx, "bench"); err != nil {
		return nil, err
	}
	answered := time.Now()
	time.Sleep(quiet)
	before, late, last := 0, 0, time.Duration(0)
	for _, id := range ids {
		events, err := s.api.Events(ctx, id)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			if e.Cause != lpmos.CausePermitGranted {
				continue
			}
			if e.At.After(answered) {
				late++
			}
			if after := e.At.Sub(said); after > 0 {
				last = max(last, after)
			} else {
				before++
			}
		}
	}
	lastText := "none"
	if last > 0 {
		lastText = fmt.Sprintf("%.1f ms", float64(last.Microseconds())/1000)
	}
	return []string{fmt.Sprint(before), fmt.Sprintf("%.1f ms", float64(answered.Sub(said).Microseconds())/1000), lastText, fmt.Sprint(late)}, nil
}
