package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/config"
	"lifeboat/internal/dr"
)

func fileOf(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lifeboat.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestAddSystemOfAnother: what another system has is told as that, and not as a
// file that cannot be edited.
func TestAddSystemOfAnother(t *testing.T) {
	t.Parallel()
	before := "systems:\n  odd:\n    containers: [odd-exited, odd-web]\n  shop:\n    project: shop\n"
	file := fileOf(t, before)
	for _, s := range []config.System{{Containers: []string{"new", "odd-exited"}}, {Project: "shop"}} {
		_, err := config.AddSystem(file, "one", s)
		if !errors.Is(err, dr.ErrHeld) || errors.Is(err, config.ErrCannotEdit) || !strings.Contains(err.Error(), " to system ") {
			t.Errorf("%+v: %v", s, err)
		}
	}
	if got := read(t, file); got != before {
		t.Errorf("the file was changed:\n%s", got)
	}
}

func TestAddExcludes(t *testing.T) {
	t.Parallel()
	both := []config.Exclude{{Kind: dr.TreeVolume, Name: "cache"}, {Kind: dr.TreeBind, Name: "/srv/tmp"}}
	for _, tt := range []struct{ name, before, after string }{
		{
			"a list is begun", "# mine\nsystems:\n    shop:\n        # the shop\n        project: shop # Compose\n        overrides:\n            ports: {\"80\": \"8080\"}\n    blog: {project: blog}\n",
			"# mine\nsystems:\n    shop:\n        # the shop\n        project: shop # Compose\n        exclude:\n            - volume:cache\n            - bind:/srv/tmp\n        overrides:\n            ports: {\"80\": \"8080\"}\n    blog: {project: blog}\n",
		},
		{
			"behind containers", "systems:\n  shop:\n    containers:\n      - aa\n      - bb\n",
			"systems:\n  shop:\n    containers:\n      - aa\n      - bb\n    exclude:\n      - volume:cache\n      - bind:/srv/tmp\n",
		},
		{
			"a list is added to", "systems:\n  shop:\n    project: shop\n    exclude:\n    - volume:cache # big\n    # end\nrepo: oci://h/n\n",
			"systems:\n  shop:\n    project: shop\n    exclude:\n    - volume:cache # big\n    - bind:/srv/tmp\n    # end\nrepo: oci://h/n\n",
		},
		{
			"nothing new", "systems: {shop: {project: shop, exclude: ['bind:/srv/tmp', 'volume:cache']}}\n",
			"systems: {shop: {project: shop, exclude: ['bind:/srv/tmp', 'volume:cache']}}\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			file := fileOf(t, tt.before)
			changed, err := config.AddExcludes(file, "shop", both)
			if err != nil || changed != (tt.before != tt.after) {
				t.Fatalf("%v, %v", changed, err)
			}
			if diff := cmp.Diff(tt.after, read(t, file)); diff != "" {
				t.Error(diff)
			}
		})
	}
	file := fileOf(t, "systems: {shop: {project: shop}}\n")
	if _, err := config.AddExcludes(file, "shop", both); !errors.Is(err, config.ErrCannotEdit) || !strings.Contains(err.Error(), "volume:cache") {
		t.Errorf("flow style: %v", err)
	}
	if _, err := config.AddExcludes(file, "blog", both); !errors.Is(err, dr.ErrNotFound) {
		t.Errorf("another system: %v", err)
	}
}
