package registry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Role is an access role: what a credential may do (docs/adr/0001).
type Role string

const (
	// RoleReader reads.
	RoleReader Role = "reader"
	// RoleWriter reads, adds blobs, and adds new tags of its systems. It deletes
	// and moves nothing.
	RoleWriter Role = "writer"
	// RoleStandby reads, may claim an epoch of its systems and write switch
	// records, and adds snapshots of a system while it holds its newest epoch.
	RoleStandby Role = "standby"
	// RoleOperator does everything: keys, hosts, deletion.
	RoleOperator Role = "operator"
)

// Access is what one user may do.
type Access struct {
	// Role is required.
	Role Role `yaml:"role"`
	// Names are patterns of names: components as in path.Match, and a last
	// component ** for any depth. Left out: every name.
	Names []string `yaml:"names"`
	// Systems are those whose tags a writer or standby may add. Left out: all.
	Systems []string `yaml:"systems"`
}

// everything is the access of a user where there is no roles file, and of
// anybody where there is no htpasswd file.
func everything() Access { return Access{Role: RoleOperator} }

// parseRoles decodes a roles file strictly: a mapping from user to Access. The
// error joins all problems, each with its path.
func parseRoles(b []byte) (map[string]Access, error) {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	var roles map[string]Access
	if err := dec.Decode(&roles); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("the file is empty; want USER: {role: writer|reader|standby|operator}")
		}
		return nil, err
	}
	if err := dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one YAML document")
	}
	var problems []error
	for _, user := range slices.Sorted(maps.Keys(roles)) {
		for _, p := range roles[user].problems() {
			problems = append(problems, fmt.Errorf("%s.%s", user, p))
		}
	}
	return roles, errors.Join(problems...)
}

func (a Access) problems() []string {
	var out []string
	switch a.Role {
	case RoleReader, RoleWriter, RoleStandby, RoleOperator:
	case "":
		out = append(out, "role: missing; want writer, reader, standby or operator")
	default:
		out = append(out, fmt.Sprintf("role: %q; want writer, reader, standby or operator", a.Role))
	}
	if a.Names != nil && len(a.Names) == 0 {
		out = append(out, "names: an empty list allows nothing; leave it out to allow every name")
	}
	for i, n := range a.Names {
		if _, err := path.Match(n, ""); err != nil || n == "" || strings.HasPrefix(n, "/") {
			out = append(out, fmt.Sprintf("names[%d]: %q is not a pattern", i, n))
		}
	}
	if a.Systems != nil && len(a.Systems) == 0 {
		out = append(out, "systems: an empty list allows nothing; leave it out to allow every system")
	}
	if a.Systems != nil && (a.Role == RoleOperator || a.Role == RoleReader) {
		out = append(out, fmt.Sprintf("systems: does not apply to role %s", a.Role))
	}
	for i, s := range a.Systems {
		if !isSystem(s) {
			out = append(out, fmt.Sprintf("systems[%d]: %q is not a system name", i, s))
		}
	}
	return out
}

// sees reports whether the access extends to a name.
func (a Access) sees(name string) bool {
	if a.Names == nil {
		return true
	}
	return slices.ContainsFunc(a.Names, func(p string) bool { return matchName(p, name) })
}

func matchName(pattern, name string) bool {
	if base, ok := strings.CutSuffix(pattern, "/**"); ok {
		for prefix := path.Dir(name); prefix != "."; prefix = path.Dir(prefix) {
			if ok, _ := path.Match(base, prefix); ok { // checked by problems
				return true
			}
		}
		return false
	}
	if pattern == "**" {
		return true
	}
	ok, _ := path.Match(pattern, name) // checked by problems
	return ok
}

func (a Access) owns(system string) bool {
	return a.Systems == nil || slices.Contains(a.Systems, system)
}

// uploads reports whether the role may add blobs and manifests at all.
func (a Access) uploads() error {
	if a.Role == RoleReader {
		return errors.New("role reader does not write")
	}
	return nil
}

// deletes reports whether the role may delete.
func (a Access) deletes() error {
	if a.Role != RoleOperator {
		return fmt.Errorf("role %s does not delete; role operator does", a.Role)
	}
	return nil
}

// writes reports whether the role may write tag t. holds tells whether the user
// holds the newest epoch of the tag's system; it is asked only where that
// counts.
func (a Access) writes(t tag, holds func() (bool, error)) error {
	if err := a.uploads(); err != nil || a.Role == RoleOperator {
		return err
	}
	switch t.class {
	case classKey, classHost, classMoved, classLock:
		return fmt.Errorf("role %s does not write tags of class %s; role operator does", a.Role, t.class)
	case classPacks:
		return nil
	case classOrdinary:
		if a.Role == RoleStandby {
			return errors.New("role standby writes only tags of a repository")
		}
		return nil
	}
	if !a.owns(t.system) {
		return fmt.Errorf("system %s is not among the systems of this user", t.system)
	}
	if a.Role == RoleWriter || t.class == classEpoch || t.class == classSwitch {
		return nil
	}
	ok, err := holds()
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("role standby writes for system %s only after it has claimed the newest epoch", t.system)
	}
	return nil
}

// leavesGaps reports whether the role may write a number although the one before
// it was never used: an operator copies repositories, of which snapshots were
// forgotten.
func (a Access) leavesGaps(t tag) bool {
	return a.Role == RoleOperator && (t.class == classSnapshot || t.class == classMoved || t.class == classLock)
}
