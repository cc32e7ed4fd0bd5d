package engine

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/moby/moby/client"

	"lifeboat/internal/archive"
)

// ReadArchive gives the tar archive of a path of a container in any state, as
// `docker cp` has it: volumes and bind mounts are at their places. The caller
// closes it; closing early is fine. A path that is not there wraps
// dr.ErrNotFound.
func (e *Engine) ReadArchive(ctx context.Context, container, path string) (io.ReadCloser, error) {
	resp, err := e.archiveCall(ctx, http.MethodGet, container, path, nil)
	if err != nil {
		return nil, failed(fmt.Sprintf("read %s of container %s through the archive API", path, container), err)
	}
	return resp.Body, nil
}

// WriteArchive unpacks a tar archive in a directory of a container that does
// not run. What exists is replaced, except for directories, which are kept.
// After an error a part may have been written.
func (e *Engine) WriteArchive(ctx context.Context, container, path string, content io.Reader) error {
	resp, err := e.archiveCall(ctx, http.MethodPut, container, path, content)
	if err != nil {
		return changed(fmt.Sprintf("write to %s of container %s through the archive API", path, container), err)
	}
	return resp.Body.Close()
}

func (e *Engine) archiveCall(ctx context.Context, method, container, path string, body io.Reader) (*http.Response, error) {
	u := url.URL{
		Scheme: "http", Host: client.DummyHost, Path: "/v" + e.cli.ClientVersion() + containerPath(container) + "/archive",
		RawQuery: url.Values{"path": {path}}.Encode(),
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errNotSent)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/x-tar")
	}
	req.Header.Set("User-Agent", "lifeboat")
	resp, err := e.raw.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 400 {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // only the message's sake
		_ = resp.Body.Close()
		return nil, refusal(resp.StatusCode, b)
	}
	return resp, nil
}

// pathKind says through the archive API what lies at a path of a container (dir,
// file, socket, device, link), and where it really is if links lead there. One
// that is not there wraps dr.ErrNotFound.
func (e *Engine) pathKind(ctx context.Context, container, path string) (kind, real string, err error) {
	res, err := e.cli.ContainerStatPath(ctx, container, client.ContainerStatPathOptions{Path: path})
	if err == nil && kindOf(res.Stat.Mode) == "link" && res.Stat.LinkTarget != "" {
		path = res.Stat.LinkTarget // the engine has followed all links
		res, err = e.cli.ContainerStatPath(ctx, container, client.ContainerStatPathOptions{Path: path})
	}
	if err != nil {
		return "", path, failed(fmt.Sprintf("look at %s of container %s through the archive API", path, container), err)
	}
	return kindOf(res.Stat.Mode), path, nil
}

// Changes lists what a container changed of its image.
func (e *Engine) Changes(ctx context.Context, container string) ([]archive.Change, error) {
	var list []struct {
		Path string
		Kind archive.ChangeKind
	}
	if err := e.call(ctx, http.MethodGet, containerPath(container)+"/changes", nil, nil, &list); err != nil {
		return nil, failed("list what container "+container+" changed", err)
	}
	out := make([]archive.Change, len(list))
	for i, c := range list {
		out[i] = archive.Change{Path: c.Path, Kind: c.Kind}
	}
	return out, nil
}
