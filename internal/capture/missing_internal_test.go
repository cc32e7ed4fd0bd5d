package capture

import (
	"slices"
	"testing"

	"lifeboat/internal/dr"
	"lifeboat/internal/site"
)

func TestMissing(t *testing.T) {
	before := &dr.Root{
		Containers: []dr.Container{{Name: "web"}, {Name: "db"}},
		Volumes:    []dr.Volume{{Name: "data"}, {Name: "f00d", Anonymous: true}, {Name: "share"}},
		Files:      []dr.ProjectFile{{Path: "/srv/shop/.env"}},
	}
	now := &dr.Root{
		Containers: []dr.Container{{Name: "web"}, {Name: "new"}},
		Volumes:    []dr.Volume{{Name: "data"}},
		Coverage:   []dr.CoverageItem{{Object: "volume:share", Reason: "is on NFS now"}},
	}
	gone := missing(before, now)
	if want := []string{"container:db", "file:/srv/shop/.env", "volume:share"}; !slices.Equal(gone, want) {
		t.Errorf("missing %v, want %v", gone, want)
	}
	noteMissing(now, gone, 7)
	var told []string
	for _, c := range now.Coverage {
		if c.Captured {
			t.Errorf("%s counts as captured", c.Object)
		}
		told = append(told, c.Object+": "+c.Reason)
	}
	want := []string{
		"volume:share: is on NFS now",
		"container:db: was in snapshot #7 and is not here any more",
		"file:/srv/shop/.env: was in snapshot #7 and is not here any more",
	}
	if !slices.Equal(told, want) {
		t.Errorf("coverage %q, want %q", told, want)
	}
	if gone := missing(before, before); len(gone) != 0 {
		t.Errorf("nothing changed, missing %v", gone)
	}
}

func TestOriginalFiles(t *testing.T) {
	b := &site.Bringup{Files: map[string]string{"/mnt/shop/compose.yaml": "/srv/shop/compose.yaml", "/mnt/shop/.env": "/srv/shop/.env"}}
	got := originalFiles([]dr.ProjectFile{
		{Path: "/mnt/shop/compose.yaml"},
		{Path: "/mnt/shop/more.env"}, // was added at this site
		{Path: "/opt/other.env"},
	}, b)
	want := []string{"/srv/shop/compose.yaml", "/srv/shop/more.env", "/opt/other.env"}
	for i, f := range got {
		if f.Path != want[i] {
			t.Errorf("%s, want %s", f.Path, want[i])
		}
	}
}
