package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/registry/registrytest"
)

// gauge is a wire to a registry that counts what comes from it, and stands still
// once a limit has come.
type gauge struct {
	addr string

	mu    sync.Mutex
	bytes int64
	limit int64
	full  chan struct{} // closed when the limit has come
}

func newGauge(t *testing.T, to string) *gauge {
	t.Helper()
	in, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gauge{addr: in.Addr().String()}
	g.reset(1 << 40)
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = in.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := in.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", to)
			if err != nil {
				_ = c.Close()
				continue
			}
			wg.Go(func() { _, _ = io.Copy(up, c); _ = up.Close() })
			wg.Go(func() { g.pass(c, up); _ = c.Close() })
		}
	})
	return g
}

// reset counts anew; what it returns is closed once more than limit has come.
func (g *gauge) reset(limit int64) <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.bytes, g.limit, g.full = 0, limit, make(chan struct{})
	return g.full
}

// came counts bytes, and says whether they may pass.
func (g *gauge) came(n int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	before := g.bytes
	g.bytes += int64(n)
	if before <= g.limit && g.bytes > g.limit {
		close(g.full)
	}
	return g.bytes <= g.limit
}

func (g *gauge) total() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.bytes
}

func (g *gauge) pass(to, from net.Conn) {
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if !g.came(n) {
			_, _ = io.Copy(io.Discard, to) // nothing more comes until the other end goes
			return
		}
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

// TestRestoreKilledGoesOn: the command is killed when nine tenths of a volume have
// come over the wire; the same command again fetches the rest, and what was in the
// directory stays.
func TestRestoreKilledGoesOn(t *testing.T) {
	t.Parallel()
	reg, p := registrytest.Start(t), newPlace(t)
	wire := newGauge(t, reg.Addr)
	url := strings.Replace(reg.URL("dr"), reg.Addr, wire.addr, 1)
	p.run(0, "init", "--repo", url, "--fingerprint", reg.Fingerprint, "--site", "main", "--kit", p.path("kit.txt"))
	files, total := map[string]string{}, int64(0)
	var names []string
	for i := range 100 {
		content := make([]byte, 240<<10)
		_, _ = rand.NewChaCha8([32]byte{byte(i), 7}).Read(content)
		name := fmt.Sprintf("d%d/f%d", i%8, i)
		names, files[name] = append(names, name), string(content)
		total += int64(len(content))
	}
	p.storeFiles(reg, "shop", "sha256:aa", files)
	to := filepath.Join(t.TempDir(), "out")
	args := []string{"restore", "shop", "--volume", "data", "--to", to, "--json"}
	killed(t, p.env, wire.reset(total*9/10), args...)
	// What came and had not left the kernel's buffers when it was killed is lost.
	onDisk := int64(0)
	for name, content := range files {
		if raw, err := os.ReadFile(filepath.Join(to, name)); err == nil && string(raw) == content {
			onDisk += int64(len(raw))
		}
	}
	wire.reset(1 << 40)
	p.do(codeUsage, &struct{}{}, append(args, "--path", "d1")...)
	wire.reset(1 << 40)
	var ans struct {
		Fetched int64
		Resumed bool
	}
	p.do(0, &ans, args...)
	t.Logf("of %d bytes %d were on disk; %d were fetched then, %d bytes on the wire", total, onDisk, ans.Fetched, wire.total())
	const catalogs = 3 << 20 // and all else that is asked for
	if !ans.Resumed || onDisk == 0 || ans.Fetched != total-onDisk || wire.total() > ans.Fetched+catalogs {
		t.Errorf("of %d bytes %d were on disk, and %d were fetched again, %d over the wire; resumed: %v", total, onDisk, ans.Fetched, wire.total(), ans.Resumed)
	}
	mustHoldFiles(t, to, files, names)
	left, err := filepath.Glob(filepath.Join(to, ".*"))
	if diff := cmp.Diff([]string(nil), left); diff != "" || err != nil {
		t.Errorf("%s %v", diff, err)
	}
	p.do(codeUsage, &struct{}{}, args...)
}

// killed runs the command in a process of its own and kills it when told.
func killed(t *testing.T, env map[string]string, when <-chan struct{}, args ...string) {
	t.Helper()
	cmd := exec.Command("lifeboat", args...)
	cmd.Env = os.Environ()
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-when:
	case err := <-ended:
		t.Fatalf("it ended by itself: %v\n%s", err, &said)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended
}
