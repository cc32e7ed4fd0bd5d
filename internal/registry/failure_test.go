package registry_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"lifeboat/internal/registry"
	"lifeboat/internal/registry/registrytest"
	"lifeboat/internal/store"
	"lifeboat/internal/store/ocistore"
	"lifeboat/internal/store/storetest"
)

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// process is a registry in a process of its own, which can be killed.
type process struct {
	cmd  *exec.Cmd
	addr string
}

func startProcess(t *testing.T, data string) *process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command(exe)}
	p.cmd.Env = append(os.Environ(), envServe+"="+data)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || strings.HasPrefix(line, "error") {
		t.Fatalf("registry process: %q, %v", line, err)
	}
	p.addr = strings.TrimSpace(line)
	return p
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // may have ended
	_ = p.cmd.Wait()
}

func openStore(t *testing.T, url string, edit ...func(*ocistore.Options)) store.Store {
	t.Helper()
	opts := ocistore.Options{Username: "lbtest", Password: "lbtest", Attempts: 1}
	for _, f := range edit {
		f(&opts)
	}
	s, err := ocistore.Open(t.Context(), url, opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// files lists regular files below the place where uploads or blobs are kept.
func files(t *testing.T, dir, part string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && strings.Contains(p, part) {
			out = append(out, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestKilledDuringUpload: SIGKILL in the middle of a blob leaves nothing that
// can be seen; the next process removes the rest; the same upload then works.
func TestKilledDuringUpload(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	p := startProcess(t, data)
	blob := random(8 << 20)
	d := digest.FromBytes(blob)
	s := openStore(t, "oci+http://"+p.addr+"/dr")
	storetest.PutBytes(t, s, "", []byte("{}"))

	half := int64(len(blob) / 2)
	_, err := s.PutBlob(t.Context(), d, int64(len(blob)), func() (io.ReadCloser, error) {
		rest := &atRead{Reader: bytes.NewReader(blob[half:]), do: p.kill}
		return io.NopCloser(io.MultiReader(bytes.NewReader(blob[:half]), rest)), nil
	})
	if !errors.Is(err, store.ErrUnreachable) {
		t.Fatalf("upload to a killed registry: %v", err)
	}
	if got := files(t, data, "/_uploads/"); len(got) == 0 {
		t.Fatal("nothing was underway when it was killed")
	}

	p = startProcess(t, data)
	s = openStore(t, "oci+http://"+p.addr+"/dr")
	if ok, err := s.HasBlob(t.Context(), d); ok || err != nil {
		t.Errorf("half a blob is visible: %v, %v", ok, err)
	}
	if got := files(t, data, "/_uploads/"); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
	if ok, err := s.HasBlob(t.Context(), digest.FromString("{}")); !ok || err != nil {
		t.Errorf("what was acknowledged: %v, %v", ok, err)
	}
	storetest.PutBytes(t, s, "", blob)
	got, err := readBlob(t, s, d, int64(len(blob)))
	if err != nil || !bytes.Equal(got, blob) {
		t.Errorf("after the second try: %d bytes, %v", len(got), err)
	}
}

// atRead runs do once, before the first byte is read.
type atRead struct {
	io.Reader
	do func()
}

func (a *atRead) Read(p []byte) (int, error) {
	if a.do != nil {
		a.do()
		a.do = nil
	}
	return a.Reader.Read(p)
}

func readBlob(t *testing.T, s store.Store, d digest.Digest, size int64) ([]byte, error) {
	t.Helper()
	r, err := s.GetBlob(t.Context(), d, size, 0, -1)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

// mountSmall mounts a file system of size bytes for the test.
func mountSmall(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("lbtest", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=700", size)); err != nil {
		t.Fatalf("mount a small file system (needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// TestDiskFull: a blob that does not fit is store.ErrNoSpace, is not visible,
// and gives back the room it took; smaller ones go on.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	dir := mountSmall(t, 6<<20)
	r := registrytest.Start(t, plain, func(c *registry.Config) { c.Data = filepath.Join(dir, "data"); c.Logger = nil })
	s := openStore(t, r.URL("dr"))
	storetest.PutBytes(t, s, "", random(1<<20))
	for range 3 {
		big := random(16 << 20)
		d := digest.FromBytes(big)
		_, err := s.PutBlob(t.Context(), d, int64(len(big)), storetest.Bytes(big))
		if !errors.Is(err, store.ErrNoSpace) || !strings.Contains(err.Error(), "no space left") {
			t.Fatalf("blob that does not fit: %v", err)
		}
		if strings.Contains(err.Error(), dir) {
			t.Errorf("a path of the server in the error: %v", err)
		}
		if ok, err := s.HasBlob(t.Context(), d); ok || err != nil {
			t.Errorf("it is visible: %v, %v", ok, err)
		}
		if got := files(t, dir, "/_uploads/"); len(got) != 0 {
			t.Errorf("left behind: %v", got)
		}
	}
	storetest.PutBytes(t, s, "", random(1<<20))

	// Full to the last byte: a manifest is refused too, and its tag not seen.
	body := storetest.ManifestOf(t, s, "fits before")
	if err := fill(filepath.Join(dir, "filler")); err != nil {
		t.Fatal(err)
	}
	_, err := s.PutManifest(t.Context(), "e.shop.1", manifestType, body)
	if !errors.Is(err, store.ErrNoSpace) {
		t.Errorf("manifest on a full disk: %v", err)
	}
	if _, err := s.ResolveTag(t.Context(), "e.shop.1"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("its tag: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "filler")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutManifest(t.Context(), "e.shop.1", manifestType, body); err != nil {
		t.Errorf("after room was made: %v", err)
	}
}

// fill writes a file until nothing more fits.
func fill(file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	b := random(4096)
	for err == nil {
		_, err = f.Write(b)
	}
	if !errors.Is(err, unix.ENOSPC) {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// TestTruncatedBlob: a blob that the server's disk has cut short, lengthened or
// lost is an error of the client, for whole and for part.
func TestTruncatedBlob(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t, plain)
	s := openStore(t, r.URL("dr"))
	const size = 1 << 20
	for what, damage := range map[string]func(file string) error{
		"cut":        func(f string) error { return os.Truncate(f, size/2) },
		"lengthened": func(f string) error { return os.Truncate(f, size+1) },
		"emptied":    func(f string) error { return os.Truncate(f, 0) },
	} {
		blob := random(size)
		d := storetest.PutBytes(t, s, "", blob).Digest
		if err := damage(filepath.Join(r.Data, "store/docker/registry/v2/blobs/sha256", d.Encoded()[:2], d.Encoded(), "data")); err != nil {
			t.Fatal(err)
		}
		if _, err := readBlob(t, s, d, size); !errors.Is(err, store.ErrDigestMismatch) {
			t.Errorf("%s, read whole: %v", what, err)
		}
		if _, err := s.GetBlob(t.Context(), d, size, size-100, 50); !errors.Is(err, store.ErrDigestMismatch) {
			t.Errorf("%s, read a part: %v", what, err)
		}
		// A writer must not take it for stored.
		if _, err := s.PutBlob(t.Context(), d, size, storetest.Bytes(blob)); !errors.Is(err, store.ErrDigestMismatch) {
			t.Errorf("%s, put again: %v", what, err)
		}
	}
}

// TestStalledClient: a client that sends nothing more is cut off, and what it
// sent is removed.
func TestStalledClient(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t, plain, func(c *registry.Config) { c.StallTimeout = 500 * time.Millisecond })
	c := newClient(t, r)
	blob := random(1000)
	u, err := url.Parse(c.startUpload("dr"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", r.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	fmt.Fprintf(conn, "PUT %s&digest=%s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n%s", u.RequestURI(), digest.FromBytes(blob), blob[:500])
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err == nil && resp.StatusCode < 400 {
		t.Errorf("status %d for half a blob", resp.StatusCode)
	}
	r.Stop(t) // waits for the handler
	if got := files(t, r.Data, "/_uploads/"); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
}
