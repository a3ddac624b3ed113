package lpmos_test

import (
	"testing"

	"github.com/lpmos/lpmos"
)

func TestProgressAfter(t *testing.T) {
	p := func(attempt int, s lpmos.Stage, percent int, bytes int64, msg string) *lpmos.Progress {
		return &lpmos.Progress{Attempt: attempt, Stage: s, Percentage: percent, Message: msg, Details: &lpmos.ProgressDetails{BytesDownloaded: bytes}}
	}
	base := p(1, lpmos.Downloading, 30, 100, "a")
	for name, tt := range map[string]struct {
		p, q *lpmos.Progress
		want bool
	}{
		"anything after nothing":         {base, nil, true},
		"itself":                         {base, base, false},
		"more percent":                   {p(1, lpmos.Downloading, 31, 0, "a"), base, true},
		"less percent":                   {p(1, lpmos.Downloading, 29, 900, "z"), base, false},
		"more bytes":                     {p(1, lpmos.Downloading, 30, 101, "a"), base, true},
		"fewer bytes, other words":       {p(1, lpmos.Downloading, 30, 99, "z"), base, false},
		"other words":                    {p(1, lpmos.Downloading, 30, 100, "b"), base, true},
		"a later stage, fewer percent":   {p(1, lpmos.StageInstall, 0, 0, "a"), base, true},
		"an earlier stage, more percent": {p(1, lpmos.Partitioning, 99, 0, "a"), base, false},
		"a later attempt from the start": {p(2, lpmos.Partitioning, 0, 0, "a"), base, true},
		"an earlier attempt at its end":  {p(1, lpmos.Configuring, 100, 0, "a"), p(2, lpmos.Partitioning, 0, 0, ""), false},
		"without figures, the same":      {&lpmos.Progress{Attempt: 1, Stage: lpmos.Downloading, Percentage: 30, Message: "a"}, base, false},
		"with figures after one without": {base, &lpmos.Progress{Attempt: 1, Stage: lpmos.Downloading, Percentage: 30, Message: "a"}, true},
	} {
		if got := tt.p.After(tt.q); got != tt.want {
			t.Errorf("%s: After = %v; want %v", name, got, tt.want)
		}
		if tt.q != nil && tt.p.After(tt.q) && tt.q.After(tt.p) && tt.p.Message == tt.q.Message {
			t.Errorf("%s: each is after the other", name)
		}
	}
}

func TestStages(t *testing.T) {
	for _, tt := range []struct {
		s           lpmos.Stage
		done, total int64
		want        int
	}{
		{lpmos.Partitioning, 0, 10, 0}, {lpmos.Partitioning, 10, 10, 20}, {lpmos.Downloading, 1, 2, 40}, {lpmos.StageInstall, 5, 10, 75},
		{lpmos.Configuring, 99, 10, 100}, {lpmos.Configuring, -1, 10, 90}, {lpmos.Downloading, 5, 0, 20}, {"cleaning", 5, 10, 0},
		{lpmos.Downloading, 1 << 40, 1 << 40, 60},
	} {
		if got := tt.s.Percent(tt.done, tt.total); got != tt.want {
			t.Errorf("%s.Percent(%d, %d) = %d; want %d", tt.s, tt.done, tt.total, got, tt.want)
		}
	}
	if lpmos.Stage("").Valid() || lpmos.Stage("Installing").Valid() || lpmos.Configuring.Number() != 4 {
		t.Error("stages are not numbered 1 to 4")
	}
}

func TestProgressValidate(t *testing.T) {
	good := lpmos.Progress{TaskID: lpmos.NewTaskID(), Stage: lpmos.Downloading, Percentage: 50}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, edit := range map[string]func(*lpmos.Progress){
		"task id":      func(p *lpmos.Progress) { p.TaskID = "t1/approval" },
		"stage":        func(p *lpmos.Progress) { p.Stage = "cleaning" },
		"below 0":      func(p *lpmos.Progress) { p.Percentage = -1 },
		"above 100":    func(p *lpmos.Progress) { p.Percentage = 101 },
		"long message": func(p *lpmos.Progress) { p.Message = string(make([]byte, lpmos.MaxMessageBytes+1)) },
	} {
		p := good
		edit(&p)
		if p.Validate() == nil {
			t.Errorf("Validate accepts a bad %s", name)
		}
	}
}
