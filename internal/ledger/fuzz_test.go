package ledger_test

import (
	"context"
	"errors"
	"testing"

	"lifeboat/internal/dr"
	"lifeboat/internal/fence"
	"lifeboat/internal/ledger"
	"lifeboat/internal/repo"
)

// given are records that verify and say anything.
type given struct{ recs []repo.Record }

func (g given) ListRecords(context.Context, string) ([]repo.Record, error) { return g.recs, nil }
func (g given) PutRecord(_ context.Context, _ string, _ any) error         { return dr.ErrHeld }
func (g given) HostID() dr.HostID                                          { return dr.HostID{1} }

// FuzzClaims: whatever an enrolled host has signed as a claim or a step of a
// move is understood, or stops whoever asks (invariant 6); what is understood
// can be judged.
func FuzzClaims(f *testing.F) {
	for _, s := range []string{
		`{"format":1,"system":"shop","epoch":1,"site":"main","host":"0100000000000000000000000000000000000000000000000000000000000000","reason":"protect"}`,
		`{"system":"shop","epoch":1}`, `{"epoch":18446744073709551615}`, `{"system":"shop","kind":"offer","id":"00","snapshot":null}`, `{}`, `[]`, `null`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l := ledger.New(given{[]repo.Record{{Tag: "e.shop.1", Number: 1, Host: dr.HostID{1}, Body: b}}}, 0, ledger.Here{})
		claims, err := l.Claims(t.Context(), "shop")
		if err != nil && !errors.Is(err, dr.ErrTampered) {
			t.Fatal(err)
		}
		if err == nil && (len(claims) != 1 || claims[0].Epoch != 1 || claims[0].System != "shop") {
			t.Fatalf("%+v", claims)
		}
		moves, err := l.Moves(t.Context(), "shop")
		if err != nil && !errors.Is(err, dr.ErrTampered) {
			t.Fatal(err)
		}
		_ = fence.RoleOf(claims, dr.HostID{1})
		_, _ = fence.Head(claims, nil)
		if open, ok := fence.Open(moves, claims); ok {
			_, _ = fence.GiverNext(open, claims, dr.HostID{1}, true)
			_, _ = fence.TakerNext(open, claims, dr.HostID{1})
		}
	})
}
