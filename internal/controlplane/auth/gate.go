package auth

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

// The cookie. Over TLS its name makes browsers take it from this very host
// alone; over http://localhost there is no such thing (contract §8).
const (
	secureCookie = "__Host-lpmos"
	plainCookie  = "lpmos_session"
)

// peerOf is who is at the other end: the address the listener saw, unless that
// is a proxy we were told to believe.
func (a *Auth) peerOf(r *http.Request) (from string, addr netip.Addr, proxied bool) {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	addr, err = netip.ParseAddr(host)
	if err != nil {
		return "local", netip.Addr{}, false // a unix socket
	}
	addr = addr.Unmap()
	if !a.trusted(addr) {
		return addr.String(), addr, false
	}
	// From the right: each proxy appends whom it saw; the first that we do not
	// believe is where the request entered.
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		if addr = hop.Unmap(); !a.trusted(addr) {
			break
		}
	}
	return addr.String(), addr, true
}

func (a *Auth) trusted(addr netip.Addr) bool {
	for _, p := range a.cfg.Trusted {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// overTLS reports whether the browser's connection is encrypted.
func (a *Auth) overTLS(r *http.Request) bool {
	if r.TLS != nil {
		return true
	}
	_, _, proxied := a.peerOf(r)
	return proxied && strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https")
}

// Origin is what a page of this site says as its Origin.
func (a *Auth) Origin(r *http.Request) string {
	if a.overTLS(r) {
		return "https://" + r.Host
	}
	return "http://" + r.Host
}

// SetCookie hands the browser its session; "" takes it away.
func (a *Auth) SetCookie(w http.ResponseWriter, r *http.Request, secret string) {
	c := &http.Cookie{Name: plainCookie, Value: secret, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode}
	if a.overTLS(r) {
		c.Name, c.Secure = secureCookie, true
	}
	if secret == "" {
		c.MaxAge = -1
	}
	http.SetCookie(w, c)
}

// identify finds out who asks.
func (a *Auth) identify(r *http.Request) Principal {
	from, addr, _ := a.peerOf(r)
	// A proxy on this host that we were not told of would make everybody local.
	local := !addr.IsValid() || addr.IsLoopback() && r.Header.Get("X-Forwarded-For") == "" && r.Header.Get("Forwarded") == ""
	p := a.credential(r)
	p.From, p.Local = from, local
	if !p.SignedIn() && a.cfg.NoLogin {
		return Principal{Kind: Open, Name: "operator@" + from, Role: lpmos.Admin, From: from, Local: local}
	}
	return p
}

func (a *Auth) credential(r *http.Request) Principal {
	now := a.cfg.Now()
	if id, ok := api.PeerRegion(r.Context()); ok {
		// The connection says who it is; what else the request carries is not it.
		return Principal{Kind: Region, Name: id}
	}
	if h := r.Header.Get("Authorization"); h != "" {
		scheme, secret, _ := strings.Cut(h, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return Principal{Bad: true}
		}
		secret = strings.TrimSpace(secret)
		if wellFormed(secret, regionPrefix) {
			if id, ok := a.cfg.Region(Hash(secret)); ok {
				return Principal{Kind: Region, Name: id}
			}
			return Principal{Bad: true}
		}
		if !wellFormed(secret, tokenPrefix) {
			return Principal{Bad: true}
		}
		id := Hash(secret)
		p, ok := a.tokenOf(id)
		if _, known := a.dir.token(id); !ok && !known && a.fetch(r.Context(), "token", id) {
			p, ok = a.tokenOf(id)
		}
		if !ok {
			return Principal{Bad: true}
		}
		if h, ok := a.dir.token(id); ok {
			use(h, now)
		}
		return p
	}
	name := plainCookie
	if a.overTLS(r) {
		name = secureCookie
	}
	c, err := r.Cookie(name)
	if err != nil || c.Value == "" {
		return Principal{}
	}
	if !wellFormed(c.Value, "") {
		return Principal{Bad: true}
	}
	id := Hash(c.Value)
	p, ok := a.session(id)
	if _, known := a.dir.signIn(id); !ok && !known && a.fetch(r.Context(), "session", id) {
		p, ok = a.session(id)
	}
	if !ok {
		return Principal{Bad: true}
	}
	if h, ok := a.dir.signIn(id); ok {
		use(h, now)
	}
	return p
}

// Handler lets next know who asks, and holds back who asks too much.
func (a *Auth) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := a.identify(r)
		if wait := a.limits.take(p, r.URL.Path, a.cfg.Now()); wait > 0 {
			tooMany(w, wait)
			return
		}
		if done, ok := a.limits.enter(p, r); ok {
			defer done()
		} else {
			busy(w)
			return
		}
		next.ServeHTTP(w, r.WithContext(With(r.Context(), p)))
	})
}

// As lets next believe that p asks: for tests of what stands behind Handler.
func As(p Principal, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(With(r.Context(), p)))
	})
}

// Requests a second, and at once. What regions fetch is not counted: machines
// wait for it. Neither is what this process asks itself.
const (
	peopleRate, peopleBurst = 200, 1000
	nobodyRate, nobodyBurst = 50, 400
	limiters                = 20_000
	// working bounds the requests of people that are served at once. Regions
	// have room of their own, so that no crowd of people keeps machines waiting.
	working       = 512
	regionWorking = 2048
)

type limits struct {
	people, regions chan struct{}

	mu sync.Mutex // guards what follows
	of map[string]*limited
}

type limited struct {
	*rate.Limiter
	used time.Time
}

func (l *limits) init() {
	l.people, l.regions, l.of = make(chan struct{}, working), make(chan struct{}, regionWorking), map[string]*limited{}
}

// take counts a request. wait is how long its sender should have waited.
func (l *limits) take(p Principal, path string, now time.Time) (wait time.Duration) {
	if p.Kind == Region || p.Own || path == "/healthz" || path == "/readyz" {
		return 0
	}
	key, r, burst := p.ID, rate.Limit(peopleRate), peopleBurst
	if !p.SignedIn() || p.ID == "" {
		key, r, burst = peerKey(p.From), nobodyRate, nobodyBurst
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.of[key]
	if one == nil {
		if len(l.of) >= limiters {
			return time.Second // tidy makes room
		}
		one = &limited{Limiter: rate.NewLimiter(r, burst)}
		l.of[key] = one
	}
	one.used = now
	if one.AllowN(now, 1) {
		return 0
	}
	return max(time.Second, time.Duration(float64(time.Second)/float64(r)))
}

func (l *limits) tidy(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, one := range l.of {
		if now.Sub(one.used) > time.Minute {
			delete(l.of, k)
		}
	}
}

// enter takes a place among the requests that are served, and is given back by
// done. What answers monitors needs none, and what is served for hours (the
// WebSocket) returns at once.
func (l *limits) enter(p Principal, r *http.Request) (done func(), ok bool) {
	room := l.people
	switch {
	case r.URL.Path == "/healthz" || r.URL.Path == "/readyz":
		return func() {}, true
	case p.Kind == Region:
		room = l.regions
	}
	select {
	case room <- struct{}{}:
		return func() { <-room }, true
	default:
		return nil, false
	}
}

func tooMany(w http.ResponseWriter, wait time.Duration) {
	Problem(w, http.StatusTooManyRequests, "Too many requests", "you ask faster than is served: wait a moment, and ask less often", wait)
}

func busy(w http.ResponseWriter) {
	Problem(w, http.StatusServiceUnavailable, "Busy", "too many requests are served at this moment; try again", time.Second)
}

// Problem answers with an RFC 9457 body, where no router has been reached yet.
func Problem(w http.ResponseWriter, status int, title, detail string, wait time.Duration) {
	b, err := json.Marshal(map[string]any{"type": "about:blank", "title": title, "status": status, "detail": detail})
	if err != nil {
		panic(fmt.Sprintf("auth: encode problem: %v", err))
	}
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	if wait > 0 {
		h.Set("Retry-After", RetryAfter(wait))
	}
	w.WriteHeader(status)
	_, _ = w.Write(b)
}

// RetryAfter is how the header spells a wait: whole seconds, at least one.
func RetryAfter(wait time.Duration) string {
	return strconv.Itoa(max(1, int((wait+time.Second-1)/time.Second)))
}

// StatusOf is the HTTP status of what May and Login say; 0 for other errors.
func StatusOf(err error) int {
	var throttled *ThrottledError
	switch {
	case errors.As(err, &throttled):
		return http.StatusTooManyRequests
	case errors.Is(err, lpmos.ErrSignedOut):
		return http.StatusUnauthorized
	case errors.Is(err, lpmos.ErrForbidden):
		return http.StatusForbidden
	}
	return 0
}
