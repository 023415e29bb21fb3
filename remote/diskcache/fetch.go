package diskcache

import (
	"context"
	"errors"
	"math/bits"
	"slices"
	"sync"

	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/disk"
)

// A flight is one range of an object that is being fetched. Readers take their
// bytes from its memory as soon as they have arrived. It begins and ends at a
// block's border or the object's end, unless nothing can be stored.
type flight struct {
	obj        *object
	store      remote.Store
	start, end int64
	buf        []byte
	class      class       // a background one has a slot already
	reader     *missReader // who began it; nil for the background
	cancel     context.CancelFunc

	// Guarded by obj.mu.
	keep     bool  // it is to be stored
	reached  int64 // bytes before it have arrived
	err      error
	done     bool
	waiters  []waiter
	interest int  // readers that have not left
	kept     bool // a reader left because it had what it wanted
	refs     int  // users of buf
}

type waiter struct {
	need int64
	wake chan struct{}
}

// start begins a fetch, in which the caller has an interest. It is nil when
// the cache is closed. The caller holds obj.mu.
func (obj *object) start(ctx context.Context, s *Store, start, end int64, keep bool, class class) *flight {
	c := obj.cache
	if !c.begin() {
		return nil
	}
	fl := &flight{
		obj: obj, store: s.store, start: start, end: end, reached: start, keep: keep, class: class,
		buf: getFlightBuffer(int(end - start)), interest: 1, refs: 2,
	}
	ctx, fl.cancel = context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(c.ctx, fl.cancel)
	obj.flights = append(obj.flights, fl)
	obj.retain()
	go func() {
		defer c.work.Done()
		switch class {
		case classRead:
			c.slots.enter()
			defer c.slots.exit()
		case classFill:
			c.slots.filling(fl)
			defer c.slots.filled(fl)
		}
		err := fl.fetch(ctx)
		stop()
		fl.cancel()
		fl.finish(err)
		obj.release()
	}()
	return fl
}

// join is a further interest. The caller holds obj.mu.
func (fl *flight) join() {
	fl.interest++
	fl.refs++
}

// leave ends an interest. When nobody got what he wanted, and all have given
// up, the fetch ends.
func (fl *flight) leave(cancelled bool) {
	obj := fl.obj
	obj.mu.Lock()
	defer obj.mu.Unlock()
	fl.interest--
	fl.kept = fl.kept || !cancelled
	if fl.interest == 0 && !fl.kept && !fl.done {
		obj.land(fl) // nobody shall join it now
		fl.cancel()
	}
	fl.unref()
}

// giveWay ends a fill if nobody but the background has an interest in it. What
// has arrived is kept.
func (fl *flight) giveWay() {
	obj := fl.obj
	obj.mu.Lock()
	defer obj.mu.Unlock()
	if fl.interest == 1 && !fl.kept && !fl.done {
		obj.land(fl)
		fl.cancel()
	}
}

func (fl *flight) unref() {
	fl.refs--
	if fl.refs == 0 {
		putFlightBuffer(fl.buf)
		fl.buf = nil
	}
}

// land takes a flight off the list. The caller holds obj.mu.
func (obj *object) land(fl *flight) {
	if i := slices.Index(obj.flights, fl); i >= 0 {
		obj.flights = slices.Delete(obj.flights, i, i+1)
	}
}

func (fl *flight) finish(err error) {
	fl.obj.mu.Lock()
	defer fl.obj.mu.Unlock()
	fl.obj.land(fl)
	fl.done, fl.err = true, err
	for _, w := range fl.waiters {
		close(w.wake)
	}
	fl.waiters = nil
	fl.unref()
}

// advance says that the bytes before reached have arrived.
func (fl *flight) advance(reached int64) {
	fl.obj.mu.Lock()
	defer fl.obj.mu.Unlock()
	fl.reached = max(fl.reached, reached)
	fl.waiters = slices.DeleteFunc(fl.waiters, func(w waiter) bool {
		if w.need > fl.reached {
			return false
		}
		close(w.wake)
		return true
	})
}

// wait returns when the bytes before need have arrived. It is [remote.ErrShort] when
// the object has none there.
func (fl *flight) wait(ctx context.Context, need int64) error {
	obj := fl.obj
	obj.mu.Lock()
	var wake chan struct{}
	if !fl.done && fl.reached < need {
		wake = make(chan struct{})
		fl.waiters = append(fl.waiters, waiter{need, wake})
	}
	obj.mu.Unlock()
	if wake != nil {
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	obj.mu.Lock()
	defer obj.mu.Unlock()
	switch {
	case fl.reached >= need:
		return nil
	case fl.err != nil:
		return fl.err
	}
	return remote.ErrShort
}

// waitAll waits until all is stored. short tells that the object ends within.
func (fl *flight) waitAll(ctx context.Context) (short bool, err error) {
	err = fl.wait(ctx, fl.end+1) // more than ever arrives
	if errors.Is(err, remote.ErrShort) {
		fl.obj.mu.Lock()
		defer fl.obj.mu.Unlock()
		return fl.reached < fl.end, fl.err
	}
	return false, err
}

// fetch brings the flight's bytes: from the store, and those that another
// process has brought meanwhile from the disk.
func (fl *flight) fetch(ctx context.Context) error {
	obj, c := fl.obj, fl.obj.cache
	if fl.class == classRead {
		if err := c.slots.acquire(ctx, classRead); err != nil {
			return err
		}
	}
	defer c.slots.release(fl.class)
	f := fl.openToFill()
	if f != nil {
		defer f.release()
		at := fl.start
		if fl.class != classRead {
			at += backgroundLocks
		}
		if f.lock(ctx, at, fl.end-fl.start, func() bool { return fl.complete(f) }) {
			defer f.unlock(at, fl.end-fl.start)
		}
	}
	end := fl.end
	if f != nil {
		end = fl.knownEnd(f)
	}
	for pos := fl.start; pos < end; {
		stop := end
		if f != nil {
			n, err := f.read(fl.buf[pos-fl.start:end-fl.start], pos)
			if err == errDamaged {
				c.stats.damaged.Add(f.scrub())
			}
			if pos += int64(n); n > 0 {
				fl.advance(pos)
				continue
			}
			stop = nextHere(f, pos, end)
		}
		p := fl.buf[pos-fl.start : stop-fl.start]
		c.stats.requests.Add(1)
		n, err := remote.ReadRange(ctx, fl.store, obj.key.name, pos, p, func(n int) { fl.advance(pos + int64(n)) })
		c.stats.fetchedBytes.Add(int64(n))
		if fl.class == classFill {
			c.stats.filledBytes.Add(int64(n))
		}
		to := pos + int64(n)
		fl.advance(to)
		if err == nil && n < len(p) {
			obj.setSize(to)
		}
		if f != nil {
			kept, serr := fl.keepRange(f, pos, to)
			c.stored(kept)
			if serr != nil {
				c.trouble(troubleStore, serr)
				f = nil // released by the defer
			}
		}
		if err != nil || n < len(p) {
			return err
		}
		pos = to
	}
	return nil
}

func (fl *flight) openToFill() *mirror {
	fl.obj.mu.Lock()
	keep := fl.keep
	fl.obj.mu.Unlock()
	if !keep {
		return nil
	}
	return fl.obj.openToFill()
}

// knownEnd is the flight's end, or that of the object: another process may
// have come upon it since this fetch was planned.
func (fl *flight) knownEnd(f *mirror) int64 {
	if size, _, err := f.blocks(0, 0); err == nil && size > fl.start {
		fl.obj.setSize(size)
		return min(fl.end, size)
	}
	return fl.end
}

// complete tells whether the disk has all of it.
func (fl *flight) complete(f *mirror) bool {
	_, here, err := f.blocks(fl.start/blockSize, ceilBlock(fl.knownEnd(f)))
	return err == nil && !slices.Contains(here, false)
}

// nextHere gives where, behind the block at pos, the disk has something; else
// the end.
func nextHere(f *mirror, pos, end int64) int64 {
	b := pos/blockSize + 1
	if last := ceilBlock(end); b < last {
		if _, here, err := f.blocks(b, last); err == nil {
			if i := slices.Index(here, true); i >= 0 {
				return (b + int64(i)) * blockSize
			}
		}
	}
	return end
}

// keepRange stores the whole blocks of what has arrived, and the object's last;
// it returns how many bytes that were.
func (fl *flight) keepRange(f *mirror, from, to int64) (int, error) {
	obj := fl.obj
	obj.mu.Lock()
	size := obj.size
	keep := fl.keep
	obj.mu.Unlock()
	if to != size {
		to = to / blockSize * blockSize
	}
	if !keep || to <= from {
		return 0, nil
	}
	p := fl.buf[from-fl.start : to-fl.start]
	if err := disk.Pwrite(f.fd, p, dataOffset+from); err != nil {
		return 0, obj.writeError(err)
	}
	b0, b1 := from/blockSize, ceilBlock(to)
	entries := appendEntries(make([]byte, 0, (b1-b0)*entrySize), b0, p)
	obj.mu.Lock()
	defer obj.mu.Unlock()
	if !fl.keep { // it was found to be wrong meanwhile
		return 0, nil
	}
	if to == size {
		if err := f.setSize(size); err != nil {
			return 0, obj.writeError(err)
		}
	}
	if err := disk.Pwrite(f.fd, entries, mapOffset+b0*entrySize); err != nil {
		return 0, obj.writeError(err)
	}
	return len(p), nil
}

// Buffers of flights, by the power of two that holds them.
var flightBuffers [bits.UintSize]sync.Pool

func getFlightBuffer(size int) []byte {
	class := bits.Len(uint(size - 1))
	if b, ok := flightBuffers[class].Get().(*[]byte); ok {
		return (*b)[:size]
	}
	return make([]byte, size, 1<<class)
}

func putFlightBuffer(b []byte) {
	b = b[:cap(b)]
	flightBuffers[bits.Len(uint(len(b)-1))].Put(&b)
}
