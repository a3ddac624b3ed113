// Package store is the only spelling of LPMOS's etcd keys (contract §7,
// docs/keyspace.md): what is written together, who may write what, and how
// changes are followed. It decides nothing; the orchestrator does.
//
// A Store may be used by any number of goroutines. Methods return errors that
// wrap lpmos.ErrNotFound, lpmos.ErrConflict or lpmos.ErrUnavailable, or that
// are a *lpmos.InvalidError.
package store

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	jsonv2 "github.com/go-json-experiment/json"
	jsonv1 "github.com/go-json-experiment/json/v1"
	"github.com/lpmos/lpmos"
)

// Config says where etcd is.
type Config struct {
	Endpoints []string // host:port, http(s)://host:port or unix(s):///path
	// TLS is nil for plain connections. A ServerName in it is checked instead of
	// the host that is dialed.
	TLS *tls.Config
	// Timeout bounds one request; 0 means 5 s.
	Timeout time.Duration
}

// Store is a connection to etcd.
type Store struct {
	c       *clientv3.Client
	id      string
	timeout time.Duration
	log     *slog.Logger

	watching sync.WaitGroup

	turn chan struct{} // of who writes an audit entry; holds at most one
	end  chainEnd      // where the audit ends; of whose turn it is
}

// The oldest servers without the authorization bypasses named in contract §7;
// Floors says the same to people.
var versionFloors = [][3]int{{3, 6, 14}, {3, 7, 1}}

// redial is how an etcd that is away is tried again. gRPC's own way waits up to two
// minutes between two tries: for so long nobody could stop anything after etcd was
// back.
var redial = backoff.Config{BaseDelay: 500 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second}

// Open connects, refuses servers below the version floor, and waits until etcd
// answers or ctx ends.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (*Store, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, &lpmos.InvalidError{Field: "etcd-endpoints", Problem: "is empty"}
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second
	}
	c, err := clientv3.New(clientv3.Config{
		Endpoints: cfg.Endpoints, TLS: fixedName(cfg.TLS), DialTimeout: cfg.Timeout,
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 5 * time.Second,
		MaxCallRecvMsgSize: 64 << 20, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{Backoff: redial, MinConnectTimeout: cfg.Timeout})},
	})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd: %w", err)
	}
	s := &Store{c: c, timeout: cfg.Timeout, log: log, turn: make(chan struct{}, 1), end: chainEnd{rev: -1}}
	if err := s.greet(ctx, cfg); err != nil {
		c.Close()
		return nil, err
	}
	s.watching.Go(s.watch)
	return s, nil
}

// watch says when etcd is out of reach, and when it is back, until the connection
// is closed.
func (s *Store) watch() {
	conn := s.c.ActiveConnection()
	var lost time.Time
	for {
		state := conn.GetState()
		switch {
		case state == connectivity.TransientFailure && lost.IsZero():
			lost = time.Now()
			s.log.Warn("etcd is out of reach: until it is back nothing is stored or decided", "endpoints", s.c.Endpoints())
		case state == connectivity.Ready && !lost.IsZero():
			s.log.Info("etcd is back", "away", time.Since(lost).Round(time.Second))
			lost = time.Time{}
		}
		if !conn.WaitForStateChange(s.c.Ctx(), state) {
			return
		}
	}
}

func (s *Store) greet(whole context.Context, cfg Config) error {
	ctx, cancel := context.WithTimeout(whole, s.timeout)
	defer cancel()
	endpoints := cfg.Endpoints
	var answered bool
	var last error
	for _, e := range endpoints {
		st, err := s.c.Status(ctx, e)
		if err != nil {
			last = err
			continue
		}
		answered = true
		if !supported(st.Version) {
			return fmt.Errorf("etcd %s at %s is too old: LPMOS needs %s, which close authorization bypasses; upgrade it", st.Version, e, Floors)
		}
	}
	if !answered {
		for _, e := range endpoints {
			if why := handshakeProblem(whole, e, fixedName(cfg.TLS)); why != nil {
				return fmt.Errorf("reach etcd at %s: %w", e, why)
			}
		}
		return fmt.Errorf("reach etcd at %s: %w: is it running? (docker-compose up etcd, or --etcd-endpoints=embedded)", strings.Join(endpoints, ", "), last)
	}
	fresh := lpmos.NewTaskID()
	key := Key{Kind: KindStoreID}.String()
	// A region may read it only, and only the first of all has to write it.
	if g, err := s.c.Get(ctx, key); err != nil {
		return s.wrap("read store id", err)
	} else if len(g.Kvs) > 0 {
		s.id = string(g.Kvs[0].Value)
		return nil
	}
	r, err := s.c.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, fresh)).Else(clientv3.OpGet(key)).Commit()
	if err != nil {
		return s.wrap("read store id", err)
	}
	s.id = fresh
	if !r.Succeeded {
		s.id = string(r.Responses[0].GetResponseRange().Kvs[0].Value)
	}
	return nil
}

func supported(version string) bool {
	var v [3]int
	for i, p := range strings.SplitN(strings.SplitN(version, "-", 2)[0], ".", 3) {
		v[i], _ = strconv.Atoi(p)
	}
	for _, f := range versionFloors {
		if v[0] == f[0] && v[1] == f[1] {
			return v[2] >= f[2]
		}
	}
	newest := versionFloors[len(versionFloors)-1]
	return v[0] > newest[0] || v[0] == newest[0] && v[1] > newest[1]
}

// ID names this store: a store that was wiped and begun anew has another.
func (s *Store) ID() string { return s.id }

// Close ends all watches and leases of this connection.
func (s *Store) Close() error {
	defer s.watching.Wait()
	return s.c.Close()
}

// Healthy answers whether etcd has a quorum and takes reads.
func (s *Store) Healthy(ctx context.Context) error {
	_, err := s.get(ctx, Key{Kind: KindStoreID}.String())
	if errors.Is(err, lpmos.ErrNotFound) {
		return nil
	}
	return err
}

// wrap turns what the etcd client says into the domain's errors.
func (s *Store) wrap(doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w", doing, err)
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("%s: %w: etcd is out of space (compact, defragment and disarm the alarm)", doing, lpmos.ErrUnavailable)
	}
	if denied := deniedErr(err); denied != nil {
		return fmt.Errorf("%s: %w", doing, denied)
	}
	var ee rpctypes.EtcdError
	if errors.As(err, &ee) {
		switch ee.Code() {
		case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted:
			return fmt.Errorf("%s: %w: %w", doing, lpmos.ErrUnavailable, err)
		}
		return fmt.Errorf("%s: %w", doing, err)
	}
	if errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.Unavailable || status.Code(err) == codes.DeadlineExceeded {
		return fmt.Errorf("%s: %w: etcd does not answer: %w", doing, lpmos.ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

func (s *Store) get(ctx context.Context, key string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	r, err := s.c.Get(ctx, key)
	if err != nil {
		return nil, s.wrap("read "+key, err)
	}
	if len(r.Kvs) == 0 {
		return nil, fmt.Errorf("%s: %w", key, lpmos.ErrNotFound)
	}
	return r.Kvs[0].Value, nil
}

func (s *Store) put(ctx context.Context, key string, v any) error {
	_, err := s.txn(ctx, nil, []clientv3.Op{clientv3.OpPut(key, string(encode(v)))}, nil)
	return err
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("store: encode %T: %v", v, err))
	}
	return b
}

// decode is lenient about unknown fields: a newer version may have written them. It
// does what encoding/json does, three times as fast, which is what a start with a
// long history waits for.
func decode[T any](b []byte) (T, error) {
	var v T
	err := jsonv2.Unmarshal(b, &v, jsonv1.DefaultOptionsV1())
	return v, err
}

// Decode reads the value of a Change.
func Decode[T any](c Change) (T, error) {
	v, err := decode[T](c.Value)
	if err != nil {
		return v, fmt.Errorf("decode %s: %w", c.Key, err)
	}
	return v, nil
}
