package state

import "slices"

func sortRows(rows []*row, less func(a, b *row) bool) {
	slices.SortFunc(rows, func(a, b *row) int {
		switch {
		case less(a, b):
			return -1
		case less(b, a):
			return 1
		}
		return 0
	})
}

// partition divides rows so that none before the answer comes after one behind
// it, with at least one on either side. rows holds three or more.
func partition(rows []*row, less func(a, b *row) bool) int {
	// The median of three, at the middle: already ordered rows, the usual case,
	// are then halved.
	n := len(rows)
	a, b, c := rows[0], rows[n/2], rows[n-1]
	if less(b, a) {
		a, b = b, a
	}
	if less(c, b) {
		b = c
		if less(b, a) {
			b = a
		}
	}
	pivot := b
	i, j := -1, n
	for {
		for i++; less(rows[i], pivot); i++ {
		}
		for j--; less(pivot, rows[j]); j-- {
		}
		if i >= j {
			if j+1 == n {
				return n - 1 // the pivot is the only greatest one
			}
			return j + 1
		}
		rows[i], rows[j] = rows[j], rows[i]
	}
}
