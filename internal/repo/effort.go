package repo

import (
	"sync/atomic"

	"lifeboat/internal/cpuload"
	"lifeboat/internal/pack"
)

// effort decides how groups are compressed, by what a copy waits for
// (docs/adr/0012). It begins with few bytes, so that a small increment is small
// whatever the network. Once several packs have gone, and as long as a sender
// has nothing to send while all processors of the host are in use, processor
// time is what the copy waits for, and a faster codec is chosen. Safe for
// concurrent use; the zero value is ready.
type effort struct {
	sent    atomic.Int64 // packs that have arrived
	sending atomic.Int64 // packs on their way
	cpus    cpuload.Meter
}

// settled is how many packs have to arrive before their pace says anything.
const settled = 2

// choose says how to compress the next group.
func (e *effort) choose() pack.Effort {
	return weigh(e.sent.Load(), e.sending.Load(), e.cpus.Busy())
}

func weigh(sent, sending int64, busy bool) pack.Effort {
	if sent >= settled && sending < uploadParallel && busy {
		return pack.Time
	}
	return pack.Bytes
}
