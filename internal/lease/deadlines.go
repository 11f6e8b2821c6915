package lease

import (
	"container/heap"
	"math"
	"math/bits"
)

// deadlines is a heap of live leases, the next to end on top. Each lease knows its place in it, and its deadline lies in
// the heap: to look it up in a hundred thousand leases costs more than to compare it.
type deadlines []deadline

type deadline struct {
	ends int64 // nanoseconds since 1970
	l    *lease
}

func deadlineOf(l *lease) deadline {
	if at := l.deadline(); !at.IsZero() {
		return deadline{at.UnixNano(), l}
	}
	return deadline{math.MinInt64, l}
}

// next is the lease that ends first; nil where none is live.
func (d deadlines) next() *lease {
	if len(d) == 0 {
		return nil
	}
	return d[0].l
}

func (d *deadlines) add(l *lease)  { heap.Push(d, deadlineOf(l)) }
func (d *deadlines) drop(l *lease) { heap.Remove(d, l.at) }

// moved is to be told that these leases have another deadline. A few are put in their places one by one, which takes
// log n for each; for many the heap is made anew, which takes n for all.
func (d *deadlines) moved(leases ...*lease) {
	few := len(leases)*bits.Len(uint(len(*d))) < len(*d)
	for _, l := range leases {
		(*d)[l.at] = deadlineOf(l)
		if few {
			heap.Fix(d, l.at)
		}
	}
	if !few {
		heap.Init(d)
	}
}

// deadlinesOf is the heap of all of these leases.
func deadlinesOf(leases map[string]*lease) deadlines {
	d := make(deadlines, 0, len(leases))
	for _, l := range leases {
		l.at = len(d)
		d = append(d, deadlineOf(l))
	}
	heap.Init(&d)
	return d
}

// What container/heap asks for.

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].ends < d[j].ends }
func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].l.at, d[j].l.at = i, j
}

func (d *deadlines) Push(x any) {
	one := x.(deadline)
	one.l.at = len(*d)
	*d = append(*d, one)
}

func (d *deadlines) Pop() any {
	old := *d
	last := old[len(old)-1]
	old[len(old)-1] = deadline{}
	*d = old[:len(old)-1]
	return last
}
