package remote

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/signer"
)

var _ Lifecycler = (*S3)(nil)

// maxLifecycle bounds a bucket's rules in bytes; there can be a thousand.
const maxLifecycle = 8 << 20

// Lifecycle is [Lifecycler.Lifecycle]: one request.
func (s *S3) Lifecycle(ctx context.Context, owner string) ([]LifecycleRule, int, error) {
	doc, err := s.lifecycle(ctx)
	if err != nil {
		return nil, 0, OpLifecycle.Wrap("rules", err)
	}
	var rules []LifecycleRule
	for _, r := range doc.Rules {
		if strings.HasPrefix(r.ID, owner) {
			rules = append(rules, s.ruleOf(&r))
		}
	}
	return rules, len(doc.Rules) - len(rules), nil
}

// SetLifecycle is [Lifecycler.SetLifecycle]: one request to read the rules, and one
// to write them if they are not as they should be.
func (s *S3) SetLifecycle(ctx context.Context, owner string, rules []LifecycleRule) error {
	return OpLifecycle.Wrap("rules", s.setLifecycle(ctx, owner, rules))
}

func (s *S3) setLifecycle(ctx context.Context, owner string, rules []LifecycleRule) error {
	for _, r := range rules {
		if !strings.HasPrefix(r.ID, owner) || owner == "" || r.Days < 1 || r.Altered {
			return fmt.Errorf("rule %q for %q: not one of %q", r.ID, r.Prefix, owner)
		}
		if err := CheckPrefix(r.Prefix); err != nil {
			return err
		}
	}
	doc, err := s.lifecycle(ctx)
	if err != nil {
		return err
	}
	var there []LifecycleRule
	kept := slices.DeleteFunc(slices.Clone(doc.Rules), func(r lifecycleRule) bool {
		if !strings.HasPrefix(r.ID, owner) {
			return false
		}
		there = append(there, s.ruleOf(&r))
		return true
	})
	byID := func(a, b LifecycleRule) int { return cmp.Compare(a.ID, b.ID) }
	if slices.Equal(slices.SortedFunc(slices.Values(there), byID), slices.SortedFunc(slices.Values(rules), byID)) {
		return nil
	}
	for _, r := range rules {
		kept = append(kept, lifecycleRule{Inner: ruleXML(r.ID, s.prefix+r.Prefix, r.Days)})
	}
	doc.Rules = kept
	if len(kept) == 0 { // a configuration without rules is refused
		_, _, err = s.lifecycleRequest(ctx, http.MethodDelete, nil, "")
		return err
	}
	_, _, err = s.lifecycleRequest(ctx, http.MethodPut, doc.encode(), doc.minimum)
	return err
}

// lifecycleDoc is a bucket's configuration. minio-go has a type for it too, which
// drops what it does not know, such as a rule's second transition: so rules of others
// are kept as the text that they are.
type lifecycleDoc struct {
	XMLName xml.Name
	Attrs   []xml.Attr      `xml:",any,attr"`
	Rules   []lifecycleRule `xml:"Rule"`
	Others  []rawElement    `xml:",any"`

	// minimum is a header that belongs to the configuration: AWS takes a put without
	// it for a change back to the default.
	minimum string
}

const minimumHeader = "X-Amz-Transition-Default-Minimum-Object-Size"

type rawElement struct {
	XMLName xml.Name
	Attrs   []xml.Attr `xml:",any,attr"`
	Inner   []byte     `xml:",innerxml"`
}

// lifecycleRule is a rule as text, and what we want to know of it.
type lifecycleRule struct {
	Attrs []xml.Attr `xml:",any,attr"`
	Inner []byte     `xml:",innerxml"`

	ID     string
	Status string
	Prefix *string
	Filter *struct {
		Prefix string
		More   []rawElement `xml:",any"`
	}
	Expiration struct {
		Days int
		More []rawElement `xml:",any"`
	}
	More []rawElement `xml:",any"`
}

// ruleOf is what a rule of ours says.
func (s *S3) ruleOf(r *lifecycleRule) LifecycleRule {
	rule := LifecycleRule{ID: r.ID, Days: r.Expiration.Days}
	rule.Altered = r.Status != "Enabled" || len(r.More)+len(r.Expiration.More) > 0 || rule.Days < 1
	prefix := ""
	switch {
	case r.Filter != nil:
		prefix = r.Filter.Prefix
		rule.Altered = rule.Altered || len(r.Filter.More) > 0 || r.Prefix != nil && *r.Prefix != "" && *r.Prefix != prefix
	case r.Prefix != nil: // as it was written once
		prefix = *r.Prefix
	}
	var ours bool
	if rule.Prefix, ours = strings.CutPrefix(prefix, s.prefix); !ours {
		rule.Altered = true
	}
	return rule
}

func ruleXML(id, prefix string, days int) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "<ID>%s</ID><Filter><Prefix>%s</Prefix></Filter><Status>Enabled</Status><Expiration><Days>%d</Days></Expiration>",
		escapeXML(id), escapeXML(prefix), days)
	return b.Bytes()
}

func escapeXML(s string) string {
	var b strings.Builder
	if err := xml.EscapeText(&b, []byte(s)); err != nil {
		panic(err) // a strings.Builder takes everything
	}
	return b.String()
}

func (d *lifecycleDoc) encode() []byte {
	var b bytes.Buffer
	element := func(name string, attrs []xml.Attr, inner func()) {
		b.WriteString("<" + name)
		for _, a := range attrs {
			key := a.Name.Local
			if a.Name.Space != "" {
				key = a.Name.Space + ":" + key
			}
			b.WriteString(" " + key + `="` + escapeXML(a.Value) + `"`)
		}
		b.WriteString(">")
		inner()
		b.WriteString("</" + name + ">")
	}
	element("LifecycleConfiguration", d.Attrs, func() {
		for _, r := range d.Rules {
			element("Rule", r.Attrs, func() { b.Write(r.Inner) })
		}
		for _, o := range d.Others {
			element(o.XMLName.Local, o.Attrs, func() { b.Write(o.Inner) })
		}
	})
	return b.Bytes()
}

// lifecycle reads the bucket's configuration.
func (s *S3) lifecycle(ctx context.Context) (*lifecycleDoc, error) {
	b, header, err := s.lifecycleRequest(ctx, http.MethodGet, nil, "")
	if errors.Is(err, errNoLifecycle) {
		space := xml.Attr{Name: xml.Name{Local: "xmlns"}, Value: "http://s3.amazonaws.com/doc/2006-03-01/"}
		return &lifecycleDoc{Attrs: []xml.Attr{space}}, nil
	}
	if err != nil {
		return nil, err
	}
	doc := &lifecycleDoc{minimum: header.Get(minimumHeader)}
	if err := xml.Unmarshal(b, doc); err != nil || doc.XMLName.Local != "LifecycleConfiguration" {
		return nil, fmt.Errorf("%s: this is not an S3 server's answer: %.100q", s.place, b)
	}
	// Rules are written as they were read, without a prefix before the names that are
	// around them: no server is known that has one.
	plain := xml.Attr{Name: xml.Name{Local: "xmlns"}, Value: doc.XMLName.Space}
	if doc.XMLName.Space != "" && !slices.Contains(doc.Attrs, plain) {
		return nil, fmt.Errorf("%s: the bucket's rules are written in a way that this program does not know", s.place)
	}
	return doc, nil
}

var errNoLifecycle = errors.New("the bucket has no lifecycle rules")

// lifecycleRequest sends a request about the bucket's configuration. minio-go makes
// such requests too, but gives and takes only its own type.
func (s *S3) lifecycleRequest(ctx context.Context, method string, body []byte, minimum string) ([]byte, http.Header, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	ctx, answer := withAnswer(ctx)
	u, err := s.core.Presign(ctx, method, s.bucket, "", time.Minute, url.Values{"lifecycle": {""}})
	if err != nil {
		return nil, nil, s.mapErr(ctx, answer, err)
	}
	u.RawQuery = "lifecycle=" // the address, but signed in the headers as all else
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	sum := sha256.Sum256(body)
	req.Header.Set("X-Amz-Content-Sha256", hex.EncodeToString(sum[:]))
	req.Header.Set("User-Agent", s.agent)
	if method == http.MethodPut {
		sum := md5.Sum(body)
		req.Header.Set("Content-Md5", base64.StdEncoding.EncodeToString(sum[:]))
		req.Header.Set("Content-Type", "application/xml")
		if minimum != "" {
			req.Header.Set(minimumHeader, minimum)
		}
	}
	creds, err := s.creds.GetWithContext(nil)
	if err != nil {
		return nil, nil, s.mapErr(ctx, answer, err)
	}
	resp, err := s.transport.RoundTrip(signer.SignV4(*req, creds.AccessKeyID, creds.SecretAccessKey, creds.SessionToken, s.region))
	if err != nil {
		return nil, nil, s.mapErr(ctx, answer, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxLifecycle+1))
	if err != nil {
		return nil, nil, s.mapErr(ctx, answer, err)
	}
	switch {
	case len(b) > maxLifecycle:
		return nil, nil, fmt.Errorf("%s: the bucket's rules are too long", s.place)
	case resp.StatusCode/100 == 2:
		s.reached.Store(true)
		return b, resp.Header, nil
	}
	refused := minio.ErrorResponse{Code: resp.Status}
	if err := xml.Unmarshal(b, &refused); err != nil {
		refused = minio.ErrorResponse{Code: resp.Status}
	}
	refused.StatusCode = resp.StatusCode
	if refused.Code == "NoSuchLifecycleConfiguration" {
		return nil, nil, errNoLifecycle
	}
	switch resp.StatusCode {
	case http.StatusNotImplemented, http.StatusMethodNotAllowed:
		s.reached.Store(true)
		return nil, nil, fmt.Errorf("%w: the server has no lifecycle rules: %s", errors.ErrUnsupported, describe(refused))
	}
	return nil, nil, s.mapErr(ctx, answer, refused)
}
