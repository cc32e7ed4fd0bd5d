package freeze

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// BenchmarkSet measures freezing and thawing alone, by number of containers.
func BenchmarkSet(b *testing.B) {
	for _, v := range versions(b) {
		for _, n := range []int{1, 5, 20} {
			b.Run(fmt.Sprintf("v%d/%d", v, n), func(b *testing.B) {
				set := newTestSet(b, fixtures(b, v, n))
				var freezing, thawing time.Duration
				for b.Loop() {
					began := time.Now()
					if err := set.Freeze(context.Background()); err != nil {
						b.Fatal(err)
					}
					freezing += time.Since(began)
					began = time.Now()
					if err := set.Thaw(context.Background()); err != nil {
						b.Fatal(err)
					}
					thawing += time.Since(began)
				}
				b.ReportMetric(float64(freezing.Microseconds())/float64(b.N), "µs-freeze")
				b.ReportMetric(float64(thawing.Microseconds())/float64(b.N), "µs-thaw")
			})
		}
	}
}

// BenchmarkDo measures a whole guarded freeze of nothing.
func BenchmarkDo(b *testing.B) {
	for _, n := range []int{1, 5, 20} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			set, dir := newTestSet(b, fixtures(b, versions(b)[0], n)), b.TempDir()
			var frozen, preparing time.Duration
			for b.Loop() {
				r, err := Do(context.Background(), set, Options{StateDir: dir}, func(context.Context) error { return nil })
				if err != nil {
					b.Fatal(err)
				}
				frozen += r.Frozen()
				preparing += r.Preparing
			}
			b.ReportMetric(float64(frozen.Microseconds())/float64(b.N), "µs-frozen")
			b.ReportMetric(float64(preparing.Microseconds())/float64(b.N), "µs-preparing")
		})
	}
}
