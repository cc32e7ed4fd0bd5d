package containerdsnap_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	content "github.com/containerd/containerd/api/services/content/v1"
	namespaces "github.com/containerd/containerd/api/services/namespaces/v1"
	snapshots "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"lifeboat/internal/dr"
	"lifeboat/internal/engine/containerdsnap"
)

// server is containerd as far as the client asks it. Snapshots and blobs are in
// the namespace moby-1.
type server struct {
	namespaces.UnimplementedNamespacesServer

	names  []string
	mounts map[string][]*types.Mount
	blobs  map[string][]byte
}

func (s *server) List(context.Context, *namespaces.ListNamespacesRequest) (*namespaces.ListNamespacesResponse, error) {
	res := &namespaces.ListNamespacesResponse{}
	for _, n := range s.names {
		res.Namespaces = append(res.Namespaces, &namespaces.Namespace{Name: n})
	}
	return res, nil
}

func in(ctx context.Context, ns string) bool {
	md, _ := metadata.FromIncomingContext(ctx)
	return slices.Contains(md.Get("containerd-namespace"), ns)
}

type snapshotServer struct {
	snapshots.UnimplementedSnapshotsServer
	s *server
}

func (x *snapshotServer) Mounts(ctx context.Context, r *snapshots.MountsRequest) (*snapshots.MountsResponse, error) {
	m, ok := x.s.mounts[r.Snapshotter+"/"+r.Key]
	if !ok || !in(ctx, "moby-1") {
		return nil, status.Error(codes.NotFound, "snapshot does not exist")
	}
	return &snapshots.MountsResponse{Mounts: m}, nil
}

type contentServer struct {
	content.UnimplementedContentServer
	s *server
}

func (x *contentServer) Read(r *content.ReadContentRequest, out content.Content_ReadServer) error {
	b, ok := x.s.blobs[r.Digest]
	if !ok || !in(out.Context(), "moby-1") {
		return status.Error(codes.NotFound, "content not found")
	}
	for len(b) > 0 {
		n := min(len(b), 1<<20)
		if err := out.Send(&content.ReadContentResponse{Data: b[:n]}); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func serve(t *testing.T, s *server) (path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "lbtest-")
	if err != nil {
		t.Fatal(err)
	}
	deep := filepath.Join(dir, strings.Repeat("d", 110))
	if err := os.Mkdir(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "c"))
	if err != nil {
		t.Fatal(err)
	}
	// The path to the socket is too long for an address, as below /proc/PID/root.
	path = filepath.Join(deep, "containerd.sock")
	if err := os.Symlink("../c", path); err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	namespaces.RegisterNamespacesServer(g, s)
	snapshots.RegisterSnapshotsServer(g, &snapshotServer{s: s})
	content.RegisterContentServer(g, &contentServer{s: s})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = g.Serve(l)
	}()
	t.Cleanup(func() {
		g.Stop()
		<-done
		_ = os.RemoveAll(dir)
	})
	return path
}

func dial(t *testing.T, path, ns string) *containerdsnap.Client {
	t.Helper()
	c, err := containerdsnap.Dial(t.Context(), path, ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestLayer(t *testing.T) {
	t.Parallel()
	s := &server{names: []string{"default", "moby", "moby-1"}, mounts: map[string][]*types.Mount{
		"overlayfs/c":    {{Type: "overlay", Source: "overlay", Options: []string{"index=off", "workdir=/w", "upperdir=/s/2/fs", "lowerdir=/s/1/fs:/s/0/fs"}}},
		"overlayfs/root": {{Type: "bind", Source: "/s/0/fs", Options: []string{"rw", "rbind"}}},
		"overlayfs/view": {{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/s/1/fs:/s/0/fs"}}},
		"overlayfs/ro":   {{Type: "bind", Source: "/s/0/fs", Options: []string{"ro", "rbind"}}},
		"btrfs/c":        {{Type: "btrfs", Source: "/dev/x"}},
		"overlayfs/two":  {{Type: "bind"}, {Type: "bind"}},
	}}
	c := dial(t, serve(t, s), "")
	l, err := c.Layer(t.Context(), "overlayfs", "c")
	if err != nil || l.Upper != "/s/2/fs" || !slices.Equal(l.Lower, []string{"/s/1/fs", "/s/0/fs"}) {
		t.Errorf("overlay: %+v, %v", l, err)
	}
	l, err = c.Layer(t.Context(), "overlayfs", "root")
	if err != nil || l.Upper != "/s/0/fs" || len(l.Lower) != 0 {
		t.Errorf("no parent: %+v, %v", l, err)
	}
	for _, bad := range []string{"overlayfs/view", "overlayfs/ro", "btrfs/c", "overlayfs/two"} {
		driver, key, _ := strings.Cut(bad, "/")
		if l, err := c.Layer(t.Context(), driver, key); err == nil || errors.Is(err, dr.ErrNotFound) {
			t.Errorf("%s: %+v, %v; want an error that is not of something missing", bad, l, err)
		}
	}
	if _, err := c.Layer(t.Context(), "overlayfs", "none"); !errors.Is(err, dr.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
}

func TestBlob(t *testing.T) {
	t.Parallel()
	good := []byte(strings.Repeat("content", 500_000))
	sum := sha256.Sum256(good)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	wrong, huge := "sha256:"+strings.Repeat("0", 64), "sha256:"+strings.Repeat("1", 64)
	s := &server{names: []string{"moby-1"}, blobs: map[string][]byte{digest: good, wrong: []byte("other"), huge: make([]byte, containerdsnap.MaxBlob+1)}}
	c := dial(t, serve(t, s), "moby-1")
	got, err := c.Blob(t.Context(), digest)
	if err != nil || string(got) != string(good) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := c.Blob(t.Context(), wrong); !errors.Is(err, dr.ErrTampered) {
		t.Errorf("altered: %v", err)
	}
	if _, err := c.Blob(t.Context(), huge); err == nil {
		t.Error("a blob beyond the bound gave no error")
	}
	if _, err := c.Blob(t.Context(), "sha256:2"); !errors.Is(err, dr.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
}

func TestDial(t *testing.T) {
	t.Parallel()
	if _, err := containerdsnap.Dial(t.Context(), filepath.Join(t.TempDir(), "none"), ""); err == nil {
		t.Error("no socket gave no error")
	}
	if _, err := containerdsnap.Dial(t.Context(), serve(t, &server{names: []string{"k8s.io"}}), ""); !errors.Is(err, dr.ErrNotFound) {
		t.Errorf("no namespace of the engine: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	dir, err := os.MkdirTemp("", "lbtest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := containerdsnap.Dial(ctx, filepath.Join(dir, "s"), ""); err == nil {
		t.Error("a server that never answers gave no error")
	}
}
