package repo

import "time"

// Patience is how long a repository goes on with what is good to have done and need not
// be, while somebody waits: on a machine that was paused meanwhile it is not done.
type Patience struct {
	// Rescue is for what an interrupted operation writes down of what it did, or undoes.
	Rescue time.Duration
	// Goodbye is for a lease to be deleted when a mount ends. What is left counts no
	// longer than leaseHold.
	Goodbye time.Duration
	// Profile is for the end of a mount to save its access profile.
	Profile time.Duration
	// Hot is how long after the mount a reader waits for bundles: two round trips and
	// some megabytes.
	Hot time.Duration
	// Ahead is how long a passphrase may be waited for before what was asked of the
	// repository meanwhile is asked again.
	Ahead time.Duration
}

// UsualPatience is that of everybody but tests.
func UsualPatience() Patience {
	return Patience{Rescue: 700 * time.Millisecond, Goodbye: 3 * time.Second, Profile: 3 * time.Second, Hot: time.Second, Ahead: 5 * time.Second}
}
