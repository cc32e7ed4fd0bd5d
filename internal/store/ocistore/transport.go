package ocistore

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/store"
)

// transport sends requests for the registry itself, and those that a redirect
// or a token service asks for, through connections that notice a stall. Only
// the registry's own certificate is pinned.
type transport struct {
	c        *client
	registry string // host:port of the registry
	plain    bool
	insecure bool
	own      *http.Transport
	other    *http.Transport
}

func newTransport(c *client, host string, plain bool, opts Options) (*transport, error) {
	roots, err := loadRoots(opts.CAFile)
	if err != nil {
		return nil, err
	}
	base := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	own := base
	if opts.Fingerprint != "" {
		if own, err = pinned(opts.Fingerprint); err != nil {
			return nil, err
		}
	}
	u, err := url.Parse(c.base)
	if err != nil {
		return nil, fmt.Errorf("host %q: %w", host, dr.ErrUsage)
	}
	return &transport{
		c: c, registry: hostPort(u), plain: plain, insecure: opts.Insecure,
		own:   httpTransport(own, opts),
		other: httpTransport(base, opts),
	}, nil
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	// Not even to this host itself: a registry must not make its clients ask what
	// listens on their loopback addresses.
	if req.URL.Scheme == "http" && !t.plain && !t.insecure {
		return nil, errDowngrade
	}
	if hostPort(req.URL) != t.registry {
		return t.other.RoundTrip(req)
	}
	resp, err := t.own.RoundTrip(req)
	if err == nil {
		t.c.noteAnnouncement(resp.Header)
	}
	return resp, err
}

// CloseIdleConnections lets http.Client reach the pools.
func (t *transport) CloseIdleConnections() {
	t.own.CloseIdleConnections()
	t.other.CloseIdleConnections()
}

func httpTransport(conf *tls.Config, opts Options) *http.Transport {
	d := &net.Dialer{Timeout: min(opts.StallTimeout, cmp.Or(opts.DialTimeout, 20*time.Second)), KeepAlive: 15 * time.Second}
	buffers := &sync.Pool{New: func() any { return new([maxPiece]byte) }}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := d.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return newWatched(nc, opts.StallTimeout, opts.Meter, buffers), nil
		},
		TLSClientConfig:     conf.Clone(),
		TLSHandshakeTimeout: opts.StallTimeout,
		// Silence is noticed by the connection; this is for headers that drip.
		ResponseHeaderTimeout: 2 * opts.StallTimeout,
		// Many equal transfers at a time to one host are the normal case here.
		MaxIdleConnsPerHost: 32,
		IdleConnTimeout:     45 * time.Second,
		WriteBufferSize:     64 << 10,
		ReadBufferSize:      64 << 10,
		// Stored bytes are compressed or random; asking for gzip would only cost.
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
		// An empty map keeps HTTP/2 off; see the package comment.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
}

// loadRoots returns the system's roots, with those of a file added.
func loadRoots(caFile string) (*x509.CertPool, error) {
	if caFile == "" {
		return nil, nil // crypto/tls takes the system's
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read certificate authorities: %w: %w", err, dr.ErrUsage)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("certificate authorities %s: no PEM certificate in it: %w", caFile, dr.ErrUsage)
	}
	return pool, nil
}

// pinned accepts exactly one leaf certificate.
func pinned(fingerprint string) (*tls.Config, error) {
	digits, ok := strings.CutPrefix(strings.ToLower(fingerprint), "sha256:")
	want, err := hex.DecodeString(strings.ReplaceAll(digits, ":", ""))
	if !ok || err != nil || len(want) != sha256.Size {
		return nil, fmt.Errorf("certificate fingerprint %q: want sha256: and 64 hexadecimal digits: %w", fingerprint, dr.ErrUsage)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		// The usual checks are replaced, not dropped: VerifyConnection runs on
		// every handshake, resumed ones too.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return errors.New("registry showed no certificate")
			}
			got := sha256.Sum256(cs.PeerCertificates[0].Raw)
			if subtle.ConstantTimeCompare(got[:], want) != 1 {
				return &pinError{got: hex.EncodeToString(got[:]), want: hex.EncodeToString(want)}
			}
			return nil
		},
	}, nil
}

// pinError: the registry showed another certificate than the pinned one.
type pinError struct{ got, want string }

func (e *pinError) Error() string {
	return fmt.Sprintf("certificate has fingerprint sha256:%s, but sha256:%s is pinned; somebody is in between, or the registry has a new certificate", e.got, e.want)
}

// watched is a connection that fails with errStalled when no byte moved in
// either direction for the stall timeout, and counts bytes. Deadlines are its
// own: net/http sets none through http.Transport.
type watched struct {
	net.Conn
	stall time.Duration
	meter *store.Meter
	// moved is when a byte last moved, as time since start.
	moved atomic.Int64
	start time.Time
	// stalled is set by the direction that noticed first; net/http then closes
	// the connection under the other one.
	stalled atomic.Bool
	// of writes, which net/http makes one at a time
	out     pace
	step    stride
	buffers *sync.Pool // of *[maxPiece]byte, shared by connections
}

func newWatched(nc net.Conn, stall time.Duration, m *store.Meter, buffers *sync.Pool) *watched {
	return &watched{Conn: nc, stall: stall, meter: m, start: time.Now(), out: pace{stall: stall}, step: stride{stall: stall}, buffers: buffers}
}

func (w *watched) touch() { w.moved.Store(int64(time.Since(w.start))) }

// deadline is when the connection will have been still for the stall timeout.
func (w *watched) deadline() time.Time {
	return w.start.Add(time.Duration(w.moved.Load()) + w.stall)
}

// again reports whether err is a deadline that came although the other
// direction moved a byte meanwhile.
func (w *watched) again(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(w.deadline())
}

func (w *watched) Read(p []byte) (int, error) {
	// A fresh start: an idle connection taken from the pool has not stalled.
	until := time.Now().Add(w.stall)
	for {
		if err := w.SetReadDeadline(until); err != nil {
			return 0, w.named(err)
		}
		n, err := w.Conn.Read(p)
		if n > 0 {
			w.touch()
			if w.meter != nil {
				w.meter.AddReceived(int64(n))
			}
			return n, err
		}
		if err != nil && w.again(err) {
			until = w.deadline()
			continue
		}
		return n, w.named(err)
	}
}

func (w *watched) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		began := time.Now()
		if err := w.SetWriteDeadline(began.Add(w.stall)); err != nil {
			return done, w.named(err)
		}
		n, err := w.Conn.Write(p[done:min(len(p), done+w.step.bytes())])
		took := time.Since(began)
		w.step.note(took)
		crawls := !w.out.note(n, took) && done+n < len(p)
		if n > 0 {
			done += n
			w.touch()
			if w.meter != nil {
				w.meter.AddSent(int64(n))
			}
		}
		if err != nil && n == 0 && !w.again(err) {
			return done, w.named(err)
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return done, w.named(err)
		}
		if crawls {
			w.stalled.Store(true)
			return done, fmt.Errorf("fewer than %d bytes were taken in %s: %w", crawl, w.stall, errStalled)
		}
	}
	return done, nil
}

// ReadFrom implements io.ReaderFrom: net/http sends bodies by it, and would read
// them in smaller parts itself.
func (w *watched) ReadFrom(r io.Reader) (int64, error) {
	b := w.buffers.Get().(*[maxPiece]byte)
	defer w.buffers.Put(b)
	return io.CopyBuffer(struct{ io.Writer }{w}, r, b[:])
}

// named gives a deadline its meaning.
func (w *watched) named(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		w.stalled.Store(true)
	} else if !errors.Is(err, net.ErrClosed) || !w.stalled.Load() {
		return err
	}
	return fmt.Errorf("no byte moved for %s: %w", w.stall, errStalled)
}
