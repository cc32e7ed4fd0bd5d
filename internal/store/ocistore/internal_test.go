package ocistore

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"
	"unicode"

	"lifeboat/internal/store"
)

// scripted is a connection whose calls answer as the test says.
type scripted struct {
	net.Conn
	reads, writes []func(p []byte) (int, error)
}

func (s *scripted) SetReadDeadline(time.Time) error  { return nil }
func (s *scripted) SetWriteDeadline(time.Time) error { return nil }

func next(calls *[]func([]byte) (int, error), p []byte) (int, error) {
	if len(*calls) == 0 {
		return 0, io.ErrClosedPipe
	}
	f := (*calls)[0]
	*calls = (*calls)[1:]
	return f(p)
}

func (s *scripted) Read(p []byte) (int, error)  { return next(&s.reads, p) }
func (s *scripted) Write(p []byte) (int, error) { return next(&s.writes, p) }

func moves(n int) func([]byte) (int, error) {
	return func(p []byte) (int, error) { return min(n, len(p)), nil }
}

// deadline is what a passed deadline looks like after n bytes.
func deadline(n int) func([]byte) (int, error) {
	return func(p []byte) (int, error) { return min(n, len(p)), os.ErrDeadlineExceeded }
}

// TestStallIsAboutProgress: a deadline that passed in one direction while bytes
// moved in the other is no stall; one that passed with nothing moving is.
func TestStallIsAboutProgress(t *testing.T) {
	t.Parallel()
	type step = func([]byte) (int, error)
	p := make([]byte, 100<<10)

	w := newWatched(&scripted{reads: []step{deadline(0), deadline(0), moves(5)}, writes: []step{moves(10)}}, time.Hour, nil, nil)
	if n, err := w.Write(p[:10]); n != 10 || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
	if n, err := w.Read(p); n != 5 || err != nil {
		t.Errorf("read while bytes go out: %d, %v", n, err)
	}

	w = newWatched(&scripted{reads: []step{moves(5)}, writes: []step{deadline(0), deadline(3), moves(minPiece), moves(minPiece), moves(minPiece), moves(minPiece), moves(minPiece), moves(minPiece), moves(minPiece)}}, time.Hour, nil, nil)
	if _, err := w.Read(p); err != nil {
		t.Fatal(err)
	}
	if n, err := w.Write(p); n != len(p) || err != nil {
		t.Errorf("write while bytes come in, and slowly: %d, %v", n, err)
	}

	w = newWatched(&scripted{reads: []step{deadline(0)}}, -1, nil, nil)
	if _, err := w.Read(p); !errors.Is(err, errStalled) {
		t.Errorf("read with nothing moving: %v", err)
	}
	w = newWatched(&scripted{writes: []step{moves(minPiece), deadline(0)}}, -1, nil, nil)
	if n, err := w.Write(p); n != minPiece || !errors.Is(err, errStalled) {
		t.Errorf("write with nothing moving: %d, %v", n, err)
	}
	broken := errors.New("reset")
	w = newWatched(&scripted{writes: []step{func([]byte) (int, error) { return 7, broken }}}, time.Hour, nil, nil)
	if n, err := w.Write(p); n != 7 || !errors.Is(err, broken) {
		t.Errorf("broken connection: %d, %v", n, err)
	}
}

func TestWatchedCounts(t *testing.T) {
	t.Parallel()
	var m store.Meter
	w := newWatched(&scripted{reads: []func([]byte) (int, error){moves(5), moves(6)}, writes: []func([]byte) (int, error){moves(3), moves(4)}}, time.Hour, &m, nil)
	b := make([]byte, 10)
	for range 2 {
		if _, err := w.Read(b); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Write(b[:7]); err != nil {
		t.Fatal(err)
	}
	if m.Sent() != 7 || m.Received() != 11 {
		t.Errorf("sent %d, received %d", m.Sent(), m.Received())
	}
}

// TestStride: pieces grow while they are taken fast, and are small again at
// once where one is not.
func TestStride(t *testing.T) {
	t.Parallel()
	s := stride{stall: time.Minute}
	var sizes []int
	for _, took := range []time.Duration{0, time.Second / 2, 0, 0, 0, 0, time.Second, 0} {
		sizes = append(sizes, s.bytes()>>10)
		s.note(took)
	}
	if want := []int{16, 32, 64, 128, 256, 256, 256, 16}; !slices.Equal(sizes, want) {
		t.Errorf("%d, want %d", sizes, want)
	}
}

func FuzzParseContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-9/10", "bytes 5-5/*", "bytes */10", "items 0-1/2", "bytes 9-1/10", "bytes -1-2/3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, last, total, err := parseContentRange(s)
		if err == nil && (first < 0 || last < first || total < -1) {
			t.Errorf("%q: %d-%d/%d", s, first, last, total)
		}
	})
}

func FuzzParseURL(f *testing.F) {
	for _, s := range []string{"oci://host/name", "oci+http://127.0.0.1:5000/a/b", "oci://u:p@h/x?y#z", "oci://[::1]/x", "oci:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, plain, err := parseURL(s, false)
		if err != nil {
			return
		}
		if ref.Reference != "" || ref.Repository == "" || ref.Registry == "" {
			t.Errorf("%q: %+v", s, ref)
		}
		host, _, splitErr := net.SplitHostPort(ref.Registry)
		if splitErr != nil {
			host = ref.Registry
		}
		if plain && !isLoopback(host) {
			t.Errorf("%q: plain HTTP to %s", s, ref.Registry)
		}
	})
}

func FuzzStatusError(f *testing.F) {
	f.Add(404, []byte(`{"errors":[{"code":"BLOB_UNKNOWN","message":"x","detail":{"reason":"taken"}}]}`))
	f.Add(507, []byte(`{"errors":[{"detail":[1,2]}]}`))
	f.Add(500, []byte("<html>no space left on device"))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		err := statusError(&http.Response{StatusCode: status, Body: io.NopCloser(bytes.NewReader(body))})
		var r *response
		if !errors.As(err, &r) || r.sentinel == nil {
			t.Fatalf("%d %q: %v", status, body, err)
		}
		for _, c := range err.Error() {
			if unicode.IsControl(c) {
				t.Errorf("%d %q: control character in %q", status, body, err)
			}
		}
	})
}

// FuzzDecodeTags: whatever a registry sends as a list of tags, only strings of
// it are taken, and what is a list to encoding/json is the same list here.
func FuzzDecodeTags(f *testing.F) {
	for _, s := range []string{
		`{"name":"dr","tags":["a","s.shop.1"]}`, `{"tags":null}`, `{"tags":[],"x":{"y":[1]}}`, `{"tags":["a"`, `{"tags":[1]}`, `[]`, ``, `{"tags":{}}`, `{"tags":["a"],"tags":["b"]}`, `{"tags":["\ud800"]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var got []string
		err := decodeTags(bytes.NewReader(b), func(s string) error { got = append(got, s); return nil })
		var want struct {
			Tags []string `json:"tags"`
		}
		if err != nil || bytes.Count(b, []byte(`ags`)) > 1 || json.Unmarshal(b, &want) != nil {
			return
		}
		if bytes.Contains(b, []byte(`"tags"`)) && bytes.Count(b, []byte(`"`)) == 2+2*len(want.Tags) && !slices.Equal(got, want.Tags) {
			t.Fatalf("%q, want %q", got, want.Tags)
		}
	})
}
