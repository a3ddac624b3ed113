package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/apiclient"
	"github.com/lpmos/lpmos/internal/embedetcd"
	"github.com/lpmos/lpmos/internal/store"
	"github.com/lpmos/lpmos/test/fixture"
)

// history measures how long a control plane with a long history takes until it
// answers, and how long for a page of it.
func (b *bench) history() error {
	const runs = 5
	data := filepath.Join(b.dir, "history")
	s, err := b.up(data) // which makes store and keys
	if err != nil {
		return err
	}
	if err := s.stop(); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	bytes, stored, err := remember(b.ctx, filepath.Join(data, "etcd"), b.tasks)
	if err != nil {
		return fmt.Errorf("store tasks: %w", err)
	}
	db, err := os.Stat(filepath.Join(data, "etcd", "member", "member", "snap", "db"))
	if err != nil {
		return err
	}
	rows := [][]string{{"tasks", "stored", "etcd's file", "start to ready", "processor", "RSS when ready", "tasks answered"}}
	var ready []time.Duration
	var pages [][]string
	for range runs {
		s, err := b.up(data)
		if err != nil {
			return err
		}
		used := s.cpu()
		rss, err := s.rss()
		if err != nil {
			return err
		}
		page, err := s.api.Tasks(b.ctx, url.Values{"limit": {"1"}})
		if err != nil {
			return err
		}
		if page.Total != b.tasks {
			return fmt.Errorf("%d tasks are there; want %d", page.Total, b.tasks)
		}
		if len(ready) == runs-1 {
			time.Sleep(5 * time.Second) // for what follows a start
			if pages, err = s.pages(b.ctx); err != nil {
				return err
			}
		}
		if err := s.stop(); err != nil {
			return fmt.Errorf("stop: %w", err)
		}
		ready = append(ready, s.ready)
		rows = append(rows, []string{
			fmt.Sprint(b.tasks), fmt.Sprintf("%d MB", bytes/1e6), fmt.Sprintf("%d MB", db.Size()/1e6), fmt.Sprintf("%.1f s", s.ready.Seconds()),
			fmt.Sprintf("%.1f s", used.Seconds()), fmt.Sprintf("%.0f MiB", float64(rss)/(1<<20)), fmt.Sprint(page.Total),
		})
	}
	slices.Sort(ready)
	table("Start with a long history", fmt.Sprintf("lpmos up (control plane, etcd and region in one process), from exec until /readyz answers 200; median %.1f s (aim 10 s). "+
		"Tasks of usual size, four a machine, one in a hundred live, archived a week after they ended; stored in %s. The file is in the page cache.",
		ready[runs/2].Seconds(), stored.Round(time.Second)), rows...)
	table("A page of a hundred of them", fmt.Sprintf("Median and slowest of %d requests over one connection, until the last byte was read, in ms (aim for the median 20): "+
		"for who sees all of 40 regions, and for who sees %d of them.", pageRuns, len(limitedTo)), pages...)
	return nil
}

const pageRuns = 40

var limitedTo = []string{"dc1", "dc7", "dc13", "dc19", "dc25"}

// pages measures the list of tasks, as the API and as the web interface answer
// it.
func (s *site) pages(ctx context.Context) ([][]string, error) {
	limited, err := s.viewer(ctx, "limited", limitedTo...)
	if err != nil {
		return nil, err
	}
	all, err := s.viewer(ctx, "all")
	if err != nil {
		return nil, err
	}
	rows := [][]string{{"", "found", "API", "page", "API, 5 regions", "page, 5 regions"}}
	for _, q := range []struct{ name, text, sort string }{
		{"everything", "", ""}, {"a status and a region", "status:failed region:dc7", ""}, {"a word", "sn0017123", ""},
		{"three words, one turned round", "dell node rack-17 !rocky", ""}, {"a MAC", "mac:00-5b-a0", ""}, {"time and host", "after:90d host:rack-17 os:debian", ""},
		{"by host", "status:completed", "host"}, {"by last change", "!status:failed", "-updated"}, {"stuck", "is:stuck", ""},
	} {
		row := []string{q.name, ""}
		for _, token := range []string{all, limited} {
			for _, path := range []string{"/api/v1/tasks", "/tasks"} {
				took, body, err := s.timed(ctx, path+"?"+url.Values{"q": {q.text}, "sort": {q.sort}}.Encode(), token)
				if err != nil {
					return nil, err
				}
				if row[1] == "" {
					var list struct {
						Total int `json:"total"`
					}
					if err := json.Unmarshal(body, &list); err != nil {
						return nil, err
					}
					row[1] = fmt.Sprint(list.Total)
				}
				row = append(row, fmt.Sprintf("%.1f, %.1f", milliseconds(took[len(took)/2]), milliseconds(took[len(took)-1])))
			}
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// viewer makes a user who may look at some regions, all if none is named, and
// returns a token of theirs.
func (s *site) viewer(ctx context.Context, name string, regions ...string) (string, error) {
	const password = "a password for the benchmark"
	u, err := s.api.CreateUser(ctx, name, apiclient.Access{Role: lpmos.Viewer, Regions: regions})
	if err != nil {
		return "", err
	}
	c, err := apiclient.New(s.url, nil)
	if err != nil {
		return "", err
	}
	if _, err := c.Login(ctx, name, u.OneTimePassword); err != nil {
		return "", err
	}
	if err := c.ChangePassword(ctx, u.OneTimePassword, password); err != nil {
		return "", err
	}
	if _, err := c.Login(ctx, name, password); err != nil {
		return "", err
	}
	t, err := c.CreateToken(ctx, apiclient.NewToken{Name: "bench", Role: lpmos.Viewer})
	return t.Token, err
}

// timed asks for something again and again, and gives how long each took,
// shortest first, and the last answer.
func (s *site) timed(ctx context.Context, path, token string) (took []time.Duration, body []byte, err error) {
	for range pageRuns {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path, nil)
		if err != nil {
			return nil, nil, err
		}
		r.Header.Set("Authorization", "Bearer "+token)
		began := time.Now()
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			return nil, nil, err
		}
		body, err = io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return nil, nil, err
		}
		if resp.StatusCode != http.StatusOK {
			return nil, nil, fmt.Errorf("GET %s: %s", path, resp.Status)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took, body, nil
}

// remember writes tasks into the store in dir, as they come: those that ended a
// week before the newest was created are archived, and history is compacted.
func remember(ctx context.Context, dir string, tasks int) (bytes int64, stored time.Duration, err error) {
	e, err := embedetcd.Start(ctx, embedetcd.Config{Dir: dir, NoFsync: true}, slog.New(slog.DiscardHandler))
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{e.Endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	st, err := store.Open(ctx, store.Config{Endpoints: []string{e.Endpoint()}}, slog.New(slog.DiscardHandler))
	if err != nil {
		return 0, 0, err
	}
	defer st.Close()
	began := time.Now()
	const week = 7 * 24 * 12 // tasks, of which one is created every five minutes
	for n := range tasks {
		ops := []clientv3.Op{}
		for _, p := range fixture.History(n) {
			key := p.Key.String()
			bytes += int64(len(key) + len(p.Value))
			ops = append(ops, clientv3.OpPut(key, string(p.Value)))
		}
		r, err := c.Txn(ctx).Then(ops...).Commit()
		if err != nil {
			return bytes, 0, err
		}
		if n%week != 0 && n < tasks-1 {
			continue
		}
		if _, err := st.ArchiveTasks(ctx, fixture.HistoryBegins.Add(time.Duration(n)*fixture.HistoryEvery-7*24*time.Hour)); err != nil {
			return bytes, 0, err
		}
		if _, err := c.Compact(ctx, r.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
			return bytes, 0, err
		}
	}
	return bytes, time.Since(began), nil
}

// cpu is what a process has used of all processors.
func (s *site) cpu() (used time.Duration) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(b), ") ") // the name may hold anything
	var user, system int64
	if f := strings.Fields(after); len(f) > 12 {
		fmt.Sscan(f[11]+" "+f[12], &user, &system)
	}
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
}
