package config

import (
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"lifeboat/internal/dr"
)

// Environment variables.
const (
	EnvConfig         = "LIFEBOAT_CONFIG"
	EnvRepo           = "LIFEBOAT_REPO"
	EnvKeyFile        = "LIFEBOAT_KEY_FILE"
	EnvPassphraseFile = "LIFEBOAT_PASSPHRASE_FILE"
	EnvStateDir       = "LIFEBOAT_STATE_DIR"
	EnvDockerHost     = "DOCKER_HOST"
)

// Flags are the settings that a command line may give; empty where it does not.
type Flags struct {
	Config         string
	Repo           string
	KeyFile        string
	PassphraseFile string
	StateDir       string
	EngineHost     string
}

// Setting is a value and where it comes from: "--repo", "LIFEBOAT_REPO", the
// configuration file or "default". From is empty where there is no value.
type Setting struct {
	Value, From string
}

func (s Setting) String() string { return s.Value }

// Settings is what a command works with.
type Settings struct {
	Repo Setting
	// KeyFile defaults to key.txt beside the configuration file.
	KeyFile Setting
	// PassphraseFile has no default.
	PassphraseFile Setting
	StateDir       Setting
	// EngineHost is empty for Docker's default socket.
	EngineHost Setting
}

// Path is the configuration file to use: flag, then LIFEBOAT_CONFIG, then
// DefaultPath. explicit says that somebody asked for it, so that it must
// exist.
func Path(flag string, env func(string) string) (path string, explicit bool) {
	path = cmp.Or(flag, env(EnvConfig))
	if path == "" {
		return DefaultPath, false
	}
	return path, true
}

// Settings resolves flags and environment over the file. env is os.Getenv; an
// empty variable is not set. The error wraps dr.ErrUsage and names where the
// bad value comes from.
func (c *Config) Settings(f Flags, env func(string) string) (Settings, error) {
	file := cmp.Or(c.Path, "configuration")
	pick := func(flagName, flag, variable, inFile, fallback string) Setting {
		switch {
		case flag != "":
			return Setting{flag, flagName}
		case variable != "" && env(variable) != "":
			return Setting{env(variable), variable}
		case inFile != "":
			return Setting{inFile, file}
		case fallback != "":
			return Setting{fallback, "default"}
		default:
			return Setting{}
		}
	}
	stateInFile := c.StateDir
	if stateInFile == DefaultStateDir {
		stateInFile = ""
	}
	s := Settings{
		Repo:           pick("--repo", f.Repo, EnvRepo, c.Repo, ""),
		KeyFile:        pick("--key-file", f.KeyFile, EnvKeyFile, c.KeyFile, filepath.Join(filepath.Dir(cmp.Or(c.Path, DefaultPath)), "key.txt")),
		PassphraseFile: pick("--passphrase-file", f.PassphraseFile, EnvPassphraseFile, "", ""),
		StateDir:       pick("--state-dir", f.StateDir, EnvStateDir, stateInFile, DefaultStateDir),
		EngineHost:     pick("--engine", f.EngineHost, EnvDockerHost, c.Engine.Host, ""),
	}
	if s.Repo.Value != "" {
		if err := CheckRepo(s.Repo.Value); err != nil {
			return Settings{}, fmt.Errorf("%s: %w", s.Repo.From, err)
		}
	}
	if s.EngineHost.Value != "" {
		if err := CheckEngine(s.EngineHost.Value); err != nil {
			return Settings{}, fmt.Errorf("%s: %w", s.EngineHost.From, err)
		}
	}
	if !filepath.IsAbs(s.StateDir.Value) {
		abs, err := filepath.Abs(s.StateDir.Value)
		if err != nil {
			return Settings{}, fmt.Errorf("%s: %w", s.StateDir.From, err)
		}
		s.StateDir.Value = abs
	}
	return s, nil
}

// SanitizeName makes a site name of a host name: its first label, lower case,
// with - for what names cannot have; "site" where nothing is left.
func SanitizeName(host string) dr.Site {
	label, _, _ := strings.Cut(strings.ToLower(host), ".")
	s := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '_' || r == '-' {
			return r
		}
		return '-'
	}, label)
	s = strings.Trim(s, "-_")
	if len(s) > 63 {
		s = strings.Trim(s[:63], "-_")
	}
	if s == "" {
		return "site"
	}
	return dr.Site(s)
}

// maxSecret bounds a file that holds a key, password or passphrase, in bytes.
const maxSecret = 64 << 10

// ReadSecretFile reads a file that holds a secret: a key, a password, a
// passphrase. It refuses one that its group or others may read or write
// (invariant 9), with the command that mends it, and one that is empty. A pipe
// is read like a file, so that a secret need not be on disk. Errors wrap
// dr.ErrNotFound (no such file) or dr.ErrUsage (it can be read by others, is
// empty or larger than 64 KiB), and never show what the file holds.
func ReadSecretFile(path string) ([]byte, error) {
	// The open must not hang on a named pipe that nobody writes to, and what is
	// checked must be what is read: open first, then ask the open file.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if os.IsNotExist(err) {
		return nil, fmt.Errorf("secret file %s does not exist: %w", path, dr.ErrNotFound)
	} else if err != nil {
		return nil, fmt.Errorf("open secret file: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("secret file: %w", err)
	}
	if m := st.Mode(); !m.IsRegular() && m&fs.ModeNamedPipe == 0 {
		return nil, fmt.Errorf("secret file %s is not a file: %w", path, dr.ErrUsage)
	} else if perm := m.Perm(); perm&0o077 != 0 {
		return nil, fmt.Errorf("secret file %s has mode %04o, so others than its owner can reach the secret; nothing was read; run: chmod 600 %s: %w", path, perm, shellQuote(path), dr.ErrUsage)
	}
	secret, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read secret file %s: %w", path, err)
	case len(secret) > maxSecret:
		return nil, fmt.Errorf("secret file %s is larger than %d bytes: %w", path, maxSecret, dr.ErrUsage)
	case len(strings.TrimSpace(string(secret))) == 0:
		return nil, fmt.Errorf("secret file %s is empty: %w", path, dr.ErrUsage)
	}
	return secret, nil
}

// shellQuote makes a word of a shell command line.
func shellQuote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@:,=") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
