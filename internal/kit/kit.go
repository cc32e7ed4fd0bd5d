// Package kit is the recovery kit: one page of text with everything needed to
// reach and open a repository from an empty host. It can be printed, read by
// people, and typed in again. The package encodes, decodes and writes it; it
// neither opens repositories nor engines.
package kit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"lifeboat/internal/dr"
)

// Kit is the content of a recovery kit.
type Kit struct {
	Format  int       `yaml:"lifeboat_kit"`
	Created time.Time `yaml:"created"`
	// Repo is the repository's URL.
	Repo string `yaml:"repo"`
	// Repository is the repository's id; Fingerprint that of its id key
	// (docs/format.md, Keys): opening anything else is refused.
	Repository  dr.RepoID `yaml:"-"`
	Fingerprint string    `yaml:"fingerprint"`
	// Username and Password are the registry login, empty for none.
	Username string `yaml:"registry_username,omitempty"`
	Password string `yaml:"registry_password,omitempty"`
	// TLSFingerprint pins the registry's certificate; TLSCA is a PEM bundle.
	TLSFingerprint string `yaml:"tls_fingerprint,omitempty"`
	TLSCA          string `yaml:"tls_ca,omitempty"`
	// Identity is the age identity of the kit; empty where the repository is
	// opened by a passphrase, which is not in the kit.
	Identity string `yaml:"identity,omitempty"`
	// HighWater holds, per tag class, the highest number seen when the kit was
	// made: a repository that shows less has been set back (docs/threat-model.md).
	HighWater map[string]uint64 `yaml:"high_water,omitempty"`
	// Mirrors are registries with exact copies of the repository, in the order in
	// which they are asked for what Repo cannot give.
	Mirrors []Mirror `yaml:"mirrors,omitempty"`

	// Generations are witnesses of the data keys that there were when the kit was
	// made: who was removed from the repository before knows none of the newer.
	Generations map[uint32]string `yaml:"generations,omitempty"`

	RepositoryHex string `yaml:"repository"`
}

// Mirror is a registry with an exact copy of the repository; its fields are as
// those of Kit.
type Mirror struct {
	Repo           string `yaml:"repo"`
	Username       string `yaml:"registry_username,omitempty"`
	Password       string `yaml:"registry_password,omitempty"`
	TLSFingerprint string `yaml:"tls_fingerprint,omitempty"`
	TLSCA          string `yaml:"tls_ca,omitempty"`
}

// maxMirrors bounds how many mirrors a kit names.
const maxMirrors = 16

const preface = `# LIFEBOAT RECOVERY KIT - keep it secret, keep it away from the host it protects.
#
# Whoever holds this page can read every snapshot of the repository below and
# bring its systems up. With Docker, the lifeboat binary and this file:
#
#     lifeboat recover --kit THIS-FILE            lists the systems
#     lifeboat recover --kit THIS-FILE SYSTEM     brings one up
#
`

// MaxSize bounds what Parse reads, in bytes.
const MaxSize = 1 << 20

// Encode gives the text of the kit.
func (k Kit) Encode() ([]byte, error) {
	k.Format = 1
	k.RepositoryHex = k.Repository.String()
	var b bytes.Buffer
	b.WriteString(preface)
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(k); err != nil {
		return nil, fmt.Errorf("encode recovery kit: %w", err)
	}
	if err := enc.Close(); err != nil {
		return nil, fmt.Errorf("encode recovery kit: %w", err)
	}
	return b.Bytes(), nil
}

// Parse reads the text of a kit, strictly. Errors wrap dr.ErrUsage and never
// quote the content, which is secret.
func Parse(r io.Reader) (Kit, error) {
	raw, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return Kit{}, fmt.Errorf("read recovery kit: %w", err)
	}
	if len(raw) > MaxSize {
		return Kit{}, fmt.Errorf("recovery kit is larger than %d bytes; is it the right file? %w", MaxSize, dr.ErrUsage)
	}
	var k Kit
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	if err := dec.Decode(&k); err != nil {
		return Kit{}, fmt.Errorf("this is not a recovery kit, or it is damaged (lines%s): %w", badLines(err), dr.ErrUsage)
	}
	switch {
	case k.Format != 1:
		return Kit{}, fmt.Errorf("recovery kit has format %d, this lifeboat knows 1: %w", k.Format, dr.ErrUsage)
	case k.Repo == "":
		return Kit{}, fmt.Errorf("recovery kit names no repository (repo): %w", dr.ErrUsage)
	case k.Fingerprint == "":
		return Kit{}, fmt.Errorf("recovery kit has no fingerprint: %w", dr.ErrUsage)
	case len(k.Mirrors) > maxMirrors:
		return Kit{}, fmt.Errorf("recovery kit names %d mirrors, at most %d: %w", len(k.Mirrors), maxMirrors, dr.ErrUsage)
	case slices.ContainsFunc(k.Mirrors, func(m Mirror) bool { return m.Repo == "" }):
		return Kit{}, fmt.Errorf("recovery kit has a mirror without an address (repo): %w", dr.ErrUsage)
	}
	if err := k.Repository.UnmarshalText([]byte(k.RepositoryHex)); err != nil {
		return Kit{}, fmt.Errorf("recovery kit, repository: %w: %w", err, dr.ErrUsage)
	}
	return k, nil
}

// badLines takes the line numbers out of a YAML error and leaves the quoted
// content behind.
func badLines(err error) string {
	var lines []string
	var te *yaml.TypeError
	msgs := []string{err.Error()}
	if errors.As(err, &te) {
		msgs = te.Errors
	}
	for _, m := range msgs {
		if _, rest, ok := strings.Cut(m, "line "); ok {
			n, _, _ := strings.Cut(rest, ":")
			lines = append(lines, " "+n)
		}
	}
	if len(lines) == 0 {
		return " unknown"
	}
	return strings.Join(lines, ",")
}

// CheckNew tells, before anything is made that a kit shall go with, whether
// WriteFile could write there: the file does not exist, its directory does and
// lets this process write. Errors wrap dr.ErrHeld (the file exists), dr.ErrUsage
// (there is no such directory) or those of the system.
func CheckNew(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return held(path)
	}
	dir := filepath.Dir(path)
	st, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("recovery kit %s: the directory %s does not exist: %w", path, dir, dr.ErrUsage)
	case err != nil:
		return fmt.Errorf("recovery kit: %w", err)
	case !st.IsDir():
		return fmt.Errorf("recovery kit %s: %s is not a directory: %w", path, dir, dr.ErrUsage)
	}
	if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return fmt.Errorf("recovery kit %s cannot be written: %w", path, &fs.PathError{Op: "write to", Path: dir, Err: err})
	}
	return nil
}

func held(path string) error {
	return fmt.Errorf("%s exists already and is left as it is; choose another file for the recovery kit: %w", path, dr.ErrHeld)
}

// WriteFile writes the kit to a new file of mode 0600, durably. It never
// overwrites: an existing file gives an error wrapping dr.ErrHeld.
func WriteFile(path string, k Kit) error {
	raw, err := k.Encode()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return held(path)
	}
	if err != nil {
		return fmt.Errorf("write recovery kit: %w", err)
	}
	if err := write(f, raw); err != nil {
		os.Remove(path)
		return fmt.Errorf("write recovery kit %s: %w", path, err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("sync directory of the recovery kit: %w", err)
	}
	defer dir.Close()
	return dir.Sync()
}

func write(f *os.File, raw []byte) error {
	_, err := f.Write(raw)
	if err == nil {
		err = f.Chmod(0o600) // the umask may have taken more; it must not have taken less
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// ReadFile reads a kit. A file that others can read is an error: the kit is a
// secret.
func ReadFile(path string) (Kit, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return Kit{}, fmt.Errorf("recovery kit %s does not exist: %w", path, dr.ErrNotFound)
	}
	if err != nil {
		return Kit{}, fmt.Errorf("recovery kit: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Kit{}, fmt.Errorf("recovery kit: %w", err)
	}
	if st.Mode().IsRegular() && st.Mode().Perm()&0o077 != 0 {
		return Kit{}, fmt.Errorf("recovery kit %s can be read by others; chmod 600 %s: %w", path, path, dr.ErrUsage)
	}
	return Parse(f)
}
