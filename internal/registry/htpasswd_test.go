package registry

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"lifeboat/internal/dr"
)

// cheap is a bcrypt hash that costs a test little.
func cheap(t testing.TB, password string) string {
	t.Helper()
	h, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(h)
}

func TestParseHtpasswd(t *testing.T) {
	t.Parallel()
	good := cheap(t, "x")
	users, err := parseHtpasswd([]byte("# comment\n\nalice:" + good + "\r\n bob@example.org:" + good))
	if err != nil || len(users) != 2 || string(users["alice"]) != good {
		t.Fatalf("%v, %v", users, err)
	}
	for in, says := range map[string]string{
		"":                            "no users",
		"junk":                        "line 1: want USER:HASH",
		"\x00\x01\xff":                "line 1",
		"alice:{SHA}5siv5c0SHx681xU=": "line 1: password of user alice is not hashed with bcrypt",
		"alice:plain":                 "bcrypt",
		":x":                          "user name",
		"a b:" + good:                 "user name",
		"a:" + good + "\n\na:" + good: "line 3: user a a second time",
		"x:1\ny:2\nz":                 "line 3",
	} {
		_, err := parseHtpasswd([]byte(in))
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want it to say %q", in, err, says)
		}
		if err != nil && strings.Contains(err.Error(), "5siv5c0") {
			t.Errorf("hash in the error: %v", err)
		}
	}
}

func FuzzParseHtpasswd(f *testing.F) {
	f.Add([]byte("alice:$2y$05$926C3y10Quzn/LnqQH86VOEVh/18T6RnLaS.khre96jLNL/7e.K5W\n"))
	f.Add([]byte("#\n:\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		users, err := parseHtpasswd(b)
		if err == nil && len(users) == 0 {
			t.Error("neither users nor an error")
		}
	})
}

func TestSetPassword(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "htpasswd")
	other := "# kept\nbob:" + cheap(t, "bob")
	if err := os.WriteFile(file, []byte(other), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"first", "second"} {
		if err := SetPassword(file, "alice", []byte(p)); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		users, err := parseHtpasswd(b)
		if err != nil || len(users) != 2 || bcrypt.CompareHashAndPassword(users["alice"], []byte(p)) != nil {
			t.Fatalf("after %s: %v, %v", p, users, err)
		}
		if !strings.HasPrefix(string(b), other+"\n") {
			t.Errorf("other lines changed:\n%s", b)
		}
		if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("mode: %v, %v", fi.Mode(), err)
		}
	}
}

func TestSetPasswordConcurrent(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "htpasswd")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if err := SetPassword(file, fmt.Sprintf("user%d", i), []byte("x")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	users, err := readParsed(file, parseHtpasswd)
	if err != nil || len(users) != 8 {
		t.Errorf("%d users, %v", len(users), err)
	}
}

func TestSetPasswordMistakes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	junk := filepath.Join(dir, "junk")
	if err := os.WriteFile(junk, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := SetPassword(junk, "alice", []byte("x")); !errors.Is(err, dr.ErrUsage) {
		t.Errorf("junk: %v", err)
	}
	if b, err := os.ReadFile(junk); err != nil || string(b) != "junk" {
		t.Errorf("junk was changed: %q, %v", b, err)
	}
	if err := SetPassword(filepath.Join(dir, "no", "such"), "alice", []byte("x")); !errors.Is(err, dr.ErrUsage) {
		t.Errorf("no directory: %v", err)
	}
	if err := SetPassword(dir, "alice", []byte("x")); err == nil {
		t.Error("a directory as file: no error")
	}
}

func TestVerifier(t *testing.T) {
	t.Parallel()
	v := newVerifier()
	hash, changed := []byte(cheap(t, "right")), []byte(cheap(t, "other"))
	for range 2 {
		for _, c := range []struct {
			hash           []byte
			user, password string
			want           bool
		}{
			{hash, "alice", "right", true},
			{hash, "alice", "wrong", false},
			{nil, "nobody", "right", false},
			{changed, "alice", "right", false},
			{hash, "alice", "", false},
		} {
			if got := v.verify(t.Context(), c.hash, c.user, c.password); got != c.want {
				t.Errorf("%s, %s: %v", c.user, c.password, got)
			}
		}
	}
	if len(v.known) != 1 {
		t.Errorf("%d pairs remembered, want the right one only", len(v.known))
	}
}
