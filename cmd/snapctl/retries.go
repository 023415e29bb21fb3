package main

import (
	"fmt"
	"time"
)

// retries tells people that requests failed and are sent again.
type retries struct {
	console *console
	seldom
}

func (r *retries) tell(err error, wait time.Duration) {
	if _, ok := r.may(); ok {
		r.console.line(fmt.Sprintf("retrying in %s: %v", round(wait), err))
	}
}
