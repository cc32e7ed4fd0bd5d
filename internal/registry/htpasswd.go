package registry

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"golang.org/x/crypto/bcrypt"

	"lifeboat/internal/dr"
)

// userRE is what a user's name may be: it stands in a line before a colon, and
// in logs.
var userRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`)

// parseHtpasswd reads user:hash lines. Only bcrypt is accepted. The error joins
// all problems with their line numbers and shows no hash.
func parseHtpasswd(b []byte) (map[string][]byte, error) {
	users := map[string][]byte{}
	var problems []error
	bad := func(line int, format string, args ...any) {
		problems = append(problems, fmt.Errorf("line %d: %s", line, fmt.Sprintf(format, args...)))
	}
	n := 0
	for line := range bytes.Lines(b) {
		n++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		user, hash, ok := strings.Cut(string(line), ":")
		switch {
		case !ok:
			bad(n, "want USER:HASH")
			continue
		case !userRE.MatchString(user):
			bad(n, "user name: want letters, digits and . _ @ -")
			continue
		case users[user] != nil:
			bad(n, "user %s a second time", user)
			continue
		}
		if _, err := bcrypt.Cost([]byte(hash)); err != nil {
			bad(n, "password of user %s is not hashed with bcrypt; set it with lifeboat registry passwd", user)
			continue
		}
		users[user] = []byte(hash)
	}
	if len(users) == 0 && len(problems) == 0 {
		problems = append(problems, errors.New("no users in it; add one with lifeboat registry passwd"))
	}
	return users, errors.Join(problems...)
}

// SetPassword adds user to the htpasswd file, or changes its password, and
// creates the file where it is missing, with mode 0600. The change is atomic and
// a running registry takes it up. Mistakes wrap dr.ErrUsage.
func SetPassword(file, user string, password []byte) error {
	if !userRE.MatchString(user) {
		return fmt.Errorf("user name %q: want letters, digits and . _ @ -: %w", user, dr.ErrUsage)
	}
	if len(password) == 0 {
		return fmt.Errorf("the password is empty: %w", dr.ErrUsage)
	}
	hash, err := bcrypt.GenerateFromPassword(password, bcrypt.DefaultCost)
	if errors.Is(err, bcrypt.ErrPasswordTooLong) {
		return fmt.Errorf("the password is longer than the 72 bytes that bcrypt takes: %w", dr.ErrUsage)
	}
	if err != nil {
		return fmt.Errorf("hash password: %w", err)
	}
	unlock, err := lockDir(filepath.Dir(file))
	if err != nil {
		return err
	}
	defer unlock()
	old, err := readBounded(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read htpasswd file: %w", err)
	}
	if err == nil && len(bytes.TrimSpace(old)) > 0 {
		if _, err := parseHtpasswd(old); err != nil {
			return fmt.Errorf("htpasswd file %s is left as it was: %w: %w", file, err, dr.ErrUsage)
		}
	}
	var out bytes.Buffer
	for line := range bytes.Lines(old) {
		if u, _, _ := strings.Cut(strings.TrimSpace(string(line)), ":"); u == user {
			continue
		}
		out.Write(bytes.TrimRight(line, "\r\n"))
		out.WriteByte('\n')
	}
	fmt.Fprintf(&out, "%s:%s\n", user, hash)
	if err := replaceFile(file, out.Bytes(), 0o600); err != nil {
		return fmt.Errorf("write htpasswd file: %w", err)
	}
	return nil
}

// verifier checks passwords. bcrypt takes some 60 ms of a core by design, which
// each of thousands of requests cannot pay: a pair that was found right is
// remembered as a keyed hash until the process ends or the file changes.
type verifier struct {
	key   []byte
	slots chan struct{} // bounds bcrypt computations at a time

	mu    sync.Mutex
	known map[[sha256.Size]byte]struct{}
}

// maxKnown bounds the pairs remembered.
const maxKnown = 4096

// dummyHash stands in for the hash of a user who does not exist. Whoever found
// its password would gain nothing: such a user is refused in any case.
const dummyHash = "$2a$10$oSVdi5RorlgX7vMM0CNTbO71N2RFUK4bvaKvm6mAsXuQaIeophAKu"

func newVerifier() *verifier {
	v := &verifier{key: make([]byte, 32), slots: make(chan struct{}, 2), known: map[[sha256.Size]byte]struct{}{}}
	_, _ = rand.Read(v.key) // never fails
	return v
}

// verify reports whether password fits hash; a nil hash (no such user) takes as
// long as a wrong password.
func (v *verifier) verify(ctx context.Context, hash []byte, user, password string) bool {
	h := hmac.New(sha256.New, v.key)
	fmt.Fprintf(h, "%d:%s%d:%s%s", len(user), user, len(password), password, hash)
	var sum [sha256.Size]byte
	h.Sum(sum[:0])
	if v.isKnown(sum) {
		return true
	}
	select {
	case v.slots <- struct{}{}:
		defer func() { <-v.slots }()
	case <-ctx.Done():
		return false
	}
	if v.isKnown(sum) { // found by a request that was just ahead
		return true
	}
	against := hash
	if against == nil {
		against = []byte(dummyHash)
	}
	if err := bcrypt.CompareHashAndPassword(against, []byte(password)); err != nil || hash == nil {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.known) >= maxKnown {
		clear(v.known)
	}
	v.known[sum] = struct{}{}
	return true
}

func (v *verifier) isKnown(sum [sha256.Size]byte) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, ok := v.known[sum]
	return ok
}
