package redact_test

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"net/url"
	"strings"
	"testing"

	"lifeboat/internal/redact"
)

// secret is what must never be seen again in any of the cases.
const secret = "hunter2hunter2hunter2"

func TestString(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ in, want string }{
		{"get https://bob:" + secret + "@reg.example/v2/: EOF", "get https://***@reg.example/v2/: EOF"},
		{"oci://bob:p@ss" + secret + "@reg/name", "oci://***@reg/name"},
		{"https://reg.example/v2/x@sha256:ab", "https://reg.example/v2/x@sha256:ab"},
		{"an engine such as ssh://root@standby.example.org", "an engine such as ssh://root@standby.example.org"},
		{"ssh://root:" + secret + "@host", "ssh://***@host"},
		{"ssh://a@" + secret + "@host", "ssh://***@host"},
		{"https://" + secret + "@host", "https://***@host"},
		{"mail bob@example.org", "mail bob@example.org"},
		{"Authorization: Basic " + secret, "Authorization: ***"},
		{"map[Authorization:[Bearer " + secret + "]]", "map[Authorization:[***]]"},
		{`{"Authorization":"Bearer ` + secret + `"}`, `{"Authorization":"***"}`},
		{"sent Bearer " + secret + " to it", "sent Bearer *** to it"},
		{"key AGE-SECRET-KEY-1" + strings.ToUpper(secret) + " given", "key *** given"},
		{"key age-secret-key-pq-1" + secret, "key ***"},
		{"https://s3/x?a=1&X-Amz-Signature=" + secret + "&b=2", "https://s3/x?a=1&X-Amz-Signature=***&b=2"},
		{"https://s/v1/x?temp_url_sig=" + secret, "https://s/v1/x?temp_url_sig=***"},
		{`{"password": "` + secret + `", "x": 1}`, `{"password": "***", "x": 1}`},
		{"-----BEGIN PRIVATE KEY-----\n" + secret + "\n-----END PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----***-----END PRIVATE KEY-----"},
		{"open pack sha256:ab12: unexpected EOF", "open pack sha256:ab12: unexpected EOF"},
	} {
		got := redact.String(tt.in)
		if got != tt.want {
			t.Errorf("String(%q)\n got %q\nwant %q", tt.in, got, tt.want)
		}
		if again := redact.String(got); again != got {
			t.Errorf("not idempotent: %q → %q", got, again)
		}
	}
}

func TestErrorKeepsItsKind(t *testing.T) {
	t.Parallel()
	err := redact.Error(&url.Error{Op: "Get", URL: "https://u:" + secret + "@h/", Err: fs.ErrNotExist})
	if strings.Contains(err.Error(), secret) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if redact.Error(nil) != nil {
		t.Error("nil became an error")
	}
	if plain := errors.New("plain"); redact.Error(plain) != plain {
		t.Error("a clean error was wrapped")
	}
}

func TestHandler(t *testing.T) {
	t.Parallel()
	var buf bytes.Buffer
	u, err := url.Parse("https://u:" + secret + "@h/")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(redact.Handler(slog.NewTextHandler(&buf, nil))).With("url", "https://u:"+secret+"@h/").WithGroup("g")
	log.Info("get https://u:"+secret+"@h/", "err", errors.New("Bearer "+secret), "u", u,
		slog.Group("h", "Authorization", "Authorization: Basic "+secret), "n", 7, "nil", nil,
		"list", []string{"https://u:" + secret + "@h/"})
	out := buf.String()
	if strings.Contains(out, secret) {
		t.Errorf("secret in log: %s", out)
	}
	for _, want := range []string{"g.n=7", "g.nil=<nil>", "g.h.Authorization"} {
		if !strings.Contains(out, want) {
			t.Errorf("%s missing in %s", want, out)
		}
	}
}

func FuzzString(f *testing.F) {
	f.Add("https://a:b@c/d?token=e")
	f.Add("Authorization: Basic abc AGE-SECRET-KEY-1ABC")
	f.Fuzz(func(t *testing.T, s string) {
		once := redact.String(s)
		if twice := redact.String(once); len(twice) > 2*len(once)+64 {
			t.Errorf("grows: %q → %q", once, twice)
		}
	})
}
