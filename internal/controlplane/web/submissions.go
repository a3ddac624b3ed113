package web

import (
	"context"
	"sync"

	"github.com/lpmos/lpmos"
)

// submissions make a form that is sent twice (a double click, a reload of the
// answer) create one task. Only the newest are kept; an older form simply
// counts as a new one, and the one-task-per-machine rule still holds.
type submissions struct {
	limit int

	mu    sync.Mutex // guards what follows
	byKey map[string]*submission
	order []string
}

type submission struct {
	done chan struct{} // closed when task and err are final
	task lpmos.Task
	err  error
}

func newSubmissions(limit int) *submissions {
	return &submissions{limit: limit, byKey: map[string]*submission{}}
}

// do calls create once per key and gives everyone its answer. After an error
// the same form may be sent again.
func (s *submissions) do(ctx context.Context, key string, create func() (lpmos.Task, error)) (lpmos.Task, error) {
	if key == "" {
		return create()
	}
	s.mu.Lock()
	if sub, ok := s.byKey[key]; ok {
		s.mu.Unlock()
		select {
		case <-sub.done:
			return sub.task, sub.err
		case <-ctx.Done():
			return lpmos.Task{}, ctx.Err()
		}
	}
	sub := &submission{done: make(chan struct{})}
	s.byKey[key] = sub
	s.order = append(s.order, key)
	if len(s.order) > s.limit {
		delete(s.byKey, s.order[0])
		s.order = s.order[1:]
	}
	s.mu.Unlock()

	sub.task, sub.err = create()
	close(sub.done)
	if sub.err != nil {
		s.mu.Lock()
		delete(s.byKey, key)
		s.mu.Unlock()
	}
	return sub.task, sub.err
}
