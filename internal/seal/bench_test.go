package seal_test

import (
	"fmt"
	"testing"

	"lifeboat/internal/seal"
)

// BenchmarkUnitID hashes units: it is done to every byte that is captured and to
// every byte that is restored.
func BenchmarkUnitID(b *testing.B) {
	r := seal.NewRing(seal.NewSecret())
	for _, size := range []int{1 << 10, 16 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			data := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				_ = r.UnitID(data)
			}
		})
	}
}

// BenchmarkRecord seals, signs, opens and verifies a commit record: what a
// listing does for each snapshot.
func BenchmarkRecord(b *testing.B) {
	secret, host := seal.NewSecret(), seal.NewHostKey()
	r := seal.NewRing(secret)
	body := fmt.Appendf(nil, `{"host":%q,"needs":[%q,%q]}`, host.ID(), "sha256:00", "sha256:01")
	signed, err := host.Sign(secret.Repo(), "s.shop.1", body)
	if err != nil {
		b.Fatal(err)
	}
	sealed, err := r.SealRecord("s.shop.1", signed)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(sealed)))
	b.ReportAllocs()
	for b.Loop() {
		plain, err := r.OpenRecord("s.shop.1", sealed)
		if err != nil {
			b.Fatal(err)
		}
		if _, _, err := seal.VerifySigned(secret.Repo(), "s.shop.1", plain); err != nil {
			b.Fatal(err)
		}
	}
}
