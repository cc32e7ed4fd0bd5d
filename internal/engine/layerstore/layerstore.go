// Package layerstore reads images where a Docker engine with the overlay2 graph
// driver keeps them: configurations, and layers as a directory of files beside
// the tar-split data that gives back the exact bytes of the layer's archive.
//
// It is the fast way to what `docker save` gives: the engine first copies a
// whole image to a temporary directory before it sends the first byte. Where
// anything is not as expected, the caller saves instead; what is read here is
// checked against its digest by package layer.
//
// The package writes nothing and takes no locks of the engine: a layer that is
// removed while it is read gives an error.
package layerstore

import (
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"
)

// Driver is the only graph driver that is known here.
const Driver = "overlay2"

// maxConfig bounds an image's configuration, in bytes.
const maxConfig = 8 << 20

// ErrNotHere says that the store does not hold what was asked for, or not in
// the form that is known here.
var ErrNotHere = errors.New("not in the engine's layer store")

// Store is an engine's layer store. Safe for concurrent use.
type Store struct {
	root string // the engine's data directory, as this process sees it
}

// Open gives the store below an engine's data directory (of this process's
// view). ErrNotHere where there is none.
func Open(root string) (*Store, error) {
	for _, dir := range []string{"image/" + Driver + "/imagedb/content/sha256", "image/" + Driver + "/layerdb/sha256", Driver} {
		st, err := os.Stat(filepath.Join(root, dir))
		if err != nil || !st.IsDir() {
			return nil, fmt.Errorf("%s: no directory %s: %w", root, dir, ErrNotHere)
		}
	}
	return &Store{root: root}, nil
}

// Image is an image of the store.
type Image struct {
	// Config is the configuration, byte for byte.
	Config []byte
	store  *Store
	chains map[string]string // diff id to chain id, both without algorithm
}

// Image finds an image by its id ("sha256:…").
func (s *Store) Image(id string) (*Image, error) {
	name, err := digestHex(id)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(s.root, "image", Driver, "imagedb/content/sha256", name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("image %s: %w", id, ErrNotHere)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	im := &Image{store: s, chains: map[string]string{}}
	if im.Config, err = io.ReadAll(io.LimitReader(f, maxConfig+1)); err != nil {
		return nil, err
	}
	if len(im.Config) > maxConfig {
		return nil, fmt.Errorf("image %s: its configuration has more than %d bytes: %w", id, maxConfig, ErrNotHere)
	}
	var conf struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(im.Config, &conf); err != nil {
		return nil, fmt.Errorf("image %s: its configuration: %w", id, err)
	}
	chain := ""
	for _, d := range conf.RootFS.DiffIDs {
		diff, err := digestHex(d)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", id, err)
		}
		chain = nextChain(chain, diff)
		if _, ok := im.chains[diff]; !ok {
			im.chains[diff] = chain
		}
	}
	return im, nil
}

// nextChain is the chain id of a layer on top of another chain (OCI image
// specification, Layer ChainID), as hex digits.
func nextChain(below, diff string) string {
	if below == "" {
		return diff
	}
	sum := sha256.Sum256([]byte("sha256:" + below + " sha256:" + diff))
	return hex.EncodeToString(sum[:])
}

// Layer opens the archive of a layer of the image, uncompressed, by its diff id.
// Reading ends with an error where a file of the layer is not what it was.
func (im *Image) Layer(diffID string) (io.ReadCloser, error) {
	diff, err := digestHex(diffID)
	if err != nil {
		return nil, err
	}
	chain, ok := im.chains[diff]
	if !ok {
		return nil, fmt.Errorf("layer %s is not of this image: %w", diffID, ErrNotHere)
	}
	dir := filepath.Join(im.store.root, "image", Driver, "layerdb/sha256", chain)
	raw, err := os.ReadFile(filepath.Join(dir, "cache-id"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("layer %s: %w", diffID, ErrNotHere)
	}
	if err != nil {
		return nil, err
	}
	cache := strings.TrimSpace(string(raw))
	if cache == "" || strings.ContainsAny(cache, "/\x00") || cache == ".." || cache == "." {
		return nil, fmt.Errorf("layer %s: its directory is called %q: %w", diffID, cache, ErrNotHere)
	}
	files, err := openFiles(filepath.Join(im.store.root, Driver, cache, "diff"))
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", diffID, err)
	}
	split, err := os.Open(filepath.Join(dir, "tar-split.json.gz"))
	if err != nil {
		files.close()
		return nil, fmt.Errorf("layer %s: %w", diffID, err)
	}
	zr, err := gzip.NewReader(bufio.NewReaderSize(split, 64<<10))
	if err != nil {
		files.close()
		return nil, errors.Join(fmt.Errorf("layer %s: its tar-split data: %w", diffID, err), split.Close())
	}
	pr, pw := io.Pipe()
	l := &layerReader{PipeReader: pr, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		defer split.Close()
		defer files.close()
		// Larger writes than tar-split's own spare the reader wakes.
		w := bufio.NewWriterSize(pw, 256<<10)
		err := asm.WriteOutputTarStream(files, storage.NewJSONUnpacker(zr), w)
		if err == nil {
			err = w.Flush()
		}
		_ = pw.CloseWithError(err) // nil is io.EOF
	}()
	return l, nil
}

// layerReader ends its writer when it is closed.
type layerReader struct {
	*io.PipeReader
	done chan struct{}
}

func (l *layerReader) Close() error {
	err := l.PipeReader.Close()
	<-l.done
	return err
}

// files opens the files of a layer. Names are resolved below its directory,
// whatever links lie there.
type files struct{ dir int }

func openFiles(path string) (*files, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return &files{dir: fd}, nil
}

func (f *files) close() { _ = unix.Close(f.dir) }

// Get implements storage.FileGetter.
func (f *files) Get(name string) (io.ReadCloser, error) {
	for {
		fd, err := unix.Openat2(f.dir, strings.TrimLeft(filepath.Clean("/"+name), "/"), &unix.OpenHow{
			Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOATIME | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_IN_ROOT,
		})
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

func digestHex(d string) (string, error) {
	h, ok := strings.CutPrefix(d, "sha256:")
	if raw, err := hex.DecodeString(h); !ok || err != nil || len(raw) != sha256.Size || strings.ToLower(h) != h {
		return "", fmt.Errorf("%q is no digest: %w", d, ErrNotHere)
	}
	return h, nil
}
