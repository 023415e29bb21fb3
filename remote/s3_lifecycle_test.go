package remote_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// others is what somebody else has set up, with what minio's type would lose: a second
// transition, a filter that is empty, elements that nobody knows yet.
const others = `<Rule><ID>Default Multipart Abort Rule</ID><Filter></Filter><Status>Enabled</Status><AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>` +
	`<Rule><ID>logs &amp; more</ID><Filter><And><Prefix>logs/</Prefix><Tag><Key>a</Key><Value>b</Value></Tag></And></Filter><Status>Disabled</Status>
		<Transition><Days>30</Days><StorageClass>STANDARD_IA</StorageClass></Transition><Transition><Days>90</Days><StorageClass>GLACIER</StorageClass></Transition>
		<Expiration><Date>2030-01-01T00:00:00.000Z</Date></Expiration><Future><Thing x="1"/></Future></Rule>` +
	`<Rule><ID>snapctl-ANOTHER-ttl-1d</ID><Filter><Prefix>else/</Prefix></Filter><Status>Enabled</Status><Expiration><Days>2</Days></Expiration></Rule>`

const (
	lifecycleOwner = "snapctl-OURS-"
	lifecycleRoot  = `<LifecycleConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">`
)

var lifecycleOurs = []remote.LifecycleRule{
	{ID: lifecycleOwner + "ttl-1d", Prefix: "manifests/ttl-1d/", Days: 2},
	{ID: lifecycleOwner + "ttl-7d", Prefix: "manifests/ttl-7d/", Days: 8},
}

// lifecycleTest is a bucket whose rules are looked at.
type lifecycleTest struct {
	*testing.T
	server *remotetest.LifecycleServer
	store  remote.Lifecycler
}

func newLifecycleTest(t *testing.T) *lifecycleTest {
	server := remotetest.StartLifecycleServer(t)
	s3 := openS3(t, server.Config("a/b"))
	store := remote.Retry(new(remote.Counter).Wrap(s3), &remote.RetryOptions{Sleep: noSleep}).(remote.Lifecycler)
	return &lifecycleTest{t, server, store}
}

func (l *lifecycleTest) doc() string { d, _ := l.server.Doc(); return d }

// expect says what there is, and which requests have led to it.
func (l *lifecycleTest) expect(what string, want []remote.LifecycleRule, others int, requests string) {
	l.Helper()
	if got := l.server.Requests(); got != requests {
		l.Errorf("%s: requests %q, want %q", what, got, requests)
	}
	rules, n, err := l.store.Lifecycle(l.Context(), lifecycleOwner)
	if err != nil || n != others || len(rules)+len(want) > 0 && !reflect.DeepEqual(rules, want) {
		l.Errorf("%s: %+v, %d others, %v", what, rules, n, err)
	}
	l.server.Requests()
}

func (l *lifecycleTest) set(rules []remote.LifecycleRule) {
	l.Helper()
	if err := l.store.SetLifecycle(l.Context(), lifecycleOwner, rules); err != nil {
		l.Error(err)
	}
}

func TestLifecycle(t *testing.T) {
	l := newLifecycleTest(t)
	// A bucket without any.
	l.expect("nothing", nil, 0, "")
	l.set(nil)
	l.expect("nothing of nothing", nil, 0, "GET")
	l.set(lifecycleOurs)
	l.expect("ours alone", lifecycleOurs, 0, "GET PUT")
	if want := `<Filter><Prefix>a/b/manifests/ttl-1d/</Prefix></Filter><Status>Enabled</Status><Expiration><Days>2</Days></Expiration>`; !strings.Contains(l.doc(), want) {
		t.Errorf("no %s in %s", want, l.doc())
	}
	l.set(lifecycleOurs)
	l.expect("again", lifecycleOurs, 0, "GET")
	l.set(nil)
	l.expect("ours alone removed", nil, 0, "GET DELETE")

	// Others stay as they are, to the byte.
	const varies = "varies_by_storage_class"
	l.server.Set(`<?xml version="1.0" encoding="UTF-8"?>`+"\n"+lifecycleRoot+others+`<Known>no</Known></LifecycleConfiguration>`, varies)
	l.expect("others", nil, 3, "")
	l.set(lifecycleOurs)
	l.expect("beside others", lifecycleOurs, 3, "GET PUT")
	if d, m := l.server.Doc(); !strings.HasPrefix(d, lifecycleRoot+others) || !strings.HasSuffix(d, "<Known>no</Known></LifecycleConfiguration>") || m != varies {
		t.Errorf("%s\n%s", m, d)
	}
	l.set(lifecycleOurs[:1])
	l.expect("one less", lifecycleOurs[:1], 3, "GET PUT")
	l.server.Fail(2)
	l.set(nil)
	l.expect("removed", nil, 3, "GET GET GET PUT")
	if want := lifecycleRoot + others + "<Known>no</Known></LifecycleConfiguration>"; l.doc() != want {
		t.Errorf("%s, want\n%s", l.doc(), want)
	}
}

// TestLifecycleAltered: what somebody changed about our rules is seen, and set right.
func TestLifecycleAltered(t *testing.T) {
	l := newLifecycleTest(t)
	for what, change := range map[string][2]string{
		"switched off":   {"Enabled", "Disabled"},
		"other objects":  {"a/b/manifests/ttl-1d/", "a/c/"},
		"all objects":    {"<Filter><Prefix>a/b/manifests/ttl-1d/</Prefix></Filter>", "<Filter></Filter>"},
		"fewer objects":  {"</Prefix></Filter>", "</Prefix><ObjectSizeLessThan>1</ObjectSizeLessThan></Filter>"},
		"at a date":      {"<Days>2</Days>", "<Date>2030-01-01T00:00:00.000Z</Date>"},
		"something more": {"<Expiration>", "<NoncurrentVersionExpiration/><Expiration>"},
	} {
		l.server.Set("", "")
		l.set(lifecycleOurs[:1])
		l.server.Set(strings.Replace(l.doc(), change[0], change[1], 1), "")
		rules, _, err := l.store.Lifecycle(t.Context(), lifecycleOwner)
		if err != nil || len(rules) != 1 || !rules[0].Altered {
			t.Errorf("%s: %+v, %v", what, rules, err)
		}
		l.server.Requests()
		l.set(lifecycleOurs[:1])
		l.expect(what, lifecycleOurs[:1], 0, "GET PUT")
	}
	l.server.Set(lifecycleRoot+"<Rule><ID>"+lifecycleOwner+"ttl-1d</ID><Prefix>a/b/manifests/ttl-1d/</Prefix><Status>Enabled</Status><Expiration><Days>2</Days></Expiration></Rule></LifecycleConfiguration>", "")
	l.expect("as it was written once", lifecycleOurs[:1], 0, "")
}

// TestLifecycleRefuses: an answer that is no list of rules is not overwritten, and rules
// that are not the owner's are not set.
func TestLifecycleRefuses(t *testing.T) {
	l := newLifecycleTest(t)
	for what, bad := range map[string]string{
		"a page":     "<html></html>",
		"nothing":    " ",
		"a prefix":   `<s:LifecycleConfiguration xmlns:s="x"><s:Rule/></s:LifecycleConfiguration>`,
		"cut short":  lifecycleRoot + others,
		"other data": `<ListBucketResult/>`,
	} {
		l.server.Set(bad, "")
		if err := l.store.SetLifecycle(t.Context(), lifecycleOwner, lifecycleOurs); err == nil || l.server.Requests() != "GET" {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, bad := range []remote.LifecycleRule{{ID: "other", Prefix: "x", Days: 1}, {ID: lifecycleOwner, Prefix: "x"}, {ID: lifecycleOwner, Prefix: "../x", Days: 1}} {
		if err := l.store.SetLifecycle(t.Context(), lifecycleOwner, []remote.LifecycleRule{bad}); err == nil {
			t.Errorf("%+v was set", bad)
		}
	}
}

// TestLifecycleUnsupported: versitygw, which checks the signature first, has no rules;
// nor has what is no bucket.
func TestLifecycleUnsupported(t *testing.T) {
	server := remotetest.StartVersityGW(t)
	for _, tls := range []bool{false, true} {
		s := openS3(t, remotetest.StartStrictR2(t, server, tls).Config(""))
		if _, _, err := s.Lifecycle(t.Context(), "x"); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("tls %v: %v", tls, err)
		} else if strings.Contains(err.Error(), "://") {
			t.Errorf("the bucket is named, which the caller does: %v", err)
		}
		if err := s.SetLifecycle(t.Context(), "x", []remote.LifecycleRule{{ID: "x1", Prefix: "x", Days: 1}}); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("tls %v: %v", tls, err)
		}
		c := remotetest.StartStrictR2(t, server, tls).Config("")
		c.Credentials.SecretAccessKey = "wrong"
		if _, _, err := openS3(t, c).Lifecycle(t.Context(), "x"); !errors.Is(err, remote.ErrAccess) {
			t.Errorf("tls %v: a wrong key: %v", tls, err)
		}
	}
	l := remote.Retry(new(remote.Counter).Wrap(remotetest.NewMemory()), nil).(remote.Lifecycler)
	if _, _, err := l.Lifecycle(t.Context(), "x"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("memory: %v", err)
	}
}
