package state

import "slices"

// window arranges all so that those from begin to end are the ones that stand
// there when all are in order. Only they are sorted: the rest is divided until
// it is out of the way (Hoare's selection), which for a page of a hundred
// thousand is several times quicker than sorting them.
func window(all []candidate, begin, end int, less func(a, b *candidate) bool) {
	for begin < end && len(all) > 1 {
		if len(all) <= 2*(end-begin)+32 {
			slices.SortFunc(all, func(a, b candidate) int {
				switch {
				case less(&a, &b):
					return -1
				case less(&b, &a):
					return 1
				}
				return 0
			})
			return
		}
		mid := partition(all, less)
		switch {
		case mid <= begin:
			all, begin, end = all[mid:], begin-mid, end-mid
		case mid >= end:
			all = all[:mid]
		default: // what is wanted lies across
			window(all[:mid], begin, mid, less)
			all, begin, end = all[mid:], 0, end-mid
		}
	}
}

// partition divides all, which holds three or more that differ, so that none
// before the answer comes after one behind it, with at least one on either side.
func partition(all []candidate, less func(a, b *candidate) bool) int {
	// The median of three, at the middle: what is in order already, the usual
	// case, is then halved.
	n := len(all)
	a, b, c := all[0], all[n/2], all[n-1]
	if less(&b, &a) {
		a, b = b, a
	}
	if less(&c, &b) {
		b = c
		if less(&b, &a) {
			b = a
		}
	}
	pivot := b
	i, j := -1, n
	for {
		for i++; less(&all[i], &pivot); i++ {
		}
		for j--; less(&pivot, &all[j]); j-- {
		}
		if i >= j {
			return j + 1
		}
		all[i], all[j] = all[j], all[i]
	}
}
