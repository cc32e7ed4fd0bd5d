package ledger_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/internal/casetest"
	"lifeboat/internal/dr"
	"lifeboat/internal/fence"
	"lifeboat/internal/ledger"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/store"
	"lifeboat/internal/store/faults"
	"lifeboat/internal/store/memstore"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

const garbage = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",` +
	`"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}`

// TestMain lets the local state of the hosts lie in memory: thousands of rounds
// sync it to disk each time.
func TestMain(m *testing.M) {
	if err := casetest.TempInMemory(); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func newLedger(r ledger.Records) *ledger.Ledger { return ledger.New(r, 0, ledger.Here{}) }

// base makes a snapshot id that tells one attempt from all others.
func base(host, attempt int) *dr.SnapshotID {
	return &dr.SnapshotID{byte(host + 1), byte(attempt), byte(attempt >> 8)}
}

func squat(t testing.TB, st *memstore.Store, tag, body string) {
	t.Helper()
	if _, err := st.PutManifest(t.Context(), tag, ocispec.MediaTypeImageManifest, []byte(body)); err != nil {
		t.Fatal(err)
	}
}

func mustClaims(t testing.TB, l *ledger.Ledger, s dr.System) []fence.Claim {
	t.Helper()
	claims, err := l.Claims(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return claims
}

func TestClaim(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main, standIn := b.Host("main"), b.Host("stand-in")
	l := ledger.New(main, 0, ledger.Here{StateDir: "/state", Config: "/config"})
	first, err := l.Claim(t.Context(), nil, fence.Claim{System: "shop", Site: "main", Reason: fence.ReasonProtect})
	if err != nil || first.Epoch != 1 || first.Host != main.HostID() || first.StateDir != "/state" || first.Config != "/config" || first.Created.IsZero() {
		t.Fatalf("claim %+v, %v", first, err)
	}
	other := newLedger(standIn)
	// In ignorance of the first: lost, and it says to whom.
	_, err = other.Claim(t.Context(), nil, fence.Claim{System: "shop", Site: "stand-in", Reason: fence.ReasonProtect})
	if !errors.Is(err, dr.ErrFenced) || !strings.Contains(err.Error(), "site main") {
		t.Fatalf("a claim in ignorance of another: %v", err)
	}
	// The same again, in ignorance of the first try: it is held.
	again, err := l.Claim(t.Context(), nil, fence.Claim{System: "shop", Site: "main", Reason: fence.ReasonProtect})
	if err != nil || again.Epoch != 1 || !again.Created.Equal(first.Created) {
		t.Fatalf("the same claim again: %+v, %v", again, err)
	}
	if _, err := l.Claim(t.Context(), nil, fence.Claim{System: "shop", Site: "main", Base: base(1, 1)}); !errors.Is(err, dr.ErrHeld) {
		t.Fatalf("another claim under the number of one's own: %v", err)
	}
	second, err := other.Claim(t.Context(), mustClaims(t, other, "shop"), fence.Claim{System: "shop", Site: "stand-in", Base: base(2, 1), Reason: fence.ReasonFailover})
	if err != nil || second.Epoch != 2 {
		t.Fatalf("claim %+v, %v", second, err)
	}
	// The first holder's own equal claim no longer makes it the holder.
	if _, err := l.Claim(t.Context(), nil, fence.Claim{System: "shop", Site: "main", Reason: fence.ReasonProtect}); !errors.Is(err, dr.ErrFenced) {
		t.Fatalf("an old claim again: %v", err)
	}
	if claims := mustClaims(t, l, "shop"); len(claims) != 2 || claims[1].Host != standIn.HostID() || *claims[1].Base != *base(2, 1) {
		t.Fatalf("claims %+v", claims)
	}
	if claims := mustClaims(t, l, "blog"); len(claims) != 0 {
		t.Fatalf("claims of another system %+v", claims)
	}
}

// A squatted number is passed over by whoever claims, and is nothing to readers.
func TestClaimPassesOverSquattedNumbers(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main, standIn, stranger := b.Host("main"), b.Host("stand-in"), b.Host("stranger")
	key := b.Options("stranger").Host
	l, other := newLedger(main), newLedger(standIn)
	if _, err := l.Claim(t.Context(), nil, fence.Claim{System: "shop", Site: "main"}); err != nil {
		t.Fatal(err)
	}
	replay, err := b.Store.GetManifest(t.Context(), "e.shop.1")
	if err != nil {
		t.Fatal(err)
	}
	squat(t, b.Store, "e.shop.2", garbage)
	squat(t, b.Store, "e.shop.3", string(replay.Body))
	forge(t, b, key, "e.shop.4", fence.Claim{Format: 1, System: "shop", Epoch: 4, Site: "nowhere", Host: stranger.HostID()})
	squat(t, b.Store, "e.shop.99", garbage)
	won, err := other.Claim(t.Context(), mustClaims(t, other, "shop"), fence.Claim{System: "shop", Site: "stand-in", Reason: fence.ReasonFailover})
	if err != nil || won.Epoch != 5 {
		t.Fatalf("claim %+v, %v; want epoch 5", won, err)
	}
	for _, x := range []*ledger.Ledger{l, other, newLedger(b.Host("observer"))} {
		claims := mustClaims(t, x, "shop")
		if len(claims) != 2 || claims[0].Epoch != 1 || claims[1].Epoch != 5 {
			t.Fatalf("claims %+v, want epochs 1 and 5", claims)
		}
		if fence.RoleOf(claims, main.HostID()) != fence.RoleFenced || fence.RoleOf(claims, standIn.HostID()) != fence.RoleActive {
			t.Fatalf("roles over %+v", claims)
		}
	}
	// Who knows only the first claim does not pass over the valid one.
	if _, err := l.Claim(t.Context(), mustClaims(t, l, "shop")[:1], fence.Claim{System: "shop", Site: "main"}); !errors.Is(err, dr.ErrFenced) {
		t.Fatalf("a claim in ignorance of the newest: %v", err)
	}
	// The stranger enrols afterwards: its record counts now, and changes nothing.
	if _, err := stranger.Enrol(t.Context()); err != nil {
		t.Fatal(err)
	}
	claims := mustClaims(t, newLedger(b.Host("observer")), "shop")
	if len(claims) != 3 || claims[2].Host != standIn.HostID() {
		t.Fatalf("claims %+v, want the newest to stay", claims)
	}
	// A claim of a host that was revoked and is not kept is passed over too.
	if err := main.Revoke(t.Context(), stranger.HostID(), nil); err != nil {
		t.Fatal(err)
	}
	forge(t, b, key, "e.shop.6", fence.Claim{Format: 1, System: "shop", Epoch: 6, Site: "nowhere", Host: stranger.HostID()})
	won, err = l.Claim(t.Context(), mustClaims(t, l, "shop"), fence.Claim{System: "shop", Site: "main", Reason: fence.ReasonFailback})
	if err != nil || won.Epoch != 7 {
		t.Fatalf("claim %+v, %v; want epoch 7", won, err)
	}
}

// forge stores a record signed by a host without asking whether it may: what
// altered software does.
func forge(t testing.TB, b *repotest.Bed, key *repo.HostKey, tag string, c fence.Claim) {
	t.Helper()
	raw, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Forge(t.Context(), key, tag, raw); err != nil {
		t.Fatal(err)
	}
}

// What may be a holder's claim is not passed over.
func TestClaimDoesNotPassOverWhatMayBeAClaim(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		err   error
		reads int // when it is compared, and when the claims are read again
		want  error
	}{
		"damaged":     {store.ErrDigestMismatch, 2, dr.ErrHeld},
		"late":        {store.ErrNotFound, 2, dr.ErrFenced},
		"not there":   {store.ErrNotFound, 6, dr.ErrHeld},
		"unreachable": {store.ErrUnreachable, 2, dr.ErrOutcomeUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := repotest.NewBed(t)
			if _, err := newLedger(b.Host("main")).Claim(t.Context(), nil, fence.Claim{System: "shop", Site: "main"}); err != nil {
				t.Fatal(err)
			}
			var plan []faults.Fault
			for call := range tc.reads {
				plan = append(plan, faults.Fault{Op: faults.GetManifest, Arg: "e.shop.1", Call: call + 1, Kind: faults.Before, Err: tc.err})
			}
			l := newLedger(b.HostOn("stand-in", faults.New(t, b.Store, plan...)))
			if _, err := l.Claim(t.Context(), nil, fence.Claim{System: "shop", Site: "stand-in"}); !errors.Is(err, tc.want) {
				t.Errorf("claim: %v, want %v", err, tc.want)
			}
			if claims := mustClaims(t, newLedger(b.Host("observer")), "shop"); len(claims) != 1 || claims[0].Site != "main" {
				t.Errorf("claims %+v", claims)
			}
		})
	}
}

// Each call of a claim fails in each way; afterwards there is one claim or
// none, and the same command again holds the epoch (invariants 6 and 8).
func TestClaimFaults(t *testing.T) {
	t.Parallel()
	claim := func(b *repotest.Bed, plan ...faults.Fault) (*faults.Store, fence.Claim, error) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for i := range plan {
			if plan[i].Kind == faults.Hang || plan[i].Kind == faults.HangAfter {
				plan[i].Do = cancel
			}
		}
		st := faults.New(t, b.Store, plan...)
		r, err := repo.Open(ctx, st, b.Options("main"))
		if err != nil {
			return st, fence.Claim{}, err
		}
		defer func() { _ = r.Close() }()
		l := newLedger(r)
		claims, err := l.Claims(ctx, "shop")
		if err != nil {
			return st, fence.Claim{}, err
		}
		if n := len(claims); n > 0 && claims[n-1].Host == r.HostID() {
			return st, claims[n-1], nil
		}
		c, err := l.Claim(ctx, claims, fence.Claim{System: "shop", Site: "main", Base: base(1, 1)})
		return st, c, err
	}
	fresh := func() *repotest.Bed {
		b := repotest.NewBed(t)
		squat(t, b.Store, "e.shop.1", garbage)
		return b
	}
	probe, _, err := claim(fresh())
	if err != nil {
		t.Fatal(err)
	}
	for call := 1; call <= len(probe.Calls()); call++ {
		for _, kind := range []faults.Kind{faults.Before, faults.After, faults.Hang, faults.HangAfter} {
			what := fmt.Sprintf("call %d (%v), kind %d", call, probe.Calls()[call-1], kind)
			b := fresh()
			_, got, first := claim(b, faults.Fault{Call: call, Kind: kind})
			seen := mustClaims(t, newLedger(b.Host("observer")), "shop")
			if len(seen) > 1 || first == nil && (len(seen) != 1 || got.Epoch != seen[0].Epoch) {
				t.Fatalf("%s: %v, then %d claims", what, first, len(seen))
			}
			if _, got, err = claim(b); err != nil || got.Epoch != 2 {
				t.Fatalf("%s: %v; again: epoch %d, %v", what, first, got.Epoch, err)
			}
			if seen := mustClaims(t, newLedger(b.Host("observer")), "shop"); len(seen) != 1 {
				t.Fatalf("%s: %v, then again: %d claims", what, first, len(seen))
			}
		}
	}
}

// The answer to a claim that was stored is lost for good: unknown, and who asks
// again holds it; another one who asks first may have it instead.
func TestClaimUnknown(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	lost := func() []faults.Fault {
		return []faults.Fault{
			{Op: faults.PutManifest, Arg: "e.shop.1", Kind: faults.After},
			{Op: faults.GetManifest, Arg: "e.shop.1", Kind: faults.Before},
			{Op: faults.Tags, Arg: "e.shop.", Kind: faults.Before},
		}
	}
	l := newLedger(b.HostOn("main", faults.New(t, b.Store, lost()...)))
	if _, err := l.Claim(t.Context(), nil, fence.Claim{System: "shop", Site: "main"}); !errors.Is(err, dr.ErrOutcomeUnknown) {
		t.Fatalf("claim: %v, want unknown", err)
	}
	if c, err := l.Claim(t.Context(), nil, fence.Claim{System: "shop", Site: "main"}); err != nil || c.Epoch != 1 {
		t.Fatalf("again: %+v, %v", c, err)
	}
	if claims := mustClaims(t, l, "shop"); len(claims) != 1 {
		t.Fatalf("claims %+v", claims)
	}
}

// cancels ends the context once a record was put.
type cancels struct {
	*repo.Repo
	cancel func()
}

func (c cancels) PutRecord(ctx context.Context, tag string, v any) error {
	err := c.Repo.PutRecord(ctx, tag, v)
	c.cancel()
	return err
}

// Where tags can be overwritten the claim is not held before it was looked at
// again after the delay.
func TestClaimSettles(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r := b.Host("main")
	ctx, cancel := context.WithCancel(t.Context())
	l := ledger.New(cancels{r, cancel}, time.Hour, ledger.Here{})
	if _, err := l.Claim(ctx, nil, fence.Claim{System: "shop", Site: "main"}); !errors.Is(err, dr.ErrOutcomeUnknown) || !errors.Is(err, context.Canceled) {
		t.Fatalf("claim that was cut off while it settled: %v", err)
	}
	l = ledger.New(r, time.Millisecond, ledger.Here{})
	if c, err := l.Claim(t.Context(), nil, fence.Claim{System: "shop", Site: "main"}); err != nil || c.Epoch != 1 {
		t.Fatalf("again: %+v, %v", c, err)
	}
	// Another one's claim was written over ours before we looked again.
	other := b.Host("stand-in")
	if _, err := newLedger(other).Claim(t.Context(), nil, fence.Claim{System: "blog", Site: "stand-in"}); err != nil {
		t.Fatal(err)
	}
	theirs, err := b.Store.ResolveTag(t.Context(), "e.blog.1")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Store.DeleteTag(t.Context(), "e.blog.1"); err != nil {
		t.Fatal(err)
	}
	over := cancels{r, func() { b.Store.MoveTag("e.blog.1", theirs) }}
	if _, err := ledger.New(over, time.Millisecond, ledger.Here{}).Claim(t.Context(), nil, fence.Claim{System: "blog", Site: "main"}); !errors.Is(err, dr.ErrFenced) {
		t.Fatalf("a claim that was written over: %v", err)
	}
}

// records is a repository that holds what a test says.
type records struct {
	host dr.HostID
	list []repo.Record
	put  func(tag string) error
	n    int
}

func (r *records) ListRecords(context.Context, string) ([]repo.Record, error) { return r.list, nil }
func (r *records) HostID() dr.HostID                                          { return r.host }
func (r *records) PutRecord(_ context.Context, tag string, _ any) error {
	r.n++
	return r.put(tag)
}

func TestSomebodySquatsOnEverything(t *testing.T) {
	t.Parallel()
	r := &records{put: func(string) error { return fmt.Errorf("taken: %w: %w", repo.ErrSquatted, dr.ErrHeld) }}
	l := newLedger(r)
	if _, err := l.Claim(t.Context(), nil, fence.Claim{System: "shop"}); !errors.Is(err, dr.ErrHeld) || !strings.Contains(err.Error(), "e.shop.1001") {
		t.Errorf("claim: %v", err)
	}
	if err := l.Append(t.Context(), nil, fence.Move{System: "shop"}); !errors.Is(err, dr.ErrHeld) || r.n > 4000 {
		t.Errorf("append: %v after %d tries", err, r.n)
	}
}

// An enrolled host's record that cannot be understood ends the reading: it may
// be a later version's claim.
func TestRecordThatIsNotUnderstood(t *testing.T) {
	t.Parallel()
	host := dr.HostID{7}
	for name, body := range map[string]string{
		"not JSON":       `{`,
		"other types":    `{"system":"shop","epoch":1,"site":{}}`,
		"another system": `{"system":"blog","epoch":1,"host":"` + host.String() + `"}`,
		"another epoch":  `{"system":"shop","epoch":2,"host":"` + host.String() + `"}`,
		"another host":   `{"system":"shop","epoch":1,"host":"` + dr.HostID{8}.String() + `"}`,
	} {
		l := newLedger(&records{list: []repo.Record{{Tag: "e.shop.1", Number: 1, Host: host, Body: []byte(body)}}})
		if claims, err := l.Claims(t.Context(), "shop"); !errors.Is(err, dr.ErrTampered) {
			t.Errorf("claims, %s: %v, %v", name, claims, err)
		}
		if name == "another epoch" {
			continue // a switch record's epoch is not its number
		}
		if moves, err := l.Moves(t.Context(), "shop"); !errors.Is(err, dr.ErrTampered) {
			t.Errorf("moves, %s: %v, %v", name, moves, err)
		}
	}
}

// attempts remembers on which record each attempt rested.
type attempts struct {
	mu   sync.Mutex
	prev map[dr.SnapshotID]uint64
	won  map[dr.SnapshotID]dr.Epoch
}

func (a *attempts) begin(id dr.SnapshotID, prev uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.prev[id] = prev
}

func (a *attempts) win(id dr.SnapshotID, e dr.Epoch) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.won[id] = e
}

// Several hosts claim the epochs of a system at once while somebody squats on
// the next numbers. The records form a chain, each written in knowledge of the
// one before: nobody is overtaken unseen, no epoch has two holders.
func TestClaimRaces(t *testing.T) {
	t.Parallel()
	race(t, "e.", func(ctx context.Context, l *ledger.Ledger, s dr.System, host, n int, a *attempts) error {
		claims, err := l.Claims(ctx, s)
		if err != nil {
			return err
		}
		var prev uint64
		if k := len(claims); k > 0 {
			prev = uint64(claims[k-1].Epoch)
		}
		id := base(host, n)
		a.begin(*id, prev)
		c, err := l.Claim(ctx, claims, fence.Claim{System: s, Site: "site", Base: id, Reason: fence.ReasonFailover})
		if err == nil {
			a.win(*id, c.Epoch)
		}
		if errors.Is(err, dr.ErrFenced) {
			return nil
		}
		return err
	}, func(ctx context.Context, l *ledger.Ledger, s dr.System, a *attempts) error {
		claims, err := l.Claims(ctx, s)
		if err != nil {
			return err
		}
		var prev uint64
		for _, c := range claims {
			if a.prev[*c.Base] != prev {
				return fmt.Errorf("epoch %d was claimed in knowledge of %d, before it is %d", c.Epoch, a.prev[*c.Base], prev)
			}
			if e, ok := a.won[*c.Base]; ok && e != c.Epoch {
				return fmt.Errorf("epoch %d was reported as won, it is %d", e, c.Epoch)
			}
			delete(a.won, *c.Base)
			prev = uint64(c.Epoch)
		}
		if len(a.won) > 0 {
			return fmt.Errorf("claims reported as won and not there: %v", a.won)
		}
		if len(claims) == 0 {
			return errors.New("nobody won")
		}
		return nil
	})
}

func TestMoveRaces(t *testing.T) {
	t.Parallel()
	race(t, "w.", func(ctx context.Context, l *ledger.Ledger, s dr.System, host, n int, a *attempts) error {
		moves, err := l.Moves(ctx, s)
		if err != nil {
			return err
		}
		var prev uint64
		if k := len(moves); k > 0 {
			prev = uint64(moves[k-1].Number)
		}
		id := base(host, n)
		a.begin(*id, prev)
		err = l.Append(ctx, moves, fence.Move{System: s, ID: "x", Phase: fence.PhaseRequested, Snapshot: id})
		if err == nil {
			a.win(*id, 1)
		}
		if errors.Is(err, dr.ErrHeld) {
			return nil
		}
		return err
	}, func(ctx context.Context, l *ledger.Ledger, s dr.System, a *attempts) error {
		moves, err := l.Moves(ctx, s)
		if err != nil {
			return err
		}
		var prev uint64
		for _, m := range moves {
			if a.prev[*m.Snapshot] != prev || a.won[*m.Snapshot] == 0 {
				return fmt.Errorf("record %d was written in knowledge of %d, before it is %d; reported: %v", m.Number, a.prev[*m.Snapshot], prev, a.won[*m.Snapshot])
			}
			prev = uint64(m.Number)
		}
		if len(a.won) != len(moves) || len(moves) == 0 {
			return fmt.Errorf("%d records reported, %d there", len(a.won), len(moves))
		}
		return nil
	})
}

const (
	raceHosts = 3
	raceTries = 2 // of each host in each round
)

// arena is where hosts race: a store, ways to write into it, and ways to squat.
type arena struct {
	st       *memstore.Store
	hosts    []ledger.Records
	observer ledger.Records
	// forge stores a record that is in order but for its host, which nobody knows.
	forge func(ctx context.Context, tag string, n int, s dr.System) error
	// garbage is what is put under a tag otherwise.
	mediaType, garbage string
}

// repository is an arena of real repositories: everything is sealed, signed and
// verified.
func repository(t *testing.T) arena {
	b := repotest.NewBed(t)
	a := arena{st: b.Store, observer: b.Host("observer"), mediaType: ocispec.MediaTypeImageManifest, garbage: garbage}
	for i := range raceHosts {
		a.hosts = append(a.hosts, b.Host(fmt.Sprintf("host%d", i)))
	}
	stranger := b.Options("stranger").Host
	a.forge = func(ctx context.Context, tag string, n int, s dr.System) error {
		raw, err := json.Marshal(fence.Claim{Format: 1, System: s, Epoch: dr.Epoch(n), Site: "nowhere", Host: stranger.ID()})
		if err != nil {
			return err
		}
		return b.Forge(ctx, stranger, tag, raw)
	}
	return a
}

// plain is a repository without keys: records are JSON that names its tag. It
// keeps repo's promises at a thousandth of the cost.
type plain struct {
	st   *memstore.Store
	host dr.HostID
}

type plainRecord struct {
	Manifests []string        `json:"manifests"` // none: the store looks for them
	Tag       string          `json:"tag"`
	Host      dr.HostID       `json:"host"`
	Body      json.RawMessage `json:"body"`
}

func (p plain) HostID() dr.HostID { return p.host }

func (p plain) read(ctx context.Context, tag string) (r plainRecord, ok bool, err error) {
	m, err := p.st.GetManifest(ctx, tag)
	if err != nil {
		return r, false, err
	}
	ok = json.Unmarshal(m.Body, &r) == nil && r.Tag == tag && r.Host != dr.HostID{}
	return r, ok, nil
}

func (p plain) PutRecord(ctx context.Context, tag string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(plainRecord{[]string{}, tag, p.host, body})
	if err != nil {
		return err
	}
	if _, err = p.st.PutManifest(ctx, tag, ocispec.MediaTypeImageIndex, raw); !errors.Is(err, store.ErrTagTaken) {
		return err
	}
	_, ok, err := p.read(ctx, tag)
	switch {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("%s: %w: %w", tag, repo.ErrSquatted, dr.ErrHeld)
	}
	return fmt.Errorf("%s: %w", tag, dr.ErrHeld)
}

func (p plain) ListRecords(ctx context.Context, prefix string) (out []repo.Record, err error) {
	tags, err := p.st.Tags(ctx, prefix)
	if err != nil {
		return nil, err
	}
	for _, tag := range tags {
		r, ok, err := p.read(ctx, tag)
		if err != nil {
			return nil, err
		}
		if t, err := repo.ParseTag(tag); ok && err == nil {
			out = append(out, repo.Record{Tag: tag, Number: t.Number, Host: r.Host, Body: r.Body})
		}
	}
	slices.SortFunc(out, func(x, y repo.Record) int { return int(x.Number) - int(y.Number) })
	return out, nil
}

func withoutKeys(*testing.T) arena {
	st := memstore.New()
	a := arena{st: st, observer: plain{st, dr.HostID{99}}, mediaType: ocispec.MediaTypeImageIndex, garbage: `{"manifests":[]}`}
	for i := range raceHosts {
		a.hosts = append(a.hosts, plain{st, dr.HostID{byte(i + 1)}})
	}
	a.forge = func(ctx context.Context, tag string, n int, s dr.System) error {
		_, err := st.PutManifest(ctx, tag, a.mediaType, fmt.Appendf(nil, `{"manifests":[],"tag":"%s","body":{"epoch":%d}}`, tag, n))
		return err
	}
	return a
}

func race(t *testing.T, class string, try func(context.Context, *ledger.Ledger, dr.System, int, int, *attempts) error,
	check func(context.Context, *ledger.Ledger, dr.System, *attempts) error,
) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for _, kind := range []struct {
		name          string
		build         func(*testing.T) arena
		beds, systems int
	}{{"repository", repository, 2, 15}, {"without keys", withoutKeys, 150, 5}} {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			for bed := range kind.beds {
				a := kind.build(t)
				for round := range kind.systems {
					s := dr.System(fmt.Sprintf("s%d", round))
					rng := rand.New(rand.NewPCG(seed, uint64(bed*kind.systems+round)))
					if err := a.round(t.Context(), class, s, rng, try, check); err != nil {
						tags, _ := a.st.Tags(t.Context(), class+string(s)+".")
						t.Fatalf("repository %d, system %s: %v\ntags %v", bed, s, err, tags)
					}
				}
			}
		})
	}
}

// round lets all hosts race for one system.
func (a arena) round(ctx context.Context, class string, s dr.System, rng *rand.Rand, try func(context.Context, *ledger.Ledger, dr.System, int, int, *attempts) error,
	check func(context.Context, *ledger.Ledger, dr.System, *attempts) error,
) error {
	tries := &attempts{prev: map[dr.SnapshotID]uint64{}, won: map[dr.SnapshotID]dr.Epoch{}}
	var g errgroup.Group
	for i, r := range a.hosts {
		g.Go(func() error {
			for n := range raceTries {
				if err := try(ctx, newLedger(r), s, i, n, tries); err != nil {
					return fmt.Errorf("host %d, try %d: %w", i, n, err)
				}
			}
			return nil
		})
	}
	g.Go(func() error { return a.harass(ctx, class, s, rng) })
	if err := g.Wait(); err != nil {
		return err
	}
	return check(ctx, newLedger(a.observer), s, tries)
}

// harass puts garbage, replays and a stranger's records under the next numbers.
func (a arena) harass(ctx context.Context, class string, s dr.System, rng *rand.Rand) error {
	for range rng.IntN(5) {
		tags, err := a.st.Tags(ctx, class+string(s)+".")
		if err != nil {
			return err
		}
		n := len(tags) + 1 + rng.IntN(2)
		tag := fmt.Sprintf("%s%s.%d", class, s, n)
		switch kind := rng.IntN(3); {
		case kind == 0:
			err = a.forge(ctx, tag, n, s)
		case kind == 1 && len(tags) > 0:
			var m store.Manifest
			if m, err = a.st.GetManifest(ctx, tags[rng.IntN(len(tags))]); err == nil {
				_, err = a.st.PutManifest(ctx, tag, m.MediaType, m.Body)
			}
		default:
			_, err = a.st.PutManifest(ctx, tag, a.mediaType, []byte(a.garbage))
		}
		if err != nil && !errors.Is(err, store.ErrTagTaken) && !errors.Is(err, dr.ErrHeld) {
			return err
		}
	}
	return nil
}
