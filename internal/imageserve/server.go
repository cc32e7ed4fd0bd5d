package imageserve

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/layer"
)

const (
	// headerTimeout bounds how long a client may take to ask.
	headerTimeout = 30 * time.Second
	// maxStreams bounds how many blobs are put together at the same time;
	// each takes some 25 MiB of memory. Engines pull three at a time.
	maxStreams = 4
)

// Options of Serve.
type Options struct {
	// ContainerdStore says that the engine that will pull has the containerd
	// image store.
	ContainerdStore bool
	// Listener to use instead of a new one at 127.0.0.1. It must be on
	// loopback; the server closes it. For engines in another network namespace.
	Listener net.Listener
	// Served is told of bytes of images as they go to the engine; may be nil.
	// Called concurrently.
	Served func(n int64)
	// Log gets one line for each blob; nothing secret. Nil means none.
	Log *slog.Logger
}

// Server offers images until it is closed. Safe for concurrent use.
type Server struct {
	addr     string
	username string
	password string
	src      layer.Source
	served   func(n int64)
	log      *slog.Logger
	images   map[layer.Digest]*image
	names    map[string]*image
	streams  chan struct{}

	http   *http.Server
	cancel context.CancelFunc
	done   chan struct{} // closed when the listener's goroutine has ended
	once   sync.Once
	err    error
	// running is read-locked by each request and locked for good by Close.
	running sync.RWMutex
}

// Served says how an image is pulled and what the engine makes of it.
type Served struct {
	// Ref is what to pull: host:port/name:tag.
	Ref string
	layer.Handover
}

// Serve starts a registry with the given images. It ends when ctx does or with
// Close, which must be called. The images' small objects are read at once, so
// that what cannot be served is known before the engine asks.
func Serve(ctx context.Context, src layer.Source, images []*layer.ImageRecord, opt Options) (*Server, error) {
	s := &Server{
		username: "lifeboat",
		password: rand.Text() + rand.Text(), // 256 bits
		src:      src,
		served:   opt.Served,
		log:      opt.Log,
		images:   map[layer.Digest]*image{},
		names:    map[string]*image{},
		streams:  make(chan struct{}, maxStreams),
	}
	if s.served == nil {
		s.served = func(int64) {}
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, rec := range images {
		img, err := newImage(ctx, src, rec, opt.ContainerdStore)
		if err != nil {
			return nil, fmt.Errorf("serve image %s: %w", rec.ID, err)
		}
		s.images[rec.ID] = img
		s.names[img.name] = img
	}
	l := opt.Listener
	if l == nil {
		var err error
		if l, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
			return nil, fmt.Errorf("serve images: %w", err)
		}
	}
	if a, ok := l.Addr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
		return nil, errors.Join(fmt.Errorf("serve images: %s is not on loopback: %w", l.Addr(), dr.ErrUsage), l.Close())
	}
	s.addr = l.Addr().String()
	ctx, s.cancel = context.WithCancel(ctx)
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		ReadHeaderTimeout: headerTimeout,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	s.done = make(chan struct{})
	go func() {
		defer close(s.done)
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("image server ended", "error", err)
		}
	}()
	context.AfterFunc(ctx, func() { _ = s.http.Close() })
	return s, nil
}

// Addr is host:port.
func (s *Server) Addr() string { return s.addr }

// Username and Password are what the engine logs in with. They are made for
// this server and worth nothing after Close.
func (s *Server) Username() string { return s.username }

// Password belongs to Username.
func (s *Server) Password() string { return s.password }

// RegistryAuth is the value of the X-Registry-Auth header of the Engine API.
func (s *Server) RegistryAuth() string {
	auth, err := json.Marshal(map[string]string{"username": s.username, "password": s.password, "serveraddress": s.addr})
	if err != nil {
		panic(err) // strings always encode
	}
	return base64.URLEncoding.EncodeToString(auth)
}

// Image tells how to pull the image with the given id of its record.
func (s *Server) Image(id layer.Digest) (Served, error) {
	img, ok := s.images[id]
	if !ok {
		return Served{}, fmt.Errorf("image %s is not served: %w", id, dr.ErrNotFound)
	}
	return Served{Ref: s.addr + "/" + img.name + ":" + tag, Handover: img.handover}, nil
}

// Close ends all transfers, closes the listener and waits until nothing of the
// server runs any more.
func (s *Server) Close() error {
	s.once.Do(func() {
		s.cancel()
		s.err = s.http.Close()
		<-s.done
		s.running.Lock()
	})
	return s.err
}

// allowed checks the credentials in constant time.
func (s *Server) allowed(r *http.Request) bool {
	user, pass, ok := r.BasicAuth()
	got := sha256.Sum256([]byte(user + "\x00" + pass))
	want := sha256.Sum256([]byte(s.username + "\x00" + s.password))
	return subtle.ConstantTimeCompare(got[:], want[:]) == 1 && ok
}
