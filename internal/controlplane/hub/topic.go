package hub

// topic is who reads one subject. The hub's mutex guards it and the
// subscriptions of its connections.
type topic struct {
	conns []*conn
	id    string
	among map[string]*topic // where it is found while somebody reads it; nil for Hub.all
}

// reads reports whether c subscribed to t.
func (c *conn) reads(t *topic) bool {
	_, ok := c.topics[t]
	return ok
}

// join adds c to t, if it is not there yet.
func (t *topic) join(c *conn) {
	if c.reads(t) {
		return
	}
	if c.topics == nil {
		c.topics = map[*topic]int{}
	}
	c.topics[t] = len(t.conns)
	t.conns = append(t.conns, c)
}

// leave takes c out of t, and t away after its last reader.
func (t *topic) leave(c *conn) {
	at, ok := c.topics[t]
	if !ok {
		return
	}
	last := len(t.conns) - 1
	t.conns[at] = t.conns[last]
	t.conns[at].topics[t] = at
	t.conns[last] = nil
	t.conns = t.conns[:last]
	delete(c.topics, t)
	if last == 0 {
		delete(t.among, t.id)
	}
}

// topicOf finds or makes a topic, for somebody to join.
func topicOf(among map[string]*topic, id string) *topic {
	t := among[id]
	if t == nil {
		t = &topic{id: id, among: among}
		among[id] = t
	}
	return t
}
