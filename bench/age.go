package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/bench/corpus"
)

const (
	ageRegistry  = "127.0.0.1:5001" // where the registry listens behind the counter
	agePages     = 10               // of the big table, and
	ageFiles     = 3                // small files, are written before each snapshot
	ageGC        = 100              // snapshots between two runs of gc
	ageSnapshots = 1000             // unless told otherwise
)

// What is measured at an age.
const (
	ageSmall     = "snapshot, small change"
	ageUnchanged = "snapshot, unchanged"
	ageRestore   = "restore"
	ageFresh     = "restore, host without caches"
	ageCollect   = "gc"
)

// agePoint is what one command took after a number of snapshots.
type agePoint struct {
	Snapshots int    `json:"snapshots"` // there were before it
	What      string `json:"what"`
	Requests  int64  `json:"requests"`
	Sent      int64  `json:"sent_bytes"`     // bodies of requests
	Received  int64  `json:"received_bytes"` // bodies of answers
	outcome
}

// ageResults are the cost of a snapshot and of a restore against the snapshots before.
type ageResults struct {
	Machine machine       `json:"machine"`
	Data    corpus.Totals `json:"data"`
	Points  []agePoint    `json:"points"`
}

// age takes snapshot after snapshot of one system of which a little changes, with a gc now and then, and
// at some ages one of nothing changed, and restores.
func (s *stage) age(ctx context.Context, o options, save func(map[string][]byte) error) (err error) {
	r := &ageResults{}
	if r.Data, err = s.fill(ctx); err != nil {
		return err
	}
	if r.Machine, err = lookAround(); err != nil {
		return err
	}
	a := &ageing{lifeboat: lifeboat{stage: s}, results: r}
	if err := a.begin(ctx, filepath.Join(s.dir, "age")); err != nil {
		return err
	}
	defer a.proxy.Close()
	for n := range o.snapshots {
		if err := a.step(ctx, n, slices.Contains(ages(o.snapshots), n+1)); err != nil {
			return fmt.Errorf("after %d snapshots: %w", n, err)
		}
		if !slices.Contains(ages(o.snapshots), n+1) {
			continue
		}
		r.Machine.load(&r.Machine.LoadAfter)
		files, err := r.files()
		if err != nil {
			return err
		}
		if err := save(files); err != nil {
			return err
		}
	}
	fmt.Printf("%s", r.markdown())
	return a.registry.stop()
}

// ages are the numbers of snapshots after which everything is measured.
func ages(most int) []int {
	var list []int
	for _, n := range []int{1, 10, 30, 100, 200, 300, 500, 700} {
		if n < most {
			list = append(list, n)
		}
	}
	return append(list, most)
}

// ageing is Lifeboat with a counter between it and its registry.
type ageing struct {
	lifeboat
	proxy   *http.Server
	counted counter
	results *ageResults
}

// counter counts requests and the bytes of their bodies and answers.
type counter struct{ requests, sent, received atomic.Int64 }

// before counts what goes to a handler.
func (c *counter) before(to http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.requests.Add(1)
		r.Body = &countedBody{r.Body, &c.sent}
		to.ServeHTTP(&countedAnswer{w, &c.received}, r)
	})
}

type countedBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}

type countedAnswer struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (a *countedAnswer) Write(p []byte) (int, error) {
	n, err := a.ResponseWriter.Write(p)
	a.n.Add(int64(n))
	return n, err
}

// Unwrap lets the server flush.
func (a *countedAnswer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// begin makes registry, counter and repository.
func (a *ageing) begin(ctx context.Context, dir string) error {
	if err := a.serve(ctx, dir, ageRegistry); err != nil {
		return err
	}
	l, err := a.stage.site.Listen(ctx, "tcp", lifeboatRegistry)
	if err != nil {
		return fmt.Errorf("listen for what is counted: %w", err)
	}
	through := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: ageRegistry}) // keeps the host that was asked for
	through.Transport = &http.Transport{DialContext: a.stage.site.Dial, MaxIdleConnsPerHost: 64, DisableCompression: true}
	a.proxy = &http.Server{Handler: a.counted.before(through), ReadHeaderTimeout: time.Minute}
	go func() { _ = a.proxy.Serve(l) }() // until it is closed; what fails is told by whoever asks
	if err := a.init(ctx); err != nil {
		return err
	}
	var o outcome
	_, err = a.run(ctx, &o, "protect", container, "--container", container)
	return err
}

// measure keeps what f takes with so many snapshots before it.
func (a *ageing) measure(snapshots int, what string, f func() (outcome, error)) error {
	if what != ageSmall { // a thousand times the whole machine's would be most of the time
		unix.Sync()
	}
	c := &a.counted
	requests, sent, received := c.requests.Load(), c.sent.Load(), c.received.Load()
	o, err := f()
	if err != nil {
		return err
	}
	p := agePoint{snapshots, what, c.requests.Load() - requests, c.sent.Load() - sent, c.received.Load() - received, o}
	a.results.Points = append(a.results.Points, p)
	if what != ageSmall || snapshots%ageGC == 0 {
		a.stage.log.Info("measured", "snapshots", snapshots, "what", what, "seconds", fmt.Sprintf("%.2f", o.Seconds),
			"requests", p.Requests, "sent", p.Sent, "received", p.Received, "peak", mega(o.Peak))
	}
	return nil
}

// step takes snapshot number n, which counts from 0, and measures the rest if all is asked for.
func (a *ageing) step(ctx context.Context, n int, all bool) error {
	if n > 0 {
		if err := a.change(n); err != nil {
			return err
		}
	}
	if err := a.measure(n, ageSmall, func() (outcome, error) { return a.copy(ctx) }); err != nil {
		return err
	}
	if (n+1)%ageGC == 0 {
		err := a.measure(n+1, ageCollect, func() (o outcome, err error) {
			_, err = a.run(ctx, &o, "gc", "--grace", "1s", "--yes")
			return o, err
		})
		if err != nil {
			return err
		}
	}
	if !all {
		return nil
	}
	if err := a.measure(n+1, ageUnchanged, func() (outcome, error) { return a.copy(ctx) }); err != nil {
		return err
	}
	for _, what := range []string{ageRestore, ageFresh} {
		if err := a.restored(ctx, n+1, what); err != nil {
			return err
		}
	}
	return nil
}

// change writes a few pages of the table and a few files, other ones each time.
func (a *ageing) change(n int) error {
	s := a.stage
	if err := s.changePages(agePages, s.shape.Seed+uint64(n)); err != nil {
		return err
	}
	for i := range ageFiles {
		dir := filepath.Join(s.data, "notes", fmt.Sprint((n*ageFiles+i)%40))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(n%7)), fmt.Appendf(nil, "note %d of %d: %x", i, n, n*n), 0o640); err != nil {
			return err
		}
	}
	return nil
}

// restored measures a restore by the host that takes the snapshots, or by one that has nothing but a key.
func (a *ageing) restored(ctx context.Context, n int, what string) error {
	to := filepath.Join(a.stage.dir, "age-restored")
	config := lifeboatConfig
	if what == ageFresh {
		config = "fresh.yaml"
		if err := a.configure(config, "fresh"); err != nil {
			return err
		}
	}
	err := a.measure(n, what, func() (o outcome, err error) {
		_, err = o.measured(a.command(ctx, config, "--repo", lifeboatRepo, "restore", container, "--to", to), "lifeboat restore")
		return o, err
	})
	if err != nil {
		return err
	}
	if err := sameAmount(to, a.stage.layer, a.stage.data); err != nil {
		return err
	}
	for _, dir := range []string{to, filepath.Join(a.dir, "fresh")} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}
