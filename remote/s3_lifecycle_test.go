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

func TestLifecycle(t *testing.T) {
	server := remotetest.StartLifecycleServer(t)
	doc := func() string { d, _ := server.Doc(); return d }
	s3 := openS3(t, server.Config("a/b"))
	store := remote.Retry(new(remote.Counter).Wrap(s3), &remote.RetryOptions{Sleep: noSleep}).(remote.Lifecycler)
	ctx := t.Context()
	const owner = "snapctl-OURS-"
	ours := []remote.LifecycleRule{{ID: owner + "ttl-1d", Prefix: "manifests/ttl-1d/", Days: 2}, {ID: owner + "ttl-7d", Prefix: "manifests/ttl-7d/", Days: 8}}
	expect := func(what string, want []remote.LifecycleRule, others int, requests string) {
		t.Helper()
		if got := server.Requests(); got != requests {
			t.Errorf("%s: requests %q, want %q", what, got, requests)
		}
		rules, n, err := store.Lifecycle(ctx, owner)
		if err != nil || n != others || len(rules)+len(want) > 0 && !reflect.DeepEqual(rules, want) {
			t.Errorf("%s: %+v, %d others, %v", what, rules, n, err)
		}
		server.Requests()
	}
	set := func(rules []remote.LifecycleRule) {
		t.Helper()
		if err := store.SetLifecycle(ctx, owner, rules); err != nil {
			t.Error(err)
		}
	}

	// A bucket without any.
	expect("nothing", nil, 0, "")
	set(nil)
	expect("nothing of nothing", nil, 0, "GET")
	set(ours)
	expect("ours alone", ours, 0, "GET PUT")
	if want := `<Filter><Prefix>a/b/manifests/ttl-1d/</Prefix></Filter><Status>Enabled</Status><Expiration><Days>2</Days></Expiration>`; !strings.Contains(doc(), want) {
		t.Errorf("no %s in %s", want, doc())
	}
	set(ours)
	expect("again", ours, 0, "GET")
	set(nil)
	expect("ours alone removed", nil, 0, "GET DELETE")

	// Others stay as they are, to the byte.
	const root = `<LifecycleConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">`
	const varies = "varies_by_storage_class"
	server.Set(`<?xml version="1.0" encoding="UTF-8"?>`+"\n"+root+others+`<Known>no</Known></LifecycleConfiguration>`, varies)
	expect("others", nil, 3, "")
	set(ours)
	expect("beside others", ours, 3, "GET PUT")
	if d, m := server.Doc(); !strings.HasPrefix(d, root+others) || !strings.HasSuffix(d, "<Known>no</Known></LifecycleConfiguration>") || m != varies {
		t.Errorf("%s\n%s", m, d)
	}
	set(ours[:1])
	expect("one less", ours[:1], 3, "GET PUT")
	server.Fail(2)
	set(nil)
	expect("removed", nil, 3, "GET GET GET PUT")
	if want := root + others + "<Known>no</Known></LifecycleConfiguration>"; doc() != want {
		t.Errorf("%s, want\n%s", doc(), want)
	}

	// What somebody changed about ours is seen, and set right.
	for what, change := range map[string][2]string{
		"switched off":   {"Enabled", "Disabled"},
		"other objects":  {"a/b/manifests/ttl-1d/", "a/c/"},
		"all objects":    {"<Filter><Prefix>a/b/manifests/ttl-1d/</Prefix></Filter>", "<Filter></Filter>"},
		"fewer objects":  {"</Prefix></Filter>", "</Prefix><ObjectSizeLessThan>1</ObjectSizeLessThan></Filter>"},
		"at a date":      {"<Days>2</Days>", "<Date>2030-01-01T00:00:00.000Z</Date>"},
		"something more": {"<Expiration>", "<NoncurrentVersionExpiration/><Expiration>"},
	} {
		server.Set("", "")
		set(ours[:1])
		server.Set(strings.Replace(doc(), change[0], change[1], 1), "")
		rules, _, err := store.Lifecycle(ctx, owner)
		if err != nil || len(rules) != 1 || !rules[0].Altered {
			t.Errorf("%s: %+v, %v", what, rules, err)
		}
		server.Requests()
		set(ours[:1])
		expect(what, ours[:1], 0, "GET PUT")
	}
	server.Set(root+"<Rule><ID>"+owner+"ttl-1d</ID><Prefix>a/b/manifests/ttl-1d/</Prefix><Status>Enabled</Status><Expiration><Days>2</Days></Expiration></Rule></LifecycleConfiguration>", "")
	expect("as it was written once", ours[:1], 0, "")

	for what, bad := range map[string]string{
		"a page":     "<html></html>",
		"nothing":    " ",
		"a prefix":   `<s:LifecycleConfiguration xmlns:s="x"><s:Rule/></s:LifecycleConfiguration>`,
		"cut short":  root + others,
		"other data": `<ListBucketResult/>`,
	} {
		server.Set(bad, "")
		if err := store.SetLifecycle(ctx, owner, ours); err == nil || server.Requests() != "GET" {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, bad := range []remote.LifecycleRule{{ID: "other", Prefix: "x", Days: 1}, {ID: owner, Prefix: "x"}, {ID: owner, Prefix: "../x", Days: 1}} {
		if err := store.SetLifecycle(ctx, owner, []remote.LifecycleRule{bad}); err == nil {
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
