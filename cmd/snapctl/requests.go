package main

import (
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
	"github.com/snapctl/snapctl/remote"
)

// An askedOf counts what is asked of one repository in the whole command: opening it may
// fail, or be done twice.
type askedOf struct {
	url   string
	count remote.Counter
}

// optionsFor are those that the repository at a URL is opened with.
func (r *repositories) optionsFor(url string) *engine.Options {
	if loc, err := remote.ParseURL(url); err == nil {
		url = loc.String()
	}
	opts := r.options()
	for _, s := range r.asked {
		if s.url == url {
			opts.Requests = &s.count
			return opts
		}
	}
	s := &askedOf{url: url}
	r.asked = append(r.asked, s)
	opts.Requests = &s.count
	return opts
}

// tellRequests says with -v what was asked of each repository so far, a line each, and
// with -vv in exact numbers too. until is what ended then, "" for the command.
func (r *repositories) tellRequests(until string) {
	if r.verbose == 0 {
		return
	}
	var all []*askedOf
	for _, s := range r.asked {
		if s.count.Requests().Total() > 0 {
			all = append(all, s)
		}
	}
	for _, s := range all {
		q := s.count.Requests()
		what := "requests"
		if !q.Server {
			what = "file operations"
		}
		if len(all) > 1 {
			what += " to " + s.url
		}
		if until != "" {
			what += " until " + until
		}
		r.ui.Console.Line(what + ": " + requestsText(q))
		r.logger().Debug("requests", "repository", s.url, "until", until, "server", q.Server,
			"put", q.Put, "list", q.List, "get", q.Get, "head", q.Head, "delete", q.Delete, "failed", q.Failed,
			"waits", q.Waits, "sent", q.Sent, "received", q.Received, "dollars", dollars(q))
	}
}

// requestsText is such as "3 PUT, 1 LIST, 2 GET in 4 waits; sent 1.2 MiB, received 40
// KiB; $0.0000187 at R2's prices".
func requestsText(r remote.Requests) string {
	var asked, moved []string
	count := func(n int64, what string) {
		if n > 0 {
			asked = append(asked, humanize.Comma(n)+" "+what)
		}
	}
	bytes := func(what string, n int64) {
		if n > 0 {
			moved = append(moved, what+" "+ui.Size(n))
		}
	}
	cost := "they cost nothing"
	if r.Server {
		count(r.Put, "PUT")
		count(r.List, "LIST")
		count(r.Get, "GET")
		count(r.Head, "HEAD")
		count(r.Delete, "DELETE")
		bytes("sent", r.Sent)
		bytes("received", r.Received)
		cost = dollarText(dollars(r)) + " at R2's prices"
	} else {
		for op, c := range r.Ops {
			count(c.Calls, remote.Op(op).String())
		}
		bytes("wrote", r.Sent)
		bytes("read", r.Received)
	}
	parts := []string{strings.Join(asked, ", ") + " in " + ui.Plural(r.Waits, "wait")}
	if moved != nil {
		parts = append(parts, strings.Join(moved, ", "))
	}
	return strings.Join(append(parts, cost), "; ")
}
