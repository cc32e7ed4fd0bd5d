package repo

import (
	"testing"

	"lifeboat/internal/pack"
)

// A faster codec is chosen only while compressing is what everybody waits for.
func TestEffort(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		what          string
		sent, sending int64
		waiting       bool
		want          pack.Effort
	}{
		{"nothing is known of the network", 0, 0, true, pack.Bytes},
		{"a small increment", settled - 1, 0, true, pack.Bytes},
		{"the compressors are behind", settled, uploadParallel - 1, true, pack.Time},
		{"so are the senders", settled, uploadParallel, true, pack.Bytes},
		{"reading is behind", settled, 0, false, pack.Bytes},
	} {
		var e effort
		e.sent.Store(x.sent)
		e.sending.Store(x.sending)
		if got := e.choose(x.waiting); got != x.want {
			t.Errorf("%s: %v, want %v", x.what, got, x.want)
		}
	}
}
