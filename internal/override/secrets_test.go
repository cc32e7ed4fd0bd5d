package override_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"lifeboat/internal/dr"
	"lifeboat/internal/override"
)

func TestWithFiles(t *testing.T) {
	t.Parallel()
	var s override.Set
	for _, p := range []string{"environment.web.A=@/run/a", "environment.web.B=@@/run/b", "environment.web.C=@home", "environment.web.D", "environment.web.E=plain"} {
		if err := s.ParsePair(p); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.WithFiles(func(path string) (string, error) { return "<" + path + ">", nil })
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"A": "</run/a>", "B": "@/run/b", "C": "@home", "E": "plain"} {
		if v := got.Environment[override.Variable{Container: "web", Name: name}]; v == nil || *v != want {
			t.Errorf("%s: %v, want %s", name, v, want)
		}
	}
	if v, ok := got.Environment[override.Variable{Container: "web", Name: "D"}]; !ok || v != nil {
		t.Errorf("D: %v", v)
	}
	if v := s.Environment[override.Variable{Container: "web", Name: "A"}]; *v != "@/run/a" {
		t.Errorf("the set itself was changed: %s", *v)
	}
	_, err = s.WithFiles(func(string) (string, error) { return "", fmt.Errorf("gone: %w", dr.ErrNotFound) })
	if !errors.Is(err, dr.ErrNotFound) || !strings.Contains(err.Error(), "environment.web.A") {
		t.Error(err)
	}
	if _, err = s.WithFiles(func(string) (string, error) { return "a\x00b", nil }); !errors.Is(err, dr.ErrUsage) {
		t.Error(err)
	}
}
