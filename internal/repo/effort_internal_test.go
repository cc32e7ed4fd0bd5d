package repo

import (
	"testing"

	"lifeboat/internal/pack"
)

// A faster codec is chosen only while processors are what the copy waits for.
func TestEffort(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		what          string
		sent, sending int64
		busy          bool
		want          pack.Effort
	}{
		{"nothing is known of the network", 0, 0, true, pack.Bytes},
		{"a small increment", settled - 1, 0, true, pack.Bytes},
		{"the processors are behind", settled, uploadParallel - 1, true, pack.Time},
		{"so are the senders", settled, uploadParallel, true, pack.Bytes},
		{"disk or network are behind", settled, 0, false, pack.Bytes},
	} {
		if got := weigh(x.sent, x.sending, x.busy); got != x.want {
			t.Errorf("%s: %v, want %v", x.what, got, x.want)
		}
	}
}
