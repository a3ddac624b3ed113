// Package conf is what all commands share of flags, environment and logging.
package conf

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/embedetcd"
	"github.com/lpmos/lpmos/internal/store"
)

// FromEnvironment sets every flag of cmd that was not given from LPMOS_ and its
// name in capitals (--region-id from LPMOS_REGION_ID), or from one of the
// extra names. A flag on the command line wins.
func FromEnvironment(cmd *cobra.Command, extra map[string]string) error {
	var err error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Changed || err != nil {
			return
		}
		name := "LPMOS_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		v, ok := os.LookupEnv(name)
		if !ok && extra[f.Name] != "" {
			name = extra[f.Name]
			v, ok = os.LookupEnv(name)
		}
		if ok {
			if e := cmd.Flags().Set(f.Name, v); e != nil {
				err = fmt.Errorf("environment %s: %w", name, e)
			}
		}
	})
	return err
}

// Log is how a command logs.
type Log struct {
	Level  string // debug, info, warn, error
	Format string // text, json
}

// Flags registers --log-level and --log-format.
func (l *Log) Flags(f *pflag.FlagSet) {
	f.StringVar(&l.Level, "log-level", "info", "least level that is logged: debug, info, warn, error")
	f.StringVar(&l.Format, "log-format", "text", "text or json")
}

// Logger makes the logger, writing to w.
func (l *Log) Logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.Level)); err != nil {
		return nil, &lpmos.InvalidError{Field: "log-level", Problem: "is none of debug, info, warn, error", Value: l.Level}
	}
	opts := &slog.HandlerOptions{Level: level}
	switch l.Format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, &lpmos.InvalidError{Field: "log-format", Problem: "is neither text nor json", Value: l.Format}
}

// Etcd is where the store is.
type Etcd struct {
	Endpoints []string
	CACert    string
	Cert      string
	Key       string
}

// Embedded as an endpoint means a store in this process.
const Embedded = "embedded"

// Flags registers the etcd flags. canEmbed says whether "embedded" is offered.
func (e *Etcd) Flags(f *pflag.FlagSet, canEmbed bool) {
	usage := "etcd servers: host:port, https://host:port or unix:///path"
	if canEmbed {
		usage += "; embedded = a store in this process, in --data-dir"
	}
	f.StringSliceVar(&e.Endpoints, "etcd-endpoints", []string{"127.0.0.1:2379"}, usage)
	f.StringVar(&e.CACert, "etcd-cacert", "", "PEM file of the authority that signed etcd's certificate")
	f.StringVar(&e.Cert, "etcd-cert", "", "PEM file of the client certificate")
	f.StringVar(&e.Key, "etcd-key", "", "PEM file of the client certificate's key")
}

// Open connects to the store, starting it first if it is embedded. The returned
// function closes what was opened.
func (e *Etcd) Open(ctx context.Context, dataDir string, log *slog.Logger) (*store.Store, func(), error) {
	cfg := store.Config{Endpoints: e.Endpoints}
	stop := func() {}
	if len(e.Endpoints) == 1 && e.Endpoints[0] == Embedded {
		srv, err := embedetcd.Start(ctx, embedetcd.Config{Dir: dataDir + "/etcd"}, log)
		if err != nil {
			return nil, nil, err
		}
		cfg.Endpoints = []string{srv.Endpoint()}
		stop = func() {
			if err := srv.Close(); err != nil {
				log.Warn("stop etcd", "err", err)
			}
		}
	} else {
		var err error
		if cfg, err = e.Config(); err != nil {
			return nil, nil, err
		}
	}
	st, err := store.Open(ctx, cfg, log)
	if err != nil {
		stop()
		return nil, nil, err
	}
	return st, func() { st.Close(); stop() }, nil
}

// Config is what the store needs to connect to servers of their own process.
func (e *Etcd) Config() (store.Config, error) {
	cfg := store.Config{Endpoints: e.Endpoints}
	if e.CACert == "" && e.Cert == "" && e.Key == "" {
		return cfg, nil
	}
	var err error
	cfg.TLS, err = e.tls()
	return cfg, err
}

func (e *Etcd) tls() (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if e.CACert != "" {
		b, err := os.ReadFile(e.CACert)
		if err != nil {
			return nil, fmt.Errorf("read --etcd-cacert: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("read --etcd-cacert: %s holds no certificate", e.CACert)
		}
	}
	if e.Cert != "" || e.Key != "" {
		c, err := tls.LoadX509KeyPair(e.Cert, e.Key)
		if err != nil {
			return nil, fmt.Errorf("load --etcd-cert and --etcd-key: %w", err)
		}
		t.Certificates = []tls.Certificate{c}
	}
	return t, nil
}
