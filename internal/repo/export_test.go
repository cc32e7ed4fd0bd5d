package repo

import (
	"context"
	"time"

	"lifeboat/internal/dr"
)

// SetLimits makes a writer push pack manifests earlier and merge sooner than
// the sizes of a test would make it.
func (w *Writer) SetLimits(bytes int64, units, needs int, interval time.Duration) {
	w.limits.bytes, w.limits.units, w.limits.interval, w.limits.atLeast = bytes, units, interval, 0
	if needs > 0 {
		w.limits.needs = needs
	}
}

// PutAs stores data under whatever id the test says, without looking whether it
// is there: what a hostile or broken writer does.
func (w *Writer) PutAs(ref dr.UnitRef, data []byte) {
	if g := w.add(ref, data); g != nil {
		w.groups.Add(1)
		w.queue <- g
	}
}

// PutRecordRaw stores a record under any tag without its checks.
func (r *Repo) PutRecordRaw(ctx context.Context, tag string, body []byte) error {
	t, err := ParseTag(tag)
	if err != nil {
		return err
	}
	return r.putSigned(ctx, t, body)
}
