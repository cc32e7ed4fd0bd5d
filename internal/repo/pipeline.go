package repo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/pack"
	"lifeboat/internal/repo/journal"
)

// finished is a pack on its way to the registry.
type finished struct {
	blob []byte
	info pack.Info
}

// compress takes groups, compresses them, and seals them into the pack that is
// being filled. One runs for each core.
func (w *Writer) compress(queue <-chan *pack.Group) error {
	payload := make([]byte, 0, pack.PayloadRoom)
	for g := range queue {
		err := w.ctx.Err()
		if err == nil {
			err = w.assemble(w.repo.codec.Encode(payload, g, w.effort.choose()), g)
		}
		w.recycle(g)
		if err != nil {
			w.cancel(err) // before Done: who waits for the group must not take it for stored
		}
		w.groups.Done()
		if err != nil {
			for range queue { // given up, so that nobody waits for it
				w.groups.Done()
			}
			return err
		}
	}
	return nil
}

// groupClasses are the sizes of the memory of groups: pack.GroupSize, and twice
// the one before up to pack.MaxGroup.
const groupClasses = 4

// newGroup returns an empty group with room for n bytes, with the memory of one
// that was packed where there is one.
func (w *Writer) newGroup(n int) *pack.Group {
	class, room := 0, pack.GroupSize
	for room < n && class < groupClasses-1 {
		class, room = class+1, room*2
	}
	if g, ok := w.spare[class].Get().(*pack.Group); ok {
		return g
	}
	return pack.NewGroup(room)
}

func (w *Writer) recycle(g *pack.Group) {
	for class, room := 0, pack.GroupSize; class < groupClasses; class, room = class+1, room*2 {
		if g.Room() == room {
			g.Reset()
			w.spare[class].Put(g)
			return // it is somebody else's now
		}
	}
}

func (w *Writer) assemble(payload []byte, g *pack.Group) error {
	w.asm.Lock()
	defer w.asm.Unlock()
	if w.builder != nil && !w.builder.Fits(len(payload), len(g.Units)) {
		if err := w.finish(); err != nil {
			return err
		}
	}
	if w.builder == nil {
		b, err := pack.NewBuilder(w.repo.keyring(), w.buffer())
		if err != nil {
			return err
		}
		w.builder = b
	}
	w.builder.Add(payload, g.Units)
	return nil
}

// finish hands the pack that is being filled to the uploaders, and waits until
// one takes it; the caller holds asm.
func (w *Writer) finish() error {
	if w.builder == nil {
		return nil
	}
	blob, info := w.builder.Finish()
	w.builder = nil
	w.packs.Add(1)
	select {
	case w.send <- finished{blob, info}:
		return nil
	case <-w.ctx.Done():
		w.packs.Done()
		return context.Cause(w.ctx)
	}
}

// buffer returns the memory of a pack that was sent, or new memory.
func (w *Writer) buffer() []byte {
	select {
	case b := <-w.bufs:
		return b
	default:
		return make([]byte, 0, pack.GroupSize) // grows once if need be
	}
}

// upload sends packs.
func (w *Writer) upload() error {
	for f := range w.send {
		err := w.ctx.Err()
		if err == nil {
			err = w.sendPack(f)
		}
		if err != nil {
			w.cancel(err) // before Done, as in compress
		}
		w.packs.Done()
		if err != nil {
			for range w.send {
				w.packs.Done()
			}
			return err
		}
	}
	return nil
}

func (w *Writer) sendPack(f finished) error {
	// The only time that this host hashes the pack.
	f.info.Digest = sha256.Sum256(f.blob)
	d := digestOf(f.info.Digest)
	lent := &lentBytes{b: f.blob}
	w.effort.sending.Add(1)
	sent, err := w.repo.st.PutBlob(w.ctx, d, f.info.Size, lent.open)
	w.effort.sending.Add(-1)
	lent.takeBack()
	if err != nil {
		return fmt.Errorf("send pack %s: %w", d, err)
	}
	if cap(f.blob) == pack.BufferSize {
		select {
		case w.bufs <- f.blob[:0]:
		default:
		}
	}
	w.effort.sent.Add(1)
	w.mu.Lock()
	w.stats.BytesSent += sent
	w.stats.Packs++
	w.mu.Unlock()
	w.doneMu.Lock()
	w.note(f.info)
	w.done = append(w.done, f.info)
	w.doneSize += f.info.Size
	for _, g := range f.info.Groups {
		w.doneN += len(g.Units)
	}
	due := w.doneSize >= w.limits.bytes || w.doneN >= w.limits.units ||
		(w.doneSize >= w.limits.atLeast && time.Since(w.lastPush) >= w.limits.interval)
	w.doneMu.Unlock()
	w.progress()
	if due {
		return w.pushDone(w.ctx)
	}
	return nil
}

// lentBytes lends memory to a store. HTTP clients may read a body after the
// request was answered; once it is taken back they get an error instead of
// bytes that are something else by then.
type lentBytes struct {
	mu sync.Mutex
	b  []byte
}

func (l *lentBytes) open() (io.ReadCloser, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.b == nil {
		return nil, io.ErrClosedPipe
	}
	return &lentReader{l: l, r: bytes.NewReader(l.b)}, nil
}

func (l *lentBytes) takeBack() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = nil
}

type lentReader struct {
	l *lentBytes
	r *bytes.Reader
}

func (r *lentReader) Read(p []byte) (int, error) {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	if r.l.b == nil {
		return 0, io.ErrClosedPipe
	}
	return r.r.Read(p)
}

func (r *lentReader) Close() error { return nil }

// Flush returns when everything put so far is in the registry and named by a
// pack manifest. Put blocks meanwhile.
func (w *Writer) Flush(ctx context.Context) error {
	if err := w.flush(ctx); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

func (w *Writer) flush(ctx context.Context) error {
	w.gate.Lock()
	defer w.gate.Unlock()
	if err := w.drain(ctx); err != nil {
		return err
	}
	if err := w.pushDone(ctx); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.fresh); n > 0 { // the last line before a snapshot that lacks something
		return fmt.Errorf("%d units were put and are in no pack manifest", n)
	}
	return nil
}

// drain returns when everything put so far is in the registry, in whatever pack
// manifest or in none; the caller holds the gate.
func (w *Writer) drain(ctx context.Context) error {
	if err := w.failure(ctx); err != nil {
		return err
	}
	// A context that ends makes the pipeline end too: it cannot be left half way.
	stop := context.AfterFunc(ctx, func() { w.cancel(ctx.Err()) })
	defer stop()
	w.mu.Lock()
	open := w.open
	w.open = [2]*pack.Group{}
	w.mu.Unlock()
	for _, g := range open {
		if g == nil {
			continue
		}
		w.groups.Add(1)
		select {
		case w.queue <- g:
		case <-w.ctx.Done():
			w.groups.Done()
		}
	}
	w.groups.Wait()
	w.asm.Lock()
	err := w.finish()
	w.asm.Unlock()
	w.packs.Wait()
	if ferr := w.failure(ctx); ferr != nil {
		return ferr
	}
	return err
}

// pushDone pushes a pack manifest of all packs that are sent and in none yet.
func (w *Writer) pushDone(ctx context.Context) error {
	w.pushMu.Lock()
	defer w.pushMu.Unlock()
	infos, journals := w.takeDone()
	if len(infos) == 0 {
		return nil
	}
	s, err := w.pushManifest(ctx, infoPacks(infos), func(v pack.Visitor) error { return visit(v, infos) })
	if err != nil {
		w.giveBack(infos, journals)
		return err
	}
	w.removeJournals(journals)
	s.used.Store(true)
	w.srcMu.Lock()
	w.sources = slices.Insert(slices.Clone(w.sources), 0, s)
	w.srcMu.Unlock()
	w.mu.Lock()
	for _, p := range infos {
		for _, g := range p.Groups {
			for _, u := range g.Units {
				delete(w.fresh, u.ID)
			}
		}
	}
	left := make(map[dr.UnitID]struct{}, len(w.fresh)) // a map does not shrink by itself
	maps.Copy(left, w.fresh)
	w.fresh = left
	w.mu.Unlock()
	w.doneMu.Lock()
	w.lastPush = time.Now()
	w.doneMu.Unlock()
	w.progress()
	return nil
}

// takeDone returns the packs that are sent and in no pack manifest yet, and the
// journals that note them; giveBack undoes it. The caller holds pushMu.
func (w *Writer) takeDone() ([]pack.Info, []*journal.Journal) {
	w.doneMu.Lock()
	defer w.doneMu.Unlock()
	if len(w.done) == 0 {
		return nil, nil
	}
	infos, journals := w.done, w.oldJournals
	if w.journal != nil {
		journals = append(journals, w.journal)
	}
	w.done, w.doneSize, w.doneN = nil, 0, 0
	w.journal, w.oldJournals = nil, nil
	return infos, journals
}

func (w *Writer) giveBack(infos []pack.Info, journals []*journal.Journal) {
	w.doneMu.Lock()
	defer w.doneMu.Unlock()
	w.done = append(infos, w.done...)
	w.oldJournals = append(journals, w.oldJournals...)
}

func infoPacks(infos []pack.Info) []blob {
	var out []blob
	for _, p := range infos {
		out = append(out, blob{digestOf(p.Digest), p.Size})
	}
	return out
}

// visit hands packs to a visitor.
func visit(v pack.Visitor, infos []pack.Info) error {
	for _, p := range infos {
		if err := v.Pack(p, len(p.Groups)); err != nil {
			return err
		}
		for _, g := range p.Groups {
			if err := v.Group(g, len(g.Units)); err != nil {
				return err
			}
			for _, u := range g.Units {
				if err := v.Unit(u); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
