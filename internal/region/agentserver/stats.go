package agentserver

import (
	"net/http"
	"sync/atomic"
)

// Stats counts since the process began.
type Stats struct {
	Requests         int64
	Boots            int64 // segments served, repeats left out
	Unauthorized     int64 // 401
	Forbidden        int64 // 403
	RateLimited      int64 // 429
	Unavailable      int64 // 503
	Faults           int64 // 500
	ProgressLate     int64 // ignored: not newer than what was known
	ProgressAccepted int64
	ProgressStored   int64 // written up; fewer than accepted
	LogDropped       int64 // lines over the limit of an attempt or of another attempt
	Quarantines      int64
	Alarms           int64 // a credential used without its key, from elsewhere, …
	Machines         int64 // known now
}

type counters struct {
	requests, boots, unauthorized, forbidden, rateLimited, unavailable, faults atomic.Int64
	progressLate, progressAccepted, progressStored, logDropped, quarantines    atomic.Int64
	alarms                                                                     atomic.Int64
}

func (c *counters) refused(status int) {
	switch status {
	case http.StatusUnauthorized:
		c.unauthorized.Add(1)
	case http.StatusForbidden:
		c.forbidden.Add(1)
	case http.StatusTooManyRequests:
		c.rateLimited.Add(1)
	case http.StatusServiceUnavailable:
		c.unavailable.Add(1)
	case http.StatusInternalServerError:
		c.faults.Add(1)
	}
}

// Stats reads the counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	n := len(s.machines)
	s.mu.Unlock()
	c := &s.stats
	return Stats{
		Requests: c.requests.Load(), Boots: c.boots.Load(),
		Unauthorized: c.unauthorized.Load(), Forbidden: c.forbidden.Load(), RateLimited: c.rateLimited.Load(),
		Unavailable: c.unavailable.Load(), Faults: c.faults.Load(),
		ProgressLate: c.progressLate.Load(), ProgressAccepted: c.progressAccepted.Load(), ProgressStored: c.progressStored.Load(),
		LogDropped: c.logDropped.Load(), Quarantines: c.quarantines.Load(), Alarms: c.alarms.Load(), Machines: int64(n),
	}
}
