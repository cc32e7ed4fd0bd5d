package systems

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"lifeboat/lab"
	"lifeboat/lab/treecmp"
)

// Place is where a tree of a system is on the machine.
type Place struct {
	Path   string
	Merged bool // the container's view of its whole file system, not the upper directory alone
}

// View chooses what stands for a container's writable layer.
type View int

// Views of a writable layer.
const (
	// Upper is the upper directory of the overlay2 driver, with its whiteouts.
	Upper View = iota
	// Merged is what the running container sees, image and all; stopped ones are left out. It compares
	// sites with different engines.
	Merged
)

type inspected struct {
	State       struct{ Pid int }
	Config      struct{ Labels map[string]string }
	GraphDriver struct{ Data map[string]string }
	Mounts      []struct{ Type, Name, Source, Destination string }
}

// Places finds the trees of the system at the site: "layer SERVICE", "volume NAME" (for anonymous ones
// "volume SERVICE:DESTINATION"), "bind SOURCE". Volumes of type tmpfs and bind mounts of single files are there too.
func (s *System) Places(ctx context.Context, site *lab.Site, view View) (map[string]Place, error) {
	out, err := site.Docker(ctx, "ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project="+s.Project)
	if err != nil {
		return nil, err
	}
	ids := strings.Fields(string(out))
	if len(ids) == 0 {
		return nil, fmt.Errorf("site %s has no container of %s", site.Name, s.Project)
	}
	out, err = site.Docker(ctx, append([]string{"inspect"}, ids...)...)
	if err != nil {
		return nil, err
	}
	var all []inspected
	if err := json.Unmarshal(out, &all); err != nil {
		return nil, fmt.Errorf("inspect containers of %s: %w", s.Project, err)
	}
	places := map[string]Place{}
	for _, c := range all {
		service := c.Config.Labels["com.docker.compose.service"]
		switch upper := c.GraphDriver.Data["UpperDir"]; {
		case view == Merged && c.State.Pid > 0:
			places["layer "+service] = Place{fmt.Sprintf("/proc/%d/root", c.State.Pid), true}
		case view == Merged:
		case upper == "":
			return nil, fmt.Errorf("the engine of %s does not name upper directories; compare with Merged", site.Name)
		default:
			places["layer "+service] = Place{Path: upper}
		}
		for _, m := range c.Mounts {
			switch {
			case m.Type == "volume" && anonymous(m.Name):
				places["volume "+service+":"+m.Destination] = Place{Path: m.Source}
			case m.Type == "volume":
				places["volume "+m.Name] = Place{Path: m.Source}
			case m.Type == "bind":
				places["bind "+strings.TrimPrefix(m.Source, site.Disk)] = Place{Path: m.Source}
			}
		}
	}
	return places, nil
}

func anonymous(name string) bool {
	return len(name) == 64 && strings.Trim(name, "0123456789abcdef") == ""
}

// Fingerprints takes those of all trees at Places. The system should not write meanwhile: stop or pause
// it, or compare what does not change.
func (s *System) Fingerprints(ctx context.Context, site *lab.Site, view View) (map[string]treecmp.Tree, error) {
	places, err := s.Places(ctx, site, view)
	if err != nil {
		return nil, err
	}
	trees := map[string]treecmp.Tree{}
	for name, p := range places {
		if trees[name], err = treecmp.Fingerprint(p.Path, treecmp.Options{OneMount: p.Merged}); err != nil {
			return nil, fmt.Errorf("%s of %s: %w", name, s.Project, err)
		}
	}
	return trees, nil
}

// CompareTrees reports differences between all trees of two sites, prefixed with the tree's name.
func CompareTrees(want, got map[string]treecmp.Tree, rules treecmp.Rules) string {
	var b strings.Builder
	for name, w := range want {
		g, ok := got[name]
		if !ok {
			fmt.Fprintf(&b, "%s is missing\n", name)
			continue
		}
		if r := treecmp.Report(treecmp.Compare(w, g, rules), 20); r != "" {
			fmt.Fprintf(&b, "%s differs:\n%s", name, r)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			fmt.Fprintf(&b, "%s is unexpected\n", name)
		}
	}
	return b.String()
}

// SaveTrees writes fingerprints below dir, to be compared when their site is gone.
func SaveTrees(dir string, trees map[string]treecmp.Tree) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("save fingerprints: %w", err)
	}
	names := map[string]string{}
	for name, t := range trees {
		file := fmt.Sprintf("%d.json", len(names))
		names[file] = name
		if err := t.Save(filepath.Join(dir, file)); err != nil {
			return err
		}
	}
	data, err := json.Marshal(names)
	if err != nil {
		return fmt.Errorf("save fingerprints: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "names"), data, 0o600); err != nil {
		return fmt.Errorf("save fingerprints: %w", err)
	}
	return nil
}

// LoadTrees reads what SaveTrees wrote.
func LoadTrees(dir string) (map[string]treecmp.Tree, error) {
	data, err := os.ReadFile(filepath.Join(dir, "names"))
	if err != nil {
		return nil, fmt.Errorf("load fingerprints: %w", err)
	}
	var names map[string]string
	if err := json.Unmarshal(data, &names); err != nil {
		return nil, fmt.Errorf("load fingerprints: %w", err)
	}
	trees := map[string]treecmp.Tree{}
	var errs []error
	for file, name := range names {
		if trees[name], err = treecmp.Load(filepath.Join(dir, file)); err != nil {
			errs = append(errs, err)
		}
	}
	return trees, errors.Join(errs...)
}
