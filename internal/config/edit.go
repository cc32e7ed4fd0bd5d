package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"

	"github.com/google/renameio/v2"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"lifeboat/internal/dr"
)

// ErrCannotEdit: the file is written in a way that cannot be edited without
// touching what else stands in it. The error says what to add by hand. It wraps
// dr.ErrUsage.
var ErrCannotEdit = fmt.Errorf("cannot edit the configuration: %w", dr.ErrUsage)

// Template is the text of a new configuration file.
const Template = `# Configuration of Lifeboat: one file for one site. Keys and
# passwords stand in files of their own, which this one names; an environment
# variable under overrides can too (NAME: "@/etc/lifeboat/secret").
# What is commented out is optional and shows its default or an example.

# Where the snapshots go: one name in an OCI registry.
# repo: oci://registry.example.org/dr

# The name of this site. Default: the host name of the container engine.
# site: main

# The age identity that opens the repository (mode 0600).
# key_file: /etc/lifeboat/key.txt

# registry:
#   ca_file: /etc/lifeboat/ca.pem     # or fingerprint: sha256:… to pin its certificate
#   username: backup                  # default: Docker's credential store
#   password_file: /etc/lifeboat/registry-password

# Exact copies of the repository (lifeboat copy --mirror), in the order in which they
# are asked for what the registry cannot give. Keys are those of registry.
# mirrors:
#   - repo: oci://second.example.org/dr

# Other sites, and how their engines are reached for a failback.
# sites:
#   cloud:
#     engine: ssh://root@standby.example.org

# A snapshot that cannot be done within this time of freeze is given up.
# freeze_max: 5s

# limits:
#   upload: 80Mbit/s
#   download: 80Mbit/s

# What is protected. ` + "`lifeboat protect SYSTEM`" + ` adds a system here.
`

// AddSystem writes a system into the configuration file; it creates the file
// from Template, and its directory, where there is none (mode 0640). Comments,
// order and indentation of what stands there stay as they are, byte for byte:
// the edit is an insertion of text, which is parsed again and compared before
// it replaces the file in one step (mode and owner kept, a symbolic link
// followed). Two processes may edit at the same time.
//
// A system that stands there with the same definition is left alone, and
// changed is false. Errors wrap dr.ErrHeld (it stands there with another
// definition, or another system has its project or one of its containers),
// ErrCannotEdit, or are a *Problems of the file as it is. The file
// is not changed then.
func AddSystem(path string, name dr.System, s System) (changed bool, err error) {
	if _, err := dr.ParseSystem(string(name)); err != nil {
		return false, err
	}
	return edit(path, func(c *Config, text []byte) ([]byte, error) {
		if old, ok := c.Systems[name]; ok {
			if s.Keep.Empty() {
				s.Keep = old.Keep // who declares a system says nothing of what is kept
			}
			if sameSystem(old, s) {
				return text, nil
			}
			return nil, fmt.Errorf("system %s stands in %s with another definition; edit or remove it there: %w", name, path, dr.ErrHeld)
		}
		if err := claimed(c, path, name, s); err != nil {
			return nil, err
		}
		want := *c
		want.Systems = mapsWith(c.Systems, name, s)
		return insertSystem(text, name, s, &want)
	})
}

// SetTop writes one of the texts repo, site, key_file or state_dir of the
// configuration file, with the same care and the same errors as AddSystem. A
// value that stands there already and differs is an error that wraps
// dr.ErrHeld.
func SetTop(path, key, value string) (changed bool, err error) {
	get := func(c *Config) *string {
		switch key {
		case "repo":
			return &c.Repo
		case "site":
			return (*string)(&c.Site)
		case "key_file":
			return &c.KeyFile
		case "state_dir":
			return &c.StateDir
		default:
			return nil
		}
	}
	if get(&Config{}) == nil {
		return false, fmt.Errorf("configuration key %q cannot be set this way: %w", key, dr.ErrUsage)
	}
	return edit(path, func(c *Config, text []byte) ([]byte, error) {
		if *get(c) == value {
			return text, nil
		}
		if root, _ := parseNode(text); root != nil && has(root, key) {
			return nil, fmt.Errorf("%s stands in %s with another value (%s); edit it there: %w", key, path, *get(c), dr.ErrHeld)
		}
		want := *c
		*get(&want) = value
		return insertTop(text, key, value, &want)
	})
}

// SetRegistry writes how the registry is trusted and logged in to into the
// configuration file, with the same care and the same errors as AddSystem. What
// r leaves empty stays as it is. A value that stands there already and differs
// is an error that wraps dr.ErrHeld; nothing is written then.
func SetRegistry(path string, r Registry) (changed bool, err error) {
	return edit(path, func(c *Config, text []byte) ([]byte, error) {
		want, missing := *c, map[string]string{}
		for key, value := range r.texts() {
			have := want.Registry.texts()[key]
			switch {
			case *value == "" || *value == *have:
			case *have == "":
				*have, missing[key] = *value, *value
			default:
				return nil, fmt.Errorf("registry.%s stands in %s with another value (%s); edit it there: %w", key, path, *have, dr.ErrHeld)
			}
		}
		if len(missing) == 0 {
			return text, nil
		}
		root, err := parseNode(text)
		if err != nil {
			return nil, err
		}
		if key, value := find(root, "registry"); key != nil {
			return insertBelow(text, root, key, value, missing, &want)
		}
		return insertTop(text, "registry", missing, &want)
	})
}

// SetMirrors writes the list of mirrors into a configuration file that has none,
// with the same care and the same errors as AddSystem. One that names any, or an
// empty list of them, is left as it is: somebody has chosen.
func SetMirrors(path string, mirrors []Mirror) (changed bool, err error) {
	return edit(path, func(c *Config, text []byte) ([]byte, error) {
		root, err := parseNode(text)
		if err != nil {
			return nil, err
		}
		if len(mirrors) == 0 || root != nil && has(root, "mirrors") {
			return text, nil
		}
		var list []map[string]string
		for _, m := range mirrors {
			one := map[string]string{"repo": m.Repo}
			for key, value := range m.Registry.texts() {
				if *value != "" {
					one[key] = *value
				}
			}
			list = append(list, one)
		}
		want := *c
		want.Mirrors = mirrors
		return insertTop(text, "mirrors", list, &want)
	})
}

// texts are the keys of the section and where their values are.
func (r *Registry) texts() map[string]*string {
	return map[string]*string{"ca_file": &r.CAFile, "fingerprint": &r.Fingerprint, "username": &r.Username, "password_file": &r.PasswordFile}
}

// CanEdit tells before other work begins whether the configuration file could
// be written: its directory, or the nearest one above it that exists, lets this
// process. It changes nothing. Errors wrap those of the system.
func CanEdit(path string) error {
	target, err := followLink(path)
	if err != nil {
		return fmt.Errorf("edit configuration: %w", err)
	}
	for dir := filepath.Dir(target); ; dir = filepath.Dir(dir) {
		err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS)
		if errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir) {
			continue
		}
		if err != nil {
			return fmt.Errorf("configuration %s cannot be written: %w", path, &fs.PathError{Op: "write to", Path: dir, Err: err})
		}
		return nil
	}
}

// edit locks, reads, lets f make the new text, and replaces the file.
func edit(path string, f func(c *Config, text []byte) ([]byte, error)) (bool, error) {
	target, err := followLink(path)
	if err != nil {
		return false, fmt.Errorf("edit configuration: %w", err)
	}
	dir := filepath.Dir(target)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, fmt.Errorf("edit configuration: %w", err)
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return false, fmt.Errorf("edit configuration: %w", err)
	}
	defer unlock()
	before, err := readFile(target)
	exists := err == nil
	if errors.Is(err, fs.ErrNotExist) {
		before = []byte(Template)
	} else if err != nil {
		return false, err
	}
	c, err := Parse(path, before)
	if err != nil {
		return false, err
	}
	after, err := f(c, before)
	if err != nil {
		return false, err
	}
	if exists && bytes.Equal(before, after) {
		return false, nil
	}
	if err := replace(target, after, exists); err != nil {
		return false, fmt.Errorf("write configuration %s: %w", path, err)
	}
	return true, nil
}

// followLink gives the file that a symbolic link leads to; the file itself may
// be missing.
func followLink(path string) (string, error) {
	for range 40 {
		to, err := os.Readlink(path)
		switch {
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EINVAL):
			return path, nil // missing, or no link
		case err != nil:
			return "", err
		case filepath.IsAbs(to):
			path = to
		default:
			path = filepath.Join(filepath.Dir(path), to)
		}
	}
	return "", fmt.Errorf("%s: too many symbolic links", path)
}

// lockDir holds editors of one directory apart without leaving a file behind.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return func() { _ = f.Close() }, nil // closing gives the lock back
}

func replace(path string, text []byte, exists bool) error {
	opts := []renameio.Option{renameio.WithStaticPermissions(0o640), renameio.WithTempDir(filepath.Dir(path))}
	if exists {
		opts = []renameio.Option{renameio.WithExistingPermissions(), renameio.WithTempDir(filepath.Dir(path))}
	}
	f, err := renameio.NewPendingFile(path, opts...)
	if err != nil {
		return err
	}
	defer func() { _ = f.Cleanup() }()
	if exists {
		if err := keepOwner(f.File, path); err != nil {
			return err
		}
	}
	if _, err := f.Write(text); err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}

func keepOwner(f *os.File, path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	own, ok := st.Sys().(*syscall.Stat_t)
	if !ok || int(own.Uid) == os.Geteuid() && int(own.Gid) == os.Getegid() {
		return nil
	}
	return f.Chown(int(own.Uid), int(own.Gid))
}

func mapsWith(m map[dr.System]System, name dr.System, s System) map[dr.System]System {
	out := map[dr.System]System{name: s}
	for k, v := range m {
		out[k] = v
	}
	return out
}

func sameSystem(a, b System) bool {
	x, errX := systemText(a, 2)
	y, errY := systemText(b, 2)
	return errX == nil && errY == nil && x == y
}

func sameConfig(a, b *Config) bool {
	x, y := *a, *b
	x.Systems, y.Systems = nil, nil
	if !reflect.DeepEqual(x, y) || len(a.Systems) != len(b.Systems) {
		return false
	}
	for name, s := range a.Systems {
		t, ok := b.Systems[name]
		if !ok || !sameSystem(s, t) {
			return false
		}
	}
	return true
}

// insertSystem tries the places where the entry may stand and takes the first
// that gives a file which means what is wanted.
func insertSystem(text []byte, name dr.System, s System, want *Config) ([]byte, error) {
	root, err := parseNode(text)
	if err != nil {
		return nil, err
	}
	t := newLines(text)
	var tries [][]byte
	add := func(at int, lines string) { tries = append(tries, t.insert(at, lines)) }
	unit := indentUnit(root)
	key, systems := find(root, "systems")
	switch {
	case root == nil, root.Kind == yaml.MappingNode && root.Style&yaml.FlowStyle == 0 && systems == nil:
		entry, err := entryText("systems", map[string]System{string(name): s}, unit, columnOf(root))
		if err != nil {
			return nil, err
		}
		add(t.end(), entry)
	case systems != nil && systems.Kind == yaml.MappingNode && systems.Style&yaml.FlowStyle == 0:
		column := systems.Content[0].Column - 1
		entry, err := entryText(string(name), s, unit, column)
		if err != nil {
			return nil, err
		}
		for _, at := range t.ends(root, key, column) {
			add(at, entry)
		}
		add(systems.Content[0].Line-1, entry) // before the first
	case systems != nil && isNull(systems) && systems.Value == "" && root.Style&yaml.FlowStyle == 0:
		entry, err := entryText(string(name), s, unit, key.Column-1+unit)
		if err != nil {
			return nil, err
		}
		add(key.Line, entry) // right after `systems:`
	default:
		if flow, err := flowText(string(name), s); err == nil {
			tries = t.insertFlow(root, systems, flow)
		}
	}
	for _, try := range tries {
		if got, err := Parse(want.Path, try); err == nil && sameConfig(got, want) {
			return try, nil
		}
	}
	entry, _ := entryText("systems", map[string]System{string(name): s}, 2, 0)
	return nil, byHand(want.Path, entry)
}

// handwork is what the operator has to add.
type handwork struct{ file, entry string }

func (h handwork) Error() string {
	return h.file + " is written in a way that cannot be added to without touching the rest; it was not changed; add by hand:\n" + h.entry
}

func (h handwork) Unwrap() error { return ErrCannotEdit }

func byHand(file, entry string) error { return handwork{file, strings.TrimRight(entry, "\n")} }

// insertBelow adds texts to the mapping that stands under key, at its end.
func insertBelow(text []byte, root, key, mapping *yaml.Node, values map[string]string, want *Config) ([]byte, error) {
	t := newLines(text)
	column := key.Column - 1 + indentUnit(root)
	if mapping.Kind == yaml.MappingNode && len(mapping.Content) > 0 {
		column = mapping.Content[0].Column - 1
	}
	var block strings.Builder
	var flow []string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		entry, err := entryText(name, values[name], 2, column)
		if err != nil {
			return nil, err
		}
		block.WriteString(entry)
		if one, err := flowText(name, values[name]); err == nil {
			flow = append(flow, one)
		}
	}
	var tries [][]byte
	switch {
	case mapping.Kind == yaml.MappingNode && mapping.Style&yaml.FlowStyle != 0:
		tries = t.insertFlow(root, mapping, strings.Join(flow, ", "))
	case mapping.Kind == yaml.MappingNode:
		for _, at := range t.ends(root, key, column) {
			tries = append(tries, t.insert(at, block.String()))
		}
		tries = append(tries, t.insert(mapping.Content[0].Line-1, block.String()))
	case isNull(mapping):
		tries = append(tries, t.insert(key.Line, block.String()))
	}
	for _, try := range tries {
		if got, err := Parse(want.Path, try); err == nil && sameConfig(got, want) {
			return try, nil
		}
	}
	entry, _ := entryText(key.Value, values, 2, 0)
	return nil, byHand(want.Path, entry)
}

// insertTop puts a key after its commented example in the template, else
// before the first key, else at the end.
func insertTop(text []byte, key string, value any, want *Config) ([]byte, error) {
	root, err := parseNode(text)
	if err != nil {
		return nil, err
	}
	t := newLines(text)
	entry, err := entryText(key, value, 2, columnOf(root))
	if err != nil {
		return nil, err
	}
	var tries [][]byte
	if root == nil || root.Style&yaml.FlowStyle == 0 {
		for i, line := range t.lines {
			if strings.HasPrefix(strings.TrimLeft(strings.TrimPrefix(line, "#"), " "), key+":") && strings.HasPrefix(line, "#") {
				end := i + 1
				for end < len(t.lines) && strings.HasPrefix(t.lines[end], "#  ") { // its keys, commented too
					end++
				}
				tries = append(tries, t.insert(end, entry))
			}
		}
		if root != nil && len(root.Content) > 0 {
			tries = append(tries, t.insert(root.Content[0].Line-1, entry))
		}
		tries = append(tries, t.insert(t.end(), entry))
	} else if flow, err := flowText(key, value); err == nil {
		tries = t.insertFlow(root, root, flow)
	}
	for _, try := range tries {
		if got, err := Parse(want.Path, try); err == nil && sameConfig(got, want) {
			return try, nil
		}
	}
	return nil, byHand(want.Path, entry)
}

func parseNode(text []byte) (*yaml.Node, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("edit configuration: %w", err)
	}
	if doc.Kind != yaml.DocumentNode || isNull(doc.Content[0]) {
		return nil, nil
	}
	return doc.Content[0], nil
}

// find returns key and value nodes of a key; nil where it is not there. An
// alias as value is returned as it is: it cannot be added to.
func find(root *yaml.Node, key string) (k, v *yaml.Node) {
	if root == nil || root.Kind != yaml.MappingNode {
		return nil, nil
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		if root.Content[i].Value == key {
			return root.Content[i], root.Content[i+1]
		}
	}
	return nil, nil
}

// indentUnit is how far the file indents one level below another; 2 where it
// shows none.
func indentUnit(root *yaml.Node) int {
	if root == nil || root.Kind != yaml.MappingNode {
		return 2
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		k, v := root.Content[i], root.Content[i+1]
		if v.Kind == yaml.MappingNode && v.Style&yaml.FlowStyle == 0 && len(v.Content) > 0 && v.Content[0].Line > k.Line {
			return max(v.Content[0].Column-k.Column, 1)
		}
	}
	return 2
}

func columnOf(root *yaml.Node) int {
	if root == nil || len(root.Content) == 0 {
		return 0
	}
	return root.Content[0].Column - 1
}

// lines is the file cut after each line end.
type lines struct {
	lines   []string
	newline string
}

func newLines(text []byte) *lines {
	t := &lines{lines: strings.SplitAfter(string(text), "\n"), newline: "\n"}
	if t.lines[len(t.lines)-1] == "" {
		t.lines = t.lines[:len(t.lines)-1]
	}
	if len(t.lines) > 0 && strings.HasSuffix(t.lines[0], "\r\n") {
		t.newline = "\r\n"
	}
	return t
}

// insert puts more lines before the line at (from 0).
func (t *lines) insert(at int, more string) []byte {
	at = min(max(at, 0), len(t.lines))
	before := strings.Join(t.lines[:at], "")
	if before != "" && !strings.HasSuffix(before, "\n") {
		before += t.newline
	}
	return []byte(before + strings.ReplaceAll(more, "\n", t.newline) + strings.Join(t.lines[at:], ""))
}

// end is the line where the document ends: the end of the file or its end
// marker.
func (t *lines) end() int {
	for i, line := range t.lines {
		if strings.HasPrefix(line, "...") {
			return i
		}
	}
	return len(t.lines)
}

// ends are the places after the last entry of the mapping under key, whose
// entries are indented by column: before the comments and blank lines that
// lead to the next key, and right before the next key. Comments indented like
// an entry belong to the entry above.
func (t *lines) ends(root, key *yaml.Node, column int) []int {
	next := t.end()
	for i := 0; i < len(root.Content); i += 2 {
		if l := root.Content[i].Line - 1; l > key.Line-1 && l < next {
			next = l
		}
	}
	at := next
	for at > key.Line {
		line := strings.TrimRight(t.lines[at-1], "\r\n")
		body := strings.TrimLeft(line, " ")
		if body != "" && (!strings.HasPrefix(body, "#") || len(line)-len(body) >= column) {
			break
		}
		at--
	}
	return slices.Compact([]int{at, next})
}

// insertFlow puts an entry behind the opening brace of a mapping in flow
// style: of systems where it is one, else, wrapped, of the root.
func (t *lines) insertFlow(root, mapping *yaml.Node, entry string) [][]byte {
	if mapping == nil {
		mapping, entry = root, `"systems": {`+entry+`}`
	}
	if mapping == nil || mapping.Kind != yaml.MappingNode || mapping.Line < 1 || mapping.Line > len(t.lines) {
		return nil
	}
	line := []rune(t.lines[mapping.Line-1])
	i := mapping.Column - 1
	if i >= len(line) || line[i] != '{' {
		return nil
	}
	if len(mapping.Content) > 0 {
		entry += ", "
	}
	out := slices.Clone(t.lines)
	out[mapping.Line-1] = string(line[:i+1]) + entry + string(line[i+1:])
	return [][]byte{[]byte(strings.Join(out, ""))}
}
