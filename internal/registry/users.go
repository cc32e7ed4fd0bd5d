package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"
)

// users answers who a request comes from and what that user may do. The files
// are read again when they change; one that has become invalid is reported and
// leaves what was valid before in force. Safe for concurrent use.
type users struct {
	htpasswd, roles string // "" where not configured
	log             *slog.Logger
	verifier        *verifier

	mu     sync.Mutex
	stamps [2]stamp
	hashes map[string][]byte
	access map[string]Access
}

// stamp tells two states of a file apart.
type stamp struct {
	mod  time.Time
	size int64
	ino  uint64
}

// loadUsers reads both files; either path may be empty. The error joins all
// problems of both.
func loadUsers(htpasswd, roles string, log *slog.Logger) (*users, error) {
	u := &users{htpasswd: htpasswd, roles: roles, log: log}
	if htpasswd == "" {
		return u, nil
	}
	u.verifier = newVerifier()
	u.stamps = u.look()
	var err error
	u.hashes, u.access, err = u.read()
	return u, err
}

func (u *users) read() (map[string][]byte, map[string]Access, error) {
	var problems []error
	hashes, err := readParsed(u.htpasswd, parseHtpasswd)
	if err != nil {
		problems = append(problems, fmt.Errorf("htpasswd: %w", err))
	}
	var access map[string]Access
	if u.roles != "" {
		if access, err = readParsed(u.roles, parseRoles); err != nil {
			problems = append(problems, fmt.Errorf("roles: %w", err))
		} else if len(problems) == 0 {
			for user := range access {
				if hashes[user] == nil {
					problems = append(problems, fmt.Errorf("roles: %s: user %s is not in the htpasswd file", u.roles, user))
				}
			}
		}
	}
	return hashes, access, errors.Join(problems...)
}

func readParsed[T any](file string, parse func([]byte) (T, error)) (T, error) {
	b, err := readBounded(file)
	if err != nil {
		var zero T
		return zero, err
	}
	v, err := parse(b)
	if err != nil {
		return v, fmt.Errorf("%s: %w", file, err)
	}
	return v, nil
}

func (u *users) look() [2]stamp {
	var out [2]stamp
	for i, f := range []string{u.htpasswd, u.roles} {
		if f == "" {
			continue
		}
		if fi, err := os.Stat(f); err == nil {
			out[i] = stamp{fi.ModTime(), fi.Size(), inode(fi)}
		}
	}
	return out
}

// open reports that nobody has to log in.
func (u *users) open() bool { return u.htpasswd == "" }

// current returns the users as the files are now.
func (u *users) current() (map[string][]byte, map[string]Access) {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := u.look()
	if now == u.stamps {
		return u.hashes, u.access
	}
	u.stamps = now
	hashes, access, err := u.read()
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w (users stay as they were)", err)
		}
		u.log.Error("changed users not taken over", "err", err)
		return u.hashes, u.access
	}
	u.hashes, u.access = hashes, access
	u.log.Info("users taken over", "users", len(hashes))
	return hashes, access
}

// login returns the access of a user; known is false where name and password do
// not fit, granted is false where the roles file leaves the user out.
func (u *users) login(ctx context.Context, name, password string) (a Access, known, granted bool) {
	hashes, access := u.current()
	if !u.verifier.verify(ctx, hashes[name], name, password) {
		return Access{}, false, false
	}
	if u.roles == "" {
		return everything(), true, true
	}
	a, granted = access[name]
	return a, true, granted
}
