package engine

import (
	"errors"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"

	"lifeboat/internal/dr"
)

// TestChooseNamesAllThatAreMissing: whoever has two names wrong is told once.
func TestChooseNamesAllThatAreMissing(t *testing.T) {
	t.Parallel()
	all := []container.Summary{{ID: "aaaa", Names: []string{"/web"}}}
	_, err := choose(all, Selector{Containers: []string{"wbe", "web", "db"}})
	if !errors.Is(err, dr.ErrNotFound) || !strings.Contains(err.Error(), `"wbe"`) || !strings.Contains(err.Error(), `"db"`) || !strings.Contains(err.Error(), `did you mean "web"?`) {
		t.Error(err)
	}
}

// TestPartOfCoverage: a note alone makes nothing partial.
func TestPartOfCoverage(t *testing.T) {
	t.Parallel()
	d := &discovery{sys: &System{}}
	d.part("volume:a", []string{""}, "anonymous")
	d.part("volume:b", []string{"", "holes"}, "anonymous")
	d.part("layer:c", []string{""})
	for i, want := range []dr.CoverageItem{
		{Object: "volume:a", Captured: true, Reason: "anonymous", Bytes: -1},
		{Object: "volume:b", Captured: true, Partial: true, Reason: "holes; anonymous", Bytes: -1},
		{Object: "layer:c", Captured: true, Bytes: -1},
	} {
		if got := d.sys.Coverage[i]; got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
}

func TestGivenNames(t *testing.T) {
	t.Parallel()
	got := given([]string{"lifeboat-restored:0123", "shop/web:1", "lifeboat-restored@sha256:ab", "lifeboat-restored-not:1"})
	if len(got) != 2 || got[0] != "shop/web:1" || got[1] != "lifeboat-restored-not:1" {
		t.Errorf("%q", got)
	}
}
