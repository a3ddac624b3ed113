// Package conf is what all commands share of flags, environment and logging.
package conf

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/ownstore"
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
	Listen    string   // of an embedded store, for other machines
	Regions   []string // where regions dial it, if not at Endpoints or Listen
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
	if canEmbed {
		e.RegionFlags(f)
	}
}

// RegionFlags registers how regions elsewhere reach the store.
func (e *Etcd) RegionFlags(f *pflag.FlagSet) {
	f.StringVar(&e.Listen, "etcd-listen", "", "where the embedded store lets regions on other machines in, with mutual TLS (\":2379\"); nowhere by default")
	f.StringSliceVar(&e.Regions, "region-etcd-endpoints", nil, "etcd servers that enrolled regions are told to dial, if not those of --etcd-endpoints or --etcd-listen")
}

// Opened is a store that Open connected to.
type Opened struct {
	*store.Store
	// Own is the store in this process, nil for one elsewhere.
	Own *ownstore.Store
	log *slog.Logger
}

// Close ends the connection, and the store if it is in this process.
func (o *Opened) Close() {
	o.Store.Close()
	if o.Own != nil {
		if err := o.Own.Close(); err != nil {
			o.log.Warn("stop etcd", "err", err)
		}
	}
}

// Run serves what a store in this process needs until ctx ends, or the store
// dies.
func (o *Opened) Run(ctx context.Context) error {
	if o.Own == nil {
		<-ctx.Done()
		return nil
	}
	return o.Own.Run(ctx)
}

// Open connects to the store, starting it first if it is embedded. ca is the
// PEM file of the site's authority, "" for that in dataDir.
func (e *Etcd) Open(ctx context.Context, dataDir, ca string, log *slog.Logger) (*Opened, error) {
	o := &Opened{log: log}
	var err error
	if e.embedded() {
		if o.Own, err = ownstore.Start(ctx, ownstore.Config{Dir: dataDir, Listen: e.Listen, CA: ca}, log); err != nil {
			return nil, err
		}
		if o.Store, err = o.Own.Open(ctx, log); err != nil {
			return nil, errors.Join(err, o.Own.Close())
		}
		return o, nil
	}
	if e.Listen != "" {
		return nil, &lpmos.InvalidError{Field: "etcd-listen", Problem: "is for a store in this process (--etcd-endpoints=embedded)", Value: e.Listen}
	}
	cfg, err := e.Config()
	if err != nil {
		return nil, err
	}
	if o.Store, err = store.Open(ctx, cfg, log); err != nil {
		return nil, err
	}
	return o, nil
}

func (e *Etcd) embedded() bool { return len(e.Endpoints) == 1 && e.Endpoints[0] == Embedded }

// Dialed is where regions find servers of their own process, and the PEM of
// their authority, nil for that of the site.
func (e *Etcd) Dialed() (endpoints []string, ca []byte, err error) {
	endpoints = e.Regions
	if len(endpoints) == 0 {
		for _, s := range e.Endpoints {
			// Plain ones do not ask for certificates.
			if strings.HasPrefix(s, "https://") {
				endpoints = append(endpoints, s)
			} else if !strings.Contains(s, "://") && e.CACert != "" {
				endpoints = append(endpoints, "https://"+s)
			}
		}
	}
	if e.CACert != "" {
		if ca, err = os.ReadFile(e.CACert); err != nil {
			return nil, nil, fmt.Errorf("read --etcd-cacert: %w", err)
		}
	}
	return endpoints, ca, nil
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
