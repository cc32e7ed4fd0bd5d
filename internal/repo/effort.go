package repo

import (
	"sync/atomic"

	"lifeboat/internal/pack"
)

// effort decides how groups are compressed, by what a copy waits for. It begins
// with few bytes, so that a small increment is small whatever the network. Once
// several packs have gone, and as long as more units wait to be compressed while
// somebody waits for a pack to send, compressing is what takes the time, and a
// faster codec is chosen. Safe for concurrent use; the zero value is ready.
type effort struct {
	sent    atomic.Int64 // packs that have arrived
	sending atomic.Int64 // packs on their way
}

// settled is how many packs have to arrive before their pace says anything.
const settled = 4

// choose says how to compress a group; waiting: it had to wait for its turn.
func (e *effort) choose(waiting bool) pack.Effort {
	if waiting && e.sent.Load() >= settled && e.sending.Load() < uploadParallel {
		return pack.Time
	}
	return pack.Bytes
}
