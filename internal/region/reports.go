package region

import (
	"context"
	"fmt"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/region/agentserver"
	"github.com/lpmos/lpmos/internal/store"
)

// reports sends what agents say through the session of the moment. Without one
// nothing can be reported now, and agents repeat.
type reports struct{ r *Region }

var _ agentserver.Reports = reports{}

func (p reports) with(f func(*store.Session) error) error {
	s := p.r.session.Load()
	if s == nil {
		return fmt.Errorf("report: %w: no session with the store", lpmos.ErrUnavailable)
	}
	return f(s)
}

func (p reports) PutAgent(ctx context.Context, a lpmos.AgentRecord) error {
	return p.with(func(s *store.Session) error { return s.PutAgent(ctx, a) })
}

func (p reports) PutHardware(ctx context.Context, id string, attempt int, h *lpmos.Hardware) error {
	return p.with(func(s *store.Session) error { return s.PutHardware(ctx, id, attempt, h) })
}

func (p reports) PutProgress(ctx context.Context, x *lpmos.Progress) error {
	return p.with(func(s *store.Session) error { return s.PutProgress(ctx, x) })
}

func (p reports) PutPermitRequest(ctx context.Context, x lpmos.PermitRequest) error {
	return p.with(func(s *store.Session) error { return s.PutPermitRequest(ctx, x) })
}

func (p reports) AppendLog(ctx context.Context, id string, attempt, n int, chunk []byte) error {
	return p.with(func(s *store.Session) error { return s.AppendLog(ctx, id, attempt, n, chunk) })
}

func (p reports) PutResult(ctx context.Context, x lpmos.Result) error {
	return p.with(func(s *store.Session) error { return s.PutResult(ctx, x) })
}

func (p reports) PutBooted(ctx context.Context, id string, attempt int, x lpmos.Receipt) error {
	return p.with(func(s *store.Session) error { return s.PutBooted(ctx, id, attempt, x) })
}

func (p reports) PutDiscovered(ctx context.Context, x lpmos.Discovered) error {
	return p.with(func(s *store.Session) error { return s.PutDiscovered(ctx, x) })
}
