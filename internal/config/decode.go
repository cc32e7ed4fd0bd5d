package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"lifeboat/internal/dr"
	"lifeboat/internal/override"
	"lifeboat/internal/quantity"
	"lifeboat/internal/retain"
	"lifeboat/internal/suggest"
)

// Parse decodes the text of a configuration file; file is its name, for
// messages and as base of relative paths. Mistakes give a *Problems.
func Parse(file string, text []byte) (*Config, error) {
	d := &decoder{problems: &Problems{File: file}, dir: filepath.Dir(file)}
	c := Default()
	c.Path = file
	if root := d.document(text); root != nil {
		d.file(c, root)
	}
	if len(d.problems.List) > 0 {
		d.problems.sort()
		return nil, d.problems
	}
	return c, nil
}

// decoder walks the nodes of the file and collects problems. Each method reads
// one kind of value and leaves the target as it is when there is a problem.
type decoder struct {
	problems *Problems
	dir      string
}

func (d *decoder) fail(path string, n *yaml.Node, format string, args ...any) {
	line := 0
	if n != nil {
		line = n.Line
	}
	d.problems.List = append(d.problems.List, Problem{path, line, fmt.Sprintf(format, args...)})
}

var yamlLineRE = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?(.*)$`)

// document parses the text; nil for an empty one or one that is no YAML.
func (d *decoder) document(text []byte) *yaml.Node {
	if i := bytes.IndexByte(text, 0); i >= 0 {
		d.problems.List = append(d.problems.List, Problem{"", 1 + bytes.Count(text[:i], []byte("\n")), "there is a NUL byte; this is no text file"})
		return nil
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc, second yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		if err = dec.Decode(&second); errors.Is(err, io.EOF) {
			err = nil
		} else if err == nil {
			d.fail("", &second, "a second document begins here; the file holds one")
			return nil
		}
	}
	if err != nil {
		m := yamlLineRE.FindStringSubmatch(strings.SplitN(err.Error(), "\n", 2)[0])
		line, err := strconv.Atoi(m[1])
		if err != nil {
			line = 1 // the parser does not name the first line
		}
		d.problems.List = append(d.problems.List, Problem{"", line, "not YAML: " + m[2]})
		return nil
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) == 0 {
		return nil
	}
	return doc.Content[0]
}

// field decodes the value of one key.
type field func(path string, n *yaml.Node)

func (d *decoder) file(c *Config, root *yaml.Node) {
	d.fields("", root, map[string]field{
		"repo":          func(p string, n *yaml.Node) { d.checked(&c.Repo, p, n, CheckRepo) },
		"site":          func(p string, n *yaml.Node) { parsed(d, &c.Site, p, n, dr.ParseSite) },
		"state_dir":     func(p string, n *yaml.Node) { d.path(&c.StateDir, p, n) },
		"key_file":      func(p string, n *yaml.Node) { d.path(&c.KeyFile, p, n) },
		"registry":      func(p string, n *yaml.Node) { d.registry(&c.Registry, p, n) },
		"mirrors":       func(p string, n *yaml.Node) { d.mirrors(c, p, n) },
		"engine":        func(p string, n *yaml.Node) { d.fields(p, n, map[string]field{"host": d.engine(&c.Engine.Host)}) },
		"sites":         func(p string, n *yaml.Node) { d.sites(c, p, n) },
		"freeze_max":    func(p string, n *yaml.Node) { d.duration(&c.FreezeMax, p, n, MinFreezeMax, MaxFreezeMax) },
		"secure_buffer": func(p string, n *yaml.Node) { d.secureBuffer(&c.SecureBuffer, p, n) },
		"limits": func(p string, n *yaml.Node) {
			d.fields(p, n, map[string]field{
				"upload":   func(p string, n *yaml.Node) { parsed(d, &c.Limits.Upload, p, n, quantity.ParseRate) },
				"download": func(p string, n *yaml.Node) { parsed(d, &c.Limits.Download, p, n, quantity.ParseRate) },
			})
		},
		"keep":    func(p string, n *yaml.Node) { d.keep(&c.Keep, p, n) },
		"systems": func(p string, n *yaml.Node) { d.systems(c, p, n) },
	})
}

func (d *decoder) registry(r *Registry, path string, n *yaml.Node) {
	keys, check := d.registryKeys(r, path, n)
	d.fields(path, n, keys)
	check()
}

// registryKeys are those of a registry, and what is looked at after them.
func (d *decoder) registryKeys(r *Registry, path string, n *yaml.Node) (keys map[string]field, check func()) {
	fingerprint := regexp.MustCompile(`^sha256:[0-9a-fA-F]{64}$`)
	var user *yaml.Node
	keys = map[string]field{
		"ca_file": func(p string, n *yaml.Node) { d.path(&r.CAFile, p, n) },
		"fingerprint": func(p string, n *yaml.Node) {
			d.checked(&r.Fingerprint, p, n, func(s string) error {
				if !fingerprint.MatchString(s) {
					return fmt.Errorf("%q is not a fingerprint: want sha256: and 64 hexadecimal digits, as `lifeboat registry serve` prints it", s)
				}
				return nil
			})
		},
		"username":      func(p string, n *yaml.Node) { user = n; d.text(&r.Username, p, n) },
		"password_file": func(p string, n *yaml.Node) { d.path(&r.PasswordFile, p, n) },
		"stall_timeout": func(p string, n *yaml.Node) { d.duration(&r.StallTimeout, p, n, MinStallTimeout, MaxStallTimeout) },
	}
	return keys, func() {
		switch {
		case r.Username != "" && r.PasswordFile == "":
			d.fail(joinPath(path, "username"), user, "there is no password_file beside it; without both, credentials come from Docker's store")
		case r.Username == "" && r.PasswordFile != "":
			d.fail(joinPath(path, "password_file"), n, "there is no username beside it")
		}
	}
}

// mirrors reads the registries that hold exact copies.
func (d *decoder) mirrors(c *Config, path string, n *yaml.Node) {
	d.list(path, n, func(p string, n *yaml.Node) {
		var m Mirror
		keys, check := d.registryKeys(&m.Registry, p, n)
		keys["repo"] = func(p string, n *yaml.Node) { d.checked(&m.Repo, p, n, CheckRepo) }
		d.fields(p, n, keys)
		check()
		switch {
		case m.Repo == "" && n.Kind == yaml.MappingNode && !has(n, "repo"):
			d.fail(p, n, "there is no repo; say where the copy is, such as oci://registry.example.com/dr")
		case m.Repo != "" && slices.ContainsFunc(c.Mirrors, func(o Mirror) bool { return o.Repo == m.Repo }):
			d.fail(p, n, "%s is in the list already", m.Repo)
		case len(c.Mirrors) == MaxMirrors:
			d.fail(p, n, "more than %d mirrors", MaxMirrors)
		}
		c.Mirrors = append(c.Mirrors, m)
	})
}

func (d *decoder) sites(c *Config, path string, n *yaml.Node) {
	d.mapping(path, n, func(p string, key, value *yaml.Node) {
		name, err := dr.ParseSite(key.Value)
		if err != nil {
			d.fail(p, key, "%s", plainText(err))
			return
		}
		var s Site
		d.fields(p, value, map[string]field{"engine": d.engine(&s.Engine)})
		if s.Engine == "" && value.Kind == yaml.MappingNode && !has(value, "engine") {
			d.fail(p, key, "there is no engine; a site needs one, such as ssh://root@host or unix:///run/docker.sock")
		}
		c.Sites[name] = s
	})
}

func (d *decoder) systems(c *Config, path string, n *yaml.Node) {
	projects, containers := map[string]string{}, map[string]string{}
	d.mapping(path, n, func(p string, key, value *yaml.Node) {
		name, err := dr.ParseSystem(key.Value)
		if err != nil {
			d.fail(p, key, "%s", plainText(err))
			return
		}
		s := d.system(p, key, value)
		c.Systems[name] = s
		d.claim(projects, s.Project, "project", p, key)
		for _, ct := range s.Containers {
			d.claim(containers, ct, "container", p, key)
		}
	})
}

// claim finds what two systems protect: one freeze would stop the other's.
func (d *decoder) claim(held map[string]string, name, what, path string, n *yaml.Node) {
	if name == "" {
		return
	}
	if other, ok := held[name]; ok && other != path {
		d.fail(path, n, "%s %q belongs to %s already; one system holds it", what, name, other)
	}
	held[name] = path
}

func (d *decoder) system(path string, key, n *yaml.Node) System {
	var s System
	d.fields(path, n, map[string]field{
		"project": func(p string, n *yaml.Node) {
			d.checked(&s.Project, p, n, func(v string) error {
				if !regexp.MustCompile(`^[a-z0-9][a-z0-9_-]*$`).MatchString(v) {
					return fmt.Errorf("%q is not a project name: Compose allows a-z, 0-9, _ and -", v)
				}
				return nil
			})
		},
		"containers": func(p string, n *yaml.Node) {
			d.list(p, n, func(p string, n *yaml.Node) {
				var name string
				d.checked(&name, p, n, func(v string) error {
					switch {
					case !regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`).MatchString(v):
						return fmt.Errorf("%q is not a container name", v)
					case slices.Contains(s.Containers, v):
						return fmt.Errorf("%q is in the list already", v)
					}
					return nil
				})
				s.Containers = appendText(s.Containers, name)
			})
		},
		"exclude": func(p string, n *yaml.Node) {
			d.list(p, n, func(p string, n *yaml.Node) {
				var e Exclude
				if parsed(d, &e, p, n, ParseExclude) {
					s.Exclude = append(s.Exclude, e)
				}
			})
		},
		"overrides": func(p string, n *yaml.Node) { d.overrides(&s.Overrides, p, n) },
		"keep":      func(p string, n *yaml.Node) { d.keep(&s.Keep, p, n) },
	})
	if n.Kind == yaml.MappingNode || isNull(n) {
		switch {
		case has(n, "project") && has(n, "containers"):
			d.fail(path, key, "there are both project and containers; a system is one or the other")
		case !has(n, "project") && !has(n, "containers"):
			d.fail(path, key, "there is neither project nor containers; say what belongs to the system")
		case has(n, "containers") && len(s.Containers) == 0 && !d.failedBelow(path):
			d.fail(path, key, "containers is empty")
		}
	}
	return s
}

// keep reads a policy. One that is given keeps something: an empty one would be
// taken for none, and what is meant for none is leaving it out.
func (d *decoder) keep(k *retain.Policy, path string, n *yaml.Node) {
	count := func(target *int) field {
		return func(p string, n *yaml.Node) { parsed(d, target, p, n, retain.ParseCount) }
	}
	d.fields(path, n, map[string]field{
		"last": count(&k.Last), "hourly": count(&k.Hourly), "daily": count(&k.Daily), "weekly": count(&k.Weekly),
		"monthly": count(&k.Monthly), "yearly": count(&k.Yearly),
		"within": func(p string, n *yaml.Node) { parsed(d, &k.Within, p, n, retain.ParseSpan) },
	})
	if k.Empty() && !d.failedBelow(path) {
		d.fail(path, n, "keeps nothing; say how many snapshots stay, such as {last: 3, daily: 7}, or leave it out")
	}
}

func (d *decoder) failedBelow(path string) bool {
	return slices.ContainsFunc(d.problems.List, func(p Problem) bool { return strings.HasPrefix(p.Path, path) })
}

func appendText(list []string, s string) []string {
	if s == "" {
		return list
	}
	return append(list, s)
}

// overrides hands each leaf to the override grammar, which the command line
// uses too.
func (d *decoder) overrides(s *override.Set, path string, n *yaml.Node) {
	sections := map[string]field{}
	for _, section := range override.Sections() {
		sections[section] = func(p string, n *yaml.Node) {
			d.override(s, p, n, []string{section}, override.SectionDepth(section))
		}
	}
	d.fields(path, n, sections)
}

// override walks depth levels of mappings down to the values.
func (d *decoder) override(s *override.Set, path string, n *yaml.Node, names []string, depth int) {
	short := names[0] == "names" && len(names) == 2 && n.Kind != yaml.MappingNode // names.prefix, names.project
	if depth > 0 && !short {
		d.mapping(path, n, func(p string, key, value *yaml.Node) {
			d.override(s, p, resolve(value), append(slices.Clone(names), key.Value), depth-1)
		})
		return
	}
	var value *string
	switch {
	case isNull(n):
	case n.Kind == yaml.ScalarNode:
		value = &n.Value
	case n.Kind == yaml.SequenceNode && names[0] == "networks":
		var list []string
		for _, e := range n.Content {
			if e = resolve(e); e.Kind != yaml.ScalarNode {
				d.fail(path, e, "is %s; want a list of addresses", kindName(e))
				return
			}
			list = append(list, e.Value)
		}
		joined := strings.Join(list, ", ")
		value = &joined
	default:
		d.fail(path, n, "is %s; want a value", kindName(n))
		return
	}
	if err := s.Put(names, value); err != nil {
		d.fail(path, n, "%s", plainText(err))
	}
}

// Generic readers.

// fields reads a mapping with known keys.
func (d *decoder) fields(path string, n *yaml.Node, known map[string]field) {
	d.mapping(path, n, func(p string, key, value *yaml.Node) {
		f, ok := known[key.Value]
		switch {
		case ok:
			f(p, value)
		case looksSecret(key.Value):
			d.fail(p, key, "secrets do not stand in the configuration, which others may read; put it into a file of mode 0600 and name that file (registry.password_file, key_file)")
		default:
			d.fail(p, key, "unknown key%s; known are %s", suggest.Hint(key.Value, keys(known)), strings.Join(keys(known), ", "))
		}
	})
}

func looksSecret(key string) bool {
	k := strings.ToLower(key)
	for _, word := range []string{"password", "passphrase", "secret", "token", "private_key"} {
		if strings.Contains(k, word) && !strings.HasSuffix(k, "_file") {
			return true
		}
	}
	return k == "key" || k == "identity"
}

// mapping calls f for each key, and finds keys given twice. Nothing (null) is
// an empty mapping.
func (d *decoder) mapping(path string, n *yaml.Node, f func(path string, key, value *yaml.Node)) {
	n = resolve(n)
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.fail(path, n, "is %s; want keys and values", kindName(n))
		return
	}
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := resolve(n.Content[i]), resolve(n.Content[i+1])
		switch {
		case key.Kind != yaml.ScalarNode:
			d.fail(path, key, "a key is %s; want a word", kindName(key))
			continue
		case key.ShortTag() == "!!merge":
			d.fail(joinPath(path, key.Value), n.Content[i], "merging (<<) is not supported here; write the keys out")
			continue
		}
		p := joinPath(path, key.Value)
		if line, twice := first[key.Value]; twice {
			d.fail(p, n.Content[i], "is given twice, first in line %d", line)
			continue
		}
		first[key.Value] = n.Content[i].Line
		// Aliases are told with the line where they are used.
		f(p, at(key, n.Content[i]), at(value, n.Content[i+1]))
	}
}

func (d *decoder) list(path string, n *yaml.Node, f func(path string, n *yaml.Node)) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.fail(path, n, "is %s; want a list", kindName(n))
		return
	}
	for i, e := range n.Content {
		f(fmt.Sprintf("%s[%d]", path, i), at(resolve(e), e))
	}
}

func (d *decoder) text(target *string, path string, n *yaml.Node) bool {
	switch {
	case isNull(n) || n.Kind == yaml.ScalarNode && n.Value == "":
		d.fail(path, n, "has no value")
	case n.Kind != yaml.ScalarNode:
		d.fail(path, n, "is %s; want text", kindName(n))
	case n.ShortTag() != "!!str":
		d.fail(path, n, "%s is %s; want text, so put it in quotes", n.Value, kindName(n))
	default:
		*target = n.Value
		return true
	}
	return false
}

func (d *decoder) checked(target *string, path string, n *yaml.Node, check func(string) error) {
	var s string
	if !d.text(&s, path, n) {
		return
	}
	if err := check(s); err != nil {
		d.fail(path, n, "%s", plainText(err))
		return
	}
	*target = s
}

// parsed reads a scalar by a parser. Numbers pass as they are written, so that
// "0" needs no quotes.
func parsed[T any](d *decoder, target *T, path string, n *yaml.Node, parse func(string) (T, error)) bool {
	s := n.Value
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" && n.ShortTag() != "!!float" {
		if !d.text(&s, path, n) {
			return false
		}
	}
	v, err := parse(s)
	if err != nil {
		d.fail(path, n, "%s", plainText(err))
		return false
	}
	*target = v
	return true
}

func (d *decoder) path(target *string, path string, n *yaml.Node) {
	var s string
	if !d.text(&s, path, n) {
		return
	}
	if strings.HasPrefix(s, "~") {
		d.fail(path, n, "%q: ~ is not expanded here; write the path out", s)
		return
	}
	if !filepath.IsAbs(s) {
		s = filepath.Join(d.dir, s)
	}
	*target = filepath.Clean(s)
}

func (d *decoder) engine(target *string) field {
	return func(path string, n *yaml.Node) { d.checked(target, path, n, CheckEngine) }
}

func (d *decoder) duration(target *time.Duration, path string, n *yaml.Node, least, most time.Duration) {
	var v time.Duration
	if !parsed(d, &v, path, n, quantity.ParseDuration) {
		return
	}
	if v < least || v > most {
		d.fail(path, n, "%s is out of bounds: from %s to %s", v, least, most)
		return
	}
	*target = v
}

func (d *decoder) secureBuffer(target *int64, path string, n *yaml.Node) {
	var v int64
	if !parsed(d, &v, path, n, quantity.ParseSize) {
		return
	}
	if v < MinSecureBuffer || v > MaxSecureBuffer {
		d.fail(path, n, "%s is out of bounds: from %s to %s", quantity.ExactSize(v), quantity.ExactSize(MinSecureBuffer), quantity.ExactSize(MaxSecureBuffer))
		return
	}
	*target = v
}

// repoNameRE is the grammar of names in the OCI distribution specification.
var repoNameRE = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)

// CheckRepo checks the form of a repository's URL: oci://HOST[:PORT]/NAME or
// oci+http://HOST[:PORT]/NAME. Whether plain HTTP is allowed there is not
// decided here. The error wraps dr.ErrUsage and never shows a password.
func CheckRepo(s string) error {
	bad := func(why string) error {
		return fmt.Errorf("repository: %s; want oci://host[:port]/name, or oci+http:// for plain HTTP on loopback: %w", why, dr.ErrUsage)
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return bad("it is not a URL")
	case u.Scheme != "oci" && u.Scheme != "oci+http":
		return bad(fmt.Sprintf("the scheme is %q", u.Scheme))
	case u.User != nil:
		return bad("it holds a user name or password; these come from Docker's credential store or registry.password_file")
	case u.Hostname() == "":
		return bad("there is no host")
	case u.RawQuery != "" || u.Fragment != "" || u.Opaque != "":
		return bad("there is something after the name")
	case !repoNameRE.MatchString(strings.TrimPrefix(u.Path, "/")):
		return bad(fmt.Sprintf("the name %q is none that registries allow (a-z, 0-9, separated by . _ - /)", strings.TrimPrefix(u.Path, "/")))
	case len(u.Path) > 200:
		return bad("the name is longer than 200 characters")
	}
	return nil
}

// CheckEngine checks the form of an engine's address: unix:///path,
// ssh://[user@]host[:port] or tcp://host:port. The error wraps dr.ErrUsage.
func CheckEngine(s string) error {
	bad := func(why string) error {
		return fmt.Errorf("engine: %s; want unix:///run/docker.sock, ssh://user@host or tcp://host:port: %w", why, dr.ErrUsage)
	}
	u, err := url.Parse(s)
	if err != nil {
		return bad("it is not a URL")
	}
	if _, secret := u.User.Password(); secret {
		return bad("it holds a password; ssh takes keys from its agent or configuration")
	}
	switch u.Scheme {
	case "unix":
		if u.Host != "" || !filepath.IsAbs(u.Path) {
			return bad("unix:// is followed by an absolute path")
		}
	case "ssh":
		if u.Hostname() == "" || strings.HasPrefix(u.Hostname(), "-") || strings.HasPrefix(u.User.Username(), "-") {
			return bad("there is no host")
		}
	case "tcp":
		if u.Hostname() == "" || u.Port() == "" {
			return bad("tcp:// is followed by host and port")
		}
	default:
		return bad(fmt.Sprintf("the scheme is %q", u.Scheme))
	}
	if ip := u.Hostname(); strings.Contains(ip, ":") {
		if _, err := netip.ParseAddr(ip); err != nil {
			return bad("the host is no address")
		}
	}
	return nil
}

// Nodes.

// resolve follows an alias; the parser has refused those that lead nowhere.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode && n.Alias != nil {
		return n.Alias
	}
	return n
}

// at is n as it stands at the place of where.
func at(n, where *yaml.Node) *yaml.Node {
	if n == where {
		return n
	}
	moved := *n
	moved.Line, moved.Column = where.Line, where.Column
	return &moved
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

func has(n *yaml.Node, key string) bool {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if resolve(n.Content[i]).Value == key {
			return true
		}
	}
	return false
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	switch n.ShortTag() {
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	case "!!null":
		return "nothing"
	case "!!timestamp":
		return "a date"
	default:
		return "text"
	}
}

// plainText is an error without the names of its kinds at its end: a problem
// says where it is, and all problems are usage errors.
func plainText(err error) string {
	s := err.Error()
	for _, kind := range []error{dr.ErrUsage, quantity.ErrSyntax, override.ErrSyntax} {
		s = strings.TrimSuffix(s, ": "+kind.Error())
	}
	return s
}
