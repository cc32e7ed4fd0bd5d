package compose

import (
	"path/filepath"
	"strings"

	"github.com/compose-spec/compose-go/v2/template"
	"github.com/compose-spec/compose-go/v2/types"
	"go.yaml.in/yaml/v3"
)

// maxDepth bounds how deep files refer to each other.
const maxDepth = 16

// references is what one Compose file says about other Compose files. The
// library's loader resolves them but does not tell which files it read.
type references struct {
	Include  []includeRef `yaml:"include"`
	Services map[string]struct {
		Extends yaml.Node `yaml:"extends"`
	} `yaml:"services"`
}

type includeRef struct {
	Path             stringList `yaml:"path"`
	EnvFile          stringList `yaml:"env_file"`
	ProjectDirectory string     `yaml:"project_directory"`
}

// UnmarshalYAML takes the short form, a bare path, too.
func (r *includeRef) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		r.Path = stringList{n.Value}
		return nil
	}
	type plain includeRef
	return n.Decode((*plain)(r))
}

// stringList is one string or a list of them.
type stringList []string

func (l *stringList) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		*l = stringList{n.Value}
		return nil
	}
	return n.Decode((*[]string)(l))
}

// composeFile notes a Compose file and those that it includes or extends.
func (f *finder) composeFile(name string, env types.Mapping, depth int) {
	if _, seen := f.files[filepath.Clean(name)]; seen || depth > maxDepth {
		return
	}
	p, ok := f.add(RoleCompose, name)
	if !ok {
		return
	}
	b, err := readBounded(p)
	if err != nil {
		f.warn("Compose file %s: %v", name, err)
		return
	}
	var refs references
	if err := yaml.Unmarshal(b, &refs); err != nil {
		f.warn("Compose file %s: %v", name, err)
		return
	}
	dir := filepath.Dir(name)
	for _, inc := range refs.Include {
		for _, p := range inc.Path {
			if p, ok := absolute(p, dir, env); ok {
				f.composeFile(p, env, depth+1)
			}
		}
		for _, p := range inc.EnvFile {
			if p, ok := absolute(p, dir, env); ok && p != "/dev/null" {
				f.add(RoleEnv, p)
			}
		}
	}
	for _, s := range refs.Services {
		var ext struct {
			File string `yaml:"file"`
		}
		if s.Extends.Kind != yaml.MappingNode || s.Extends.Decode(&ext) != nil || ext.File == "" {
			continue
		}
		if p, ok := absolute(ext.File, dir, env); ok {
			f.composeFile(p, env, depth+1)
		}
	}
}

// absolute interpolates a path and makes it absolute; remote references are not files.
func absolute(p, dir string, env types.Mapping) (string, bool) {
	var err error
	quietly(func() {
		p, err = template.Substitute(p, func(k string) (string, bool) { v, ok := env[k]; return v, ok })
	})
	if err != nil || p == "" || strings.Contains(p, "://") {
		return "", false
	}
	if !filepath.IsAbs(p) {
		p = filepath.Join(dir, p)
	}
	return filepath.Clean(p), true
}

// referenced notes the files that services read: environment and label files,
// and the sources of secrets and configs. A missing one that is optional is no
// matter for a warning.
func (f *finder) referenced(p *types.Project, path PathFunc) {
	back := func(s string) (string, bool) {
		if !filepath.IsAbs(s) {
			return "", false
		}
		return unprefix(s, path), true
	}
	for _, s := range p.AllServices() {
		for _, e := range s.EnvFiles {
			name, ok := back(e.Path)
			if !ok {
				continue
			}
			if _, err := path(name); err != nil && !bool(e.Required) {
				continue
			}
			f.add(RoleEnv, name)
		}
		for _, l := range s.LabelFiles {
			if name, ok := back(l); ok {
				f.add(RoleOther, name)
			}
		}
	}
	for _, s := range p.Secrets {
		if name, ok := back(s.File); ok {
			f.add(RoleOther, name)
		}
	}
	for _, c := range p.Configs {
		if name, ok := back(c.File); ok {
			f.add(RoleOther, name)
		}
	}
}

// unprefix undoes the mapping of PathFunc for a path that the loader made from
// the working directory. The mapping puts one prefix before every path, which
// is what the root maps to.
func unprefix(s string, path PathFunc) string {
	root, err := path("/")
	if err != nil || root == "/" {
		return s
	}
	if rest, ok := strings.CutPrefix(s, strings.TrimSuffix(root, "/")+"/"); ok {
		return "/" + rest
	}
	return s
}
