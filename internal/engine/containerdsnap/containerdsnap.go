// Package containerdsnap asks containerd for what the Engine API does not tell
// where images live in the containerd store: the directories of a container's
// snapshot, and the bytes of manifests and image configurations.
//
// Client is one connection to one containerd namespace. The package only
// reads; it never prepares, commits or removes anything.
package containerdsnap

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	content "github.com/containerd/containerd/api/services/content/v1"
	namespaces "github.com/containerd/containerd/api/services/namespaces/v1"
	snapshots "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"lifeboat/internal/dr"
)

// MaxBlob bounds the blobs that Blob returns: manifests and configurations.
const MaxBlob = 16 << 20

// Client is a connection to containerd. It can be used concurrently.
type Client struct {
	conn       *grpc.ClientConn
	namespaces []string
}

// Layer is where an active snapshot of an overlay snapshotter lies, in
// containerd's mount namespace.
type Layer struct {
	Upper string
	Lower []string // topmost first
}

// Dial connects to the unix socket at path. namespace is the engine's
// containerd namespace; where it is empty, all that begin with moby are asked.
// A socket behind which nothing answers is an error.
func Dial(ctx context.Context, path, namespace string) (*Client, error) {
	conn, err := grpc.NewClient("passthrough:///containerd",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dialUnix(ctx, path) }),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)),
	)
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", path, err)
	}
	c := &Client{conn: conn}
	if err := c.findNamespaces(ctx, namespace); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("containerd at %s: %w", path, err)
	}
	return c, nil
}

// dialUnix connects by a short name: a socket address holds 107 bytes, and the
// path may lie deep below /proc/PID/root.
func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	if len(path) < 108 {
		return d.DialContext(ctx, "unix", path)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
}

func (c *Client) findNamespaces(ctx context.Context, want string) error {
	res, err := namespaces.NewNamespacesClient(c.conn).List(ctx, &namespaces.ListNamespacesRequest{})
	if err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	for _, n := range res.Namespaces {
		// With remapped users the namespace is moby followed by the ids.
		if n.Name == want || want == "" && strings.HasPrefix(n.Name, "moby") {
			c.namespaces = append(c.namespaces, n.Name)
		}
	}
	if len(c.namespaces) == 0 {
		return fmt.Errorf("no namespace of the engine: %w", dr.ErrNotFound)
	}
	return nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Layer finds the directories of the active snapshot key of a snapshotter. The
// error wraps dr.ErrNotFound where no namespace has it.
func (c *Client) Layer(ctx context.Context, snapshotter, key string) (Layer, error) {
	what := "snapshot " + key + " of " + snapshotter
	var mounts []*types.Mount
	err := c.each(ctx, what, func(ctx context.Context) error {
		res, err := snapshots.NewSnapshotsClient(c.conn).Mounts(ctx, &snapshots.MountsRequest{Snapshotter: snapshotter, Key: key})
		if err == nil {
			mounts = res.Mounts
		}
		return err
	})
	if err != nil {
		return Layer{}, err
	}
	l, err := layerOf(mounts)
	if err != nil {
		return Layer{}, fmt.Errorf("%s: %w", what, err)
	}
	return l, nil
}

// layerOf reads the mounts that containerd would make of an active snapshot:
// an overlay, or a writable bind of one directory where there is no parent.
func layerOf(mounts []*types.Mount) (Layer, error) {
	if len(mounts) != 1 {
		return Layer{}, fmt.Errorf("it is made of %d mounts, want 1", len(mounts))
	}
	m := mounts[0]
	var l Layer
	switch m.Type {
	case "overlay":
		for _, o := range m.Options {
			if v, ok := strings.CutPrefix(o, "upperdir="); ok {
				l.Upper = v
			}
			if v, ok := strings.CutPrefix(o, "lowerdir="); ok {
				l.Lower = strings.Split(v, ":")
			}
		}
	case "bind":
		for _, o := range m.Options {
			if o == "rw" {
				l.Upper = m.Source
			}
		}
	default:
		return Layer{}, fmt.Errorf("it is mounted as %s, only overlay has a directory of changes", m.Type)
	}
	if !filepath.IsAbs(l.Upper) {
		return Layer{}, errors.New("it has no writable directory")
	}
	return l, nil
}

// Blob reads a blob of the content store and checks it against its digest
// (sha256:…). It is for manifests and configurations, at most MaxBlob bytes.
func (c *Client) Blob(ctx context.Context, digest string) ([]byte, error) {
	what := "blob " + digest
	var out []byte
	err := c.each(ctx, what, func(ctx context.Context) error {
		s, err := content.NewContentClient(c.conn).Read(ctx, &content.ReadContentRequest{Digest: digest})
		if err != nil {
			return err
		}
		out = nil
		for {
			m, err := s.Recv()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if len(out)+len(m.Data) > MaxBlob {
				return fmt.Errorf("more than %d bytes", MaxBlob)
			}
			out = append(out, m.Data...)
		}
	})
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(out); "sha256:"+hex.EncodeToString(sum[:]) != digest {
		return nil, fmt.Errorf("%s: its content has another digest: %w", what, dr.ErrTampered)
	}
	return out, nil
}

// each tries f in each namespace until one knows the object.
func (c *Client) each(ctx context.Context, what string, f func(context.Context) error) error {
	var errs []error
	for _, ns := range c.namespaces {
		err := f(metadata.AppendToOutgoingContext(ctx, "containerd-namespace", ns))
		if err == nil {
			return nil
		}
		if status.Code(err) == codes.NotFound {
			err = fmt.Errorf("namespace %s: %w: %w", ns, err, dr.ErrNotFound)
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("containerd: %s: %w", what, errors.Join(errs...))
}
