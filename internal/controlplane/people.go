package controlplane

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/auth"
	"github.com/lpmos/lpmos/internal/controlplane/oidc"
	"github.com/lpmos/lpmos/internal/controlplane/rest"
	"github.com/lpmos/lpmos/internal/controlplane/scope"
	"github.com/lpmos/lpmos/internal/controlplane/state"
	"github.com/lpmos/lpmos/internal/controlplane/web"
	"github.com/lpmos/lpmos/internal/pki"
	"github.com/lpmos/lpmos/internal/store"
)

// LocalTokenFile holds, in the data directory, a token for whoever may read
// that directory, which has the signing key anyway: how a locked-out admin gets
// back in, and how programs of this host begin. It is made anew at each start.
const LocalTokenFile = "local-token"

// people prepares who may do what.
func (c *ControlPlane) people(secure bool) error {
	trusted, err := networks(c.cfg.TrustedProxies)
	if err != nil {
		return err
	}
	file := filepath.Join(c.cfg.DataDir, LocalTokenFile)
	local := func() string {
		b, _ := os.ReadFile(file) // unreadable is as good as empty: nobody's token
		return strings.TrimSpace(string(b))
	}
	c.auth = auth.New(auth.Config{Secure: secure, Trusted: trusted, NoLogin: c.cfg.NoLogin, Region: c.state.Fetcher, Local: local, CheapPasswords: c.cfg.CheapPasswords}, c.store, c.log)
	c.state.Follow(func(b store.Batch) { c.auth.Apply(b.Rev, b.Reset, People(b, c.log)) })
	if err := pki.Replace(file, []byte(c.auth.LocalToken("local")+"\n")); err != nil {
		return fmt.Errorf("write the token of this host: %w", err)
	}
	return nil
}

// provider prepares the identity provider, nil where none is configured.
func (o OIDC) provider(log *slog.Logger) (*oidc.Provider, error) {
	if o.Issuer == "" {
		if o.ClientID != "" || o.SecretFile != "" || len(o.Grants) > 0 {
			return nil, &lpmos.InvalidError{Field: "oidc-issuer", Problem: "is missing, and other --oidc flags are given"}
		}
		return nil, nil
	}
	cfg := oidc.Config{Issuer: o.Issuer, ClientID: o.ClientID, Name: o.Name, Scopes: o.Scopes, UserClaim: o.UserClaim, GroupsClaim: o.GroupsClaim}
	for _, s := range o.Grants {
		g, err := oidc.ParseGrant(s)
		if err != nil {
			return nil, err
		}
		cfg.Grants = append(cfg.Grants, g)
	}
	if o.SecretFile != "" {
		b, err := os.ReadFile(o.SecretFile)
		if err != nil {
			return nil, fmt.Errorf("read --oidc-client-secret-file: %w", err)
		}
		if cfg.Secret = strings.TrimSpace(string(b)); cfg.Secret == "" {
			return nil, fmt.Errorf("read --oidc-client-secret-file: %s is empty", o.SecretFile)
		}
	}
	if o.CA != "" {
		var err error
		if cfg.CA, err = os.ReadFile(o.CA); err != nil {
			return nil, fmt.Errorf("read --oidc-ca: %w", err)
		}
	}
	return oidc.New(cfg, log)
}

// People are the changes of a batch that concern people, for auth.Auth.Apply.
func People(b store.Batch, log *slog.Logger) (out []auth.Change) {
	for _, one := range b.Changes {
		ch := auth.Change{Key: one.Key.Name}
		var err error
		switch one.Key.Kind {
		case store.KindUser:
			ch.Kind = "user"
			ch.User, err = pointer[lpmos.User](one)
		case store.KindSignIn:
			ch.Kind = "session"
			ch.SignIn, err = pointer[lpmos.SignIn](one)
		case store.KindToken:
			ch.Kind = "token"
			ch.Token, err = pointer[lpmos.APIToken](one)
		default:
			continue
		}
		if err != nil {
			// Nobody gets in with what cannot be read.
			log.Error("value in the store cannot be read", "key", one.Key.String(), "err", err)
		}
		out = append(out, ch)
	}
	return out
}

func pointer[T any](c store.Change) (*T, error) {
	if c.Value == nil {
		return nil, nil
	}
	v, err := store.Decode[T](c)
	if err != nil {
		return nil, err
	}
	return &v, nil
}

func networks(names []string) (out []netip.Prefix, err error) {
	for _, s := range names {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p.Masked())
			continue
		}
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, &lpmos.InvalidError{Field: "trusted-proxy", Problem: "is neither an address nor a network such as 10.0.0.0/8", Value: s}
		}
		out = append(out, netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()))
	}
	return out, nil
}

// LocalToken is a token that this process alone knows: name is who acts.
func (c *ControlPlane) LocalToken(name string) string { return c.auth.LocalToken(name) }

// SignInLink is an address that signs the admin in, once, within a quarter of
// an hour. It works once the control plane runs.
func (c *ControlPlane) SignInLink() string {
	return c.URL() + "/login?code=" + c.auth.NewLink("admin")
}

// regionOf reads from the store where a task's machine stands.
func (c *ControlPlane) regionOf(ctx context.Context, id string) (string, error) {
	rec, err := c.store.Task(ctx, id)
	return rec.Task.RegionID, err
}

func (c *ControlPlane) restView(p auth.Principal) rest.View {
	return rest.View{
		Reader: scope.Read(c.state, p), Actions: scope.Act(c.state, c.orch, c.regionOf, p),
		Store: restStore{scope.Remember(c.state, c.store, p), c.store, c.state},
	}
}

// restStore is the store as REST asks it. Changing the catalogue is for admins,
// as the route says.
type restStore struct {
	*scope.Past
	store *store.Store
	state *state.State
}

func (r restStore) Healthy(ctx context.Context) error { return r.store.Healthy(ctx) }

func (r restStore) PutImageIf(ctx context.Context, i lpmos.Image, rev int64) (int64, error) {
	if err := r.May(auth.Administer); err != nil {
		return 0, err
	}
	rev, err := r.store.PutImageIf(ctx, i, rev)
	if err == nil {
		r.state.Reach(ctx, rev) // a task for it may be the very next request
	}
	return rev, err
}

func (c *ControlPlane) webView(p auth.Principal) web.View {
	act := scope.Act(c.state, c.orch, c.regionOf, p)
	return web.View{Reader: scope.Read(c.state, p), History: scope.Remember(c.state, c.store, p), Actions: act, Batches: act}
}

// AccessFlags registers the flags that say who is let in.
func (c *Config) AccessFlags(f *pflag.FlagSet) {
	f.BoolVar(&c.NoLogin, "insecure-no-login", false, "let everybody in as admin, without signing in: whoever reaches the address can erase machines")
	o := &c.OIDC
	f.StringVar(&o.Issuer, "oidc-issuer", "", "address of an OpenID Connect provider that people may sign in with, beside passwords")
	f.StringVar(&o.ClientID, "oidc-client-id", "", "what that provider calls LPMOS")
	f.StringVar(&o.SecretFile, "oidc-client-secret-file", "", "file with the client's secret there")
	f.StringVar(&o.CA, "oidc-ca", "", "PEM file of the authority of the provider's certificate (default: the system's)")
	f.StringVar(&o.Name, "oidc-name", "", "what the button on the sign-in page calls it (default: its host)")
	f.StringSliceVar(&o.Scopes, "oidc-scopes", []string{"profile", "email"}, "scopes asked for beside openid")
	f.StringVar(&o.UserClaim, "oidc-user-claim", "", "claim that names the user (default preferred_username, else email)")
	f.StringVar(&o.GroupsClaim, "oidc-groups-claim", "", "claim of the ID token, or of userinfo where that has none, with the groups (default groups)")
	f.StringArrayVar(&o.Grants, "oidc-grant", nil, "GROUP=ROLE or GROUP=ROLE@REGION+REGION: what being in a group means; repeat it for more")
	f.StringSliceVar(&c.TrustedProxies, "trusted-proxy", nil, "address or network of a reverse proxy whose X-Forwarded-For and -Proto are believed")
}

// TellFirstUser prints the one-time password of a new installation.
func TellFirstUser(w io.Writer) func(name, password string) {
	return func(name, password string) {
		fmt.Fprintf(w, "\nThe first user is %s, with the one-time password  %s\nIt is shown only now; you choose another when you first sign in.\n\n", name, password)
	}
}
