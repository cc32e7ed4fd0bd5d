package override

import (
	"fmt"
	"math"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"lifeboat/internal/quantity"
	"lifeboat/internal/suggest"
)

// Grammar. An override is a path of names and a value. In the configuration
// file the path is the nesting of mappings; on the command line the names are
// joined by dots:
//
//	ports.[CONTAINER/][[HOSTIP:][HOSTPORT]:]PORT[/PROTO] = [HOSTIP:]HOSTPORT | HOSTIP | auto | none
//	ports.[CONTAINER/]HOSTPORT[/PROTO] = …
//	paths./captured/path = /path/here
//	environment.CONTAINER.NAME = value                 (no value: removed)
//	networks.NAME.name | existing | subnet | gateway = …
//	limits.CONTAINER.memory | cpus | pids | cpuset = … (none: lifted)
//	names.prefix | project = …   names.containers.NAME | volumes.NAME = …
//
// CONTAINER is a container name, a service name, or * for all. On the command
// line a name that has dots itself may be put in double quotes. A name that is
// the last of its path needs none.

// refusal is an error with its own text whose kind is told by errors.Is, so that
// the kinds do not pile up at the end of what people read.
type refusal struct {
	error
	kind error
}

func (r refusal) Unwrap() []error { return []error{r.error, r.kind} }

func syntaxf(format string, args ...any) error {
	return refusal{fmt.Errorf(format, args...), ErrSyntax}
}

// Sections lists the first names of override paths.
func Sections() []string {
	return []string{"ports", "paths", "environment", "networks", "limits", "names"}
}

// SectionDepth says how many names follow the section's before the value
// stands; 0 for an unknown section. Of names, prefix and project have one,
// containers and volumes have two.
func SectionDepth(section string) int {
	switch section {
	case "ports", "paths":
		return 1
	case "environment", "networks", "limits":
		return 2
	case "names":
		return 2
	default:
		return 0
	}
}

// Pair is one override in the grammar: its path and value, nil for none.
type Pair struct {
	Path  []string
	Value *string
}

// ParsePair puts an override in the form of the command line, KEY=VALUE or KEY
// alone, into the set. The error wraps ErrSyntax.
func (s *Set) ParsePair(text string) error {
	key, rest, err := splitKey(text)
	if err != nil {
		return fmt.Errorf("override %q: %w", text, err)
	}
	if err := s.Put(key, rest); err != nil {
		return fmt.Errorf("override %q: %w", text, err)
	}
	return nil
}

// splitKey cuts KEY=VALUE into the names of the key and the value. How many
// names there are, and which one takes the dots that are not quoted, follows
// from the section.
func splitKey(text string) ([]string, *string, error) {
	var names []string
	var cur strings.Builder
	var value *string
	quoted := false
	// dots are where unquoted dots stand: their place in the plain text of the key.
	plain, dots := "", []int(nil)
loop:
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			quoted = !quoted
		case c == '=' && !quoted:
			v := text[i+1:]
			value = &v
			break loop
		case c == '.' && !quoted:
			dots = append(dots, cur.Len())
			cur.WriteByte(c)
		default:
			cur.WriteByte(c)
		}
	}
	if quoted {
		return nil, nil, syntaxf("a double quote is not closed")
	}
	plain = cur.String()
	cut := func(at int) { // cuts the first name off at the unquoted dot number at
		names = append(names, plain[:dots[at]])
		n := dots[at] + 1
		plain = plain[n:]
		dots = slices.Clone(dots[at+1:])
		for i := range dots {
			dots[i] -= n
		}
	}
	if len(dots) > 0 {
		cut(0)
		switch names[0] {
		case "environment":
			if len(dots) > 0 {
				cut(0)
			}
		case "networks", "limits":
			if len(dots) > 0 {
				cut(len(dots) - 1)
			}
		case "names":
			if len(dots) > 0 && (plain[:dots[0]] == "containers" || plain[:dots[0]] == "volumes") {
				cut(0)
			}
		}
	}
	return append(names, plain), value, nil
}

// Put puts one override into the set. A nil value means "none". The error
// wraps ErrSyntax and speaks of what follows the section, not of the section.
func (s *Set) Put(path []string, value *string) error {
	if len(path) == 0 || !slices.Contains(Sections(), path[0]) {
		name, first := strings.Join(path, "."), ""
		if len(path) > 0 {
			first = path[0]
		}
		return syntaxf("unknown override %q%s, want one of %s", name, suggest.Hint(first, Sections()), strings.Join(Sections(), ", "))
	}
	section, rest := path[0], path[1:]
	if section == "names" && len(rest) == 1 {
		return s.putName(rest[0], value)
	}
	if len(rest) != SectionDepth(section) || slices.Contains(rest, "") {
		return syntaxf("%s.%s names too little or too much", section, strings.Join(rest, "."))
	}
	switch section {
	case "ports":
		return s.putPort(rest[0], value)
	case "paths":
		return s.putPath(rest[0], value)
	case "environment":
		return s.putVariable(Variable{rest[0], rest[1]}, value)
	case "networks":
		return s.putNetwork(rest[0], rest[1], value)
	case "limits":
		return s.putLimit(rest[0], rest[1], value)
	default:
		return s.putRename(rest[0], rest[1], value)
	}
}

func (s *Set) putPort(text string, value *string) error {
	key, err := parsePortKey(text)
	if err != nil {
		return err
	}
	target := PortTarget{None: true}
	if value != nil {
		if target, err = parsePortTarget(*value); err != nil {
			return err
		}
	}
	set(&s.Ports, key, target)
	return nil
}

func parsePortKey(text string) (PortKey, error) {
	bad := func(why string) (PortKey, error) {
		return PortKey{}, syntaxf("port %q: %s; write [CONTAINER/][[HOSTIP:]HOSTPORT:]PORT[/PROTO] or HOSTPORT alone, such as 8080, 8080:80/tcp, web/:80", text, why)
	}
	var k PortKey
	t := text
	if i := strings.IndexByte(t, '/'); i >= 0 {
		if head := t[:i]; !strings.Contains(head, ":") && !allDigits(head) {
			if head == "" {
				return bad("the container is missing")
			}
			k.Container, t = head, t[i+1:]
		} else if rest := t[i+1:]; strings.Contains(rest, "/") || strings.Contains(rest, ":") {
			// A container whose name is all digits.
			k.Container, t = head, rest
		}
	}
	if i := strings.LastIndexByte(t, '/'); i >= 0 {
		k.Proto = t[i+1:]
		t = t[:i]
		if k.Proto != "tcp" && k.Proto != "udp" && k.Proto != "sctp" {
			return bad("the protocol is none of tcp, udp, sctp")
		}
	}
	host, port, colon := cutLast(t, ':')
	if colon {
		n, err := parsePort(port)
		if err != nil {
			return bad(err.Error())
		}
		k.ContainerPort = n
	} else {
		host = t
	}
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		ip, err := netip.ParseAddr(strings.Trim(host[:i], "[]"))
		if err != nil {
			return bad("the host address is none")
		}
		k.HostIP, host = ip, host[i+1:]
	}
	if host != "" {
		n, err := parsePort(host)
		if err != nil {
			return bad(err.Error())
		}
		k.HostPort = n
	}
	if k.HostPort == 0 && k.ContainerPort == 0 {
		return bad("it names no port")
	}
	return k, nil
}

func parsePortTarget(v string) (PortTarget, error) {
	bad := syntaxf("%q is not where a port can be published; write 18080, 127.0.0.1:18080, an address alone, auto or none", v)
	switch v {
	case "none":
		return PortTarget{None: true}, nil
	case "auto":
		return PortTarget{Auto: true}, nil
	}
	if ip, err := netip.ParseAddr(strings.Trim(v, "[]")); err == nil {
		return PortTarget{HostIP: ip}, nil
	}
	var t PortTarget
	if i := strings.LastIndexByte(v, ':'); i >= 0 {
		ip, err := netip.ParseAddr(strings.Trim(v[:i], "[]"))
		if err != nil {
			return PortTarget{}, bad
		}
		t.HostIP, v = ip, v[i+1:]
	}
	if v == "auto" {
		t.Auto = true
		return t, nil
	}
	n, err := parsePort(v)
	if err != nil {
		return PortTarget{}, bad
	}
	t.HostPort = n
	return t, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port from 1 to 65535", s)
	}
	return uint16(n), nil
}

func (s *Set) putPath(from string, value *string) error {
	if value == nil {
		return syntaxf("path %q has no new path", from)
	}
	for _, p := range []string{from, *value} {
		if !path.IsAbs(p) || path.Clean(p) != p || strings.ContainsAny(p, "\x00") {
			return syntaxf("path %q is not absolute and clean", p)
		}
	}
	if from == "/" {
		return syntaxf("path \"/\" cannot be moved as a whole")
	}
	set(&s.Paths, from, *value)
	return nil
}

func (s *Set) putVariable(v Variable, value *string) error {
	if strings.ContainsAny(v.Name, "=\x00") {
		return syntaxf("variable %q has = or a NUL byte in its name", v.Name)
	}
	if value != nil {
		if strings.Contains(*value, "\x00") {
			return syntaxf("variable %q has a NUL byte in its value", v.Name)
		}
		c := *value
		value = &c
	}
	set(&s.Environment, v, value)
	return nil
}

// objectNameRE is the engine's grammar for names of containers and volumes.
var objectNameRE = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

func checkName(what, name string) error {
	if !objectNameRE.MatchString(name) {
		return syntaxf("%s name %q: want two or more of letters, digits, _ . -, starting with a letter or digit", what, name)
	}
	return nil
}

func (s *Set) putNetwork(name, field string, value *string) error {
	fields := []string{"name", "existing", "subnet", "gateway"}
	n := s.Networks[name]
	if !slices.Contains(fields, field) {
		return syntaxf("unknown field %q%s, want one of %s", field, suggest.Hint(field, fields), strings.Join(fields, ", "))
	}
	if value == nil {
		return syntaxf("%s of network %q has no value", field, name)
	}
	switch field {
	case "name", "existing":
		if *value == "" || strings.ContainsAny(*value, "/\x00") {
			return syntaxf("%q is not a network name", *value)
		}
		if field == "name" {
			n.Name = *value
		} else {
			n.Existing = *value
		}
	case "subnet":
		n.Subnets = nil
		for t := range strings.SplitSeq(*value, ",") {
			p, err := netip.ParsePrefix(strings.TrimSpace(t))
			if err != nil || p != p.Masked() {
				return syntaxf("%q is not a subnet such as 172.30.5.0/24", t)
			}
			n.Subnets = append(n.Subnets, p)
		}
	case "gateway":
		n.Gateways = nil
		for t := range strings.SplitSeq(*value, ",") {
			ip, err := netip.ParseAddr(strings.TrimSpace(t))
			if err != nil || ip.Zone() != "" {
				return syntaxf("%q is not an address", t)
			}
			n.Gateways = append(n.Gateways, ip)
		}
	}
	if n.Existing != "" && (n.Name != "" || n.Subnets != nil || n.Gateways != nil) {
		return syntaxf("network %q: a network that exists already takes no other name, subnet or gateway", name)
	}
	set(&s.Networks, name, n)
	return nil
}

var cpusetRE = regexp.MustCompile(`^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$`)

func (s *Set) putLimit(container, field string, value *string) error {
	fields := []string{"memory", "cpus", "pids", "cpuset"}
	lift := value == nil || *value == "none"
	l := s.Limits[container]
	switch field {
	case "memory":
		n := int64(0)
		if !lift {
			var err error
			if n, err = quantity.ParseMemory(*value); err != nil {
				return syntaxf("memory: %w", err)
			}
			if n < 6<<20 {
				return syntaxf("memory %q: engines want 6MiB at least", *value)
			}
		}
		l.Memory = &n
	case "cpus":
		n := int64(0)
		if !lift {
			v, err := strconv.ParseFloat(*value, 64)
			if err != nil || !(v >= 0.01 && v <= 4096) {
				return syntaxf("cpus %q is not a number of processors such as 1.5", *value)
			}
			n = int64(math.Round(v * 1e9))
		}
		l.NanoCPUs = &n
	case "pids":
		n := int64(0)
		if !lift {
			v, err := strconv.ParseInt(*value, 10, 64)
			if err != nil || v < 1 {
				return syntaxf("pids %q is not a number of processes", *value)
			}
			n = v
		}
		l.PIDs = &n
	case "cpuset":
		v := ""
		if !lift {
			if v = *value; !cpusetRE.MatchString(v) {
				return syntaxf("cpuset %q is not a list of processors such as 0-3,6", v)
			}
		}
		l.CPUSet = &v
	default:
		return syntaxf("unknown limit %q%s, want one of %s", field, suggest.Hint(field, fields), strings.Join(fields, ", "))
	}
	set(&s.Limits, container, l)
	return nil
}

var (
	prefixRE  = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]*$`)
	projectRE = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]*$`)
)

func (s *Set) putName(field string, value *string) error {
	fields := []string{"prefix", "project", "containers", "volumes"}
	if value == nil {
		return syntaxf("names.%s has no value", field)
	}
	switch field {
	case "prefix":
		if !prefixRE.MatchString(*value) {
			return syntaxf("prefix %q: want a-z, 0-9, _ and -, starting with a letter or digit", *value)
		}
		s.Names.Prefix = *value
	case "project":
		if !projectRE.MatchString(*value) {
			return syntaxf("project name %q: want a-z, 0-9, _ and -, starting with a letter or digit", *value)
		}
		s.Names.Project = *value
	default:
		return syntaxf("unknown field %q%s, want one of %s", field, suggest.Hint(field, fields), strings.Join(fields, ", "))
	}
	return nil
}

func (s *Set) putRename(kind, from string, value *string) error {
	if value == nil {
		return syntaxf("%s has no new name", from)
	}
	switch kind {
	case "containers":
		if err := checkName("container", *value); err != nil {
			return err
		}
		set(&s.Names.Containers, from, *value)
	case "volumes":
		if err := checkName("volume", *value); err != nil {
			return err
		}
		set(&s.Names.Volumes, from, *value)
	default:
		return syntaxf("unknown field %q%s, want containers or volumes", kind, suggest.Hint(kind, []string{"containers", "volumes"}))
	}
	return nil
}

func cutLast(s string, sep byte) (before, after string, found bool) {
	if i := strings.LastIndexByte(s, sep); i >= 0 {
		return s[:i], s[i+1:], true
	}
	return s, "", false
}

func allDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}
