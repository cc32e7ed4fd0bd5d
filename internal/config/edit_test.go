package config_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"lifeboat/internal/config"
	"lifeboat/internal/dr"
	"lifeboat/internal/override"
)

var shop = config.System{Project: "shop", Exclude: []config.Exclude{{Kind: dr.TreeVolume, Name: "cache"}}}

const shopText = "shop:\n  project: shop\n  exclude:\n    - volume:cache\n"

func indent(text string, by string) string {
	var b strings.Builder
	for l := range strings.SplitAfterSeq(text, "\n") {
		if l != "" {
			b.WriteString(by + l)
		}
	}
	return b.String()
}

func TestAddSystem(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, before, after string }{
		{"empty file", "", "systems:\n" + indent(shopText, "  ")},
		{"only comments", "# words\n", "# words\nsystems:\n" + indent(shopText, "  ")},
		{"no systems", "site: a # here\n", "site: a # here\nsystems:\n" + indent(shopText, "  ")},
		{"no line end", "site: a", "site: a\nsystems:\n" + indent(shopText, "  ")},
		{"systems empty", "systems: # all of them\n  # none yet\nsite: a\n", "systems: # all of them\n" + indent(shopText, "  ") + "  # none yet\nsite: a\n"},
		{
			"after the last, before what leads to the next key",
			"systems:\n    a:\n        project: a # x\n    # a goes on\n\n# where\nsite: a\n",
			"systems:\n    a:\n        project: a # x\n    # a goes on\n    shop:\n        project: shop\n        exclude:\n            - volume:cache\n\n# where\nsite: a\n",
		},
		{
			"at the end, after a text of many lines",
			"site: a\nsystems:\n  a:\n    containers:\n    - xx\n    overrides:\n      environment:\n        xx:\n          A: |\n            one\n            # two\n",
			"site: a\nsystems:\n  a:\n    containers:\n    - xx\n    overrides:\n      environment:\n        xx:\n          A: |\n            one\n            # two\n" + indent(shopText, "  "),
		},
		{"document marks", "---\nsystems:\n  a: {project: a}\n...\n", "---\nsystems:\n  a: {project: a}\n" + indent(shopText, "  ") + "...\n"},
		{"flow", "systems: {a: {project: a}} # x\n", "systems: {\"shop\": {\"project\": \"shop\", \"exclude\": [\"volume:cache\"]}, a: {project: a}} # x\n"},
		{"empty flow", "systems: {}\n", "systems: {\"shop\": {\"project\": \"shop\", \"exclude\": [\"volume:cache\"]}}\n"},
		{"JSON", `{"site": "a"}`, `{"systems": {"shop": {"project": "shop", "exclude": ["volume:cache"]}}, "site": "a"}`},
		{"other line ends", "site: a\r\n", "site: a\r\nsystems:\r\n" + strings.ReplaceAll(indent(shopText, "  "), "\n", "\r\n")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "lifeboat.yaml")
			if err := os.WriteFile(path, []byte(tt.before), 0o600); err != nil {
				t.Fatal(err)
			}
			changed, err := config.AddSystem(path, "shop", shop)
			if err != nil || !changed {
				t.Fatalf("%v, %v", changed, err)
			}
			got := read(t, path)
			if d := cmp.Diff(tt.after, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if changed, err := config.AddSystem(path, "shop", shop); err != nil || changed || read(t, path) != got {
				t.Errorf("the second time: %v, %v", changed, err)
			}
		})
	}
}

func read(t interface {
	Helper()
	Fatal(...any)
}, path string,
) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestAddSystemRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, before string
		want         error
	}{
		{"another definition", "systems: {shop: {project: other}}\n", dr.ErrHeld},
		{"project of another system", "systems: {a: {project: shop}}\n", dr.ErrHeld},
		{"faulty file", "stie: a\n", dr.ErrUsage},
		{"alias", "sites: &s\nsystems: *s\n", config.ErrCannotEdit},
		{"anchored mapping in flow", "systems: &s {a: {project: a}}\n", config.ErrCannotEdit},
		{"null said", "systems: ~\n", config.ErrCannotEdit},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "lifeboat.yaml")
			if err := os.WriteFile(path, []byte(tt.before), 0o600); err != nil {
				t.Fatal(err)
			}
			if changed, err := config.AddSystem(path, "shop", shop); changed || !errors.Is(err, tt.want) {
				t.Errorf("%v, %v", changed, err)
			}
			if got := read(t, path); got != tt.before {
				t.Errorf("the file was changed to %q", got)
			}
			left, err := os.ReadDir(filepath.Dir(path))
			if err != nil || len(left) != 1 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
	if _, err := config.AddSystem(filepath.Join(t.TempDir(), "x"), "Bad.Name", shop); !errors.Is(err, dr.ErrUsage) {
		t.Errorf("bad name: %v", err)
	}
}

func TestAddSystemMakesTheFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "etc", "lifeboat.yaml")
	if _, err := config.AddSystem(path, "shop", shop); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", st, err)
	}
	if got := read(t, path); !strings.HasPrefix(got, config.Template) {
		t.Errorf("no template: %s", got)
	}
	if changed, err := config.SetTop(path, "repo", "oci://h/n"); err != nil || !changed {
		t.Fatalf("%v, %v", changed, err)
	}
	if got := read(t, path); !strings.Contains(got, "# repo: oci://registry.example.org/dr\nrepo: oci://h/n\n\n# The name") {
		t.Errorf("repo is not where its example is:\n%s", got)
	}
	if changed, err := config.SetTop(path, "repo", "oci://h/n"); err != nil || changed {
		t.Errorf("again: %v, %v", changed, err)
	}
	if _, err := config.SetTop(path, "repo", "oci://h/other"); !errors.Is(err, dr.ErrHeld) {
		t.Errorf("another value: %v", err)
	}
	if _, err := config.SetTop(path, "repo_url", "x"); !errors.Is(err, dr.ErrUsage) {
		t.Errorf("unknown key: %v", err)
	}
	if _, err := config.SetTop(path, "site", "Not A Site"); !errors.Is(err, dr.ErrUsage) {
		t.Errorf("bad value: %v", err)
	}
	for _, kv := range [][2]string{{"site", "main"}, {"key_file", "/k"}, {"state_dir", "/s"}} {
		if _, err := config.SetTop(path, kv[0], kv[1]); err != nil {
			t.Errorf("%s: %v", kv[0], err)
		}
	}
	c, err := config.Load(path)
	if err != nil || c.Repo != "oci://h/n" || c.Site != "main" || c.KeyFile != "/k" || c.StateDir != "/s" || len(c.Systems) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestSetRegistry(t *testing.T) {
	t.Parallel()
	pin := "sha256:" + strings.Repeat("5f", 32)
	all := config.Registry{Fingerprint: pin, CAFile: "/ca.pem", Username: "backup", PasswordFile: "/pw"}
	for name, before := range map[string]string{
		"no file": "", "keys": "site: main\nstate_dir: /s\n", "flow": "{site: main}\n",
		"half of it":      "registry:\n    # pinned by hand\n    fingerprint: " + pin + "\n\n# more\nsite: main\n",
		"half in flow":    "registry: {ca_file: /ca.pem}\nsite: main\n",
		"nothing in it":   "registry:\nsite: main\n",
		"a commented one": "# registry:\n#   ca_file: /x\nsite: main\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "lifeboat.yaml")
			if before != "" {
				if err := os.WriteFile(path, []byte(before), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for i, want := range []bool{true, false} {
				if changed, err := config.SetRegistry(path, all); err != nil || changed != want {
					t.Fatalf("run %d: changed %v, %v", i, changed, err)
				}
			}
			c, err := config.Load(path)
			if err != nil || c.Registry != all || before != "" && c.Site != "main" {
				t.Errorf("%+v, %v:\n%s", c, err, read(t, path))
			}
			if _, err := config.SetRegistry(path, config.Registry{CAFile: "/other.pem"}); !errors.Is(err, dr.ErrHeld) {
				t.Errorf("another certificate: %v", err)
			}
			for line := range strings.Lines(before) {
				if strings.HasPrefix(strings.TrimSpace(line), "#") && !strings.Contains(read(t, path), line) {
					t.Errorf("%q is gone:\n%s", line, read(t, path))
				}
			}
		})
	}
}

func TestSetMirrors(t *testing.T) {
	t.Parallel()
	mirrors := []config.Mirror{
		{Repo: "oci://second.example.org/dr", Registry: config.Registry{Fingerprint: "sha256:" + strings.Repeat("5f", 32), Username: "backup", PasswordFile: "/pw"}},
		{Repo: "oci://third.example.org/dr", Registry: config.Registry{CAFile: "/ca.pem"}},
	}
	for name, before := range map[string]string{
		"no file": "", "keys": "site: main # here\nstate_dir: /s\n", "commented": "# mirrors:\n#   - repo: oci://x.example.org/dr\nsite: main\n", "other things": "site: main\nsystems:\n    shop:\n        project: shop\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "lifeboat.yaml")
			if before != "" {
				if err := os.WriteFile(path, []byte(before), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for i, want := range []bool{true, false} {
				if changed, err := config.SetMirrors(path, mirrors); err != nil || changed != want {
					t.Fatalf("run %d: changed %v, %v", i, changed, err)
				}
			}
			c, err := config.Load(path)
			if err != nil || !slices.Equal(c.Mirrors, mirrors) || before != "" && c.Site != "main" {
				t.Errorf("%+v, %v:\n%s", c, err, read(t, path))
			}
			for line := range strings.Lines(before) {
				if !strings.Contains(read(t, path), line) {
					t.Errorf("%q is gone:\n%s", line, read(t, path))
				}
			}
			if changed, err := config.SetMirrors(path, mirrors[:1]); err != nil || changed {
				t.Errorf("what stands there was changed: %v, %v", changed, err)
			}
		})
	}
}

func TestEditKeepsModeOwnerAndLink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "real"), 0o755); err != nil {
		t.Fatal(err)
	}
	real, link := filepath.Join(dir, "real", "f.yaml"), filepath.Join(dir, "link.yaml")
	if err := os.WriteFile(real, []byte("site: a\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real/f.yaml", link); err != nil {
		t.Fatal(err)
	}
	if _, err := config.AddSystem(link, "shop", shop); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Lstat(link); err != nil || st.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link is gone: %v, %v", st, err)
	}
	if st, err := os.Stat(real); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("the mode is %v, %v", st.Mode(), err)
	}
	if !strings.Contains(read(t, real), "shop:") {
		t.Error("the file was not edited")
	}
	// A link to a file that is not there yet makes that file.
	if err := os.Symlink("real/new.yaml", filepath.Join(dir, "dangling")); err != nil {
		t.Fatal(err)
	}
	if _, err := config.AddSystem(filepath.Join(dir, "dangling"), "shop", shop); err != nil || !strings.Contains(read(t, filepath.Join(dir, "real/new.yaml")), "shop:") {
		t.Errorf("dangling link: %v", err)
	}
	if err := os.Symlink("loop", filepath.Join(dir, "loop")); err != nil {
		t.Fatal(err)
	}
	if _, err := config.AddSystem(filepath.Join(dir, "loop"), "shop", shop); err == nil {
		t.Error("a link to itself was edited")
	}
}

func TestTwoEditors(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lifeboat.yaml")
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			name := fmt.Sprintf("s%d", i)
			if _, err := config.AddSystem(path, dr.System(name), config.System{Project: name}); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	c, err := config.Load(path)
	if err != nil || len(c.Systems) != 16 {
		t.Errorf("%d systems, %v", len(c.Systems), err)
	}
}

// genFile draws a valid file with comments, blank lines and styles at every
// place where people put them.
func genFile(t *rapid.T) string {
	unit := strings.Repeat(" ", rapid.IntRange(2, 5).Draw(t, "unit"))
	var b strings.Builder
	noise := func(by string) {
		for range rapid.IntRange(0, 2).Draw(t, "noise") {
			b.WriteString(rapid.SampledFrom([]string{"\n", by + "# word: {[\n", "# left\n", "   \n", by + unit + "# deep\n"}).Draw(t, "line"))
		}
	}
	tail := func() string { return rapid.SampledFrom([]string{"\n", " # why\n", "  \n"}).Draw(t, "tail") }
	if rapid.Bool().Draw(t, "mark") {
		b.WriteString("---\n")
	}
	parts := map[string]func(){
		"site": func() { b.WriteString("site: main" + tail()) },
		"limits": func() {
			b.WriteString("limits:" + tail())
			noise(unit)
			b.WriteString(unit + "upload: 5MiB/s" + tail())
		},
		"sites":     func() { b.WriteString("sites:" + tail()); b.WriteString(unit + "b: {engine: 'ssh://x'}" + tail()) },
		"key_file":  func() { b.WriteString(`"key_file": >-` + "\n" + unit + "/etc/key\n" + unit + " .txt\n") },
		"state_dir": func() { b.WriteString("state_dir: '/x # y'" + tail()) },
		"systems": func() {
			switch rapid.IntRange(0, 2).Draw(t, "style") {
			case 0:
				b.WriteString("systems:" + tail())
			case 1:
				b.WriteString("systems: {one: {project: p1}, 'two': {containers: [c1,\n" + unit + "c2]}}" + tail())
			default:
				b.WriteString("systems:" + tail())
				for i := range rapid.IntRange(1, 3).Draw(t, "systems") {
					noise(unit)
					fmt.Fprintf(&b, "%ssys%d:%s", unit, i, tail())
					noise(unit + unit)
					switch rapid.IntRange(0, 3).Draw(t, "system") {
					case 0:
						fmt.Fprintf(&b, "%sproject: p-%d%s", unit+unit, i, tail())
					case 1:
						fmt.Fprintf(&b, "%scontainers:%s%s- c-%d\n%s- d-%d%s", unit+unit, tail(), unit+unit, i, unit+unit, i, tail())
					case 2:
						fmt.Fprintf(&b, "%[1]sproject: p-%[2]d\n%[1]soverrides:\n%[1]s%[3]senvironment:\n%[1]s%[3]s%[3]sweb:\n%[1]s%[3]s%[3]s%[3]sA: |%[4]s\n%[1]s%[3]s%[3]s%[3]s%[3]sx\n%[1]s%[3]s%[3]s%[3]s%[3]s# no comment\n\n",
							unit+unit, i, unit, rapid.SampledFrom([]string{"", "+", "-"}).Draw(t, "chomp"))
					default:
						fmt.Fprintf(&b, "%sproject: \"p-%d\"%s%sexclude: [volume:a, # one\n%s'volume:b']%s", unit+unit, i, tail(), unit+unit, unit+unit+unit, tail())
					}
				}
			}
		},
	}
	keys := rapid.Permutation([]string{"site", "limits", "sites", "key_file", "state_dir", "systems"}).Draw(t, "order")
	count := rapid.IntRange(0, len(keys)).Draw(t, "keys")
	for _, k := range keys[:count] {
		noise("")
		parts[k]()
	}
	noise("")
	text := b.String()
	switch rapid.IntRange(0, 3).Draw(t, "end") {
	case 0:
		text = strings.TrimRight(text, "\n")
	case 1:
		if count > 0 { // an end of no document is no YAML
			text += "...\n"
		}
	}
	if rapid.IntRange(0, 4).Draw(t, "crlf") == 0 {
		text = strings.ReplaceAll(text, "\n", "\r\n")
	}
	return text
}

func TestEditsKeepEveryByte(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		before := genFile(t)
		path := filepath.Join(dir, "f.yaml")
		if err := os.WriteFile(path, []byte(before), 0o600); err != nil {
			t.Fatal(err)
		}
		old, err := config.Load(path)
		if err != nil {
			t.Fatalf("the generator made a faulty file: %v\n%s", err, before)
		}
		var o override.Set
		value := rapid.String().Filter(func(s string) bool { return !strings.Contains(s, "\x00") }).Draw(t, "value")
		if err := o.Put([]string{"environment", "web", "A"}, &value); err != nil {
			t.Fatal(err)
		}
		s := config.System{Containers: []string{"web", "null", "1e3"}, Exclude: []config.Exclude{{Kind: dr.TreeBind, Name: "/a # b"}}, Overrides: o}
		name := dr.System(rapid.SampledFrom([]string{"new", "true", "0x1", "12"}).Draw(t, "name"))
		if changed, err := config.AddSystem(path, name, s); err != nil || !changed {
			t.Fatalf("%v, %v\n%s", changed, err, before)
		}
		after := read(t, path)
		got, err := config.Load(path)
		if err != nil {
			t.Fatalf("%v\n%s", err, after)
		}
		old.Systems[name] = s
		if d := cmp.Diff(old, got, comparers); d != "" {
			t.Fatalf("(-want +got):\n%s\n%s", d, after)
		}
		if !inserted(before, after) {
			t.Fatalf("more than an insertion:\n--- before\n%s\n--- after\n%s", before, after)
		}
	})
}

// inserted reports whether after is before with one text put into it, and a
// line end behind the last line where it had none.
func inserted(before, after string) bool {
	for _, b := range []string{before, before + "\n", before + "\r\n"} {
		pre := 0
		for pre < len(b) && pre < len(after) && b[pre] == after[pre] {
			pre++
		}
		if bytes.HasSuffix([]byte(after), []byte(b[pre:])) {
			return true
		}
	}
	return false
}
