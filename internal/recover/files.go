package recover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"lifeboat/internal/dr"

	"github.com/google/renameio/v2"
)

// bringFiles writes the project's files where they were, so that Compose works
// here too. A file that exists with other content and is not the system's own
// is left, and the captured one is put into the site's state.
func (b *bringUp) bringFiles(ctx context.Context) error {
	for _, f := range b.local.Files {
		want, err := b.fileContent(ctx, f)
		if err != nil {
			return fmt.Errorf("project file %s: %w", f.Path, err)
		}
		path := b.survey.host.Prefix + f.Path
		have, err := os.ReadFile(path)
		switch {
		case err == nil && bytes.Equal(have, want):
			continue
		case err == nil && !b.survey.own["file:"+f.Path]:
			dir, err := b.d.State.SystemDir(b.o.System)
			if err != nil {
				return err
			}
			path = filepath.Join(dir, "files", f.Path)
			b.o.Progress.Note(f.Path + " exists here with other content and was left; the captured one is " + path)
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("project file %s: %w", f.Path, err)
		}
		if err := writeProjectFile(path, f, want); err != nil {
			return fmt.Errorf("project file %s: %w", f.Path, err)
		}
	}
	return nil
}

func writeProjectFile(path string, f dr.ProjectFile, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	t, err := renameio.NewPendingFile(path, renameio.WithStaticPermissions(fs.FileMode(f.Mode&0o777)), renameio.WithTempDir(filepath.Dir(path)))
	if err != nil {
		return err
	}
	defer func() { _ = t.Cleanup() }()
	if _, err := t.Write(content); err != nil {
		return err
	}
	if err := t.Chown(int(f.UID), int(f.GID)); err != nil {
		return err
	}
	return t.CloseAtomicallyReplace()
}

func (b *bringUp) fileContent(ctx context.Context, f dr.ProjectFile) ([]byte, error) {
	var out []byte
	for _, ref := range f.Content {
		data, err := b.reader.Unit(ctx, ref)
		if err != nil {
			return nil, err
		}
		out = append(out, data...)
	}
	if int64(len(out)) != f.Size {
		return nil, fmt.Errorf("%d bytes, the record says %d: %w", len(out), f.Size, dr.ErrTampered)
	}
	return out, nil
}
