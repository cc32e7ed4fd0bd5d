package registry

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path"
	"strings"

	"github.com/distribution/distribution/v3/registry/storage/driver"
)

// prefixParameter asks a listing of tags for those that begin so. The protocol has
// no such thing; who asks for it knows this registry by its announcement, and gets
// the whole list elsewhere.
const prefixParameter = "prefix"

type prefixKey struct{}

// listTags lets a listing pass, with what it is limited to.
func (g *guard) listTags(w http.ResponseWriter, r *http.Request, req *request) {
	if p := r.URL.Query().Get(prefixParameter); p != "" {
		r = r.WithContext(context.WithValue(r.Context(), prefixKey{}, p))
	}
	g.forward(w, r, req)
}

// Walk implements driver.StorageDriver. Distribution lists tags by walking through
// their directories and asks for each of them; here only those are looked at that
// were asked for (prefixParameter). A tag that is on its way, or was when the
// process died, has a directory and names nothing yet: it is passed over, so that
// no list has it.
func (d *diskDriver) Walk(ctx context.Context, root string, f driver.WalkFn, options ...func(*driver.WalkOptions)) error {
	if !strings.HasSuffix(root, "/_manifests/tags") {
		return d.StorageDriver.Walk(ctx, root, f, options...)
	}
	var o driver.WalkOptions
	for _, set := range options {
		set(&o)
	}
	entries, err := os.ReadDir(d.file(root)) // in the order of their names
	if errors.Is(err, fs.ErrNotExist) {
		return driver.PathNotFoundError{Path: root, DriverName: driverName}
	}
	if err != nil {
		return err
	}
	prefix, _ := ctx.Value(prefixKey{}).(string)
	for _, e := range entries {
		p := path.Join(root, e.Name())
		if !e.IsDir() || !strings.HasPrefix(e.Name(), prefix) || p <= o.StartAfterHint {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := os.Lstat(d.file(path.Join(p, currentLink))); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		err := f(driver.FileInfoInternal{FileInfoFields: driver.FileInfoFields{Path: p, IsDir: true}})
		switch {
		case err == nil:
			err = d.StorageDriver.Walk(ctx, p, f, options...)
		case errors.Is(err, driver.ErrSkipDir):
			err = nil
		case errors.Is(err, driver.ErrFilledBuffer):
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}
