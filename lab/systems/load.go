package systems

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"lifeboat/lab"
)

// maxPage bounds what Get reads.
const maxPage = 64 << 20

// Get fetches a page of the system from the site itself, through the published port. A status other
// than 200 is an error.
func (s *System) Get(ctx context.Context, site *lab.Site, path string) (string, error) {
	client := site.HTTPClient()
	defer client.CloseIdleConnections()
	return s.GetFrom(ctx, client, site, path)
}

// GetFrom fetches a page of the system at the site with a client of another site, over the WAN.
func (s *System) GetFrom(ctx context.Context, client *http.Client, site *lab.Site, path string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL(site)+path, nil)
	if err != nil {
		return "", err
	}
	return fetch(client, req)
}

func fetch(client *http.Client, req *http.Request) (string, error) {
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxPage))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", req.URL, err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s %s: %s: %.300s", req.Method, req.URL, resp.Status, data)
	}
	return string(data), nil
}

// Ledger is what a system's three trees know of numbered entries. Each was written in this order.
type Ledger struct {
	Begin []int64 `json:"begin"` // in a volume of the web container
	Rows  []int64 `json:"rows"`  // in the database
	Done  []int64 `json:"done"`  // in the writable layer of the web container
}

// Ledger reads the ledger of a system that serves at the site.
func (s *System) Ledger(ctx context.Context, site *lab.Site) (Ledger, error) {
	var l Ledger
	if s.kind.ledger == "" {
		return l, fmt.Errorf("%s keeps no ledger", s.Project)
	}
	text, err := s.Get(ctx, site, s.kind.ledger)
	if err != nil {
		return l, fmt.Errorf("read ledger of %s: %w", s.Project, err)
	}
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		return l, fmt.Errorf("read ledger of %s: %w", s.Project, err)
	}
	return l, nil
}

// Check proves that the trees are of one instant (invariant 4): what is done is in the database, and
// what is in the database was begun.
func (l Ledger) Check() error {
	var errs []error
	for _, c := range []struct {
		what        string
		part, whole []int64
	}{{"done but not in the database", l.Done, l.Rows}, {"in the database but never begun", l.Rows, l.Begin}} {
		if missing := without(c.part, c.whole); len(missing) > 0 {
			errs = append(errs, fmt.Errorf("trees of different instants: %d entries are %s: %v", len(missing), c.what, head(missing)))
		}
	}
	return errors.Join(errs...)
}

// CheckAcked proves that every entry that was acknowledged not later than upTo is there (invariant 7).
func (l Ledger) CheckAcked(acks []Ack, upTo time.Time) error {
	var want []int64
	for _, a := range acks {
		if !a.Acked.After(upTo) {
			want = append(want, a.Seq)
		}
	}
	var errs []error
	if missing := without(want, l.Rows); len(missing) > 0 {
		errs = append(errs, fmt.Errorf("%d of %d acknowledged entries are not in the database: %v", len(missing), len(want), head(missing)))
	}
	if missing := without(want, l.Done); len(missing) > 0 {
		errs = append(errs, fmt.Errorf("%d of %d acknowledged entries are not in the writable layer: %v", len(missing), len(want), head(missing)))
	}
	return errors.Join(errs...)
}

func without(part, whole []int64) []int64 {
	have := make(map[int64]bool, len(whole))
	for _, n := range whole {
		have[n] = true
	}
	var missing []int64
	for _, n := range part {
		if !have[n] {
			missing = append(missing, n)
		}
	}
	slices.Sort(missing)
	return missing
}

func head(list []int64) []int64 { return list[:min(10, len(list))] }

// Ack is an entry that the system acknowledged.
type Ack struct {
	Seq         int64
	Sent, Acked time.Time // on the client's clock
}

// LoadOptions say how hard a system is worked; the zero value is one writer as fast as answers come.
type LoadOptions struct {
	Writers int
	// First is the number of the first entry; zero means 1000, above what Seed writes.
	First int64
	// Every is the least time between two entries of one writer.
	Every time.Duration
	// Patience is how long a writer waits for an answer; zero means 5 s.
	Patience time.Duration
}

// Load writes numbered entries until it is stopped. Entries whose answer is lost are not tried again:
// whether they were written is unknown, as for a client whose server burns.
type Load struct {
	system *System
	opts   LoadOptions
	site   atomic.Pointer[lab.Site]
	next   atomic.Int64
	stop   context.CancelFunc
	done   sync.WaitGroup

	mu      sync.Mutex
	acks    []Ack
	lastErr error
	failed  int
	news    chan struct{} // closed and replaced at each acknowledgement
}

// StartLoad starts writers against the system at the site; they end with Stop or ctx.
func (s *System) StartLoad(ctx context.Context, site *lab.Site, opts LoadOptions) (*Load, error) {
	if s.kind.write == "" {
		return nil, fmt.Errorf("%s takes no entries", s.Project)
	}
	opts.Writers = max(opts.Writers, 1)
	if opts.First == 0 {
		opts.First = 1000
	}
	if opts.Patience == 0 {
		opts.Patience = 5 * time.Second
	}
	ctx, stop := context.WithCancel(ctx)
	l := &Load{system: s, opts: opts, stop: stop, news: make(chan struct{})}
	l.site.Store(site)
	l.next.Store(opts.First - 1)
	for range opts.Writers {
		l.done.Add(1)
		go func() {
			defer l.done.Done()
			l.run(ctx)
		}()
	}
	return l, nil
}

// Move sends what is written from now on to the system at another site, as a change in DNS does.
func (l *Load) Move(site *lab.Site) { l.site.Store(site) }

// Acks returns what was acknowledged so far, in order of acknowledgement.
func (l *Load) Acks() []Ack {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.acks)
}

// Failed is how many entries were not acknowledged, and why the last one was not.
func (l *Load) Failed() (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed, l.lastErr
}

// Await returns when n entries more than now were acknowledged.
func (l *Load) Await(ctx context.Context, n int) error {
	l.mu.Lock()
	want := len(l.acks) + n
	for len(l.acks) < want {
		news := l.news
		l.mu.Unlock()
		select {
		case <-ctx.Done():
			failed, err := l.Failed()
			return fmt.Errorf("wait for entries to be acknowledged: %w; %d failed, the last because of: %w", ctx.Err(), failed, err)
		case <-news:
		}
		l.mu.Lock()
	}
	l.mu.Unlock()
	return nil
}

// Stop ends the load and returns all that was acknowledged. Entries under way are given up.
func (l *Load) Stop() []Ack {
	l.stop()
	l.done.Wait()
	return l.Acks()
}

// LongestPause is the longest time between two acknowledgements, which is how long clients saw the
// system not serving; and when it began.
func LongestPause(acks []Ack) (time.Duration, time.Time) {
	var longest time.Duration
	var since time.Time
	for i := 1; i < len(acks); i++ {
		if d := acks[i].Acked.Sub(acks[i-1].Acked); d > longest {
			longest, since = d, acks[i-1].Acked
		}
	}
	return longest, since
}

func (l *Load) run(ctx context.Context) {
	var site *lab.Site
	var w writer
	defer func() {
		if w.client != nil {
			w.client.CloseIdleConnections()
		}
	}()
	for ctx.Err() == nil {
		if now := l.site.Load(); now != site || w.client == nil {
			if w.client != nil {
				w.client.CloseIdleConnections()
			}
			site, w = now, writer{l.system, now.HTTPClient()}
		}
		seq := l.next.Add(1)
		sent := time.Now()
		attempt, cancel := context.WithTimeout(ctx, l.opts.Patience)
		err := w.write(attempt, site, seq)
		cancel()
		l.note(Ack{seq, sent, time.Now()}, err)
		wait := l.opts.Every - time.Since(sent)
		if err != nil { // nobody hammers a server that is down
			wait = max(wait, 20*time.Millisecond)
		}
		if wait > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
		}
	}
}

func (l *Load) note(a Ack, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.failed++
		l.lastErr = err
		return
	}
	l.acks = append(l.acks, a)
	close(l.news)
	l.news = make(chan struct{})
}

// writer posts entries.
type writer struct {
	system *System
	client *http.Client
}

// write returns nil only when the system has answered that the entry is durable.
func (w writer) write(ctx context.Context, site *lab.Site, seq int64) error {
	form := url.Values{"seq": {fmt.Sprint(seq)}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.system.URL(site)+w.system.kind.write, strings.NewReader(form))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	text, err := fetch(w.client, req)
	if err != nil {
		return err
	}
	if text != "ok" {
		return fmt.Errorf("entry %d: answer %.200q", seq, text)
	}
	return nil
}
