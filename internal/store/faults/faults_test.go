package faults_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/store"
	"lifeboat/internal/store/faults"
	"lifeboat/internal/store/memstore"
	"lifeboat/internal/store/storetest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) store.Store { return faults.New(t, memstore.New()) })
}

// recorder is a testing.TB of which the test looks at the failures.
type recorder struct {
	cleanups []func()
	failures []string
}

func (r *recorder) Helper()          {}
func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Errorf(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

func TestUnexercisedFaultFailsTheTest(t *testing.T) {
	t.Parallel()
	var r recorder
	s := faults.New(&r, memstore.New(), faults.Fault{Op: faults.ResolveTag}, faults.Fault{Op: faults.ResolveTag, Arg: "e.shop.1", Call: 2})
	for range 3 {
		_, _ = s.ResolveTag(t.Context(), "s.shop.1") // the first fails as planned
	}
	for _, f := range r.cleanups {
		f()
	}
	if len(r.failures) != 1 || !strings.Contains(r.failures[0], "e.shop.1, call 2") {
		t.Errorf("%q", r.failures)
	}
}

func TestKinds(t *testing.T) {
	t.Parallel()
	m := memstore.New()
	blob := storetest.Random(1000)
	d := storetest.PutBytes(t, m, "", blob).Digest
	body := storetest.ManifestOf(t, m, "x")
	own := errors.New("own")
	s := faults.New(t, m,
		faults.Fault{Op: faults.PutManifest, Arg: "s.a.1", Kind: faults.Before, Err: own},
		faults.Fault{Op: faults.PutManifest, Arg: "s.a.2", Kind: faults.After},
		faults.Fault{Op: faults.GetBlob, Call: 1, Kind: faults.Short, At: 10},
		faults.Fault{Op: faults.GetBlob, Call: 2, Kind: faults.Corrupt, At: 700},
		faults.Fault{Op: faults.GetManifest, Kind: faults.Corrupt, At: 3},
		faults.Fault{Op: faults.PutBlob, Call: 1, Kind: faults.Short, At: 5},
		faults.Fault{Op: faults.PutBlob, Call: 2, Kind: faults.Short, At: 5000},
	)
	if _, err := s.PutManifest(t.Context(), "s.a.1", ocispec.MediaTypeImageManifest, body); !errors.Is(err, own) {
		t.Errorf("before: %v", err)
	}
	if _, err := m.ResolveTag(t.Context(), "s.a.1"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("before had an effect: %v", err)
	}
	if _, err := s.PutManifest(t.Context(), "s.a.2", ocispec.MediaTypeImageManifest, body); !errors.Is(err, store.ErrUnknownOutcome) {
		t.Errorf("after: %v", err)
	}
	if _, err := m.ResolveTag(t.Context(), "s.a.2"); err != nil {
		t.Errorf("after had no effect: %v", err)
	}
	read := func() ([]byte, error) {
		r, err := s.GetBlob(t.Context(), d, 1000, 0, -1)
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(r)
		return b, errors.Join(err, r.Close())
	}
	if b, err := read(); len(b) != 10 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short: %d bytes, %v", len(b), err)
	}
	if b, err := read(); err != nil || bytes.Equal(b, blob) || !bytes.Equal(b[:700], blob[:700]) || !bytes.Equal(b[701:], blob[701:]) {
		t.Errorf("corrupt: %v", err)
	}
	if b, err := read(); err != nil || !bytes.Equal(b, blob) {
		t.Errorf("no fault left: %v", err)
	}
	if got, err := s.GetManifest(t.Context(), "s.a.2"); err != nil || bytes.Equal(got.Body, body) {
		t.Errorf("corrupt manifest: %v", err)
	}
	other := storetest.Random(100)
	od := digest.FromBytes(other)
	for _, taken := range []int64{5, 100} {
		if n, err := s.PutBlob(t.Context(), od, 100, storetest.Bytes(other)); n != taken || !errors.Is(err, store.ErrUnreachable) {
			t.Errorf("short send: %d of %d, %v", n, taken, err)
		}
	}
	if ok, err := m.HasBlob(t.Context(), od); ok || err != nil {
		t.Errorf("short send stored something: %v", err)
	}
	want := []faults.Call{{Op: faults.PutManifest, Arg: "s.a.1"}, {Op: faults.PutManifest, Arg: "s.a.2"}}
	if diff := cmp.Diff(want, s.Calls()[:2]); diff != "" {
		t.Error(diff)
	}
}

func TestHang(t *testing.T) {
	t.Parallel()
	for _, kind := range []faults.Kind{faults.Hang, faults.HangAfter} {
		m := memstore.New()
		body := storetest.ManifestOf(t, m, "x")
		ctx, cancel := context.WithCancel(t.Context())
		struck, done := make(chan struct{}), make(chan error)
		s := faults.New(t, m, faults.Fault{Kind: kind, Do: func() { close(struck) }})
		go func() {
			_, err := s.PutManifest(ctx, "e.a.1", ocispec.MediaTypeImageManifest, body)
			done <- err
		}()
		<-struck
		for kind == faults.HangAfter { // until the effect can be seen
			if _, err := m.ResolveTag(t.Context(), "e.a.1"); err == nil {
				break
			}
			runtime.Gosched()
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("%d: %v", kind, err)
		}
		if _, err := m.ResolveTag(t.Context(), "e.a.1"); kind == faults.Hang && !errors.Is(err, store.ErrNotFound) {
			t.Errorf("hang had an effect: %v", err)
		}
	}
}

// After a fault that is the last, no call has any effect.
func TestLast(t *testing.T) {
	t.Parallel()
	inner := memstore.New()
	st := faults.New(t, inner, faults.Fault{Op: faults.PutBlob, Call: 2, Kind: faults.After, Last: true})
	put := func(text string) bool {
		d := digest.FromString(text)
		_, err := st.PutBlob(t.Context(), d, int64(len(text)), func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil })
		ok, herr := inner.HasBlob(t.Context(), d)
		if herr != nil || (err == nil) != (text == "one") {
			t.Errorf("%s: %v, %v", text, err, herr)
		}
		return ok
	}
	if !put("one") || !put("two") || put("three") {
		t.Error("it died at another point")
	}
	if ok, err := st.HasBlob(t.Context(), digest.FromString("one")); err == nil {
		t.Errorf("it answers: %v", ok)
	}
}
