package lpmos

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Stop is the emergency stop: while it stands, no attempt anywhere may begin to
// write. It is compared in every transaction that grants a permit.
type Stop struct {
	By     string    `json:"by"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// Lock keeps a machine as it is: no task is created for it and none may write.
type Lock struct {
	By     string    `json:"by"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// DefaultPermitsPerMinute is how many machines of one region may begin to write
// in a minute, unless the site says otherwise.
const DefaultPermitsPerMinute = 20

// Limits bound what can be lost in a short time. They stand in config/global.
type Limits struct {
	// PermitsPerMinute is for each region; 0 is DefaultPermitsPerMinute.
	PermitsPerMinute int `json:"permits_per_minute"`
	// Protected are machines no task is ever created for: MAC addresses or UUIDs,
	// in either byte order.
	Protected []string `json:"protected"`
}

// Normalize spells every entry in the one way and checks them.
func (l Limits) Normalize() (Limits, error) {
	if l.PermitsPerMinute < 0 || l.PermitsPerMinute > 100_000 {
		return l, &InvalidError{Field: "permits_per_minute", Problem: "is not from 1 to 100000, or 0 for the default"}
	}
	if len(l.Protected) > 10_000 {
		return l, &InvalidError{Field: "protected", Problem: "holds more than 10000 machines"}
	}
	var err error
	l.Protected, err = machineNames("protected", l.Protected)
	return l, err
}

// Tag names what l says: two that say the same have the same. Who changes
// limits names by it those that were looked at.
func (l Limits) Tag() string {
	l.Protected = append([]string{}, l.Protected...)
	return DigestOf(l)
}

// machineNames spells MAC addresses and UUIDs in the one way, each once. The byte
// order of a UUID stays as it was given.
func machineNames(field string, names []string) ([]string, error) {
	out := make([]string, 0, len(names))
	for _, s := range names {
		if mac, err := ParseMAC(s); err == nil {
			out = append(out, mac.String())
		} else if u := strings.ToLower(strings.TrimSpace(s)); UniqueUUID(u) {
			out = append(out, u)
		} else if ValidTaskID(u) {
			return nil, &InvalidError{Field: field, Problem: "holds a UUID that boards of many makers share: give the machine's MAC address instead", Value: s}
		} else {
			return nil, &InvalidError{Field: field, Problem: "holds what is neither a MAC address nor a UUID", Value: s}
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// Protects says why a machine with these addresses and UUID must never be
// installed, or "". hosts are the computers LPMOS itself runs on, by what they
// do.
func (l Limits) Protects(hosts map[string]Host, macs []MAC, uuid string) string {
	uuids := UUIDSpellings(uuid)
	for _, p := range l.Protected {
		if slices.Contains(uuids, p) || slices.ContainsFunc(macs, func(m MAC) bool { return m.String() == p }) {
			return p + " is on the list of protected machines"
		}
	}
	for what, h := range hosts {
		if slices.Contains(uuids, strings.ToLower(h.UUID)) {
			return fmt.Sprintf("it is %s, where LPMOS itself runs (%s)", h.Hostname, what)
		}
		for _, m := range macs {
			if slices.Contains(h.MACs, m) {
				return fmt.Sprintf("%s belongs to %s, where LPMOS itself runs (%s)", m, h.Hostname, what)
			}
		}
	}
	return ""
}
