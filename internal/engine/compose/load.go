package compose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/sirupsen/logrus"
)

// Roles of a project's files, as in dr.ProjectFile.
const (
	RoleCompose = "compose"
	RoleEnv     = "env"
	RoleOther   = "other"
)

// File is a file that belongs to a project.
type File struct {
	Role string
	Path string // absolute, on the host where Compose ran
}

// Service is what is needed of one service.
type Service struct {
	Name string
	// DependsOn holds what the file says and what follows from links,
	// volumes_from and shared namespaces; sorted by service.
	DependsOn []Dependency
}

// Model is a project as its files describe it.
type Model struct {
	Services map[string]Service
	// Files are those that exist, sorted by path, each once.
	Files []File
	// Warnings says what could not be read or understood.
	Warnings []string
}

// PathFunc maps an absolute path of the host where Compose ran to one that this
// process can open, and gives an error that is fs.ErrNotExist where there is none.
type PathFunc func(string) (string, error)

// Load reads the files of the project that l belongs to. Whatever cannot be
// read ends up in Warnings: a project whose files are gone still runs, and its
// labels say most. Only a cancelled ctx is an error.
func Load(ctx context.Context, l Labels, path PathFunc) (*Model, error) {
	m := &Model{Services: map[string]Service{}}
	found := &finder{path: path, files: map[string]string{}}
	env := found.environment(l)
	for _, f := range l.ConfigFiles {
		found.composeFile(f, env, 0)
	}
	project, err := parse(ctx, l, path, env, false)
	if err != nil {
		// What one included file is missing must not hide the rest.
		if rest, restErr := parse(ctx, l, path, env, true); restErr == nil {
			found.warn("the Compose files were read without those that they include: %v", err)
			project, err = rest, nil
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		found.warn("the Compose files could not be understood: %v", err)
	} else if project != nil {
		m.services(project)
		found.referenced(project, path)
	}
	for _, p := range slices.Sorted(maps.Keys(found.files)) {
		m.Files = append(m.Files, File{Role: found.files[p], Path: p})
	}
	m.Warnings = found.warnings
	return m, nil
}

func (m *Model) services(p *types.Project) {
	for name, s := range p.AllServices() {
		out := Service{Name: name}
		for _, dep := range slices.Sorted(maps.Keys(s.DependsOn)) {
			d := Dependency{Service: dep, Condition: s.DependsOn[dep].Condition}
			if d.Condition == "" {
				d.Condition = Started
			}
			out.DependsOn = append(out.DependsOn, d)
		}
		m.Services[name] = out
	}
}

// parse runs Compose's own loader. It must work for files of both generations
// and of hosts whose environment is not ours: nothing is validated beyond what
// is needed, and variables without a value are empty.
func parse(ctx context.Context, l Labels, path PathFunc, env types.Mapping, skipInclude bool) (*types.Project, error) {
	if len(l.ConfigFiles) == 0 {
		return nil, nil
	}
	dir, err := path(l.WorkingDir)
	if err != nil {
		return nil, err
	}
	details := types.ConfigDetails{WorkingDir: dir, Environment: env}
	for _, f := range l.ConfigFiles {
		p, err := path(f)
		if err != nil {
			return nil, err
		}
		details.ConfigFiles = append(details.ConfigFiles, types.ConfigFile{Filename: p})
	}
	var project *types.Project
	quietly(func() {
		project, err = loader.LoadWithContext(ctx, details, func(o *loader.Options) {
			o.SetProjectName(l.Project, true)
			o.SkipValidation = true
			o.SkipInclude = skipInclude
			o.SkipConsistencyCheck = true
			o.SkipResolveEnvironment = true
			o.SkipResolveLabels = true
			o.Profiles = []string{"*"}
			o.ResourceLoaders = []loader.ResourceLoader{hostFiles{dir: dir, path: path}}
		})
	})
	return project, err
}

// hostFiles lets the loader follow absolute references to files of the host
// where its root is not this process's root.
type hostFiles struct {
	dir  string // the working directory as this process opens it
	path PathFunc
}

func (h hostFiles) Accept(p string) bool {
	if !filepath.IsAbs(p) {
		return false
	}
	// What the loader made absolute itself can be opened as it is.
	if rel, err := filepath.Rel(h.dir, p); err == nil && !strings.HasPrefix(rel, "..") {
		return false
	}
	_, err := h.path(p)
	return err == nil
}

func (h hostFiles) Load(_ context.Context, p string) (string, error) { return h.path(p) }

func (h hostFiles) Dir(p string) string { return filepath.Dir(p) }

// loggerMu guards the output of the logger that Compose's library writes
// warnings to; the library has no way to be given another one.
var loggerMu sync.Mutex

func quietly(f func()) {
	loggerMu.Lock()
	defer loggerMu.Unlock()
	std := logrus.StandardLogger()
	old := std.Out
	std.SetOutput(&bytes.Buffer{})
	defer std.SetOutput(old)
	f()
}

// environment reads the variables that interpolation of the project uses: the
// environment files that Compose was given, else .env of the working directory.
func (f *finder) environment(l Labels) types.Mapping {
	env := types.Mapping{}
	files := l.EnvFiles
	if len(files) == 0 && filepath.IsAbs(l.WorkingDir) {
		def := filepath.Join(l.WorkingDir, ".env")
		if _, err := f.path(def); err == nil {
			files = []string{def}
		}
	}
	for _, name := range files {
		p, ok := f.add(RoleEnv, name)
		if !ok {
			continue
		}
		b, err := readBounded(p)
		if err != nil {
			f.warn("environment file %s: %v", name, err)
			continue
		}
		vars, err := dotenv.ParseWithLookup(bytes.NewReader(b), func(k string) (string, bool) { v, ok := env[k]; return v, ok })
		if err != nil {
			// The message of the parser quotes the line, which may be a secret.
			f.warn("environment file %s could not be understood", name)
			continue
		}
		maps.Copy(env, vars)
	}
	return env
}

// maxFile bounds what is read of one file of a project.
const maxFile = 8 << 20

func readBounded(p string) ([]byte, error) {
	st, err := os.Stat(p)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("it is not a file")
	}
	if st.Size() > maxFile {
		return nil, fmt.Errorf("it has %d bytes, more than the %d that are read", st.Size(), maxFile)
	}
	return os.ReadFile(p)
}

// finder collects the files of a project.
type finder struct {
	path     PathFunc
	files    map[string]string // path to role
	warnings []string
}

func (f *finder) warn(format string, args ...any) {
	f.warnings = append(f.warnings, fmt.Sprintf(format, args...))
}

// add notes a file if it exists and gives the path to open it by.
func (f *finder) add(role, p string) (string, bool) {
	p = filepath.Clean(p)
	real, err := f.path(p)
	if err == nil {
		var st fs.FileInfo
		if st, err = os.Stat(real); err == nil && st.IsDir() {
			return "", false
		}
	}
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			f.warn("file %s does not exist", p)
		} else {
			f.warn("file %s: %v", p, err)
		}
		return "", false
	}
	if _, known := f.files[p]; !known {
		f.files[p] = role
	}
	return real, true
}
