package agentserver

import (
	"slices"
	"sync"

	"github.com/lpmos/lpmos"
)

// Book is an Orders that its owner keeps up to date. The zero value is empty
// and not synced; it may be used concurrently.
type Book struct {
	mu      sync.RWMutex // guards what follows
	synced  bool
	orders  map[string]lpmos.Order
	boots   map[lpmos.MAC]lpmos.BootEntry
	keys    [][]byte
	secrets map[string]lpmos.AgentSeal
	waiting map[string]chan struct{} // by task ID; "" for any
}

// Reset replaces everything in one step, as after a resync, and marks the book
// synced.
func (b *Book) Reset(orders []lpmos.Order, boots []lpmos.BootEntry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.orders, b.boots, b.synced = map[string]lpmos.Order{}, map[lpmos.MAC]lpmos.BootEntry{}, true
	for _, o := range orders {
		b.orders[o.TaskID] = o
	}
	for _, e := range boots {
		b.boots[e.MAC] = e
	}
	for _, ch := range b.waiting {
		close(ch)
	}
	clear(b.waiting)
}

// SetOrder adds or replaces an order.
func (b *Book) SetOrder(o lpmos.Order) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.orders == nil {
		b.orders = map[string]lpmos.Order{}
	}
	b.orders[o.TaskID] = o
	b.wake(o.TaskID)
}

// RemoveOrder takes an order out.
func (b *Book) RemoveOrder(taskID string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.orders, taskID)
	b.wake(taskID)
}

// SetBoot adds or replaces an entry of the boot index.
func (b *Book) SetBoot(e lpmos.BootEntry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.boots == nil {
		b.boots = map[lpmos.MAC]lpmos.BootEntry{}
	}
	b.boots[e.MAC] = e
	b.wake("")
}

// RemoveBoot takes an entry of the boot index out.
func (b *Book) RemoveBoot(mac lpmos.MAC) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.boots, mac)
}

// SetKeys sets the control plane's public keys.
func (b *Book) SetKeys(keys [][]byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keys = keys
}

// SetSynced says whether the book can be trusted to be current.
func (b *Book) SetSynced(synced bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.synced = synced
}

// SetSecrets sets what was sealed for the agent of a task's attempt.
func (b *Book) SetSecrets(taskID string, s lpmos.AgentSeal) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.secrets == nil {
		b.secrets = map[string]lpmos.AgentSeal{}
	}
	b.secrets[taskID] = s
}

// Secrets finds what was sealed for the agent of a task's attempt.
func (b *Book) Secrets(taskID string) (lpmos.AgentSeal, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	s, ok := b.secrets[taskID]
	return s, ok
}

func (b *Book) wake(taskID string) {
	for _, id := range []string{taskID, ""} {
		if ch := b.waiting[id]; ch != nil {
			close(ch)
			delete(b.waiting, id)
		}
	}
}

// Order finds a task's order.
func (b *Book) Order(taskID string) (lpmos.Order, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	o, ok := b.orders[taskID]
	return o, ok
}

// ByMAC finds a machine's order: the one the boot index names, else the one
// that names the machine.
func (b *Book) ByMAC(mac lpmos.MAC) (lpmos.Order, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if e, ok := b.boots[mac]; ok && e.Action == lpmos.BootAgent {
		if o, ok := b.orders[e.TaskID]; ok {
			return o, true
		}
	}
	for _, o := range b.orders {
		if o.TargetMAC == mac || slices.Contains(o.Macs, mac) {
			return o, true
		}
	}
	return lpmos.Order{}, false
}

// Synced reports whether the book can be trusted.
func (b *Book) Synced() bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.synced
}

// Changed returns a channel that is closed at the next change of a task's
// order, or of anything for "".
func (b *Book) Changed(taskID string) <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waiting == nil {
		b.waiting = map[string]chan struct{}{}
	}
	ch := b.waiting[taskID]
	if ch == nil {
		ch = make(chan struct{})
		b.waiting[taskID] = ch
	}
	return ch
}

// Keys are the control plane's public keys.
func (b *Book) Keys() [][]byte {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.keys
}
