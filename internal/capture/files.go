package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"lifeboat/internal/cut"
	"lifeboat/internal/dr"

	"golang.org/x/sys/unix"
)

// maxProjectFile bounds a Compose or environment file, in bytes.
const maxProjectFile = 16 << 20

// projectFiles stores the files that describe the project. One that is gone is
// noted in the coverage report: the system does not need it to run.
func (r *run) projectFiles(ctx context.Context) error {
	for _, f := range r.system.Files {
		pf, err := r.projectFile(ctx, f.Role, f.Path)
		if errors.Is(err, fs.ErrNotExist) {
			r.system.Coverage = append(r.system.Coverage, dr.CoverageItem{Object: "file:" + f.Path, Reason: "does not exist on the host any more", Bytes: -1})
			continue
		}
		if err != nil {
			return fmt.Errorf("project file %s: %w", f.Path, err)
		}
		r.files = append(r.files, pf)
	}
	return nil
}

func (r *run) projectFile(ctx context.Context, role, path string) (dr.ProjectFile, error) {
	p, err := r.system.HostFS.Path(path)
	if err != nil {
		return dr.ProjectFile{}, err
	}
	f, err := os.Open(p)
	if err != nil {
		return dr.ProjectFile{}, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return dr.ProjectFile{}, err
	}
	out := dr.ProjectFile{Role: role, Path: path, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return out, errors.New("is not a regular file")
	}
	cutter := cut.New(r.deps.Repo.CutKey())
	err = cutter.Pieces(cut.Content, io.LimitReader(f, maxProjectFile+1), func(piece []byte) error {
		ref, err := r.writer.Put(ctx, piece)
		out.Content = append(out.Content, ref)
		out.Size += int64(len(piece))
		return err
	})
	if err == nil && out.Size > maxProjectFile {
		err = fmt.Errorf("is larger than %d bytes", maxProjectFile)
	}
	return out, err
}
