// Package cpuload tells whether the processors of this host are what everybody
// waits for. Meter is its type. It looks at the whole host, for a copy that
// shares it with the services that it copies should give way to them; it says
// nothing of limits that a control group sets.
package cpuload

import (
	"sync"
	"time"

	"github.com/prometheus/procfs"
)

const (
	// window is the least time between two readings: /proc/stat counts in
	// hundredths of a second.
	window = 200 * time.Millisecond
	// saturated is the share of a window that the processors may be idle, or
	// waiting for disks, and still count as busy.
	saturated = 1.0 / 8
)

// times is what all processors did since the host started, in seconds.
type times struct{ idle, total float64 }

// Meter remembers what the processors did of late. Safe for concurrent use; the
// zero value is ready, and knows nothing yet.
type Meter struct {
	mu   sync.Mutex
	last times
	at   time.Time
	busy bool
	// read and now are replaced in tests.
	read func() (times, error)
	now  func() time.Time
}

// Busy reports whether hardly any processor time was unused during the last
// fifth of a second or more. Where the host does not tell, and before it has
// been asked twice, it reports false. It costs next to nothing between two
// readings.
func (m *Meter) Busy() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	now, read := time.Now, hostTimes
	if m.now != nil {
		now, read = m.now, m.read
	}
	t := now()
	if !m.at.IsZero() && t.Sub(m.at) < window {
		return m.busy
	}
	got, err := read()
	known := err == nil && m.last.total > 0 && got.total > m.last.total
	m.busy = known && got.idle-m.last.idle <= saturated*(got.total-m.last.total)
	m.last, m.at = got, t
	return m.busy
}

func hostTimes() (times, error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return times{}, err
	}
	s, err := fs.Stat()
	if err != nil {
		return times{}, err
	}
	c := s.CPUTotal // User has the time of guests in it
	idle := c.Idle + c.Iowait
	return times{idle, idle + c.User + c.Nice + c.System + c.IRQ + c.SoftIRQ + c.Steal}, nil
}
