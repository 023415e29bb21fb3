package remote

import (
	"errors"
	"time"
)

// A TransientError is a failure that another attempt may not meet: the server
// is overloaded or away, the connection broke, the content arrived damaged.
// Only a store knows which of its errors are; [Retry] goes by this type alone.
type TransientError struct {
	// Err is what happened.
	Err error
	// After is how long the server wants to be left alone; 0 when it did not say.
	After time.Duration
}

// Error gives Err's text.
func (e *TransientError) Error() string { return e.Err.Error() }

// Unwrap gives Err.
func (e *TransientError) Unwrap() error { return e.Err }

// Transient tells whether the operation that failed with err may succeed if
// it is tried again.
func Transient(err error) bool {
	var t *TransientError
	return errors.As(err, &t)
}
