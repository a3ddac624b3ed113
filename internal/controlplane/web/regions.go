package web

import (
	"cmp"
	"net/http"
	"slices"
	"strings"

	"github.com/lpmos/lpmos"
)

type regionView struct {
	lpmos.Region
	Online   bool
	Age      string
	Running  int // installing or verifying
	Awaiting int // a person
	Queued   int // pending or approved
	Word     string
	Machines int
	Services []service
	Stock    string   // what its cache holds, in words
	Full     int      // percent of what the cache may hold
	Foreign  []string // addresses of other DHCP servers there
}

// service is one thing a region does for machines.
type service struct {
	State string // ok, warn, off: the CSS
	Icon  string
	Text  string
}

func (w *Web) newRegion(r lpmos.Region) regionView {
	v := regionView{Region: r, Online: r.Status == "online", Word: w.T("Offline")}
	if !r.Since.IsZero() {
		v.Age = w.age(w.cfg.Now().Sub(r.Since))
	}
	if v.Online {
		v.Word = w.T("Online")
	}
	if c := r.Capabilities; c != nil {
		for _, a := range c.ForeignNow(w.cfg.Now()) {
			v.Foreign = append(v.Foreign, a.String())
		}
	}
	load := w.reader.RegionLoad(r.ID)
	v.Running, v.Awaiting = load[lpmos.Installing]+load[lpmos.Verifying], load[lpmos.AwaitingApproval]
	v.Queued = load[lpmos.Pending] + load[lpmos.Approved]
	return v
}

// stock is what a region's cache holds, in words; "" when it has none.
func (w *Web) stock(c *lpmos.Capabilities) string {
	if c == nil || c.Stock == nil {
		return ""
	}
	var names []string
	for _, i := range w.reader.Images() {
		if c.Stock.Holds(i.Digest) {
			names = append(names, cmp.Or(i.Title, i.Name()))
		}
	}
	words := w.N(c.Stock.Files, "1 file, %s of %s", "%s files, %s of %s", w.size(c.Stock.Bytes), w.size(c.Stock.MaxBytes))
	if len(names) > 0 {
		words += w.T("; of the images: %s", w.list(names))
	}
	return words
}

func (w *Web) services(v regionView) []service {
	c := v.Capabilities
	if c == nil {
		return nil
	}
	state, icon := "ok", "approve"
	if !v.Online {
		state, icon = "warn", "clock" // as it was when last heard of
	}
	dhcp := service{state, icon, w.T("DHCP as %s", w.T(map[string]string{"server": "server", "proxy": "proxy"}[c.DHCP]))}
	if c.DHCP != "server" && c.DHCP != "proxy" {
		dhcp = service{"off", "offline", w.T("DHCP is off")}
	}
	finds := service{state, icon, w.T("discovers unknown machines")}
	if c.Unknown != "discover" {
		finds = service{"off", "offline", w.T("ignores unknown machines")}
	}
	return []service{dhcp, {state, icon, w.T("HTTP boot")}, {state, icon, w.T("Agent API")}, finds}
}

type regionsView struct {
	Regions  []regionView
	Online   int
	Offline  []string
	Headline string
	Lead     string
	Command  string
}

func (w *Web) regions(rw http.ResponseWriter, r *http.Request) {
	rev := w.rev()
	v := regionsView{Command: "lpmos region list"}
	for _, reg := range w.reader.Regions() {
		rv := w.newRegion(reg)
		rv.Machines = w.reader.Machines(machinesOf(reg.ID)).Total
		rv.Services, rv.Stock = w.services(rv), w.stock(reg.Capabilities)
		if c := reg.Capabilities; c != nil && c.Stock != nil && c.Stock.MaxBytes > 0 {
			rv.Full = int(min(c.Stock.Bytes, c.Stock.MaxBytes) * 100 / c.Stock.MaxBytes)
		}
		v.Regions = append(v.Regions, rv)
		if rv.Online {
			v.Online++
		} else {
			v.Offline = append(v.Offline, reg.ID)
		}
	}
	// What needs a person first.
	slices.SortStableFunc(v.Regions, func(a, b regionView) int {
		if a.Online != b.Online {
			if b.Online {
				return -1
			}
			return 1
		}
		return strings.Compare(a.ID, b.ID)
	})
	switch n := len(v.Regions); {
	case n == 0:
		v.Headline = w.T("No region has connected yet")
	case len(v.Offline) > 0:
		v.Headline = w.T("%s of %s regions are online", count(v.Online), count(n))
		v.Lead = w.N(len(v.Offline), "%s sends no heartbeat. Its boot services keep answering from what they know; nothing new is erased there.",
			"%[1]s regions send no heartbeat: %[2]s. Their boot services keep answering from what they know; nothing new is erased there.", w.list(v.Offline))
	default:
		v.Headline = w.N(n, "The region is online", "All %s regions are online")
	}
	w.show(rw, r, http.StatusOK, "regions", page{Title: w.T("Regions"), Nav: "regions", Watch: "all", Rev: rev, Body: v})
}
