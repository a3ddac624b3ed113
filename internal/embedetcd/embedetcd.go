// Package embedetcd runs one etcd member inside this process, on a unix socket
// in its data directory. It is the store of `lpmos up` and of the tests; the
// ordinary client talks to it, so that everything above runs the same code
// against an external cluster.
package embedetcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/tlsutil"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Config says where the member lives.
type Config struct {
	Dir string // data directory, made with mode 0700; one process at a time
	// TLS, if not nil, makes clients need a certificate, on the socket too: its
	// common name is the user that they are.
	TLS *TLS
	// NoFsync trades crash safety for speed. Tests only.
	NoFsync bool
}

// TLS are PEM files. Cert and Key may be one file and are read again for each
// connection.
type TLS struct {
	Cert, Key string
	ClientCA  string // the authority of clients
}

// Server is a running member.
type Server struct {
	etcd   *embed.Etcd
	socket string
	secure bool
	front  *front
	lock   *os.File
	tmp    string // directory of the socket, when Dir was too deep for one
}

// Start runs a member and returns when it serves. A second process on the same
// directory is refused at once and told who holds it.
func Start(ctx context.Context, cfg Config, log *slog.Logger) (*Server, error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", cfg.Dir, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	s := &Server{lock: lock, secure: cfg.TLS != nil}
	// A unix socket's path may have 107 bytes.
	s.socket = filepath.Join(dir, "etcd.sock")
	if len(s.socket) > 100 {
		if s.tmp, err = os.MkdirTemp("", "lpmos-etcd-"); err != nil {
			return nil, errors.Join(fmt.Errorf("make socket directory: %w", err), s.Close())
		}
		s.socket = filepath.Join(s.tmp, "etcd.sock")
	}
	if err := os.Remove(s.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("remove stale socket: %w", err), s.Close())
	}

	c := embed.NewConfig()
	c.Name, c.Dir = "lpmos", filepath.Join(dir, "member")
	client := url.URL{Scheme: "unix", Path: s.socket}
	if cfg.TLS != nil {
		client.Scheme = "unixs"
		c.ClientTLSInfo = transport.TLSInfo{CertFile: cfg.TLS.Cert, KeyFile: cfg.TLS.Key, TrustedCAFile: cfg.TLS.ClientCA, ClientCertAuth: true}
		c.TlsMinVersion = string(tlsutil.TLSVersion13)
	}
	// The gateway speaks to etcd with a certificate of its own, whose rights
	// everybody who reaches it would have (CVE-2018-16886).
	c.EnableGRPCGateway = false
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:1"} // a name only: no peer port is opened
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = nil, []url.URL{peer}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	// What etcd itself advises at most; a hundred thousand tasks with their
	// hardware, plans, logs and events take more than 2 GiB.
	c.QuotaBackendBytes = 8 << 30
	// One member has nobody to wait for, and nobody who has to catch up: it need
	// not keep thousands of entries in memory.
	c.TickMs, c.ElectionMs = 10, 100
	c.SnapshotCount, c.SnapshotCatchUpEntries = 1000, 1
	c.UnsafeNoFsync = cfg.NoFsync
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(&slogCore{log: log.With("component", "etcd")}))
	if s.etcd, err = embed.StartEtcd(c); err != nil {
		return nil, errors.Join(fmt.Errorf("start etcd in %s: %w", dir, err), s.Close())
	}
	timeout := time.NewTimer(60 * time.Second)
	defer timeout.Stop()
	select {
	case <-s.etcd.Server.ReadyNotify():
		return s, nil
	case err = <-s.etcd.Err():
	case <-ctx.Done():
		err = ctx.Err()
	case <-timeout.C:
		err = errors.New("not ready after 60 s")
	}
	return nil, errors.Join(fmt.Errorf("start etcd in %s: %w", dir, err), s.Close())
}

// Endpoint is what an etcd client dials.
func (s *Server) Endpoint() string {
	if s.secure {
		return "unixs://" + s.socket
	}
	return "unix://" + s.socket
}

// Err receives an error if the member dies by itself.
func (s *Server) Err() <-chan error { return s.etcd.Err() }

// Close stops the member and waits for it. All clients must be closed before.
func (s *Server) Close() error {
	if s.front != nil {
		s.front.close()
	}
	if s.etcd != nil {
		s.etcd.Close()
	}
	if s.tmp != "" {
		os.RemoveAll(s.tmp)
	}
	return s.lock.Close()
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder := make([]byte, 32)
		n, _ := f.ReadAt(holder, 0)
		f.Close()
		return nil, fmt.Errorf("%s is in use by process %s: stop it, or give another --data-dir", dir, strings.TrimSpace(string(holder[:n])))
	}
	if err := f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(fmt.Sprintf("%d\n", os.Getpid())), 0)
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("write lock: %w", err)
		}
	}
	return f, nil
}

// slogCore hands etcd's log to slog. What etcd logs at info is of interest to
// nobody who runs LPMOS, so levels are shifted down by one.
type slogCore struct {
	log    *slog.Logger
	fields []zapcore.Field
}

func (c *slogCore) Enabled(l zapcore.Level) bool {
	return c.log.Enabled(context.Background(), slogLevel(l))
}

func (c *slogCore) With(f []zapcore.Field) zapcore.Core {
	return &slogCore{c.log, append(c.fields[:len(c.fields):len(c.fields)], f...)}
}

func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) && !expected(e.Message) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *slogCore) Write(e zapcore.Entry, f []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, x := range append(c.fields[:len(c.fields):len(c.fields)], f...) {
		x.AddTo(enc)
	}
	attrs := make([]any, 0, 2*len(enc.Fields))
	for k, v := range enc.Fields {
		attrs = append(attrs, k, v)
	}
	c.log.Log(context.Background(), slogLevel(e.Level), e.Message, attrs...)
	return nil
}

func (c *slogCore) Sync() error { return nil }

func slogLevel(l zapcore.Level) slog.Level {
	switch {
	case l >= zapcore.ErrorLevel:
		return slog.LevelError
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// expected are lines that etcd writes at warn or error in a life that is
// normal for one member on a unix socket.
func expected(msg string) bool {
	for _, s := range []string{
		"setting up serving from embedded etcd failed",
		"Running http and grpc server on single port",
		"simple token is not cryptographically signed",
		"failed to update storage version",
		"failed to publish local member to cluster through raft",       // tried again at once, dozens of times, until a long history is read
		"since there are still pending configuration changes to apply", // "x cannot campaign at term 1": a slow first start, tried again
		"failed to register grpc gateway",
		"leader failed to send out heartbeat on time",
		"apply request took too long",
		"request stats", // of one that took longer than 300 ms
		"waiting for ReadIndex response took too long",
		"slow fdatasync",
		"Failed to detect schema version",
		"stopping insecure grpc server due to error",
		"stopped insecure grpc server due to error",
		"stopping secure grpc server due to error",
		"stopped secure grpc server due to error",
	} {
		if strings.Contains(msg, s) {
			return true
		}
	}
	return false
}
