package cpuload

import (
	"errors"
	"testing"
	"time"
)

// TestBusy: two readings far enough apart make an answer, which holds until the
// next.
func TestBusy(t *testing.T) {
	t.Parallel()
	clock := time.Unix(1000, 0)
	var host times
	var failure error
	m := Meter{now: func() time.Time { return clock }, read: func() (times, error) { return host, failure }}
	for _, x := range []struct {
		what        string
		after       time.Duration
		idle, total float64
		err         error
		want        bool
	}{
		{"the first reading", 0, 5, 100, nil, false},
		{"too early for a second one", window - 1, 5, 101, nil, false},
		{"all of two processors in use", 1, 5, 100 + 0.4, nil, true},
		{"too early to see that it is over", window / 2, 9, 109, nil, true},
		{"it is over", window, 5.3, 101, nil, false},
		{"an eighth idle", window, 5.3 + 0.05, 101.4, nil, true},
		{"cannot be read", window, 0, 0, errors.New("no /proc"), false},
		{"nothing to compare with", window, 6, 103, nil, false},
		{"counters went back", window, 1, 2, nil, false},
	} {
		clock = clock.Add(x.after)
		host, failure = times{x.idle, x.total}, x.err
		if got := m.Busy(); got != x.want {
			t.Errorf("%s: %v", x.what, got)
		}
	}
}

// TestHost: the host's own counters are read, and go on.
func TestHost(t *testing.T) {
	t.Parallel()
	a, err := hostTimes()
	if err != nil || a.idle <= 0 || a.total < a.idle {
		t.Fatalf("%+v, %v", a, err)
	}
	var m Meter
	if m.Busy() {
		t.Error("an answer before the second reading")
	}
}
