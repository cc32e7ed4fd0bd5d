package warden

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"lifeboat/lab/cgroup"
	"lifeboat/lab/wan"
)

// takedown bounds how long the end of a laboratory may take.
const takedown = time.Minute

// warden serves requests for one laboratory.
type warden struct {
	conf  Config
	log   *slog.Logger
	procs *processes
	group cgroup.Tree
	relay *wan.Relay
	hosts map[string]*host
	ended chan struct{} // closed when the laboratory is gone
	end   sync.Once
}

// Run is the warden process: it reads config.json in dir, says "ready" on the file ready (and closes
// it), serves until it is asked to close, gets SIGTERM, or, unless the laboratory lingers, lifeline
// ends; then it takes everything away. The caller holds the lock of the laboratory in an open file
// that lives as long as the process.
func Run(dir string, lifeline io.Reader, ready io.WriteCloser) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	conf, err := readConfig(dir)
	if err != nil {
		return err
	}
	w := &warden{conf: conf, log: log, relay: wan.NewRelay(log), hosts: map[string]*host{}, ended: make(chan struct{})}
	if err := w.relay.Set(conf.WAN); err != nil {
		return err
	}
	if w.group, err = cgroup.New(conf.Cgroup); err != nil {
		return err
	}
	if w.procs, err = newProcesses(log); err != nil {
		return err
	}
	for _, s := range conf.Sites {
		w.hosts[s.Name] = &host{lab: conf, conf: s, log: log, procs: w.procs, group: w.group, relay: w.relay}
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	go w.procs.reap(ctx)
	listener, err := net.Listen("unix", conf.Socket())
	if err != nil {
		return fmt.Errorf("listen for requests: %w", err)
	}
	server := &http.Server{Handler: w.routes(), ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	if _, err := io.WriteString(ready, "ready\n"); err != nil {
		return fmt.Errorf("tell that the warden is ready: %w", err)
	}
	ready.Close()
	orphaned := make(chan struct{})
	if !conf.Linger {
		go func() {
			_, _ = io.Copy(io.Discard, lifeline)
			close(orphaned)
		}()
	}
	select {
	case <-w.ended: // by request; the answer is still on its way
		shutdown, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		return server.Shutdown(shutdown)
	case <-orphaned:
		log.Info("the parent is gone: taking the laboratory down")
	case <-ctx.Done():
		log.Info("signal: taking the laboratory down")
	case err := <-served:
		log.Error("cannot serve: taking the laboratory down", "error", err)
	}
	return w.close(context.Background())
}

func readConfig(dir string) (Config, error) {
	var c Config
	data, err := os.ReadFile(filepath.Join(dir, ConfigFile))
	if err != nil {
		return c, fmt.Errorf("read configuration of the laboratory: %w", err)
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("read configuration of the laboratory: %w", err)
	}
	return c, c.Validate()
}

func (w *warden) routes() http.Handler {
	mux := http.NewServeMux()
	answer := func(f func(r *http.Request) (any, error)) http.HandlerFunc {
		return func(rw http.ResponseWriter, r *http.Request) {
			result, err := f(r)
			if err != nil {
				w.log.Warn("request failed", "path", r.URL.Path, "error", err)
				http.Error(rw, err.Error(), http.StatusInternalServerError)
				return
			}
			rw.Header().Set("Content-Type", "application/json")
			// A client that is gone does not want the answer.
			_ = json.NewEncoder(rw).Encode(result)
		}
	}
	verbs := map[string]func(*host, context.Context) error{
		"boot": (*host).boot,
		"start": func(h *host, ctx context.Context) error {
			if err := h.boot(ctx); err != nil {
				return err
			}
			return h.startEngine(ctx)
		},
		"stop-engine": (*host).stopEngine,
		"crash":       (*host).powerOff,
		"destroy":     (*host).destroy,
	}
	for verb, act := range verbs {
		mux.HandleFunc("POST /sites/{site}/"+verb, answer(func(r *http.Request) (any, error) {
			h := w.hosts[r.PathValue("site")]
			if h == nil {
				return nil, fmt.Errorf("no site %q in this laboratory", r.PathValue("site"))
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			return nil, act(h, r.Context())
		}))
	}
	mux.HandleFunc("POST /wan", answer(func(r *http.Request) (any, error) {
		var p wan.Params
		if err := json.NewDecoder(r.Body).Decode(&p); err != nil {
			return nil, fmt.Errorf("read WAN parameters: %w", err)
		}
		return nil, w.relay.Set(p)
	}))
	mux.HandleFunc("POST /cut", answer(func(r *http.Request) (any, error) { return nil, w.switchLinks(r, w.relay.Cut) }))
	mux.HandleFunc("POST /heal", answer(func(r *http.Request) (any, error) { return nil, w.switchLinks(r, w.relay.Heal) }))
	mux.HandleFunc("GET /status", answer(func(*http.Request) (any, error) { return w.status(), nil }))
	mux.HandleFunc("POST /close", answer(func(r *http.Request) (any, error) {
		err := w.close(context.WithoutCancel(r.Context()))
		if err == nil {
			w.end.Do(func() { close(w.ended) })
		}
		return nil, err
	}))
	return mux
}

func (w *warden) switchLinks(r *http.Request, act func(...netip.Addr)) error {
	var addrs []netip.Addr
	for _, name := range r.URL.Query()["site"] {
		h := w.hosts[name]
		if h == nil {
			return fmt.Errorf("no site %q in this laboratory", name)
		}
		addrs = append(addrs, h.conf.IP)
	}
	act(addrs...)
	return nil
}

func (w *warden) status() Status {
	s := Status{ID: w.conf.ID, PID: os.Getpid(), WAN: w.relay.Params()}
	for _, c := range w.conf.Sites {
		h := w.hosts[c.Name]
		h.mu.Lock()
		s.Sites = append(s.Sites, SiteStatus{
			Name: c.Name, IP: c.IP, Up: h.thread != nil,
			Engine:       h.engine != nil && h.engine.alive(),
			BytesCarried: w.relay.Carried(c.IP),
		})
		h.mu.Unlock()
	}
	return s
}

// close takes the laboratory away: processes, namespaces, control groups, and at last its directory.
// It may be called again when it failed.
func (w *warden) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, takedown)
	defer cancel()
	var all errgroup.Group
	for _, h := range w.hosts {
		all.Go(func() error {
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.powerOff(ctx)
		})
	}
	if err := all.Wait(); err != nil {
		return fmt.Errorf("take laboratory %s down: %w", w.conf.ID, err)
	}
	w.relay.Close()
	if err := errors.Join(w.group.Remove(ctx, ""), os.RemoveAll(w.conf.Dir)); err != nil {
		return fmt.Errorf("take laboratory %s down: %w", w.conf.ID, err)
	}
	// Only the last laboratory can take the common directory away.
	_ = os.Remove(filepath.Dir(w.conf.Dir))
	return nil
}
