package diskcache

import (
	"context"
	"errors"
	"math/bits"
	"slices"
	"sync"

	"github.com/snapctl/snapctl/internal/disk"
	"github.com/snapctl/snapctl/remote"
)

// A flight is one range of an object that is being fetched. Readers take their
// bytes from its memory as soon as they have arrived. It begins and ends at a
// block's border or the object's end, unless nothing can be stored.
type flight struct {
	pk         *cachePack
	store      remote.Store
	start, end int64
	buf        []byte
	class      class       // a background one has a slot already
	reader     *missReader // who began it; nil for the background
	cancel     context.CancelFunc

	// Guarded by pk.mu.
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
// the cache is closed. The caller holds pk.mu.
func (pk *cachePack) start(ctx context.Context, s *Store, start, end int64, keep bool, class class) *flight {
	c := pk.cache
	if !c.begin() {
		return nil
	}
	fl := &flight{
		pk: pk, store: s.store, start: start, end: end, reached: start, keep: keep, class: class,
		buf: getFlightBuffer(int(end - start)), interest: 1, refs: 2,
	}
	ctx, fl.cancel = context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(c.ctx, fl.cancel)
	pk.flights = append(pk.flights, fl)
	pk.retain()
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
		pk.release()
	}()
	return fl
}

// join is a further interest. The caller holds pk.mu.
func (fl *flight) join() {
	fl.interest++
	fl.refs++
}

// leave ends an interest. When nobody got what he wanted, and all have given
// up, the fetch ends.
func (fl *flight) leave(cancelled bool) {
	pk := fl.pk
	pk.mu.Lock()
	defer pk.mu.Unlock()
	fl.interest--
	fl.kept = fl.kept || !cancelled
	if fl.interest == 0 && !fl.kept && !fl.done {
		pk.land(fl) // nobody shall join it now
		fl.cancel()
	}
	fl.unref()
}

// giveWay ends a fill if nobody but the background has an interest in it. What
// has arrived is kept.
func (fl *flight) giveWay() {
	pk := fl.pk
	pk.mu.Lock()
	defer pk.mu.Unlock()
	if fl.interest == 1 && !fl.kept && !fl.done {
		pk.land(fl)
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

// land takes a flight off the list. The caller holds pk.mu.
func (pk *cachePack) land(fl *flight) {
	if i := slices.Index(pk.flights, fl); i >= 0 {
		pk.flights = slices.Delete(pk.flights, i, i+1)
	}
}

func (fl *flight) finish(err error) {
	fl.pk.mu.Lock()
	defer fl.pk.mu.Unlock()
	fl.pk.land(fl)
	fl.done, fl.err = true, err
	for _, w := range fl.waiters {
		close(w.wake)
	}
	fl.waiters = nil
	fl.unref()
}

// advance says that the bytes before reached have arrived.
func (fl *flight) advance(reached int64) {
	fl.pk.mu.Lock()
	defer fl.pk.mu.Unlock()
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
	pk := fl.pk
	pk.mu.Lock()
	var wake chan struct{}
	if !fl.done && fl.reached < need {
		wake = make(chan struct{})
		fl.waiters = append(fl.waiters, waiter{need, wake})
	}
	pk.mu.Unlock()
	if wake != nil {
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	pk.mu.Lock()
	defer pk.mu.Unlock()
	switch {
	case fl.reached >= need:
		return nil
	case fl.err != nil:
		return fl.err
	}
	return remote.ErrShort
}

// settle waits until all is stored. short tells that the object ends within.
func (fl *flight) settle(ctx context.Context) (short bool, err error) {
	err = fl.wait(ctx, fl.end+1) // more than ever arrives
	if errors.Is(err, remote.ErrShort) {
		fl.pk.mu.Lock()
		defer fl.pk.mu.Unlock()
		return fl.reached < fl.end, fl.err
	}
	return false, err
}

// fetch brings the flight's bytes: from the store, and those that another
// process has brought meanwhile from the disk.
func (fl *flight) fetch(ctx context.Context) error {
	pk, c := fl.pk, fl.pk.cache
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
		n, err := remote.ReadRange(ctx, fl.store, pk.key.name, pos, p, func(n int) { fl.advance(pos + int64(n)) })
		c.stats.fetchedBytes.Add(int64(n))
		if fl.class == classFill {
			c.stats.filledBytes.Add(int64(n))
		}
		to := pos + int64(n)
		fl.advance(to)
		if err == nil && n < len(p) {
			pk.setSize(to)
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

func (fl *flight) openToFill() *cacheFile {
	fl.pk.mu.Lock()
	keep := fl.keep
	fl.pk.mu.Unlock()
	if !keep {
		return nil
	}
	return fl.pk.openToFill()
}

// knownEnd is the flight's end, or that of the object: another process may
// have come upon it since this fetch was planned.
func (fl *flight) knownEnd(f *cacheFile) int64 {
	if size, _, err := f.blocks(0, 0); err == nil && size > fl.start {
		fl.pk.setSize(size)
		return min(fl.end, size)
	}
	return fl.end
}

// complete tells whether the disk has all of it.
func (fl *flight) complete(f *cacheFile) bool {
	_, here, err := f.blocks(fl.start/cacheBlock, ceilBlock(fl.knownEnd(f)))
	return err == nil && !slices.Contains(here, false)
}

// nextHere gives where, behind the block at pos, the disk has something; else
// the end.
func nextHere(f *cacheFile, pos, end int64) int64 {
	b := pos/cacheBlock + 1
	if last := ceilBlock(end); b < last {
		if _, here, err := f.blocks(b, last); err == nil {
			if i := slices.Index(here, true); i >= 0 {
				return (b + int64(i)) * cacheBlock
			}
		}
	}
	return end
}

// keepRange stores the whole blocks of what has arrived, and the object's last;
// it returns how many bytes that were.
func (fl *flight) keepRange(f *cacheFile, from, to int64) (int, error) {
	pk := fl.pk
	pk.mu.Lock()
	size := pk.size
	keep := fl.keep
	pk.mu.Unlock()
	if to != size {
		to = to / cacheBlock * cacheBlock
	}
	if !keep || to <= from {
		return 0, nil
	}
	p := fl.buf[from-fl.start : to-fl.start]
	if err := disk.Pwrite(f.fd, p, cacheData+from); err != nil {
		return 0, pk.writeError(err)
	}
	b0, b1 := from/cacheBlock, ceilBlock(to)
	entries := appendEntries(make([]byte, 0, (b1-b0)*cacheEntry), b0, p)
	pk.mu.Lock()
	defer pk.mu.Unlock()
	if !fl.keep { // it was found to be wrong meanwhile
		return 0, nil
	}
	if to == size {
		if err := f.setSize(size); err != nil {
			return 0, pk.writeError(err)
		}
	}
	if err := disk.Pwrite(f.fd, entries, cacheMap+b0*cacheEntry); err != nil {
		return 0, pk.writeError(err)
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
