package repo

import "time"

// SetLimits makes a writer push pack manifests earlier and merge sooner than
// the sizes of a test would make it.
func (w *Writer) SetLimits(bytes int64, units, needs int, interval time.Duration) {
	w.limits.bytes, w.limits.units, w.limits.interval, w.limits.atLeast = bytes, units, interval, 0
	if needs > 0 {
		w.limits.needs = needs
	}
}
