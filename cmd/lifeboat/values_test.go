package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"lifeboat/internal/dr"
)

// TestReadValue: a value is read as it was written, from a file that nobody
// else can read.
func TestReadValue(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for text, want := range map[string]string{"secret\n": "secret", "secret\r\n": "secret", " two\nlines \n": " two\nlines ", "plain": "plain"} {
		file := filepath.Join(dir, "v")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := readValue(file); err != nil || got != want {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	open := filepath.Join(dir, "open")
	if err := os.WriteFile(open, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readValue(open); !errors.Is(err, dr.ErrUsage) {
		t.Errorf("a file that others can read: %v", err)
	}
	if _, err := readValue(filepath.Join(dir, "none")); !errors.Is(err, dr.ErrNotFound) {
		t.Error(err)
	}
}
