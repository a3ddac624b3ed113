package lpmos

import "context"

// Actor is who changes something, and from where. It travels with the request,
// so that what is written down about a change names a person, whatever lies
// between the edge and the store.
type Actor struct {
	Name string `json:"name,omitempty"` // "anna", "agent", "orchestrator"
	From string `json:"from,omitempty"` // the peer's address as the listener saw it, "" when there is none
	Via  string `json:"via,omitempty"`  // what a person used, when it was not a browser: "token ci"
}

type actorKey struct{}

// WithActor gives a context in which a acts. Edges (REST, pages, agent API) set
// it once, from what they verified.
func WithActor(ctx context.Context, a Actor) context.Context {
	return context.WithValue(ctx, actorKey{}, a)
}

// ActorOf is who acts in ctx; LPMOS itself where no edge said so.
func ActorOf(ctx context.Context) Actor {
	if a, ok := ctx.Value(actorKey{}).(Actor); ok {
		return a
	}
	return Actor{Name: "orchestrator"}
}
