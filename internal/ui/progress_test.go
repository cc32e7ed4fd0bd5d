package ui_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/ui"
)

func TestPlainProgress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // time is the bubble's own
		p := printer(ui.Options{})
		pass := func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
		}
		pr := p.Progress()
		if again := p.Progress(); again != pr {
			t.Error("a second progress beside the first")
		}
		read, files, idle := pr.Bytes("read volume shop_db", 400<<20), pr.Items("files", -1), pr.Items("idle", 3)
		read.Add(100 << 20)
		files.Add(1234)
		pass(5 * time.Second)
		files.Detail("var/lib\x1b")
		read.SetDone(200 << 20)
		pass(5 * time.Second)
		read.SetTotal(200 << 20)
		pass(4 * time.Second)
		read.Done(nil)
		read.Done(errors.New("only the first counts"))
		files.Done(errors.New("x"))
		pass(6 * time.Second) // idle stands as before, the others ended
		if _, err := io.Copy(io.Discard, idle.Reader(strings.NewReader("xx"))); err != nil {
			t.Fatal(err)
		}
		pass(5 * time.Second)
		if err := p.Close(nil); err != nil {
			t.Fatal(err)
		}
		want := `read volume shop_db: 100 MiB of 400 MiB (25 %), 20.0 MiB/s, 15 s left
files: 1,234, 246/s
idle: 0 of 3 (0 %)
read volume shop_db: 200 MiB of 400 MiB (50 %), 20.0 MiB/s, 10 s left
files: 1,234, 132/s, var/lib\x1b
read volume shop_db: 200 MiB in 14.0 s, 14.3 MiB/s
files: failed, 1,234 in 14.0 s
idle: 2 of 3 (66 %), 3 s left
`
		if d := cmp.Diff(want, p.err.String()); d != "" {
			t.Error(d)
		}
		if p.Progress() != nil {
			t.Error("a progress after the end")
		}
	})
}

func TestQuietAndNilProgress(t *testing.T) {
	t.Parallel()
	p := printer(ui.Options{Quiet: true})
	pr := p.Progress()
	task := pr.Bytes("x", 1)
	task.Add(1)
	task.SetDone(1)
	task.SetTotal(1)
	task.Detail("x")
	task.Done(nil)
	if b, err := io.ReadAll(task.Reader(strings.NewReader("x"))); string(b) != "x" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	pr.Close()
	if p.err.Len() > 0 {
		t.Errorf("quiet said %s", &p.err)
	}
}

// TestBars runs the bars on a real terminal.
func TestBars(t *testing.T) {
	t.Parallel()
	main, tty := pty(t)
	var mu sync.Mutex
	var screen bytes.Buffer
	seen := make(chan struct{}, 1)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := main.Read(b)
			mu.Lock()
			screen.Write(b[:n])
			mu.Unlock()
			select {
			case seen <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	}()
	// until waits for the terminal to show something; the test's own deadline
	// ends a wait that is in vain.
	until := func(want string) {
		t.Helper()
		for {
			mu.Lock()
			got := strings.Contains(plain(screen.String()), want)
			mu.Unlock()
			if got {
				return
			}
			select {
			case <-seen:
			case <-t.Context().Done():
				t.Fatalf("never shown: %s", want)
			}
		}
	}
	p := ui.New(ui.Options{Out: io.Discard, Err: tty, Env: env(map[string]string{"LANG": "C.UTF-8", "TERM": "xterm"})})
	read := p.Progress().Bytes("read", 1000)
	scan := p.Progress().Items("scan", -1)
	read.Add(500)
	scan.Add(7)
	until("500 B of 1000 B")
	p.Warn("a word above the bars")
	until("! a word above the bars")
	p.Hold()
	mu.Lock()
	held := screen.Len()
	mu.Unlock()
	read.Add(250)
	p.Note("said while held")
	mu.Lock()
	if strings.Contains(screen.String()[min(held, screen.Len()):], "while held") {
		t.Error("written while held")
	}
	mu.Unlock()
	p.Release()
	until("said while held")
	read.Done(nil)
	scan.Done(errors.New("x"))
	if err := p.Close(nil); err != nil {
		t.Fatal(err)
	}
	p.Note("the end")
	until("the end")
	mu.Lock()
	defer mu.Unlock()
	last := plain(screen.String())
	last = last[strings.LastIndex(last, "said while held"):]
	for _, want := range []string{"✓", "✗", "750 B in ", "7 in "} {
		if !strings.Contains(last, want) {
			t.Errorf("%q is not in the last picture:\n%s", want, last)
		}
	}
}

var escapeRE = regexp.MustCompile(`\x1b\[[0-9;]*[A-Za-z]`)

// plain is terminal output without its escape sequences.
func plain(s string) string { return escapeRE.ReplaceAllString(strings.ReplaceAll(s, "\r", ""), "") }

func readLines(t *testing.T, main *os.File, n int) []string {
	t.Helper()
	var out []string
	r := bufio.NewReader(main)
	for range n {
		l, err := r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, strings.TrimRight(l, "\r\n"))
	}
	return out
}

// TestTotalThatWasAnEstimate: a task that goes on past its total is not told to
// be at its end.
func TestTotalThatWasAnEstimate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := printer(ui.Options{})
		task := p.Progress().Bytes("read", 100<<20)
		task.SetDone(100 << 20)
		time.Sleep(6 * time.Second)
		synctest.Wait()
		task.SetDone(150 << 20)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		task.Done(nil)
		if err := p.Close(nil); err != nil {
			t.Fatal(err)
		}
		said := p.err.String()
		if strings.Contains(said, " of 100 MiB") || strings.Contains(said, "%") || !strings.Contains(said, "read: 150 MiB") {
			t.Errorf("%s", said)
		}
	})
}
