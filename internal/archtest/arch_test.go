package archtest_test

import (
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "lifeboat"

// floors is the layout of the code (ARCHITECTURE.md). A package imports
// packages of lower floors, and those of its own tree. The longest entry that
// is a prefix of a directory counts; a directory without one has no place yet.
var floors = map[string]int{
	// Words: no I/O, nothing of ours below.
	"internal/dr": 0, "internal/quantity": 0, "internal/redact": 0, "internal/suggest": 0,
	// Formats and decisions: bytes or state in, bytes or state out.
	"internal/cut": 1, "internal/seal": 1, "internal/catalog": 1, "internal/kit": 1, "internal/fence": 1, "internal/plan": 1, "internal/retain": 1,
	"internal/pack": 2, "internal/layer": 2, "internal/override": 2, "internal/archive": 2,
	// The world: a store, an engine, files, processes, a configuration, a terminal.
	"internal/store": 3, "internal/registry": 3, "internal/engine": 3, "internal/tree": 3, "internal/freeze": 3,
	"internal/site": 3, "internal/landing": 3, "internal/config": 3, "internal/ui": 3, "internal/gate": 3, "internal/dns": 3, "internal/hook": 3,
	"internal/notify": 3, "internal/metrics": 3, "internal/cpuload": 3,
	// The repository, and what is known of a system from it.
	"internal/repo": 4, "internal/ledger": 5, "internal/imageserve": 5,
	// A system to a snapshot, a snapshot to a system.
	"internal/capture": 6, "internal/copying": 6, "internal/recover": 7,
	"internal/agent": 8, "internal/web": 9,
	"cmd":          10,
	"internal/lab": 10, "lab": 11, "bench": 12, "e2e": 12,
	// Support of tests may reach for what it tests.
	"internal/registry/registrytest": 10, "internal/casetest": 0,
	// Tests and tools.
	"internal/archtest": 11, "internal/modeltest": 12,
}

// reserved says who alone may import something, and why.
var reserved = []struct {
	imports []string // import path or a path above it
	by      []string // directories, with all below them
	reason  string
}{
	{
		[]string{"github.com/moby/moby", "github.com/docker/docker", "github.com/containerd/containerd"},
		[]string{"internal/engine"},
		"only engine speaks to a container engine: what differs between engines stays in one place, and everything above it can be tried on the fake",
	},
	{
		[]string{"oras.land/oras-go", "github.com/distribution/distribution", "github.com/google/go-containerregistry"},
		[]string{"internal/store/ocistore", "internal/registry"},
		"only ocistore and registry speak OCI over HTTP: the repository knows blobs and tags, not requests, and is tried on memstore with faults",
	},
	{
		[]string{"github.com/spf13/cobra", "github.com/spf13/pflag"},
		[]string{"cmd", "lab", "bench"},
		"flags belong to commands: library code takes values, so that agent and tests can call it",
	},
	{
		[]string{"testing", "pgregory.net/rapid", "github.com/google/go-cmp", "github.com/rogpeppe/go-internal"},
		[]string{"lab", "bench"},
		"test switches do not belong in the product; support of tests is a package whose name ends in test",
	},
	{
		[]string{"log", "flag"},
		[]string{"lab", "bench", "internal/registry", "internal/tree/treebench"}, // net/http wants a log.Logger for its own errors
		"library code logs to the slog.Logger that it is given, and neither prints nor exits",
	},
	{
		[]string{"gopkg.in/yaml.v2", "gopkg.in/yaml.v3", "go.yaml.in/yaml/v2", "go.yaml.in/yaml/v4", "github.com/pkg/errors", "github.com/sirupsen/logrus"},
		[]string{"internal/registry", "internal/engine/compose"}, // to silence what libraries log by themselves
		"the house has one library for each thing: go.yaml.in/yaml/v3, errors and log/slog of the standard library",
	},
}

// closed says what some packages may not import at all, and why.
var closed = []struct {
	dirs    []string
	imports []string
	reason  string
}{
	{
		[]string{"internal/dr", "internal/cut", "internal/pack", "internal/catalog", "internal/override", "internal/quantity", "internal/suggest", "internal/redact", "internal/fence", "internal/retain"},
		[]string{"os", "net", "net/http", "os/exec", "syscall"},
		"words, formats and decisions do no I/O: they are tried with bytes and transcripts, and fuzzed",
	},
	{
		[]string{"internal/seal", "internal/layer", "internal/kit", "internal/plan"},
		[]string{"net", "net/http", "os/exec"},
		"formats and decisions reach no network and start no process; seal, kit and plan keep a file of their own, no more",
	},
	{
		[]string{"internal/registry"},
		[]string{module + "/internal/repo", module + "/internal/pack", module + "/internal/seal", module + "/internal/catalog", module + "/internal/layer", module + "/internal/cut"},
		"the registry knows nothing of snapshots beyond the classes of tags: it must never be able to read what it stores",
	},
}

type source struct {
	path, dir string // slash-separated, relative to the module
	file      *ast.File
	fset      *token.FileSet
	test      bool
}

// sources parses the module's Go files, except those that are never built.
func sources(t *testing.T, mode parser.Mode) []source {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	var out []source
	fset := token.NewFileSet()
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if p != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "dist") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		f, err := parser.ParseFile(fset, p, nil, mode|parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if !neverBuilt(f) {
			out = append(out, source{rel, path.Dir(rel), f, fset, strings.HasSuffix(name, "_test.go")})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 20 {
		t.Fatalf("only %d files found in %s", len(out), root)
	}
	return out
}

func neverBuilt(f *ast.File) bool {
	for _, g := range f.Comments {
		for _, c := range g.List {
			if x, err := constraint.Parse(c.Text); err == nil && x.String() == "never" {
				return true
			}
		}
	}
	return false
}

func below(dir, top string) bool { return dir == top || strings.HasPrefix(dir, top+"/") }

// floorOf gives the floor of a directory and the entry that says so.
func floorOf(dir string) (floor int, entry string, ok bool) {
	for e, f := range floors {
		if below(dir, e) && len(e) > len(entry) {
			floor, entry, ok = f, e, true
		}
	}
	return floor, entry, ok
}

// testSupport tells packages that exist for tests: their name ends in test, or
// they lie below one whose name does.
func testSupport(dir string) bool {
	for part := range strings.SplitSeq(dir, "/") {
		if strings.HasSuffix(part, "test") {
			return true
		}
	}
	return false
}

func imports(s source) []string {
	var out []string
	for _, i := range s.file.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		if err == nil {
			out = append(out, p)
		}
	}
	return out
}

func TestImportsPointDown(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t, parser.ImportsOnly) {
		floor, entry, ok := floorOf(s.dir)
		if !ok {
			t.Errorf("%s: %s has no place in the layout; give it one in floors, and in ARCHITECTURE.md", s.path, s.dir)
			continue
		}
		if s.test {
			continue
		}
		for _, i := range imports(s) {
			dir, ours := strings.CutPrefix(i, module+"/")
			if !ours {
				continue
			}
			f, e, ok := floorOf(dir)
			if ok && f >= floor && e != entry && !below(dir, s.dir) && !below(s.dir, dir) {
				t.Errorf("%s (floor %d) imports %s (floor %d): imports point down, so that a package can be understood, tried and replaced without what is built on it; let the upper one hand down a small interface or a value", s.path, floor, i, f)
			}
		}
	}
}

func TestReservedImports(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t, parser.ImportsOnly) {
		for _, i := range imports(s) {
			for _, r := range reserved {
				if s.test || testSupport(s.dir) || !slices.ContainsFunc(r.imports, func(p string) bool { return matches(i, p) }) {
					continue
				}
				if !slices.ContainsFunc(r.by, func(d string) bool { return below(s.dir, d) }) {
					t.Errorf("%s imports %s: %s", s.path, i, r.reason)
				}
			}
			for _, c := range closed {
				if !s.test && slices.ContainsFunc(c.dirs, func(d string) bool { return s.dir == d }) && slices.Contains(c.imports, i) {
					t.Errorf("%s imports %s: %s", s.path, i, c.reason)
				}
			}
		}
	}
}

// matches reports whether an import is a reserved one: paths of the standard
// library stand for themselves, others for all below them and all versions.
func matches(i, reserved string) bool {
	if !strings.Contains(reserved, ".") {
		return i == reserved
	}
	return below(i, reserved)
}

// TestManners checks what a reader would stumble over.
func TestManners(t *testing.T) {
	t.Parallel()
	documented := map[string]bool{}
	for _, s := range sources(t, 0) {
		if name := s.file.Name.Name; slices.Contains([]string{"util", "utils", "common", "types", "helpers", "misc"}, name) {
			t.Errorf("%s: package %s: a package is named after what it gives", s.path, name)
		}
		documented[s.dir] = documented[s.dir] || s.file.Doc != nil
		ast.Inspect(s.file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if ok && s.test && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name) {
				t.Errorf("%s: a test that is left out shows nothing; let it bring what it needs, or fail", s.fset.Position(n.Pos()))
			}
			return true
		})
	}
	for dir, ok := range documented {
		if !ok && dir != "." {
			t.Errorf("%s: no package comment; say what it is for, its main types, and what it does not do", dir)
		}
	}
}

// maxFunc is the longest a function of the product may be, in lines.
const maxFunc = 100

// maxFile is the longest a file of the product may be, in lines.
const maxFile = 800

func TestLengths(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t, 0) {
		if s.test || foreign(s) {
			continue
		}
		line := func(p token.Pos) int { return s.fset.Position(p).Line }
		if n := line(s.file.End()); n > maxFile {
			t.Errorf("%s has %d lines, want %d at most: it is two files", s.path, n, maxFile)
		}
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok {
				if n := line(f.End()) - line(f.Pos()) + 1; n > maxFunc {
					t.Errorf("%s: %s has %d lines, want %d at most: name its parts", s.path, f.Name.Name, n, maxFunc)
				}
			}
		}
	}
}

// foreign tells code that was taken over from elsewhere and stays as it is
// there; it says so by a copyright notice of its authors.
func foreign(s source) bool {
	for _, g := range s.file.Comments {
		if g.Pos() < s.file.Package && strings.Contains(g.Text(), "Copyright") {
			return true
		}
	}
	return false
}

// TestRulesMatchSomething keeps the tables alive: a rule about a directory that
// is gone says nothing.
func TestRulesMatchSomething(t *testing.T) {
	t.Parallel()
	// Rooms that the design keeps for what is not built yet.
	planned := []string{"internal/gate", "internal/dns", "internal/hook", "internal/notify", "internal/metrics", "internal/agent", "internal/web", "internal/lab", "internal/imageserve"}
	for entry := range floors {
		_, err := os.Stat(filepath.Join("../..", filepath.FromSlash(entry)))
		if err != nil && !slices.Contains(planned, entry) {
			t.Errorf("floors has %s, which is not there: %v", entry, err)
		}
	}
}
