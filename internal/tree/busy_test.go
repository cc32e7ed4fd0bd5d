package tree_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"lifeboat/internal/dr"
	"lifeboat/internal/tree"
)

const (
	busySize   = 1 << 29 // of a sparse file that is written all the time
	busyRanges = 16      // where it has data
	busyRange  = 2 << 20 // bytes of each
)

// busyFile makes the file and returns what writes n random pages into its data.
func busyFile(t *testing.T, name string) (write func(n int) error) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := f.Truncate(busySize); err != nil {
		t.Fatal(err)
	}
	for i := range int64(busyRanges) {
		if _, err := f.WriteAt(randomBytes(uint64(i), busyRange), i*(busySize/busyRanges)); err != nil {
			t.Fatal(err)
		}
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	return func(n int) error {
		for range n {
			at := rnd.Int64N(busyRanges)*(busySize/busyRanges) + rnd.Int64N(busyRange/16384)*16384
			if _, err := f.WriteAt(randomBytes(rnd.Uint64(), 16<<10), at); err != nil {
				return err
			}
		}
		return nil
	}
}

// TestBusyLargeFile: of a large file that is written while it is copied, holes are
// not read, no more is in memory than the budget allows, what Precopy has is not
// kept again, and the result is the file as it was when frozen.
func TestBusyLargeFile(t *testing.T) {
	t.Parallel()
	const budget, data = 1 << 20, busyRanges * busyRange
	f := newFixture(t)
	f.opts = func(o *tree.CaptureOptions) { o.Budget = tree.NewBudget(budget) }
	write := busyFile(t, filepath.Join(f.root, "db/big.ibd"))
	res, _ := f.capture(nil)
	f.check(res)

	f.repo.newRun()
	c, err := tree.NewCapture(f.options())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := write(200); err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() { // goes on while Precopy reads
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if err := write(1); err != nil {
				done <- err
				return
			}
		}
	}()
	err = c.Precopy(t.Context())
	close(stop)
	if err := errors.Join(err, <-done, write(50)); err != nil {
		t.Fatal(err)
	}
	f.held(c)
	before := c.Stats()
	if err := c.Secure(t.Context()); err != nil {
		t.Fatal(err)
	}
	if res, err = c.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.check(res)
	s := c.Stats()
	t.Logf("%+v", s)
	if kept := s.BytesSecured - s.BytesSpooled; kept > budget {
		t.Errorf("%d bytes were kept in memory, with room for %d", kept, budget)
	}
	if before.BytesRead > data+budget || s.BytesRead-before.BytesRead > data+budget {
		t.Errorf("%d bytes of %d were read before the freeze, %d in all", before.BytesRead, data, s.BytesRead)
	}
	if s.BytesSecured > data {
		t.Errorf("%d bytes were secured of %d", s.BytesSecured, data)
	}
}

// TestSecureStopsAtOnce: when the time for a freeze is up, hardly a piece more of a
// large file is read, whatever is left of it.
func TestSecureStopsAtOnce(t *testing.T) {
	t.Parallel()
	const workers = 2
	f := newFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	var left atomic.Int64
	left.Store(1 << 40)
	f.opts = func(o *tree.CaptureOptions) {
		o.Budget, o.Workers = tree.NewBudget(1<<20), workers
		o.UnitID = func(data []byte) dr.UnitID {
			if left.Add(-1) == 0 {
				cancel()
			}
			return unitID(data)
		}
	}
	write := busyFile(t, filepath.Join(f.root, "db/big.ibd"))
	c, err := tree.NewCapture(f.options())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Precopy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := write(10); err != nil {
		t.Fatal(err)
	}
	f.held(c)
	before := c.Stats().BytesRead
	const compared = 20
	left.Store(compared)
	if err := c.Secure(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("secure, cut off: %v", err)
	}
	// What was compared when the time was up, a piece in each hand, and what went to memory before.
	if read := c.Stats().BytesRead - before; read > 1<<20+(compared+2*workers)*(32<<10) {
		t.Errorf("%d bytes were read", read)
	}
}
