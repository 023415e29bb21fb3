package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Options are what [Open] needs besides the URL; nil and zero values work.
type Options struct {
	// Credentials, if set, are used instead of those that are looked for.
	Credentials Credentials
	// Parallel is how many requests there will be at once: so many connections
	// are kept open. Default 32.
	Parallel int
	// UserAgent names the program and its version, as in "snapctl/1.0".
	UserAgent string
	// Transport, if not nil, carries the requests of S3 and R2.
	Transport http.RoundTripper
	// Retry says how patient to be.
	Retry RetryOptions
	// Count, if not nil, counts each request to S3 or R2, and each attempt of an
	// operation in a folder.
	Count *Counter
}

// Open opens the store at a URL (see [ParseURL]), with retries. It sends no
// request: that a bucket does not exist is learnt from the first operation.
// A folder must exist ([ErrNoBucket]); [Create] makes it.
//
// The credentials for S3 and R2 are those of the Options, or else those that
// the AWS command line would use: of the environment (AWS_ACCESS_KEY_ID,
// AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN); of a web identity; of the profile
// that AWS_PROFILE names (keys, role_arn, SSO, credential_process); of the
// container's role; of the machine's, which is waited for a second.
// [ErrAccess] where there are none.
func Open(ctx context.Context, rawURL string, o *Options) (Store, error) {
	l, err := ParseURL(rawURL)
	if err != nil {
		return nil, err
	}
	return l.Open(ctx, o)
}

// Create is [Open] for a place that need not exist yet: it makes the folder.
// Buckets are made with their owner's tools, and not here.
func Create(ctx context.Context, rawURL string, o *Options) (Store, error) {
	l, err := ParseURL(rawURL)
	if err != nil {
		return nil, err
	}
	if l.Dir != "" {
		if err := MakeDir(l.Dir); err != nil {
			return nil, err
		}
	}
	return l.Open(ctx, o)
}

// A Location is where a store is. Make one with [ParseURL].
type Location struct {
	// Dir is the absolute path of a folder; all else is then empty.
	Dir string

	// Account and Jurisdiction are R2's. An empty Jurisdiction is the default one.
	Account, Jurisdiction string

	Bucket string
	Prefix string // without a slash at either end; may be empty
	// Endpoint is the server, as in "https://host:port"; empty for AWS.
	Endpoint string
	// Region may be empty.
	Region string
}

// ParseURL understands
//
//	a path, or file:///path
//	s3://bucket/prefix?endpoint=URL&region=REGION
//	r2://ACCOUNT/bucket/prefix?jurisdiction=eu
//
// The prefix may be missing, and so may the parameters. A jurisdiction is eu
// or fedramp. An s3 URL without an endpoint takes the one in
// AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, and else AWS; without a region, that
// in AWS_REGION or AWS_DEFAULT_REGION.
//
// Credentials do not belong in a URL, which ends up in logs and process lists:
// one that has any is refused, in words that do not repeat them.
func ParseURL(raw string) (Location, error) {
	l, err := parseURL(raw)
	if err != nil {
		return Location{}, fmt.Errorf("repository URL: %w", err)
	}
	return l, nil
}

var errUserinfo = errors.New("credentials do not belong in a URL, which ends up in logs and process lists: " +
	"give them in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in the shared credentials file")

func parseURL(raw string) (Location, error) {
	switch {
	case raw == "~", strings.HasPrefix(raw, "~/"):
		// No shell has put the home folder there: in quotes, behind --repo=, in a unit file.
		return Location{}, fmt.Errorf("%q is not expanded here: write the path in full, or ./~ for a folder of that name", "~")
	case raw == "":
		return Location{}, errors.New("it is empty")
	case strings.ContainsRune(raw, 0):
		return Location{}, errors.New("it has a zero byte in it")
	}
	scheme, rest, ok := strings.Cut(raw, ":")
	if !ok || strings.Contains(scheme, "/") || scheme == "" {
		return parsePath(raw)
	}
	authority, hasAuthority := strings.CutPrefix(rest, "//")
	if !hasAuthority {
		switch scheme {
		case "file", "s3", "r2":
			return Location{}, fmt.Errorf("%s: must be followed by // (s3://bucket/prefix?endpoint=URL)", scheme)
		}
		return parsePath(raw) // a file may be called a:b
	}
	// Before url.Parse, whose errors repeat what it was given.
	if i := strings.IndexAny(authority, "/?#"); i >= 0 {
		authority = authority[:i]
	}
	if strings.Contains(authority, "@") {
		return Location{}, errUserinfo
	}
	u, err := url.Parse(raw)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return Location{}, err
	}
	if u.Fragment != "" || strings.HasSuffix(raw, "#") {
		return Location{}, errors.New("it has a #fragment (write # as %23)")
	}
	switch scheme {
	case "file":
		return parseFile(u)
	case "s3":
		return parseS3(u)
	case "r2":
		return parseR2(u)
	}
	return Location{}, fmt.Errorf("unknown scheme %q (file, s3 and r2 are known)", scheme)
}

func parsePath(path string) (Location, error) {
	dir, err := Abs(path)
	return Location{Dir: dir}, err
}

func parseFile(u *url.URL) (Location, error) {
	switch {
	case u.Host != "" && u.Host != "localhost":
		return Location{}, fmt.Errorf("%q is not this machine (file:///path has three slashes)", u.Host)
	case !strings.HasPrefix(u.Path, "/"):
		return Location{}, errors.New("it has no path")
	case strings.ContainsRune(u.Path, 0):
		return Location{}, errors.New("it has a zero byte in it")
	}
	if _, err := parameters(u); err != nil {
		return Location{}, err
	}
	return Location{Dir: filepath.Clean(u.Path)}, nil
}

// parameters gives the query's parameters, which must be among the known ones.
func parameters(u *url.URL, known ...string) (map[string]string, error) {
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, errors.New("malformed ?query")
	}
	values := make(map[string]string)
	for key, v := range q {
		if !slices.Contains(known, key) {
			return nil, fmt.Errorf("unknown parameter %q", key)
		}
		if len(v) > 1 {
			return nil, fmt.Errorf("parameter %q is given twice", key)
		}
		values[key] = v[0]
	}
	return values, nil
}

func parseS3(u *url.URL) (Location, error) {
	p, err := parameters(u, "endpoint", "region")
	if err != nil {
		return Location{}, err
	}
	l := Location{Bucket: u.Host, Endpoint: p["endpoint"], Region: p["region"]}
	if l.Endpoint == "" && os.Getenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS") != "true" {
		l.Endpoint = firstEnv("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
	}
	if l.Endpoint, err = checkEndpoint(l.Endpoint); err != nil {
		return Location{}, fmt.Errorf("endpoint: %w", err)
	}
	if l.Region == "" {
		l.Region = firstEnv("AWS_REGION", "AWS_DEFAULT_REGION")
	}
	if !regionForm.MatchString(l.Region) {
		return Location{}, fmt.Errorf("%q is not a region", l.Region)
	}
	err = l.setPath(u.Path)
	return l, err
}

var (
	regionForm  = regexp.MustCompile(`^[a-zA-Z0-9-]*$`)
	bucketForm  = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	accountForm = regexp.MustCompile(`^[0-9a-f]{32}$`)
)

func firstEnv(keys ...string) string {
	for _, key := range keys {
		if v := os.Getenv(key); v != "" {
			return v
		}
	}
	return ""
}

// checkEndpoint gives scheme://host[:port] in lower case.
func checkEndpoint(raw string) (string, error) {
	if raw == "" {
		return "", nil
	}
	if strings.Contains(raw, "@") {
		return "", errUserinfo
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Scheme == "" || u.Hostname() == "" && u.Opaque == "":
		return "", fmt.Errorf("%q is not a URL such as https://host:port", raw)
	case u.Scheme != "http" && u.Scheme != "https" || u.Opaque != "":
		return "", fmt.Errorf("%q is neither http nor https", u.Scheme)
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return "", errors.New("nothing may follow the host and port")
	}
	return u.Scheme + "://" + strings.ToLower(u.Host), nil
}

func parseR2(u *url.URL) (Location, error) {
	p, err := parameters(u, "jurisdiction")
	if err != nil {
		return Location{}, err
	}
	if !accountForm.MatchString(u.Host) {
		return Location{}, errors.New("r2:// is followed by the account id (32 hexadecimal digits), then /bucket")
	}
	l := Location{Account: u.Host, Jurisdiction: p["jurisdiction"], Region: "auto"}
	host := l.Account
	switch l.Jurisdiction {
	case "":
	case "eu", "fedramp":
		host += "." + l.Jurisdiction
	default:
		return Location{}, fmt.Errorf("unknown jurisdiction %q (eu and fedramp are known)", l.Jurisdiction)
	}
	l.Endpoint = "https://" + host + ".r2.cloudflarestorage.com"
	bucket, path, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	l.Bucket = bucket
	err = l.setPath(path)
	return l, err
}

// setPath sets the prefix, and checks it and the bucket.
func (l *Location) setPath(path string) error {
	if l.Bucket == "" {
		return errors.New("it names no bucket")
	}
	if !bucketForm.MatchString(l.Bucket) || strings.Contains(l.Bucket, "..") || net.ParseIP(l.Bucket) != nil {
		return fmt.Errorf("%q is not a bucket's name (3 to 63 of a-z, 0-9, - and .; the server goes into ?endpoint=)", l.Bucket)
	}
	l.Prefix = strings.Trim(path, "/")
	if l.Prefix == "" {
		return nil
	}
	if !utf8.ValidString(l.Prefix) || strings.ContainsFunc(l.Prefix, unicode.IsControl) {
		return errors.New("the prefix is not printable text")
	}
	if len(l.Prefix) > 512 { // a key has 1,024 bytes, and the object's name has to fit too
		return errors.New("the prefix is longer than 512 bytes")
	}
	for part := range strings.SplitSeq(l.Prefix, "/") {
		// Servers that keep objects as files would make something else of these.
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("the prefix %q has a part that is empty or made of dots", l.Prefix)
		}
	}
	return nil
}

// String gives the one way to write the location: an absolute path for a
// folder, else a URL. It holds no secrets, and [ParseURL] makes the same
// location of it.
func (l Location) String() string {
	if l.Dir != "" {
		return l.Dir
	}
	u := url.URL{Scheme: "s3", Host: l.Bucket}
	q := url.Values{}
	if l.Account != "" {
		u.Scheme, u.Host, u.Path = "r2", l.Account, "/"+l.Bucket
		if l.Jurisdiction != "" {
			q.Set("jurisdiction", l.Jurisdiction)
		}
	} else {
		if l.Endpoint != "" {
			q.Set("endpoint", l.Endpoint)
		}
		if l.Region != "" {
			q.Set("region", l.Region)
		}
	}
	if l.Prefix != "" {
		u.Path += "/" + l.Prefix
	}
	// An endpoint reads better with its colons and slashes, which a query may have.
	u.RawQuery = strings.NewReplacer("%3A", ":", "%2F", "/").Replace(q.Encode())
	return u.String()
}

// Open opens the store there, as [Open] does.
func (l Location) Open(ctx context.Context, o *Options) (Store, error) {
	if o == nil {
		o = new(Options)
	}
	var s Store
	var err error
	if l.Dir != "" {
		var f *File
		if f, err = OpenFile(l.Dir); err == nil {
			s = f
			if o.Count != nil {
				s = o.Count.Wrap(f)
			}
		}
	} else {
		s, err = OpenS3(ctx, S3Config{
			Endpoint:    l.Endpoint,
			Region:      l.Region,
			Bucket:      l.Bucket,
			Prefix:      l.Prefix,
			Place:       l.String(),
			Credentials: o.Credentials,
			Parallel:    o.Parallel,
			UserAgent:   o.UserAgent,
			Transport:   o.Transport,
			Count:       o.Count,
		})
	}
	if err != nil {
		return nil, err
	}
	return Retry(s, &o.Retry), nil
}
