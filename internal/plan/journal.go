// Package plan executes work step by step from a journal, so that any step can
// be interrupted by kill -9 or power loss and another process can go on from
// there (invariant 8), and decides, without I/O, what stands in the way of
// bringing a system up (conflicts.go).
//
// Journal keeps, for each step, intent and result, and named facts that later
// steps need (ids of what was created). Run drives steps. The package knows
// nothing of engines or repositories: steps are closures of its callers.
package plan

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"lifeboat/internal/dr"

	"golang.org/x/sys/unix"
)

// line is one line of the journal file.
type line struct {
	Time  time.Time       `json:"t"`
	Event string          `json:"event"` // begin, intent, done, failed, fact, end
	Step  string          `json:"step,omitempty"`
	Key   string          `json:"key,omitempty"`
	Value json.RawMessage `json:"value,omitempty"`
	Error string          `json:"error,omitempty"`
}

// Header says what a journal is about. A journal whose header differs from what
// is asked for belongs to other work and is not resumed.
type Header struct {
	Operation string        `json:"operation"`
	System    dr.System     `json:"system"`
	Snapshot  dr.SnapshotID `json:"snapshot"`
	Started   time.Time     `json:"started"`
}

// Journal is an append-only file, exclusively locked while open. Each entry is
// on disk before the method returns. It is for one goroutine.
type Journal struct {
	path   string
	f      *os.File
	header Header
	done   map[string]bool
	facts  map[string]json.RawMessage
	ended  bool
	fresh  bool
}

// Open opens or begins the journal at path. An unfinished journal is resumed
// whatever its header says (Header tells); a finished one is replaced by a new
// one. A journal that another process holds gives an error wrapping dr.ErrHeld.
func Open(path string, want Header) (*Journal, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("journal directory: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("journal %s is in use by another run: %w", path, dr.ErrHeld)
		}
		return nil, fmt.Errorf("lock journal %s: %w", path, err)
	}
	j := &Journal{path: path, f: f, done: map[string]bool{}, facts: map[string]json.RawMessage{}}
	if err := j.load(); err != nil {
		f.Close()
		return nil, err
	}
	if j.header.Operation == "" || j.ended {
		if err := j.begin(want); err != nil {
			f.Close()
			return nil, err
		}
	}
	return j, nil
}

// load replays the file. A last line that was cut off by a crash is dropped:
// its effect is then repeated, which every step allows.
func (j *Journal) load() error {
	data, err := os.ReadFile(j.path)
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	valid := 0
	for {
		// Not bufio.ScanLines: it takes a carriage return away, and then the length of
		// what is valid would be wrong.
		raw, _, whole := bytes.Cut(data[valid:], []byte{'\n'})
		if !whole {
			break // no newline: torn write
		}
		var l line
		if err := json.Unmarshal(raw, &l); err != nil {
			return fmt.Errorf("journal %s is damaged at byte %d: %w; move it away to begin anew", j.path, valid, err)
		}
		valid += len(raw) + 1
		switch l.Event {
		case "begin":
			if err := json.Unmarshal(l.Value, &j.header); err != nil {
				return fmt.Errorf("journal %s: header: %w", j.path, err)
			}
		case "done":
			j.done[l.Step] = true
		case "reopen":
			delete(j.done, l.Step)
		case "fact":
			j.facts[l.Key] = append(json.RawMessage(nil), l.Value...)
		case "end":
			j.ended = true
		}
	}
	if err := j.f.Truncate(int64(valid)); err != nil {
		return fmt.Errorf("trim journal: %w", err)
	}
	_, err = j.f.Seek(int64(valid), 0)
	return err
}

func (j *Journal) begin(h Header) error {
	if err := j.f.Truncate(0); err != nil {
		return fmt.Errorf("begin journal: %w", err)
	}
	if _, err := j.f.Seek(0, 0); err != nil {
		return fmt.Errorf("begin journal: %w", err)
	}
	j.done, j.facts, j.ended, j.fresh = map[string]bool{}, map[string]json.RawMessage{}, false, true
	if h.Started.IsZero() {
		h.Started = time.Now().UTC()
	}
	j.header = h
	raw, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if err := j.append(line{Event: "begin", Value: raw}); err != nil {
		return err
	}
	// The file may be new: its name must be on disk as well.
	dir, err := os.Open(filepath.Dir(j.path))
	if err == nil {
		err = errors.Join(dir.Sync(), dir.Close())
	}
	if err != nil {
		return fmt.Errorf("sync journal directory: %w", err)
	}
	return nil
}

func (j *Journal) append(l line) error {
	l.Time = time.Now().UTC()
	raw, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if _, err := j.f.Write(append(raw, '\n')); err != nil {
		return fmt.Errorf("write journal %s: %w", j.path, err)
	}
	if err := j.f.Sync(); err != nil {
		return fmt.Errorf("sync journal %s: %w", j.path, err)
	}
	return nil
}

// Header returns what the journal is about.
func (j *Journal) Header() Header { return j.header }

// Resumed reports whether earlier work is being continued.
func (j *Journal) Resumed() bool { return !j.fresh }

// Done reports whether the step has a recorded result.
func (j *Journal) Done(step string) bool { return j.done[step] }

// Intent records that the step is about to act.
func (j *Journal) Intent(step string) error { return j.append(line{Event: "intent", Step: step}) }

// Finish records the step's result.
func (j *Journal) Finish(step string) error {
	if err := j.append(line{Event: "done", Step: step}); err != nil {
		return err
	}
	j.done[step] = true
	return nil
}

// Fail records that the step failed; it stays to be done.
func (j *Journal) Fail(step string, cause error) error {
	return j.append(line{Event: "failed", Step: step, Error: cause.Error()})
}

// Reopen takes a recorded result back: the step has to be done again.
func (j *Journal) Reopen(step string) error {
	if !j.done[step] {
		return nil
	}
	if err := j.append(line{Event: "reopen", Step: step}); err != nil {
		return err
	}
	delete(j.done, step)
	return nil
}

// SetFact records a value that later steps, perhaps of another process, need.
func (j *Journal) SetFact(key string, value any) error {
	raw, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("journal fact %s: %w", key, err)
	}
	if bytes.Equal(j.facts[key], raw) {
		return nil
	}
	if err := j.append(line{Event: "fact", Key: key, Value: raw}); err != nil {
		return err
	}
	j.facts[key] = raw
	return nil
}

// Fact reads a recorded value into out and reports whether there is one.
func (j *Journal) Fact(key string, out any) (bool, error) {
	raw, ok := j.facts[key]
	if !ok {
		return false, nil
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return false, fmt.Errorf("journal fact %s: %w", key, err)
	}
	return true, nil
}

// End marks the work as finished: the next Open begins a new journal.
func (j *Journal) End() error {
	if err := j.append(line{Event: "end"}); err != nil {
		return err
	}
	j.ended = true
	return nil
}

// Close releases the lock. An unfinished journal stays for the next run.
func (j *Journal) Close() error { return j.f.Close() }

// Peek reads a journal without locking it: its header and whether it is
// unfinished. A missing file is not unfinished.
func Peek(path string) (h Header, unfinished bool, err error) {
	p, err := look(path)
	if p == nil {
		return Header{}, false, err
	}
	return p.Header, !p.ended, nil
}

// Pending is how far the work of a journal is.
type Pending struct {
	Header
	// Step is the one that was begun last and has no result, empty where none was;
	// Failed is why it failed, where it did.
	Step, Failed string
	// Running: another process holds the journal at this moment.
	Running bool

	facts map[string]bool
	ended bool
}

// Has reports whether a fact of that name is recorded.
func (p *Pending) Has(fact string) bool { return p.facts[fact] }

// Unfinished reads how far the work of a journal is, without changing it; nil
// where there is none or it is finished.
func Unfinished(path string) (*Pending, error) {
	p, err := look(path)
	if p == nil || p.ended {
		return nil, err
	}
	return p, nil
}

// look reads a journal as it is, also a finished one; nil where there is none.
func look(path string) (*Pending, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	p := &Pending{facts: map[string]bool{}}
	for _, raw := range bytes.Split(data, []byte{'\n'}) {
		var l line
		if json.Unmarshal(raw, &l) != nil {
			continue
		}
		switch l.Event {
		case "begin":
			if err := json.Unmarshal(l.Value, &p.Header); err != nil {
				return nil, fmt.Errorf("journal %s: header: %w", path, err)
			}
		case "intent":
			p.Step, p.Failed = l.Step, ""
		case "done":
			p.Step, p.Failed = "", ""
		case "failed":
			p.Failed = l.Error
		case "fact":
			p.facts[l.Key] = true
		case "end":
			p.ended = true
		}
	}
	if p.Operation == "" {
		return nil, nil
	}
	// Only asked, and given back at once: whoever wants it in this moment is told
	// that it is in use, as by any other run.
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	p.Running = errors.Is(err, unix.EWOULDBLOCK)
	return p, nil
}
