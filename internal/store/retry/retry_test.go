package retry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/store"
	"lifeboat/internal/store/faults"
	"lifeboat/internal/store/memstore"
	"lifeboat/internal/store/retry"
	"lifeboat/internal/store/storetest"
)

// clock notes how long would have been waited, and goes on by that.
type clock struct {
	waits []time.Duration
	at    time.Time
}

func (c *clock) wait(ctx context.Context, d time.Duration) error {
	c.waits = append(c.waits, d)
	c.at = c.at.Add(d)
	return ctx.Err()
}

func (c *clock) now() time.Time { return c.at }

func options(c *clock, attempts int) retry.Options {
	return retry.Options{Attempts: attempts, First: 100 * time.Millisecond, Max: time.Second, Wait: c.wait}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(*testing.T) store.Store {
		return retry.New(memstore.New(), retry.Options{Attempts: 3})
	})
}

// TestEachCallOnce fails each method once before and once after its effect: the
// caller sees success, and one effect.
func TestEachCallOnce(t *testing.T) {
	t.Parallel()
	for _, kind := range []faults.Kind{faults.Before, faults.After, faults.Duplicate} {
		for _, op := range []faults.Op{
			faults.Capabilities, faults.PutBlob, faults.HasBlob, faults.GetBlob, faults.PutManifest,
			faults.GetManifest, faults.ResolveTag, faults.Tags, faults.DeleteTag, faults.DeleteManifest,
		} {
			if kind == faults.Duplicate && (op == faults.DeleteTag || op == faults.DeleteManifest) {
				continue // the second one says, rightly, that it is not there
			}
			t.Run(fmt.Sprintf("%s/%d", op, kind), func(t *testing.T) {
				t.Parallel()
				var c clock
				s := retry.New(faults.New(t, memstore.New(), faults.Fault{Op: op, Kind: kind}), options(&c, 2))
				if err := everything(t, s); err != nil {
					t.Fatal(err)
				}
				if want := 1; kind != faults.Duplicate && len(c.waits) != want {
					t.Errorf("waited %d times, want %d", len(c.waits), want)
				}
			})
		}
	}
}

// everything calls each method once and checks what it did.
func everything(t *testing.T, s store.Store) error {
	t.Helper()
	ctx := t.Context()
	if _, err := s.Capabilities(ctx); err != nil {
		return err
	}
	blob := storetest.Random(1000)
	d := digest.FromBytes(blob)
	if _, err := s.PutBlob(ctx, d, 1000, storetest.Bytes(blob)); err != nil {
		return err
	}
	if ok, err := s.HasBlob(ctx, d); !ok || err != nil {
		return fmt.Errorf("has %v: %w", ok, err)
	}
	r, err := s.GetBlob(ctx, d, 1000, 0, -1)
	if err != nil {
		return err
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, blob) {
		return fmt.Errorf("got %d bytes: %w", len(got), err)
	}
	if err := r.Close(); err != nil {
		return err
	}
	body := []byte(fmt.Sprintf(`{"schemaVersion":2,"config":{"digest":%q},"layers":[]}`, d))
	md, err := s.PutManifest(ctx, "s.shop.1", ocispec.MediaTypeImageManifest, body)
	if err != nil {
		return err
	}
	if m, err := s.GetManifest(ctx, "s.shop.1"); err != nil || m.Digest != md {
		return fmt.Errorf("manifest %s: %w", m.Digest, err)
	}
	if got, err := s.ResolveTag(ctx, "s.shop.1"); err != nil || got != md {
		return fmt.Errorf("resolved %s: %w", got, err)
	}
	if tags, err := s.Tags(ctx, ""); err != nil || len(tags) != 1 {
		return fmt.Errorf("tags %v: %w", tags, err)
	}
	if err := s.DeleteTag(ctx, "s.shop.1"); err != nil {
		return err
	}
	return s.DeleteManifest(ctx, md)
}

// TestNotice: what holds work up is told once, and that it goes on; a single
// failed attempt is not, unless it stalled.
func TestNotice(t *testing.T) {
	t.Parallel()
	stalled := fmt.Errorf("%w: %w", store.ErrStalled, store.ErrUnreachable)
	for name, c := range map[string]struct {
		plan []faults.Fault
		want int
	}{
		"one blip":       {[]faults.Fault{{Op: faults.HasBlob}}, 0},
		"two in a row":   {[]faults.Fault{{Op: faults.HasBlob, Call: 1}, {Op: faults.HasBlob, Call: 2}}, 2},
		"three in a row": {[]faults.Fault{{Op: faults.HasBlob, Call: 1}, {Op: faults.HasBlob, Call: 2}, {Op: faults.HasBlob, Call: 3}}, 2},
		"a stall":        {[]faults.Fault{{Op: faults.HasBlob, Err: stalled}}, 2},
		"a stalled read": {[]faults.Fault{{Op: faults.GetBlob, Err: stalled}}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var k clock
			var told []string
			o := options(&k, 5)
			o.Notice = func(s string) { told = append(told, s) }
			inner := memstore.New()
			blob := storetest.Random(1000)
			d := storetest.PutBytes(t, inner, "x", blob).Digest
			s := retry.New(faults.New(t, inner, c.plan...), o)
			if _, err := s.HasBlob(t.Context(), d); err != nil {
				t.Fatal(err)
			}
			r, err := s.GetBlob(t.Context(), d, 1000, 0, -1)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(r); err != nil {
				t.Fatal(err)
			}
			if len(told) != c.want {
				t.Errorf("told %q", told)
			}
		})
	}
}

func TestGivesUp(t *testing.T) {
	t.Parallel()
	var c clock
	plan := []faults.Fault{}
	for n := 1; n <= 4; n++ {
		plan = append(plan, faults.Fault{Op: faults.HasBlob, Call: n})
	}
	s := retry.New(faults.New(t, memstore.New(), plan...), options(&c, 4))
	_, err := s.HasBlob(t.Context(), digest.FromString("x"))
	if !errors.Is(err, store.ErrUnreachable) {
		t.Error(err)
	}
	if len(c.waits) != 3 {
		t.Fatalf("waited %v", c.waits)
	}
	for i, w := range c.waits {
		nominal := 100 * time.Millisecond << i
		if w < nominal/2 || w > nominal*3/2 {
			t.Errorf("wait %d: %v, nominal %v", i, w, nominal)
		}
	}
}

func TestNotTriedAgain(t *testing.T) {
	t.Parallel()
	for _, sentinel := range []error{
		store.ErrNotFound, store.ErrTagTaken, store.ErrUnauthorized, store.ErrForbidden, store.ErrNoSpace,
		store.ErrIncomplete, store.ErrTooLarge, store.ErrDigestMismatch, store.ErrRefused, store.ErrUnsupported, errors.New("other"),
	} {
		var c clock
		f := faults.New(t, memstore.New(), faults.Fault{Op: faults.ResolveTag, Err: sentinel})
		if _, err := retry.New(f, options(&c, 5)).ResolveTag(t.Context(), "x"); !errors.Is(err, sentinel) {
			t.Errorf("%v: %v", sentinel, err)
		}
		if len(c.waits) != 0 || len(f.Calls()) != 1 {
			t.Errorf("%v: tried again", sentinel)
		}
	}
}

func TestCancelledWhileWaiting(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	f := faults.New(t, memstore.New(), faults.Fault{Op: faults.ResolveTag, Do: cancel})
	_, err := retry.New(f, retry.Options{Attempts: 5, First: time.Hour, Max: time.Hour}).ResolveTag(ctx, "x")
	if !errors.Is(err, store.ErrUnreachable) {
		t.Error(err)
	}
	if len(f.Calls()) != 1 {
		t.Errorf("%d calls", len(f.Calls()))
	}
}

// TestUnknownOutcomeStays: an outcome that was once unknown is not forgotten
// because the last attempt failed in another way.
func TestUnknownOutcomeStays(t *testing.T) {
	t.Parallel()
	var c clock
	f := faults.New(t, memstore.New(), faults.Fault{Op: faults.PutManifest, Err: store.ErrUnknownOutcome}, faults.Fault{Op: faults.PutManifest, Call: 2})
	_, err := retry.New(f, options(&c, 2)).PutManifest(t.Context(), "e.shop.1", ocispec.MediaTypeImageManifest, []byte("{}"))
	if !errors.Is(err, store.ErrUnknownOutcome) {
		t.Error(err)
	}
}

// TestReadResumes: a body that is cut off again and again is read to its end,
// each byte once.
func TestReadResumes(t *testing.T) {
	t.Parallel()
	m := memstore.New()
	blob := storetest.Random(1_000_000)
	d := storetest.PutBytes(t, m, "", blob).Digest
	var plan []faults.Fault
	for n := 1; n <= 8; n++ {
		plan = append(plan, faults.Fault{Op: faults.GetBlob, Call: n, Kind: faults.Short, At: 100_000})
	}
	var c clock
	f := faults.New(t, m, plan...)
	r, err := retry.New(f, options(&c, 2)).GetBlob(t.Context(), d, 1_000_000, 500, 900_000)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, blob[500:900_500]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestReadGivesUp(t *testing.T) {
	t.Parallel()
	m := memstore.New()
	blob := storetest.Random(10_000)
	d := storetest.PutBytes(t, m, "", blob).Digest
	var c clock
	f := faults.New(t, m,
		faults.Fault{Op: faults.GetBlob, Call: 1, Kind: faults.Short, At: 1000},
		faults.Fault{Op: faults.GetBlob, Call: 2, Kind: faults.Short, At: 0},
		faults.Fault{Op: faults.GetBlob, Call: 3})
	r, err := retry.New(f, options(&c, 3)).GetBlob(t.Context(), d, 10_000, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if len(got) != 1000 || !store.Retryable(err) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, again := r.Read(make([]byte, 1)); again == nil {
		t.Error("a read after the failure succeeds")
	}
}

// TestReadThatCrawls: a registry that cuts every answer off after a few bytes
// does not keep a read from ever ending.
func TestReadThatCrawls(t *testing.T) {
	t.Parallel()
	m := memstore.New()
	blob := storetest.Random(10_000)
	d := storetest.PutBytes(t, m, "", blob).Digest
	var plan []faults.Fault
	for n := 1; n <= 4; n++ {
		plan = append(plan, faults.Fault{Op: faults.GetBlob, Call: n, Kind: faults.Short, At: 10})
	}
	var c clock
	r, err := retry.New(faults.New(t, m, plan...), options(&c, 4)).GetBlob(t.Context(), d, 10_000, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if len(got) != 40 || !store.Retryable(err) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// away is a store that does not answer from one time to another.
type away struct {
	*memstore.Store
	c        *clock
	from, to time.Duration
}

func (a *away) gone() error {
	if at := a.c.at.Sub(time.Time{}); at >= a.from && at < a.to {
		return fmt.Errorf("connection refused: %w", store.ErrUnreachable)
	}
	return nil
}

func (a *away) HasBlob(ctx context.Context, d digest.Digest) (bool, error) {
	if err := a.gone(); err != nil {
		return false, err
	}
	return a.Store.HasBlob(ctx, d)
}

func (a *away) GetBlob(ctx context.Context, d digest.Digest, size, off, length int64) (io.ReadCloser, error) {
	if err := a.gone(); err != nil {
		return nil, err
	}
	r, err := a.Store.GetBlob(ctx, d, size, off, length)
	if err != nil || a.c.at.Sub(time.Time{}) >= a.to {
		return r, err
	}
	return io.NopCloser(io.MultiReader(io.LimitReader(r, 100), failing{a})), nil // the outage begins in the middle
}

type failing struct{ a *away }

func (f failing) Read([]byte) (int, error) {
	f.a.c.at = f.a.c.at.Add(f.a.from)
	return 0, io.ErrUnexpectedEOF
}

// TestOutage: a registry that was there may be away for as long as patience says;
// one that never answered is given up after the attempts.
func TestOutage(t *testing.T) {
	t.Parallel()
	const patience = 5 * time.Minute
	for name, tc := range map[string]struct {
		answered bool
		lasts    time.Duration
		survives bool
	}{
		"a reboot":                {true, 4 * time.Minute, true},
		"gone for longer":         {true, time.Hour, false},
		"never there":             {false, 4 * time.Minute, false},
		"a blip at the beginning": {false, 100 * time.Millisecond, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var c clock
			inner := &away{Store: memstore.New(), c: &c, from: time.Second}
			blob := storetest.Random(100_000)
			d := storetest.PutBytes(t, inner.Store, "x", blob).Digest
			var told []string
			o := retry.Options{Attempts: 6, Patience: patience, Wait: c.wait, Now: c.now, Notice: func(s string) { told = append(told, s) }}
			s := retry.New(inner, o)
			if tc.answered {
				if _, err := s.HasBlob(t.Context(), d); err != nil {
					t.Fatal(err)
				}
			}
			c.at = c.at.Add(time.Second)
			inner.to = time.Second + tc.lasts
			_, err := s.HasBlob(t.Context(), d)
			if (err == nil) != tc.survives || err != nil && !errors.Is(err, store.ErrUnreachable) {
				t.Errorf("%v after %v", err, c.at.Sub(time.Time{}))
			}
			if gone := c.at.Sub(time.Time{}); tc.answered && !tc.survives && gone < patience {
				t.Errorf("given up after %v", gone)
			}
			if tc.lasts > time.Second && len(told) == 0 {
				t.Error("nobody was told")
			}
		})
	}
}

// TestOutageWhileReading: a read that the outage cuts off goes on after it.
func TestOutageWhileReading(t *testing.T) {
	t.Parallel()
	var c clock
	inner := &away{Store: memstore.New(), c: &c, from: time.Second, to: 3 * time.Minute}
	blob := storetest.Random(100_000)
	d := storetest.PutBytes(t, inner.Store, "x", blob).Digest
	s := retry.New(inner, retry.Options{Attempts: 6, Patience: 5 * time.Minute, Wait: c.wait, Now: c.now})
	r, err := s.GetBlob(t.Context(), d, 100_000, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestOutageIsInterrupted: who interrupts does not wait for the registry.
func TestOutageIsInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	f := faults.New(t, memstore.New(), faults.Fault{Op: faults.ResolveTag, Call: 1, Do: cancel})
	s := retry.New(f, retry.Options{Attempts: 1, Patience: time.Hour, First: time.Hour, Max: time.Hour})
	if _, err := s.Capabilities(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ResolveTag(ctx, "x"); !errors.Is(err, store.ErrUnreachable) {
		t.Error(err)
	}
}
