package remote

import (
	"fmt"
	"strings"
	"sync"
)

// Requests are what was asked of a store, by what providers charge. One that failed or
// was given up counts as any other, and so does each attempt.
type Requests struct {
	// Server says that they were sent to a server. Else they are operations on files
	// of this machine, or in memory, which cost nothing; a list is one then.
	Server bool `json:"server"`

	Put    int64 `json:"put"`  // all that write, the steps of a multipart upload too
	List   int64 `json:"list"` // one for each page
	Get    int64 `json:"get"`
	Head   int64 `json:"head"`
	Delete int64 `json:"delete"` // of one object, or of many at once
	Failed int64 `json:"failed"` // of all these; an object that does not exist is such a failure

	Sent     int64 `json:"sent"`     // bytes of content, without headers
	Received int64 `json:"received"` // likewise

	// Waits is how often an answer had to be waited for before there could be another
	// request: the length of the longest chain of requests of which each began after the
	// one before it had ended. Requests that are under way at the same time are in one
	// place of the chain, and what is still under way in none. It is the number of
	// round trips if each needed what the one before it had brought; where many at once
	// follow one another it can be more than that.
	Waits int64 `json:"waits"`

	// Ops has the same by operation.
	Ops Counts `json:"-"`
}

// Total is how many there were.
func (r Requests) Total() int64 { return r.Put + r.List + r.Get + r.Head + r.Delete }

// OpCount is what was asked by one operation.
type OpCount struct {
	Calls    int64 // that have begun
	Failed   int64 // have ended with an error, an object that does not exist included
	Sent     int64 // bytes
	Received int64 // bytes
}

// Counts is indexed by [Op]. Requests to a server are counted by what they do: those
// about a bucket's rules as [OpGet], [OpReplace] and [OpDelete].
type Counts [numOps]OpCount

// Sub gives what was counted since before.
func (n Counts) Sub(before Counts) Counts {
	for op, b := range before {
		n[op].Calls -= b.Calls
		n[op].Failed -= b.Failed
		n[op].Sent -= b.Sent
		n[op].Received -= b.Received
	}
	return n
}

// Total adds up all operations.
func (n Counts) Total() OpCount {
	var t OpCount
	for _, c := range n {
		t.Calls += c.Calls
		t.Failed += c.Failed
		t.Sent += c.Sent
		t.Received += c.Received
	}
	return t
}

// String gives a line such as "put 3 (1048576 bytes), get 1 (270 bytes, 1
// failed)", of the operations that were used at all.
func (n Counts) String() string {
	var parts []string
	for op, c := range n {
		if c.Calls == 0 {
			continue
		}
		var more []string
		if bytes := c.Sent + c.Received; bytes > 0 {
			more = append(more, fmt.Sprintf("%d bytes", bytes))
		}
		if c.Failed > 0 {
			more = append(more, fmt.Sprintf("%d failed", c.Failed))
		}
		s := fmt.Sprintf("%s %d", Op(op), c.Calls)
		if more != nil {
			s += " (" + strings.Join(more, ", ") + ")"
		}
		parts = append(parts, s)
	}
	if parts == nil {
		return "no requests"
	}
	return strings.Join(parts, ", ")
}

// A Counter counts what is asked of a store: the requests that [Open] and [OpenS3] have
// sent if they are given it, or the operations of any store ([Counter.Wrap]). The zero
// value is ready to use. It is safe for parallel use.
type Counter struct {
	mu     sync.Mutex
	server bool
	ops    Counts
	ended  int64 // the length of the longest chain that has ended
}

// Requests gives what was counted so far.
func (c *Counter) Requests() Requests {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, t := &c.ops, c.ops.Total()
	return Requests{
		Server: c.server,
		Put:    n[OpPut].Calls + n[OpReplace].Calls,
		List:   n[OpList].Calls,
		Get:    n[OpGet].Calls + n[OpReadAt].Calls,
		Head:   n[OpStat].Calls,
		Delete: n[OpDelete].Calls,
		Failed: t.Failed, Sent: t.Sent, Received: t.Received,
		Waits: c.ended,
		Ops:   c.ops,
	}
}

// A call is one that is under way.
type call struct {
	counter *Counter
	op      Op
	place   int64 // in the longest chain that ends with it
}

// begin is called before a request is sent. What has ended by then may be why it is sent.
func (c *Counter) begin(op Op) *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ops[op].Calls++
	return &call{c, op, c.ended + 1}
}

// moved is called, any number of times, for bytes of content.
func (k *call) moved(sent, received int) {
	k.counter.mu.Lock()
	defer k.counter.mu.Unlock()
	k.counter.ops[k.op].Sent += int64(sent)
	k.counter.ops[k.op].Received += int64(received)
}

// again is called when the request failed and is sent once more.
func (k *call) again() {
	k.counter.mu.Lock()
	defer k.counter.mu.Unlock()
	k.counter.ops[k.op].Calls++
	k.counter.ops[k.op].Failed++
	k.counter.ended = max(k.counter.ended, k.place)
	k.place = k.counter.ended + 1
}

// end is called once, when all of the answer is there, before anybody can act on it.
func (k *call) end(failed bool) {
	k.counter.mu.Lock()
	defer k.counter.mu.Unlock()
	if failed {
		k.counter.ops[k.op].Failed++
	}
	k.counter.ended = max(k.counter.ended, k.place)
}
