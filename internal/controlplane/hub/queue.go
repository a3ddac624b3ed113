package hub

import "slices"

// Bounds of a queue.
const (
	maxQueue  = 512    // messages that must not be left out, and that a client may be behind
	maxBehind = 16_384 // of all kinds
	fewPlaces = 16     // so many are searched quicker than looked up
	emptyRoom = 64     // places whose message was taken out, before they are closed up
)

// queue is what one client has not been sent yet, in the order of revisions:
// each message's revision is a place to resume after. The zero value is empty.
type queue struct {
	items  []*message      // nil where one was taken out
	unsent int             // messages in items
	firm   int             // of them, those that no newer one replaces
	credit int             // how many more may be in it, because they were missed before
	places map[subject]int // subject → its place in items; nil while items are few
}

// add puts m at the end and takes out the older message of its subject. It
// reports false when the queue is full; then nothing has changed.
func (q *queue) add(m *message) (replaced, ok bool) {
	at := -1
	if m.subject == (subject{}) {
		if q.firm >= maxQueue+q.credit {
			return false, false
		}
	} else if at = q.find(m.subject); at >= 0 {
		q.items[at] = nil
		q.unsent--
	}
	if q.unsent >= maxBehind+q.credit {
		return false, false
	}
	if len(q.items) > 2*q.unsent+emptyRoom {
		q.closeUp()
	}
	q.items = append(q.items, m)
	q.unsent++
	switch {
	case m.subject == (subject{}):
		q.firm++
	case q.places != nil:
		q.places[m.subject] = len(q.items) - 1
	}
	return at >= 0, true
}

// find is the place of the unsent message of a subject, or -1.
func (q *queue) find(s subject) int {
	if q.places == nil {
		if len(q.items) <= fewPlaces {
			return slices.IndexFunc(q.items, func(m *message) bool { return m != nil && m.subject == s })
		}
		q.places = make(map[subject]int, 2*len(q.items))
		q.index()
	}
	if at, ok := q.places[s]; ok {
		return at
	}
	return -1
}

// closeUp drops the places of what was taken out.
func (q *queue) closeUp() {
	q.items = slices.DeleteFunc(q.items, func(m *message) bool { return m == nil })
	if q.places != nil {
		clear(q.places)
		q.index()
	}
}

func (q *queue) index() {
	for i, m := range q.items {
		if m != nil && m.subject != (subject{}) {
			q.places[m.subject] = i
		}
	}
}

// take empties the queue. What it returns may hold nil.
func (q *queue) take() []*message {
	items := q.items
	*q = queue{}
	return items
}
