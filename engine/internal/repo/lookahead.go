package repo

import (
	"context"
	"errors"
	"sync"

	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
)

// lookahead is what Open asks for side by side with the config, since it will be
// wanted next: see Options.Ref and List. Each answer is used once.
type lookahead struct {
	cancel context.CancelFunc
	mu     sync.Mutex
	Get    map[string]answer[[]byte]
	list   map[string]answer[[]remote.Info] // by prefix
	keys   answer[[]string]
}

// lookAhead begins to fetch what a reference needs first: the manifest, or the
// lists of manifests and notes. Of what is surely encrypted it lists the keys.
func (r *Repo) lookAhead(ctx context.Context, opts *Options) {
	ref := opts.Ref
	wantKeys := opts.wantsEncryption() && opts.Key == nil
	if ref == "" && !opts.List && !wantKeys || r.Local() {
		return
	}
	l := &lookahead{}
	ctx, l.cancel = context.WithCancel(ctx)
	r.Ahead = l
	if wantKeys {
		l.keys = Begin(func() ([]string, error) { return r.listKeys(ctx) })
	}
	if ref == "" && !opts.List {
		return
	}
	if id, ok := IdOf(ref); ok {
		name := id.ObjectName()
		l.Get = map[string]answer[[]byte]{name: Begin(func() ([]byte, error) { return r.Store.Get(ctx, name) })}
	} else {
		l.list = map[string]answer[[]remote.Info]{}
		for _, prefix := range []string{manifest.Prefix, manifest.NotePrefix} {
			l.list[prefix] = Begin(func() (all []remote.Info, err error) {
				err = r.Store.List(ctx, prefix, func(o remote.Info) error {
					all = append(all, o)
					return nil
				})
				return all, err
			})
		}
	}
}

// answer is what waits for one.
type answer[T any] func(context.Context) (T, error)

// Begin runs f in the background.
func Begin[T any](f func() (T, error)) answer[T] {
	var v T
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		v, err = f()
	}()
	return func(ctx context.Context) (T, error) {
		select {
		case <-done:
			return v, err
		case <-ctx.Done(): // f may still write what it found
			var none T
			return none, ctx.Err()
		}
	}
}

func (l *lookahead) close() {
	if l != nil {
		l.cancel()
	}
}

// takeGet gives the wait for an object that is being fetched; nil for none.
func (l *lookahead) takeGet(name string) answer[[]byte] {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.Get[name]
	delete(l.Get, name)
	return f
}

func (l *lookahead) takeKeys() answer[[]string] {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.keys
	l.keys = nil
	return f
}

// Forget drops all answers: they may be old, for whoever has to know how it is now.
func (l *lookahead) Forget() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.Get, l.list = nil, nil
}

func (l *lookahead) takeList(prefix string) answer[[]remote.Info] {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.list[prefix]
	delete(l.list, prefix)
	return f
}

// getManifest gets the object of a manifest, and tells its name: where that of the
// lifetime class is gone, the one that is kept longer.
func (r *Repo) getManifest(ctx context.Context, id manifest.ID) (name string, b []byte, err error) {
	name = id.ObjectName()
	if wait := r.Ahead.takeGet(name); wait != nil {
		b, err = wait(ctx)
		if errors.Is(err, context.Canceled) && ctx.Err() == nil { // the context of Open has ended
			b, err = r.Store.Get(ctx, name)
		}
	} else {
		b, err = r.Store.Get(ctx, name)
	}
	if errors.Is(err, remote.ErrNotExist) && name != id.KeptName() {
		name = id.KeptName()
		b, err = r.Store.Get(ctx, name)
	}
	return name, b, err
}

// list is Store.List of what may have been listed ahead.
func (r *Repo) list(ctx context.Context, prefix string, yield func(remote.Info) error) error {
	wait := r.Ahead.takeList(prefix)
	if wait == nil {
		return r.Store.List(ctx, prefix, yield)
	}
	all, err := wait(ctx)
	if errors.Is(err, context.Canceled) && ctx.Err() == nil { // the context of Open has ended
		return r.Store.List(ctx, prefix, yield)
	}
	for i := 0; i < len(all) && err == nil; i++ {
		err = yield(all[i])
	}
	return err
}

// keepWhole keeps a manifest that was fetched whole although its head was wanted:
// of what a name leads to, the manifest is mostly wanted next.
func (r *Repo) keepWhole(id manifest.ID, b []byte) {
	l := r.Ahead
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.Get == nil {
		l.Get = map[string]answer[[]byte]{}
	}
	if len(l.Get) < maxWholes {
		l.Get[id.ObjectName()] = func(context.Context) ([]byte, error) { return b, nil }
	}
}

// maxWholes bounds what keepWhole keeps: 64 of at most 64 KiB.
const maxWholes = 64
