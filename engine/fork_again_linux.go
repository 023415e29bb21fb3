package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/moby/sys/mountinfo"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/fusefs"
	"golang.org/x/sys/unix"
)

// A ForkAction is what ForkAgain does.
type ForkAction string

// The actions.
const (
	ForkMake    ForkAction = "make"    // a fork where nothing is
	ForkKeep    ForkAction = "keep"    // the fork of that snapshot that is there
	ForkResume  ForkAction = "resume"  // the same, which is not mounted, or whose server has died
	ForkReplace ForkAction = "replace" // the fork that is there, by another one
	ForkHide    ForkAction = "hide"    // what is there, while the fork is mounted
)

// A ForkPlan tells what ForkAgain would do.
type ForkPlan struct {
	Action   ForkAction        `json:"action"`
	Snapshot snapshot.Snapshot `json:"snapshot"`
	Dir      string            `json:"target"` // absolute and without symbolic links

	fork string // the name of the one that is there
}

// ForkAgain is Fork where a fork of this machine may be already, or what a restore of this
// machine left. If nothing was changed in it since, or if replace is set, that fork gives
// way, and one of the same snapshot stays as it is; what a restore left is hidden. It fails
// with ErrExists for what else is there, and with fusefs.ErrBusy if somebody uses a fork
// that is to give way.
func (r *Repository) ForkAgain(ctx context.Context, ref, dir string, opts *ForkOptions, replace bool) (*Fork, error) {
	p, err := r.PlanFork(ctx, ref, dir, opts, replace)
	if err != nil {
		return nil, err
	}
	if opts == nil {
		opts = &ForkOptions{}
	}
	switch p.Action {
	case ForkKeep, ForkResume:
		return r.ResumeFork(ctx, p.fork, opts)
	case ForkReplace:
		if _, err := RemoveFork(ctx, r.repo.State, p.fork, nil); err != nil && !errors.Is(err, snapshot.ErrNoFork) {
			return nil, err
		}
	case ForkHide:
		over := *opts
		over.Force = true
		opts = &over
	}
	return r.Fork(ctx, p.Snapshot.ID.String(), p.Dir, opts)
}

// PlanFork tells what ForkAgain would do, and changes nothing.
func (r *Repository) PlanFork(ctx context.Context, ref, dir string, opts *ForkOptions, replace bool) (*ForkPlan, error) {
	p, err := r.planFork(ctx, ref, dir, opts, replace)
	if err != nil {
		return nil, fmt.Errorf("forking to %s: %w", dir, err)
	}
	return p, nil
}

func (r *Repository) planFork(ctx context.Context, ref, dir string, opts *ForkOptions, replace bool) (*ForkPlan, error) {
	g, err := newForkRegistry(r.repo.State)
	if err != nil {
		return nil, err
	}
	s, err := r.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	path, err := fusefs.Resolve(dir)
	if err != nil {
		return nil, err
	}
	p := &ForkPlan{Action: ForkMake, Snapshot: *s, Dir: path}
	e, err := g.registered(path)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return p, r.planOver(ctx, p, opts)
	}
	defer e.close()
	p.fork = e.rec.Name
	changed, err := r.forkChanged(ctx, e)
	if err != nil {
		return nil, err
	}
	state, err := e.stateNow()
	if err != nil {
		return nil, err
	}
	switch {
	case replace:
		p.Action = ForkReplace
	case changed:
		return nil, fmt.Errorf("%w: the fork %s is there, and has changes", snapshot.ErrExists, p.fork)
	case e.rec.Snapshot.ID != s.ID || state == ForkLost && (e.rec.Ephemeral || e.rec.Mode == ForkRestore):
		p.Action = ForkReplace
	case state == ForkMounted:
		p.Action = ForkKeep
	default:
		p.Action = ForkResume
	}
	return p, nil
}

// planOver looks at a directory at which no fork is.
func (r *Repository) planOver(ctx context.Context, p *ForkPlan, opts *ForkOptions) error {
	fd, err := fsys.OpenDir(p.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	names, err := fsys.NamesIn(fd)
	if err != nil || len(names) == 0 {
		return err
	}
	p.Action = ForkHide
	if opts != nil && opts.Force {
		return nil
	}
	mounted, err := mountinfo.Mounted(p.Dir)
	if err != nil {
		return err
	}
	rec, err := r.restoredAt(ctx, p.Dir, fd, mounted)
	if err == nil && rec == nil {
		err = snapshot.ErrNotEmpty
	}
	return err
}

// forkChanged reports whether anything was changed in a fork since it was made.
func (r *Repository) forkChanged(ctx context.Context, e *forkEntry) (bool, error) {
	if e.rec.Mode != ForkRestore {
		empty, err := fsys.IsEmptyDir(e.upper())
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil // it is lost
		}
		return !empty, err
	}
	if !e.copyThere() {
		return false, nil
	}
	fd, err := fsys.OpenDir(string(e.rec.Dir))
	if err != nil {
		return true, err
	}
	defer unix.Close(fd)
	rec, err := r.restoredAt(ctx, string(e.rec.Dir), fd, false)
	return rec == nil, err
}
