package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/api/v2"
	"github.com/distribution/distribution/v3/registry/handlers"
	"github.com/distribution/distribution/v3/registry/storage"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"lifeboat/internal/dr"
)

const (
	// announceHeader and announcement tell Lifeboat's client what it may rely on.
	announceHeader = "Lifeboat-Registry"
	announcement   = "1; immutable-tags; checked-deletes; tag-prefix; tag-first"
	healthPath     = "/healthz"

	defaultStallTimeout = 2 * time.Minute
	defaultDrainTimeout = 10 * time.Second
)

// Server is a registry that holds its listener and its data directory until
// Serve has returned or Close was called.
type Server struct {
	cfg      Config
	log      *slog.Logger
	lock     *os.File
	disk     *diskDriver
	app      *handlers.App
	listener net.Listener
	http     *http.Server
	cert     *certificate // nil for plain HTTP
	janitor  *janitor

	closeOnce sync.Once
	closeErr  error
}

// New validates cfg, takes the data directory, makes a certificate where one is
// needed, and listens. Mistakes wrap dr.ErrUsage; an address or a directory that
// something else holds wraps dr.ErrHeld.
func New(cfg Config) (*Server, error) {
	users, err := cfg.validate()
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, log: cfg.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.cfg.StallTimeout == 0 {
		s.cfg.StallTimeout = defaultStallTimeout
	}
	if s.cfg.CollectInterval == 0 {
		s.cfg.CollectInterval = defaultCollectInterval
	}
	if s.cfg.CollectGrace == 0 {
		s.cfg.CollectGrace = defaultCollectGrace
	}
	if s.cfg.DrainTimeout == 0 {
		s.cfg.DrainTimeout = defaultDrainTimeout
	}
	if err := s.start(users); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) start(users *users) (err error) {
	// First, so that a wrong address or a taken port leaves nothing behind: no
	// directory, and no certificate without the right name.
	if s.listener, err = net.Listen("tcp", s.cfg.Listen); err != nil {
		return listenError(s.cfg.Listen, err)
	}
	if err := s.takeData(); err != nil {
		return err
	}
	var conf *tls.Config
	if !s.cfg.PlainHTTP {
		certFile, keyFile := s.cfg.TLSCert, s.cfg.TLSKey
		if certFile == "" {
			var err error
			certFile, keyFile, err = selfSigned(filepath.Join(s.cfg.Data, "tls"), certificateHosts(s.cfg.TLSHosts, s.cfg.Listen), s.log)
			if err != nil {
				return err
			}
		}
		var err error
		if s.cert, err = newCertificate(certFile, keyFile, s.log); err != nil {
			return fmt.Errorf("registry certificate: %w: %w", err, dr.ErrUsage)
		}
		conf = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: s.cert.get}
	}
	root := filepath.Join(s.cfg.Data, "store")
	if n, err := dropUploads(root); err != nil {
		return err
	} else if n > 0 {
		s.log.Info("removed uploads that were cut off", "uploads", n)
	}
	s.disk = newDiskDriver(root)
	if n, err := dropDamaged(s.disk, s.log); err != nil {
		return err
	} else if n > 0 {
		s.log.Warn("the last run was cut off by a power cut; blobs that no manifest names were damaged and removed", "blobs", n)
	}
	handler, err := s.handler(s.disk, users)
	if err != nil {
		return err
	}
	s.http = &http.Server{
		Handler: watch(handler, s.cfg.StallTimeout), TLSConfig: conf,
		ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 3 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: log.New(debugWriter{s.log}, "", 0),
	}
	return nil
}

func listenError(addr string, err error) error {
	sentinel := dr.ErrUsage
	if errors.Is(err, syscall.EADDRINUSE) {
		sentinel = dr.ErrHeld
	}
	var se *os.SyscallError
	if errors.As(err, &se) {
		err = se.Err
	}
	return fmt.Errorf("registry: listen at %s: %w: %w", addr, err, sentinel)
}

// takeData makes the data directory and keeps every other server out of it.
func (s *Server) takeData() error {
	if err := os.MkdirAll(filepath.Join(s.cfg.Data, "store"), 0o700); err != nil {
		return fmt.Errorf("registry: make data directory: %w: %w", err, dr.ErrUsage)
	}
	f, err := os.OpenFile(filepath.Join(s.cfg.Data, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("registry: lock data directory: %w: %w", err, dr.ErrUsage)
	}
	s.lock = f
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("registry: data directory %s is served by another process: %w", s.cfg.Data, dr.ErrHeld)
	}
	return nil
}

// handler puts the guard before Distribution.
func (s *Server) handler(d *diskDriver, users *users) (http.Handler, error) {
	quietDistribution(s.log)
	app, err := newApp(distributionConfig(d))
	if err != nil {
		return nil, err
	}
	s.app = app
	namespace, err := storage.NewRegistry(context.Background(), d)
	if err != nil {
		return nil, fmt.Errorf("registry: open storage: %w", err)
	}
	l := &ledger{driver: d, registry: namespace}
	g := &guard{
		next: app, routes: v2.Router(), users: users, driver: d, log: s.log,
		ledger: l, refs: newReferences(l), epochs: map[string]uint64{},
	}
	s.janitor = &janitor{g: g, grace: s.cfg.CollectGrace, idleLeft: idleCollects}
	g.changed = func() { s.janitor.deleted.Store(true) }
	return g, nil
}

// distributionConfig is everything that Distribution is told. No redirects, no
// caches that would outlive a deletion, no events, no metrics endpoint; login is
// the guard's.
func distributionConfig(d *diskDriver) *configuration.Configuration {
	c := &configuration.Configuration{
		Version: configuration.CurrentVersion,
		Storage: configuration.Storage{
			driverName:    configuration.Parameters{driverParam: d},
			"delete":      configuration.Parameters{"enabled": true},
			"redirect":    configuration.Parameters{"disable": true},
			"maintenance": configuration.Parameters{"uploadpurging": map[any]any{"enabled": true, "age": "48h", "interval": "6h", "dryrun": false}},
		},
		Catalog: configuration.Catalog{MaxEntries: 1000},
		Tags:    configuration.Tags{MaxTags: 1000},
	}
	c.HTTP.RelativeURLs = true
	return c
}

// newApp turns the panics with which Distribution answers to configuration
// mistakes into errors.
func newApp(c *configuration.Configuration) (app *handlers.App, err error) {
	defer func() {
		if p := recover(); p != nil {
			app, err = nil, fmt.Errorf("registry: Distribution does not start: %v", p)
		}
	}()
	return handlers.NewApp(context.Background(), c), nil
}

// Addr is the address listened at, with the port that was chosen.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Fingerprint is what clients pin: "sha256:" and the hexadecimal SHA-256 of the
// certificate's DER form. Empty for plain HTTP.
func (s *Server) Fingerprint() string {
	if s.cert == nil {
		return ""
	}
	s.cert.mu.Lock()
	defer s.cert.mu.Unlock()
	return fingerprint(s.cert.pair)
}

// Serve answers requests until ctx is done, then lets those in progress finish
// for DrainTimeout, and gives everything back. It may be called once. The error
// is nil after an orderly end.
func (s *Server) Serve(ctx context.Context) error {
	collecting, stopCollecting := context.WithCancel(ctx)
	collected := make(chan struct{})
	go func() {
		defer close(collected)
		s.janitor.run(collecting, s.cfg.CollectInterval)
	}()
	defer func() {
		stopCollecting()
		<-collected
	}()
	ended := make(chan error, 1)
	go func() {
		if s.cert != nil {
			ended <- s.http.ServeTLS(s.listener, "", "")
		} else {
			ended <- s.http.Serve(s.listener)
		}
	}()
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.DrainTimeout)
		defer cancel()
		if derr := s.http.Shutdown(drain); derr != nil {
			s.log.Warn("requests in progress were cut off", "err", derr)
			err = s.http.Close()
		}
		<-ended
	}
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return errors.Join(err, s.Close())
}

// Close gives back what New took, at once; requests in progress are cut off. It
// may be called several times, and after Serve.
func (s *Server) Close() error {
	s.closeOnce.Do(func() {
		var errs []error
		if s.http != nil {
			errs = append(errs, s.http.Close())
		}
		if s.listener != nil {
			if err := s.listener.Close(); !errors.Is(err, net.ErrClosed) {
				errs = append(errs, err)
			}
		}
		if s.app != nil {
			errs = append(errs, s.app.Shutdown())
		}
		if s.disk != nil {
			errs = append(errs, s.disk.unsynced.flush())
		}
		if s.lock != nil {
			errs = append(errs, s.lock.Close())
		}
		s.closeErr = errors.Join(errs...)
	})
	return s.closeErr
}

// watch ends requests of which no byte moves. Deadlines are set anew for each
// piece read or written, so that a slow client is not a stalled one.
func watch(next http.Handler, stall time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		// What an earlier request on this connection set must not count. Not every
		// connection knows deadlines; those go without.
		_ = rc.SetWriteDeadline(time.Time{})
		body := &watchedBody{ReadCloser: r.Body, rc: rc, stall: stall}
		r.Body = body
		next.ServeHTTP(&watchedWriter{ResponseWriter: w, rc: rc, stall: stall}, r)
		if body.err == nil {
			// net/http reads on what was left unread.
			_ = rc.SetReadDeadline(time.Now().Add(stall))
		}
		_ = rc.SetWriteDeadline(time.Now().Add(stall)) // for what is still buffered
	})
}

type watchedBody struct {
	io.ReadCloser
	rc    *http.ResponseController
	stall time.Duration
	err   error // of an earlier Read; a deadline that passed stays passed
}

func (b *watchedBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	_ = b.rc.SetReadDeadline(time.Now().Add(b.stall))
	n, err := b.ReadCloser.Read(p)
	b.err = err
	if errors.Is(err, io.EOF) {
		// From here on the server itself listens for a client that goes away.
		_ = b.rc.SetReadDeadline(time.Time{})
	}
	return n, err
}

type watchedWriter struct {
	http.ResponseWriter
	rc    *http.ResponseController
	stall time.Duration
}

func (w *watchedWriter) Write(p []byte) (int, error) {
	_ = w.rc.SetWriteDeadline(time.Now().Add(w.stall))
	return w.ResponseWriter.Write(p)
}

// watchedPiece is what is sent of a file at a time, in bytes; each piece has the
// whole time for a stall.
const watchedPiece = 256 << 10

// ReadFrom lets the kernel send from a file without copying.
func (w *watchedWriter) ReadFrom(src io.Reader) (total int64, err error) {
	to, ok := w.ResponseWriter.(io.ReaderFrom)
	whole, limited := src.(*io.LimitedReader)
	if !ok || !limited {
		return io.Copy(struct{ io.Writer }{w}, src)
	}
	for err == nil && whole.N > 0 {
		_ = w.rc.SetWriteDeadline(time.Now().Add(w.stall))
		piece := io.LimitedReader{R: whole.R, N: min(whole.N, watchedPiece)}
		var n int64
		n, err = to.ReadFrom(&piece)
		whole.N -= n
		total += n
		if n == 0 {
			break
		}
	}
	return total, err
}

// Unwrap lets http.ResponseController through.
func (w *watchedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// debugWriter hands lines of net/http's log on: broken handshakes and clients
// that went away are the normal case.
type debugWriter struct{ log *slog.Logger }

func (w debugWriter) Write(p []byte) (int, error) {
	w.log.Debug("http", "message", string(p))
	return len(p), nil
}

// quietDistribution takes Distribution's log, which is logrus's standard logger
// of the process, from stderr into l. Of several servers in one process the last
// one gets it. Only what Distribution calls an error is handed on, and not that
// something was not found, which it calls one too.
func quietDistribution(l *slog.Logger) {
	std := logrus.StandardLogger()
	std.SetOutput(io.Discard)
	std.SetLevel(logrus.ErrorLevel)
	hooks := logrus.LevelHooks{}
	hooks.Add(logHook{l})
	std.ReplaceHooks(hooks)
}

type logHook struct{ log *slog.Logger }

func (logHook) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel}
}

func (h logHook) Fire(e *logrus.Entry) error {
	if e.Message != "response completed with error" {
		h.log.Debug("distribution", "message", e.Message)
	}
	return nil
}
