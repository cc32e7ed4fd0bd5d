// Package images makes the container images of the laboratory, since none can be pulled: a bootstrapped
// Debian as common base, and on it images built by the engine from Dockerfiles, so that they share
// layers as real images do. What was built is kept in the cache as one archive for each set.
//
// Main types: [Recipe] and [Set]; [Ensure] makes what is missing, [Load] puts a set into a site's engine.
package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"lifeboat/lab"
)

// Base is the name of the image that all recipes start from.
const Base = "lifeboat-lab/base:1"

// Recipe is how one image is built.
type Recipe struct {
	// Image is its name with tag.
	Image string
	// Context is the build context, with a Dockerfile that says FROM Base.
	Context fs.FS
	// Prepare, when set, adds files to a copy of the context before the build; PrepareKey says from what.
	Prepare    func(ctx context.Context, dir string) error
	PrepareKey []fs.FS
}

// Set are images that are kept and loaded together.
type Set struct {
	Name    string
	Recipes []Recipe
}

// baseArgs bootstrap the base image. No service starts in a container when its package is installed, and
// nobody waits for a disk at build time.
func baseArgs() []string {
	return append(lab.Slim(), "--dpkgopt=force-unsafe-io", "--variant=minbase", "--components=main",
		`--customize-hook=printf '#!/bin/sh\nexit 101\n' > "$1/usr/sbin/policy-rc.d"; chmod 755 "$1/usr/sbin/policy-rc.d"`,
		`--customize-hook=rm -rf "$1/var/log/apt" "$1/var/log/dpkg.log" "$1/etc/hostname" "$1/etc/resolv.conf"`,
		"bookworm")
}

// key names what a set is built from; another recipe is another archive.
func (s Set) key() (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%q\n", baseArgs())
	add := func(tree fs.FS) error {
		return fs.WalkDir(tree, ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			f, err := tree.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			fmt.Fprintf(h, "file %q\n", path)
			_, err = io.Copy(h, f)
			return err
		})
	}
	for _, r := range s.Recipes {
		fmt.Fprintf(h, "image %q\n", r.Image)
		for _, tree := range append([]fs.FS{r.Context}, r.PrepareKey...) {
			if err := add(tree); err != nil {
				return "", fmt.Errorf("read recipe of %s: %w", r.Image, err)
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:6]), nil
}

// archive is where the set is in the cache.
func (s Set) archive() (string, error) {
	key, err := s.key()
	if err != nil {
		return "", err
	}
	return filepath.Join(lab.CacheDir(), "images-"+s.Name+"-"+key+".tar"), nil
}

// Ensure builds the sets that are not in the cache. Several processes may call it at the same time; one
// builds and the others wait. A build needs the network for packages and takes a minute or more. Without
// log it says nothing.
func Ensure(ctx context.Context, log *slog.Logger, sets ...Set) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	missing, err := missingOf(sets)
	if err != nil || len(missing) == 0 {
		return err
	}
	dir, unlock, err := lab.LockCache(ctx, "images")
	if err != nil {
		return err
	}
	defer unlock()
	// Another process may have built them while we waited.
	if missing, err = missingOf(sets); err != nil || len(missing) == 0 {
		return err
	}
	b := &builder{log: log, dir: dir}
	root := b.dataRoot()
	_, err = os.Stat(root)
	used := err == nil
	err = b.buildAll(ctx, missing)
	if err != nil && used && ctx.Err() == nil {
		// What an earlier build left may be the reason, when it was killed.
		log.Warn("build again without what earlier builds left", "error", err)
		if err := os.RemoveAll(root); err != nil {
			return fmt.Errorf("wipe builder: %w", err)
		}
		err = (&builder{log: log, dir: dir}).buildAll(ctx, missing)
	}
	return err
}

func missingOf(sets []Set) ([]Set, error) {
	var missing []Set
	for _, s := range sets {
		path, err := s.archive()
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, s)
		} else if err != nil {
			return nil, fmt.Errorf("look for images of %s: %w", s.Name, err)
		}
	}
	return missing, nil
}

// Load puts the images of the set into the site's engine, building them first if need be.
func Load(ctx context.Context, site *lab.Site, log *slog.Logger, set Set) error {
	if err := Ensure(ctx, log, set); err != nil {
		return err
	}
	path, err := set.archive()
	if err != nil {
		return err
	}
	if _, err := site.Docker(ctx, "load", "--quiet", "--input", path); err != nil {
		return fmt.Errorf("load images of %s: %w", set.Name, err)
	}
	return nil
}

// builder is a site on the machine's own network, made when the first set is built. Its engine keeps
// layers in the cache, so that a change of a recipe's last lines does not install packages again.
type builder struct {
	log *slog.Logger
	dir string // of the cache
	lab *lab.Lab
}

func (b *builder) dataRoot() string { return filepath.Join(b.dir, "builder") }

func (b *builder) buildAll(ctx context.Context, sets []Set) (err error) {
	defer func() {
		if b.lab != nil {
			// In good order, for the layers are to be used again.
			err = errors.Join(err, b.lab.Main().StopEngine(context.WithoutCancel(ctx)), b.lab.Close())
		}
	}()
	for _, s := range sets {
		if err := b.build(ctx, s); err != nil {
			return fmt.Errorf("build images of %s: %w", s.Name, err)
		}
	}
	return nil
}

// base returns the archive of the base image, which is bootstrapped once.
func (b *builder) base(ctx context.Context) (string, error) {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", baseArgs()))
	path := filepath.Join(b.dir, "base-"+hex.EncodeToString(sum[:6])+".tar")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("look for the base image: %w", err)
	}
	b.log.Info("bootstrap the base image")
	next := filepath.Join(b.dir, "base-new.tar")
	if err := lab.Bootstrap(ctx, filepath.Join(b.dir, "base.scratch"), append(baseArgs(), next)...); err != nil {
		return "", errors.Join(err, ignoreMissing(os.Remove(next)))
	}
	if err := os.Rename(next, path); err != nil {
		return "", fmt.Errorf("keep the base image: %w", err)
	}
	return path, nil
}

func (b *builder) build(ctx context.Context, s Set) error {
	site, err := b.site(ctx)
	if err != nil {
		return err
	}
	names := []string{Base}
	for _, r := range s.Recipes {
		b.log.Info("build image", "image", r.Image)
		if err := b.buildOne(ctx, site, r); err != nil {
			return fmt.Errorf("build %s: %w", r.Image, err)
		}
		names = append(names, r.Image)
	}
	path, err := s.archive()
	if err != nil {
		return err
	}
	next := filepath.Join(b.dir, "images-new.tar")
	if _, err := site.Docker(ctx, append([]string{"save", "--output", next}, names...)...); err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(next)))
	}
	if err := os.Rename(next, path); err != nil {
		return fmt.Errorf("keep images: %w", err)
	}
	// What older recipes made is of no use any more.
	old, err := filepath.Glob(filepath.Join(b.dir, "images-"+s.Name+"-*.tar"))
	if err != nil {
		return fmt.Errorf("look for old images: %w", err)
	}
	for _, p := range old {
		if p != path {
			if err := ignoreMissing(os.Remove(p)); err != nil {
				return fmt.Errorf("remove old images: %w", err)
			}
		}
	}
	return nil
}

func (b *builder) site(ctx context.Context) (*lab.Site, error) {
	if b.lab != nil {
		return b.lab.Main(), nil
	}
	base, err := b.base(ctx)
	if err != nil {
		return nil, err
	}
	l, err := lab.New(ctx, lab.Options{Log: b.log, Sites: []lab.SiteOptions{{Name: "builder", HostNetwork: true, DataRoot: b.dataRoot()}}})
	if err != nil {
		return nil, fmt.Errorf("start builder: %w", err)
	}
	b.lab = l
	if _, err := l.Main().Docker(ctx, "container", "prune", "--force"); err != nil { // of builds that were killed
		return nil, fmt.Errorf("tidy builder: %w", err)
	}
	label, err := l.Main().Docker(ctx, "images", "--quiet", "--filter", "label=lifeboat.lab.base="+filepath.Base(base), Base)
	if err == nil && len(label) > 0 {
		return l.Main(), nil
	}
	// The archive's bytes are the layer, so that every set built on it shares the layer.
	_, err = l.Main().Docker(ctx, "import", "--change", "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8",
		"--change", "LABEL lifeboat.lab.base="+filepath.Base(base), "--change", `CMD ["/bin/sh"]`, base, Base)
	if err != nil {
		return nil, fmt.Errorf("import base image: %w", err)
	}
	return l.Main(), nil
}

func (b *builder) buildOne(ctx context.Context, site *lab.Site, r Recipe) error {
	dir, err := os.MkdirTemp(b.lab.Dir(), "context-")
	if err != nil {
		return err
	}
	if err := copyContext(r.Context, dir); err != nil {
		return fmt.Errorf("copy build context: %w", err)
	}
	if r.Prepare != nil {
		if err := r.Prepare(ctx, dir); err != nil {
			return fmt.Errorf("prepare build context: %w", err)
		}
	}
	args := []string{"build", "--network", "host", "--tag", r.Image}
	for _, proxy := range []string{"http_proxy", "https_proxy", "no_proxy"} {
		if os.Getenv(proxy) != "" { // passed by name: the value may hold a password
			args = append(args, "--build-arg", proxy)
		}
	}
	cmd := site.Command(ctx, "docker", append(args, dir)...)
	cmd.Env = append(cmd.Env, "DOCKER_BUILDKIT=0")
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("docker build: %w: %s", err, out[max(0, len(out)-3000):])
	}
	return nil
}

// copyContext copies files; what has "#!" at its beginning becomes executable, for an embedded tree has no modes.
func copyContext(tree fs.FS, dir string) error {
	return fs.WalkDir(tree, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(dir, filepath.FromSlash(path))
		if d.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		data, err := fs.ReadFile(tree, path)
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if len(data) > 2 && data[0] == '#' && data[1] == '!' {
			mode = 0o755
		}
		return os.WriteFile(to, data, mode)
	})
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
