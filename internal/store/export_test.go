package store

// Divide makes listings of All go by summaries from so many keys on.
func (s *Store) Divide(keys int64) { s.many = keys }
