// Package config reads and edits Lifeboat's configuration: one YAML file,
// strictly decoded, in which every problem is found at once and told with its
// path and line.
//
// Config is the file. Settings is what a command works with, after flags and
// environment had their say (flag before environment before file). AddSystem
// and SetTop edit the file as text, so that comments, order and indentation
// stay as they were. Keys and passwords do not stand in the file: it names files that hold
// secrets, and ReadSecretFile reads these only while nobody else can.
//
// The package does not know what the settings do, and asks no engine or
// registry whether they are true.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/override"
	"lifeboat/internal/retain"
)

// Defaults of what the file does not say.
const (
	DefaultPath         = "/etc/lifeboat/lifeboat.yaml"
	DefaultStateDir     = "/var/lib/lifeboat"
	DefaultFreezeMax    = 5 * time.Second
	DefaultSecureBuffer = 40 << 20 // bytes
)

// Bounds of what the file may say.
const (
	MinFreezeMax    = 100 * time.Millisecond
	MaxFreezeMax    = time.Hour // the degraded mode reads all data while the system is paused
	MinSecureBuffer = 1 << 20
	MaxSecureBuffer = 16 << 30
	MinStallTimeout = time.Second
	MaxStallTimeout = time.Hour
)

// MaxMirrors bounds how many registries are asked for what the first lacks.
const MaxMirrors = 8

// maxFile bounds the configuration file, in bytes.
const maxFile = 1 << 20

// Config is the configuration file. Values that the file does not give have
// their defaults; Site stays empty, because its default is the engine's host
// name (SanitizeName).
type Config struct {
	// Path is the file that was read; empty where there was none.
	Path     string
	Repo     string
	Site     dr.Site
	StateDir string
	KeyFile  string
	Registry Registry
	// Mirrors hold exact copies of the repository, in the order in which they are
	// asked for what its own registry cannot give.
	Mirrors []Mirror
	Engine  Engine
	// Sites tells how the engines of other sites are reached.
	Sites     map[dr.Site]Site
	FreezeMax time.Duration
	// SecureBuffer bounds what is copied into memory while frozen, in bytes.
	SecureBuffer int64
	Limits       Limits
	// Keep is what is kept of systems that say nothing of their own; empty where
	// the file does not say it.
	Keep    retain.Policy
	Systems map[dr.System]System
}

// Registry says how the registry is trusted and logged in to. Without
// username the credentials come from Docker's store.
type Registry struct {
	CAFile       string
	Fingerprint  string // "sha256:" and 64 hexadecimal digits
	Username     string
	PasswordFile string
	// StallTimeout is how long no byte may move before a transfer is given up and
	// tried again; 0 where the file does not say.
	StallTimeout time.Duration
}

// Mirror is a registry with an exact copy of the repository.
type Mirror struct {
	Repo     string
	Registry Registry
}

// Engine is this site's container engine.
type Engine struct {
	Host string // unix://, ssh:// or tcp://; empty: Docker's default
}

// Site is another site.
type Site struct {
	Engine string // unix://, ssh:// or tcp://
}

// Limits bound the use of the network, in bytes per second; 0 is no limit.
type Limits struct {
	Upload   int64
	Download int64
}

// System is one protected system: either a Compose project or named
// containers.
type System struct {
	Project    string
	Containers []string
	Exclude    []Exclude
	// Overrides are applied when this site brings the system up.
	Overrides override.Set
	// Keep is what is kept of the system's snapshots, instead of Config.Keep.
	Keep retain.Policy
}

// Exclude names something that is not captured.
type Exclude struct {
	Kind dr.TreeKind
	// Name is the volume, the container (TreeLayer), or the path of the host
	// (TreeBind; the mounted directory or something below it).
	Name string
	// Path is a path inside the volume or container, absolute and clean; empty
	// for all of it. Always empty for TreeBind.
	Path string
}

// String is the form in the file: volume:NAME[:/PATH], layer:CONTAINER[:/PATH]
// or bind:/PATH.
func (e Exclude) String() string {
	s := string(e.Kind) + ":" + e.Name
	if e.Path != "" {
		s += ":" + e.Path
	}
	return s
}

// ParseExclude reads the form of String. The error wraps dr.ErrUsage.
func ParseExclude(s string) (Exclude, error) {
	kind, rest, _ := strings.Cut(s, ":")
	e := Exclude{Kind: dr.TreeKind(kind), Name: rest}
	clean := func(p string) bool { return filepath.IsAbs(p) && filepath.Clean(p) == p && p != "/" }
	switch e.Kind {
	case dr.TreeBind:
		if clean(rest) {
			return e, nil
		}
	case dr.TreeVolume, dr.TreeLayer:
		inside := false
		e.Name, e.Path, inside = strings.Cut(rest, ":")
		if e.Name != "" && !strings.Contains(e.Name, "/") && (!inside || clean(e.Path)) {
			return e, nil
		}
	}
	return Exclude{}, fmt.Errorf("%q: want volume:NAME, layer:CONTAINER (either may be followed by :/PATH inside) or bind:/PATH of the host: %w", s, dr.ErrUsage)
}

// Default is the configuration of an empty file.
func Default() *Config {
	return &Config{
		StateDir: DefaultStateDir, FreezeMax: DefaultFreezeMax, SecureBuffer: DefaultSecureBuffer,
		Sites: map[dr.Site]Site{}, Systems: map[dr.System]System{},
	}
}

// Load reads the file. A file that does not exist gives an error that wraps
// dr.ErrNotFound and fs.ErrNotExist; one with mistakes gives a *Problems, which
// wraps dr.ErrUsage. Relative paths in the file are taken from its directory.
func Load(path string) (*Config, error) {
	text, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, text)
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("configuration %s does not exist: %w (%w)", path, dr.ErrNotFound, err)
	} else if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("configuration %s is larger than %d bytes: %w", path, maxFile, dr.ErrUsage)
	}
	return text, nil
}

// System returns a system of the file. The error wraps dr.ErrNotFound and
// names those that there are.
func (c *Config) System(name dr.System) (System, error) {
	s, ok := c.Systems[name]
	if !ok {
		return System{}, notInFile("system", string(name), keys(c.Systems))
	}
	return s, nil
}

// KeepOf is what is kept of a system's snapshots, whether it stands in the file
// or not; empty where nothing is said.
func (c *Config) KeepOf(name dr.System) retain.Policy {
	if s, ok := c.Systems[name]; ok && !s.Keep.Empty() {
		return s.Keep
	}
	return c.Keep
}

// OtherSite returns another site of the file. The error wraps dr.ErrNotFound
// and names those that there are.
func (c *Config) OtherSite(name dr.Site) (Site, error) {
	s, ok := c.Sites[name]
	if !ok {
		return Site{}, notInFile("site", string(name), keys(c.Sites))
	}
	return s, nil
}
