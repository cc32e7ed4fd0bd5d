package ocistore_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/store/ocistore"
)

func TestOpenURLs(t *testing.T) {
	t.Parallel()
	for url, insecure := range map[string]bool{
		"oci://registry.example.org/dr":         false,
		"oci://registry.example.org:5000/a/b/c": false,
		"oci://10.0.0.1/dr":                     false,
		"oci://[2001:db8::1]:5000/dr":           false,
		"oci+http://127.0.0.1:5000/dr":          false,
		"oci+http://localhost/dr":               false,
		"oci+http://[::1]:5000/dr":              false,
		"oci+http://10.0.0.1/dr":                true,
		"oci://docker.io/library/x":             false,
	} {
		if _, err := ocistore.Open(t.Context(), url, ocistore.Options{Insecure: insecure}); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
	for url, says := range map[string]string{
		"":                                "unknown scheme",
		"registry.example.org/dr":         "unknown scheme",
		"https://registry.example.org/dr": "unknown scheme",
		"oci://":                          "missing",
		"oci://host":                      "missing",
		"oci://host/":                     "missing",
		"oci:///dr":                       "missing",
		"oci://host/UPPER":                "not a registry's host and name",
		"oci://host/a//b":                 "not a registry's",
		"oci://host/../x":                 "not a registry's",
		"oci://host/dr:tag":               "tag or digest",
		"oci://host/dr@sha256:" + strings.Repeat("a", 64): "tag or digest",
		"oci://alice:s3cret@host/dr":                      "credentials do not belong",
		"oci://host/dr?password=s3cret":                   "no query",
		"oci://host/dr#x":                                 "no query",
		"oci+http://10.0.0.1/dr":                          "--insecure",
		"oci+http://registry.example.org/x":               "--insecure",
		"oci+http://127.0.0.1.example.org/x":              "--insecure",
		"oci://ho st/dr":                                  "not a URL",
		"oci://alice:s3cret%@host/dr":                     "not a URL",
	} {
		_, err := ocistore.Open(t.Context(), url, ocistore.Options{})
		if !errors.Is(err, dr.ErrUsage) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want it to say %q", url, err, says)
		}
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("credential in the error: %v", err)
		}
	}
}

func TestOpenOptions(t *testing.T) {
	t.Parallel()
	junk := filepath.Join(t.TempDir(), "junk.pem")
	if err := os.WriteFile(junk, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		url  string
		opts ocistore.Options
		says string
	}{
		"missing CA":         {"oci://h/dr", ocistore.Options{CAFile: junk + ".no"}, "no such file"},
		"junk CA":            {"oci://h/dr", ocistore.Options{CAFile: junk}, "no PEM certificate"},
		"short fingerprint":  {"oci://h/dr", ocistore.Options{Fingerprint: "sha256:abcd"}, "64 hexadecimal"},
		"other fingerprint":  {"oci://h/dr", ocistore.Options{Fingerprint: strings.Repeat("a", 64)}, "64 hexadecimal"},
		"fingerprint no TLS": {"oci+http://127.0.0.1/dr", ocistore.Options{Fingerprint: "sha256:" + strings.Repeat("a", 64)}, "no certificates"},
		"negative stall":     {"oci://h/dr", ocistore.Options{StallTimeout: -time.Second}, "negative"},
		"negative attempts":  {"oci://h/dr", ocistore.Options{Attempts: -1}, "negative"},
	} {
		_, err := ocistore.Open(t.Context(), c.url, c.opts)
		if !errors.Is(err, dr.ErrUsage) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
