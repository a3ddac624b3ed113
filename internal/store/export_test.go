package store

// Divide makes listings of All go by summaries above so many keys of tasks.
func (s *Store) Divide(keys int64) { s.many = keys }
