package state

import (
	"cmp"
	"math"
	"slices"
	"strings"
)

// host is a name that tasks have or had, and its number: numbers stand in the
// order of the names, so that rows are put in order by host without looking at
// names, which lie all over the memory.
type host struct {
	name   string
	number int64
}

// apart is how far a new name is put from the one before it at most: names often
// come in order, each between the last one and the same other.
const apart = 1 << 32

// hostNumber is the number of a name, a new one if need be.
func (s *State) hostNumber(name string) int64 {
	i, ok := slices.BinarySearchFunc(s.hosts, name, func(h host, name string) int { return strings.Compare(h.name, name) })
	if ok {
		return s.hosts[i].number
	}
	before, after := int64(0), int64(math.MaxInt64)
	if i > 0 {
		before = s.hosts[i-1].number
	}
	if i < len(s.hosts) {
		after = s.hosts[i].number
	}
	n := before + min((after-before)/2, apart)
	s.hosts = slices.Insert(s.hosts, i, host{strings.Clone(name), n})
	if n == before {
		s.renumber()
	}
	return s.hosts[i].number
}

// renumber gives all names new numbers, as far from each other as they can be.
// Of two that have the same, the first is the one that rows mean.
func (s *State) renumber() {
	evenly := math.MaxInt64 / int64(len(s.hosts)+1)
	for i := range s.rows {
		at, _ := slices.BinarySearchFunc(s.hosts, s.rows[i].host, func(h host, n int64) int { return cmp.Compare(h.number, n) })
		s.rows[i].host = int64(at+1) * evenly
		s.rows[i].t.row.host = s.rows[i].host
	}
	for i := range s.hosts {
		s.hosts[i].number = int64(i+1) * evenly
	}
}

// numberHosts makes the numbers for the rows that a listing brought.
func (s *State) numberHosts() {
	numbers := make(map[string]int64, len(s.rows))
	for i := range s.rows {
		numbers[s.rows[i].t.Hostname] = 0
	}
	s.hosts = make([]host, 0, len(numbers))
	for name := range numbers {
		s.hosts = append(s.hosts, host{name: name})
	}
	slices.SortFunc(s.hosts, func(a, b host) int { return strings.Compare(a.name, b.name) })
	evenly := math.MaxInt64 / int64(len(s.hosts)+1)
	for i := range s.hosts {
		s.hosts[i].number = int64(i+1) * evenly
		numbers[s.hosts[i].name] = s.hosts[i].number
	}
	for i := range s.rows {
		s.rows[i].host = numbers[s.rows[i].t.Hostname]
	}
}
