package trunkline

// ring is a queue of requests that reuses its memory. Its size follows the bound on bytes in flight.
type ring struct {
	slots []request // len is a power of two
	head  int       // the oldest
	count int
}

func (q *ring) push(r request) {
	if q.count == len(q.slots) {
		grown := make([]request, max(16, 2*len(q.slots)))
		for i := range q.count {
			grown[i] = q.slots[(q.head+i)&(len(q.slots)-1)]
		}
		q.slots, q.head = grown, 0
	}
	q.slots[(q.head+q.count)&(len(q.slots)-1)] = r
	q.count++
}

func (q *ring) pop() (request, bool) {
	if q.count == 0 {
		return request{}, false
	}
	r := q.slots[q.head]
	q.slots[q.head] = request{} // let go of the callback
	q.head = (q.head + 1) & (len(q.slots) - 1)
	q.count--
	return r, true
}
