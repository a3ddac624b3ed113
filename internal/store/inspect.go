package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lpmos/lpmos"
)

// Floors are the oldest etcd servers that are accepted, for people.
const Floors = "3.6.14 or 3.7.1"

// Member is what one etcd server says of itself.
type Member struct {
	Endpoint     string
	Err          error // it did not answer, and the rest is zero
	Version      string
	Supported    bool // not below the floors
	HasLeader    bool
	Learner      bool
	DBBytes      int64    // of the file
	DBInUseBytes int64    // of DBBytes; the rest is freed by defragmenting
	QuotaBytes   int64    // 0 when the server does not say
	Alarms       []string // NOSPACE, CORRUPT
	Took         time.Duration
}

// Inspect asks each endpoint for itself and writes nothing. Its error is about
// cfg; a server that does not answer is a Member with an Err.
func Inspect(ctx context.Context, cfg Config) ([]Member, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, &lpmos.InvalidError{Field: "etcd-endpoints", Problem: "is empty"}
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second
	}
	var members []Member
	for _, e := range cfg.Endpoints {
		m, err := inspect(ctx, e, cfg)
		if err != nil {
			return nil, err
		}
		members = append(members, m)
	}
	return members, nil
}

// inspect has a client of its own, so that no other server answers instead.
func inspect(ctx context.Context, endpoint string, cfg Config) (Member, error) {
	m := Member{Endpoint: endpoint}
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, TLS: fixedName(cfg.TLS), DialTimeout: cfg.Timeout, Logger: zap.NewNop()})
	if err != nil {
		return m, fmt.Errorf("connect to etcd at %s: %w", endpoint, err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	begun := time.Now()
	st, err := c.Status(ctx, endpoint)
	if err != nil {
		m.Err = fmt.Errorf("ask %s: %w", endpoint, err)
		if why := handshakeProblem(context.WithoutCancel(ctx), endpoint, fixedName(cfg.TLS)); why != nil {
			m.Err = why
		}
		return m, nil
	}
	m.Took = time.Since(begun)
	m.Version, m.Supported, m.HasLeader, m.Learner = st.Version, supported(st.Version), st.Leader != 0, st.IsLearner
	m.DBBytes, m.DBInUseBytes, m.QuotaBytes = st.DbSize, st.DbSizeInUse, st.DbSizeQuota
	for _, e := range st.Errors {
		if _, alarm, ok := strings.Cut(e, "alarm:"); ok {
			m.Alarms = append(m.Alarms, strings.TrimSpace(alarm))
		}
	}
	// Status answers from the server alone; a read needs the quorum.
	if _, err := c.Get(ctx, Key{Kind: KindStoreID}.String()); err != nil {
		m.HasLeader = false
	}
	return m, nil
}
