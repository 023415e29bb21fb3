package remote

import (
	"errors"
	"fmt"
)

// deleteErrors makes one error of those of several objects, which tells of the first: they
// are likely to have failed for the same reason, and may be a thousand.
func deleteErrors(errs []error) error {
	err := errors.Join(errs...)
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		if all := joined.Unwrap(); len(all) > 1 {
			return &manyErrors{all}
		}
	}
	return err
}

// manyErrors are errors in one line.
type manyErrors struct{ all []error }

func (e *manyErrors) Unwrap() []error { return e.all }
func (e *manyErrors) Error() string {
	return fmt.Sprintf("%v; and %d more that failed", e.all[0], len(e.all)-1)
}
