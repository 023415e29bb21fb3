package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/minio/minio-go/v7"
)

// errPrecondition is the answer to a conditional put of an object that exists.
var errPrecondition = errors.New("precondition failed")

// mapErr turns what minio returned for a request into the package's errors.
func (s *S3) mapErr(ctx context.Context, a *answer, err error) error {
	if err == nil {
		s.reached.Store(true)
		return nil
	}
	if cerr := ctx.Err(); cerr != nil {
		return cerr
	}
	var r minio.ErrorResponse
	if errors.As(err, &r) && (r.StatusCode != 0 || r.Code != "") {
		s.reached.Store(true)
		return s.mapResponse(a, r)
	}
	return s.mapNetwork(err)
}

func (s *S3) mapResponse(a *answer, r minio.ErrorResponse) error {
	switch r.Code {
	case "NoSuchKey":
		return ErrNotExist
	case "NoSuchBucket":
		return fmt.Errorf("%w: %s", ErrNoBucket, s.place)
	case "PreconditionFailed":
		return errPrecondition
	case "InvalidRange":
		return ErrShort
	}
	err := fmt.Errorf("%s: %s", s.place, describe(r))
	if transientCode(r.Code) || transientStatus(r.StatusCode) {
		return &TransientError{Err: err, After: a.retryAfter}
	}
	switch r.Code {
	case "RequestTimeTooSkewed":
		return fmt.Errorf("%w%s: %w", ErrClock, a.aheadText(), err)
	case "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "Unauthorized",
		"XAdminUserNotFound": // versitygw's InvalidAccessKeyId
		return fmt.Errorf("%w: %s", ErrAccess, err)
	case "PermanentRedirect", "AuthorizationHeaderMalformed", "InvalidRegion":
		if r.Region != "" {
			return fmt.Errorf("%w (the bucket is in region %s: add ?region=%[2]s)", err, r.Region)
		}
	}
	// Not every 404 is an object that does not exist (versitygw answers an
	// unknown access key with it), so NoSuchKey alone is taken for that.
	switch r.StatusCode {
	case http.StatusPreconditionFailed:
		return errPrecondition
	case http.StatusRequestedRangeNotSatisfiable:
		return ErrShort
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%w: %s", ErrAccess, err)
	}
	return err
}

// aheadText says how far off this machine's clock is, if the answer told.
func (a *answer) aheadText() string {
	switch d := a.ahead.Round(time.Second); {
	case d > 0:
		return fmt.Sprintf(" (it is %v ahead)", d)
	case d < 0:
		return fmt.Sprintf(" (it is %v behind)", -d)
	}
	return ""
}

// describe gives "SlowDown: Please reduce your request rate (503)".
func describe(r minio.ErrorResponse) string {
	text := r.Code
	if r.Message != "" && r.Message != r.Code {
		text += ": " + r.Message
	}
	if r.StatusCode != 0 {
		text += fmt.Sprintf(" (%d)", r.StatusCode)
	}
	return text
}

func transientCode(code string) bool {
	switch code {
	case "SlowDown", "SlowDownRead", "SlowDownWrite", "ServiceUnavailable", "InternalError",
		"RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests",
		"OperationAborted", "ConditionalRequestConflict", // another conditional put of this name is under way
		"BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody": // it was damaged on the way
		return true
	}
	return false
}

func transientStatus(status int) bool {
	switch status {
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		return false
	case http.StatusRequestTimeout, http.StatusTooManyRequests, 499: // nginx: the client went away
		return true
	}
	return status >= 500
}

// mapNetwork is for errors without an answer of the server. All are worth
// another attempt, but those that come from a wrong address or a wrong
// certificate.
func (s *S3) mapNetwork(err error) error {
	var t *TransientError
	if errors.As(err, &t) || errors.Is(err, ErrAccess) { // from the credentials
		return err
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // it repeats the whole request
	}
	err = fmt.Errorf("%s: %w", s.place, err)
	var (
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		verify    *tls.CertificateVerificationError
		record    tls.RecordHeaderError
		dns       *net.DNSError
	)
	switch {
	case errors.As(err, &authority), errors.As(err, &hostname), errors.As(err, &invalid),
		errors.As(err, &verify), errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return err
	case errors.As(err, &dns) && dns.IsNotFound && !s.reached.Load():
		// Mistyped. If it was right before, then the network is away.
		return err
	}
	return &TransientError{Err: err}
}
