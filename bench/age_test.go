package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAges(t *testing.T) {
	t.Parallel()
	for most, want := range map[int][]int{1: {1}, 30: {1, 10, 30}, 1000: {1, 10, 30, 100, 200, 300, 500, 700, 1000}} {
		if got := ages(most); !slices.Equal(got, want) {
			t.Errorf("ages(%d) = %v, want %v", most, got, want)
		}
	}
}

// TestCounter: what goes either way is counted, and arrives.
func TestCounter(t *testing.T) {
	t.Parallel()
	var c counter
	server := httptest.NewServer(c.before(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		_, _ = w.Write(bytes.Repeat(body, 3))
	})))
	defer server.Close()
	for range 2 {
		res, err := http.Post(server.URL, "text/plain", strings.NewReader("12345"))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err != nil || string(body) != "123451234512345" {
			t.Errorf("%q, %v", body, err)
		}
		_ = res.Body.Close()
	}
	if c.requests.Load() != 2 || c.sent.Load() != 10 || c.received.Load() != 30 {
		t.Errorf("%d requests, %d bytes sent, %d received", c.requests.Load(), c.sent.Load(), c.received.Load())
	}
}

func TestAgeFiles(t *testing.T) {
	t.Parallel()
	r := &ageResults{}
	for n := range 200 {
		r.Points = append(r.Points, agePoint{n, ageSmall, int64(50 + n%2), 200_000, 10_000, outcome{Seconds: 1, Peak: 9e7}})
	}
	r.Points = append(r.Points, agePoint{200, ageUnchanged, 40, 13_000, 5000, outcome{Seconds: 0.5}}, agePoint{200, ageFresh, 400, 0, 7e6, outcome{Seconds: 3}})
	files, err := r.files()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| 199 | 1 | 50.5 (50 to 51) | 200 | 10 | 90 |", "| 200 | 3 | 400 | - | 7000 | - |"} {
		if !strings.Contains(string(files["age.md"]), want) {
			t.Errorf("no %q in:\n%s", want, files["age.md"])
		}
	}
	var back ageResults
	if err := json.Unmarshal(files["age.json"], &back); err != nil || len(back.Points) != 202 {
		t.Errorf("%d figures came back: %v", len(back.Points), err)
	}
	for _, name := range []string{"age-sent.svg", "age-time.svg"} {
		if !bytes.Contains(files[name], []byte("</svg>")) {
			t.Errorf("no %s", name)
		}
	}
}

// TestLargeData: the data of -large are as said: many small files, and a file that is mostly holes.
func TestLargeData(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	sum, err := writeMany(&out, 500, 1)
	if err != nil || sum.Files != 500 || sum.Bytes < 500*30 || sum.Bytes > 500*170 {
		t.Errorf("%+v, %v", sum, err)
	}
	const size = 256 << 20
	name := filepath.Join(t.TempDir(), dirtyName)
	data, err := sparseFile(name, size, 64<<10, 1)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != size || data != dirtyRanges*64<<10 || st.Blocks*512 > data+data/8 {
		t.Errorf("%d bytes, %d of data in %d blocks", st.Size, data, st.Blocks)
	}
}

func TestLargeFiles(t *testing.T) {
	t.Parallel()
	r := &largeResults{Dirty: 10 << 30, Points: []largePoint{
		{"busy", "first snapshot", 1e9, outcome{Seconds: 20, Peak: 120e6, Frozen: 5}}, {"files", "check", 0, outcome{Seconds: 2, Peak: 40e6}},
	}}
	files, err := r.files()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| busy | first snapshot | 20.0 | 120 | 1000.00 | 5.0 |", "| files | check | 2.0 | 40 | 0.00 | 0.0 |"} {
		if !strings.Contains(string(files["large.md"]), want) {
			t.Errorf("no %q in:\n%s", want, files["large.md"])
		}
	}
	if !bytes.Contains(files["large.svg"], []byte("busy")) {
		t.Error("the picture does not name a system")
	}
}
