package engine

import "time"

// patience is how long a repository goes on with what is good to have done and need not
// be, while somebody waits: on a machine that was paused meanwhile it is not done.
type patience struct {
	// rescue is for what an interrupted operation writes down of what it did, or undoes.
	rescue time.Duration
	// goodbye is for a lease to be deleted when a mount ends. What is left counts no
	// longer than leaseHold.
	goodbye time.Duration
	// profile is for the end of a mount to save its access profile.
	profile time.Duration
	// hot is how long after the mount a reader waits for bundles: two round trips and
	// some megabytes.
	hot time.Duration
	// ahead is how long a passphrase may be waited for before what was asked of the
	// repository meanwhile is asked again.
	ahead time.Duration
}

func usualPatience() patience {
	return patience{rescue: 700 * time.Millisecond, goodbye: 3 * time.Second, profile: 3 * time.Second, hot: time.Second, ahead: 5 * time.Second}
}
