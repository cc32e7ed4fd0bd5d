package registry

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseRoles(t *testing.T) {
	t.Parallel()
	got, err := parseRoles([]byte(`
main-site: {role: writer, names: ["dr/*"], systems: [shop, blog]}
stand-in: {role: standby, systems: [shop]}
auditor: {role: reader}
admin: {role: operator}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Access{
		"main-site": {Role: RoleWriter, Names: []string{"dr/*"}, Systems: []string{"shop", "blog"}},
		"stand-in":  {Role: RoleStandby, Systems: []string{"shop"}},
		"auditor":   {Role: RoleReader},
		"admin":     {Role: RoleOperator},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseRolesMistakes(t *testing.T) {
	t.Parallel()
	for in, says := range map[string][]string{
		"":                                     {"empty"},
		"a: {role: wrter}":                     {`a.role: "wrter"`},
		"a: {}":                                {"a.role: missing"},
		"a: {rol: writer}":                     {"rol"},
		"a: writer":                            {"line 1"},
		"- a":                                  {"line 1"},
		"a: {role: reader}\na: {role: reader}": {"already defined"},
		"a: {role: reader}\n---\nb: {role: reader}": {"more than one"},
		"a: {role: writer, systems: []}":            {"a.systems: an empty list"},
		"a: {role: writer, names: []}":              {"a.names: an empty list"},
		"a: {role: operator, systems: [x]}":         {"a.systems: does not apply"},
		// All at once.
		"a: {role: wrter, names: ['[', ''], systems: [Shop, ok]}\nb: {role: x}": {"a.role", "a.names[0]", "a.names[1]", "a.systems[0]", "b.role"},
	} {
		_, err := parseRoles([]byte(in))
		if err == nil {
			t.Errorf("%q: no error", in)
			continue
		}
		for _, s := range says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%q: %v; want it to say %q", in, err, s)
			}
		}
	}
}

func FuzzParseRoles(f *testing.F) {
	f.Add([]byte("a: {role: writer, names: [x/*], systems: [s]}"))
	f.Add([]byte("a: &x {role: reader}\nb: *x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		roles, err := parseRoles(b)
		if err != nil {
			return
		}
		for user, a := range roles {
			if p := a.problems(); p != nil {
				t.Errorf("%s: %v", user, p)
			}
		}
	})
}

func TestMatchName(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"dr/prod", "dr/prod", true},
		{"dr/prod", "dr/prod2", false},
		{"dr/prod", "x/dr/prod", false},
		{"dr/*", "dr/prod", true},
		{"dr/*", "dr/a/b", false},
		{"dr/*", "dr", false},
		{"dr/*", "drx/a", false},
		{"dr/**", "dr/a", true},
		{"dr/**", "dr/a/b", true},
		{"dr/**", "dr", false},
		{"dr/**", "drx/a", false},
		{"**", "anything/at/all", true},
		{"*", "one", true},
		{"*", "one/two", false},
		{"dr/p-*", "dr/p-1", true},
		{"*/x/**", "a/x/b/c", true},
		{"*/x/**", "a/y/b", false},
	} {
		if got := matchName(c.pattern, c.name); got != c.want {
			t.Errorf("%s on %s: %v", c.pattern, c.name, got)
		}
	}
}

// TestRoleMatrix is the table of docs/adr/0001.
func TestRoleMatrix(t *testing.T) {
	t.Parallel()
	packs := "m." + strings.Repeat("a", 32)
	allowed := map[Role]map[string]string{ // tag -> when: "y" always, "h" when the epoch is held
		RoleReader:  {},
		RoleWriter:  {packs: "y", "s.shop.1": "y", "e.shop.1": "y", "w.shop.1": "y", "c.shop.1": "y", "h.shop.1": "y", "latest": "y"},
		RoleStandby: {packs: "y", "e.shop.1": "y", "w.shop.1": "y", "s.shop.1": "h", "c.shop.1": "h", "h.shop.1": "h"},
		RoleOperator: {
			packs: "y", "s.shop.1": "y", "e.shop.1": "y", "w.shop.1": "y", "c.shop.1": "y", "h.shop.1": "y", "latest": "y",
			"key.1": "y", "host.1": "y", "r.shop.1.1": "y", "l.shop.1.1": "y", "s.blog.1": "y", "e.blog.1": "y",
		},
	}
	tags := []string{packs, "s.shop.1", "e.shop.1", "w.shop.1", "c.shop.1", "h.shop.1", "s.blog.1", "e.blog.1", "w.blog.1", "r.shop.1.1", "l.shop.1.1", "key.1", "host.1", "latest"}
	allowed[RoleOperator]["w.blog.1"] = "y"
	for role, may := range allowed {
		a := Access{Role: role}
		if role == RoleWriter || role == RoleStandby {
			a.Systems = []string{"shop"}
		}
		for _, text := range tags {
			for _, held := range []bool{false, true} {
				err := a.writes(parseTag(text), func() (bool, error) { return held, nil })
				want := may[text] == "y" || (may[text] == "h" && held)
				if (err == nil) != want {
					t.Errorf("%s, %s, epoch held %v: %v", role, text, held, err)
				}
			}
		}
		if err := a.deletes(); (err == nil) != (role == RoleOperator) {
			t.Errorf("%s deletes: %v", role, err)
		}
		if err := a.uploads(); (err == nil) != (role != RoleReader) {
			t.Errorf("%s uploads: %v", role, err)
		}
	}
	broken := errors.New("disk")
	a := Access{Role: RoleStandby}
	if err := a.writes(parseTag("s.shop.1"), func() (bool, error) { return false, broken }); !errors.Is(err, broken) {
		t.Errorf("failure to find the holder: %v", err)
	}
}

func TestWhoLeavesGaps(t *testing.T) {
	t.Parallel()
	for _, role := range []Role{RoleReader, RoleWriter, RoleStandby, RoleOperator} {
		for text, want := range map[string]bool{"s.shop.7": true, "r.shop.7.2": true, "l.shop.7.2": true, "e.shop.7": false, "w.shop.7": false, "key.7": false, "host.7": false} {
			if got := (Access{Role: role}).leavesGaps(parseTag(text)); got != (want && role == RoleOperator) {
				t.Errorf("%s, %s: %v", role, text, got)
			}
		}
	}
}
