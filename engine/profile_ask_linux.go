package engine

import (
	"context"
	"net/http"

	"github.com/snapctl/snapctl/fusefs"
	"github.com/snapctl/snapctl/manifest"
)

// askForProfile has whoever serves a snapshot on this machine save what was read
// from its mounts so far, in the background. A fork of it is being snapshotted, and
// mounts of what is made then begin with that although this one has not ended.
func (r *Repository) askForProfile(ctx context.Context, id manifest.ID) {
	if r.repo.Local() {
		return // nothing is fetched ahead
	}
	if s := r.servers.get(id); s != nil {
		s.ahead.saveSoon()
		return
	}
	if r.registry == nil {
		return
	}
	points, err := fusefs.Points()
	if err != nil {
		r.repo.Logger.Info("asking for an access profile", "err", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	entries, err := r.registry.scan(id.String()+".", points)
	defer closeAll(entries)
	if err != nil {
		r.repo.Logger.Info("asking for an access profile", "err", err)
	}
	for _, e := range entries {
		if !e.live || e.rec.Repository.ID != r.repo.Cfg.ID {
			continue
		}
		if err := e.call(ctx, http.MethodPost, profilePath, nil, &struct{}{}); err != nil {
			r.repo.Logger.Info("asking for an access profile", "pid", e.rec.Pid, "err", err)
		}
	}
}

// saveSoon saves the profile in the background, if there is one to save.
func (p *prefetcher) saveSoon() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		p.background(p.save)
	}
}
