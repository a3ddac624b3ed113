package hub

import (
	"fmt"
	"strings"
	"testing"
)

func (q *queue) String() string {
	var out []string
	for _, m := range q.items {
		if m != nil {
			out = append(out, fmt.Sprintf("%s/%d", m.kind, m.rev))
		}
	}
	return strings.Join(out, " ")
}

func (q *queue) put(kind, id string, rev int64) (replaced, ok bool) {
	m := &message{kind: kind, taskID: id, rev: rev}
	switch kind {
	case "progress", "hardware", "region", "counts":
		m.subject = subject{kind, id}
	}
	return q.add(m)
}

// What is not sent yet keeps every status and the newest of everything else, in
// the order of revisions.
func TestQueueKeepsTheNewest(t *testing.T) {
	var q queue
	for i, m := range []struct {
		kind, id string
		replaced bool
	}{
		{"progress", task1, false}, {"status", task1, false}, {"progress", task2, false}, {"hardware", task1, false}, {"progress", task1, true},
		{"region", "dc1", false}, {"status", task2, false}, {"counts", "", false}, {"progress", task1, true}, {"region", "dc1", true},
		{"log", task1, false}, {"log", task1, false}, {"hardware", task1, true}, {"counts", "", true}, {"region", "dc2", false},
	} {
		if replaced, ok := q.put(m.kind, m.id, int64(i+1)); replaced != m.replaced || !ok {
			t.Errorf("message %d (%s of %s): replaced %v, taken %v; want %v, true", i+1, m.kind, m.id, replaced, ok, m.replaced)
		}
	}
	want := "status/2 progress/3 status/7 progress/9 region/10 log/11 log/12 hardware/13 counts/14 region/15"
	if got := q.String(); got != want || q.unsent != 10 || q.firm != 4 {
		t.Errorf("queue = %s, %d unsent, %d firm; want %s", got, q.unsent, q.firm, want)
	}
	for rev := int64(20); rev < 100_000; rev++ {
		q.put("progress", task1, rev)
	}
	want = "status/2 progress/3 status/7 region/10 log/11 log/12 hardware/13 counts/14 region/15 progress/99999"
	if got := q.String(); got != want || q.unsent != 10 || len(q.items) > 2*q.unsent+emptyRoom+1 {
		t.Errorf("queue = %s in %d places; want %s", got, len(q.items), want)
	}
	if items := q.take(); len(items) < 10 || q.String() != "" || q.unsent+q.firm != 0 || q.places != nil {
		t.Errorf("after %d were taken, the queue is %+v; want it empty", len(items), q)
	}
}

func TestQueueIsBounded(t *testing.T) {
	var q queue
	id := func(i int) string { return fmt.Sprint("task", i) }
	// Progress of many tasks at once closes nobody.
	for i := range maxBehind {
		if _, ok := q.put("progress", id(i), int64(i)); !ok {
			t.Fatalf("progress of %d tasks fills the queue", i)
		}
	}
	if _, ok := q.put("progress", "another", 1); ok {
		t.Error("the queue has no end")
	}
	if replaced, ok := q.put("progress", id(5), 1); !replaced || !ok {
		t.Error("a full queue takes no newer progress in the place of older")
	}
	q.take()
	for i := range maxQueue {
		if _, ok := q.put("status", id(i), int64(i)); !ok {
			t.Fatalf("%d statuses fill the queue", i)
		}
	}
	if _, ok := q.put("log", task1, 1); ok || q.unsent != maxQueue {
		t.Errorf("%d messages that may not be left out are queued; want no more than %d", q.unsent, maxQueue)
	}
	if _, ok := q.put("progress", task1, 1); !ok {
		t.Error("a queue full of statuses takes no progress")
	}
	q.credit = 1
	if _, ok := q.put("status", task1, 1); !ok {
		t.Error("what was missed before counts against the client")
	}
}
