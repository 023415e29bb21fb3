package engine

import "github.com/snapctl/snapctl/engine/snapshot"

// Errors that callers branch on with errors.Is. Messages name the repository,
// snapshot or file that they are about. Package snapshot says what each one means.
var (
	ErrNotInitialised = snapshot.ErrNotInitialised
	ErrExists         = snapshot.ErrExists
	ErrGone           = snapshot.ErrGone
	ErrNotEmpty       = snapshot.ErrNotEmpty
	ErrOwn            = snapshot.ErrOwn
	ErrPartlyWritten  = snapshot.ErrPartlyWritten
	ErrNotFound       = snapshot.ErrNotFound
	ErrAmbiguous      = snapshot.ErrAmbiguous
	ErrExpired        = snapshot.ErrExpired
	ErrIntegrity      = snapshot.ErrIntegrity
	ErrInvalid        = snapshot.ErrInvalid
	ErrLocked         = snapshot.ErrLocked
	ErrNoIdentity     = snapshot.ErrNoIdentity
	ErrNotEncrypted   = snapshot.ErrNotEncrypted
	ErrNoKey          = snapshot.ErrNoKey
	ErrLastKey        = snapshot.ErrLastKey
	ErrNeedsLinux     = snapshot.ErrNeedsLinux
	ErrUnsupported    = snapshot.ErrUnsupported
	ErrServerStays    = snapshot.ErrServerStays
	ErrNoFork         = snapshot.ErrNoFork
	ErrForkLost       = snapshot.ErrForkLost
)
