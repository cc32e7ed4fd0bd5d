package archtest_test

import (
	"go/ast"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"
)

// namedTest is a test as docs/threat-model.md names it: the directory of its
// package, or the end of it, and the function.
var namedTest = regexp.MustCompile("`([a-z0-9/]+)\\.((?:Test|Fuzz)[A-Za-z0-9_]+)`")

// functions are the names of the functions of a file.
func functions(s source) (names []string) {
	for _, d := range s.file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
			names = append(names, f.Name.Name)
		}
	}
	return names
}

// TestThreatModelTests: every test that the threat model names exists, and every
// attack in its tables names one.
func TestThreatModelTests(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../../docs/threat-model.md")
	if err != nil {
		t.Fatal(err)
	}
	named := namedTest.FindAllStringSubmatch(string(raw), -1)
	if len(named) < 40 {
		t.Errorf("the threat model names %d tests only; has its form changed?", len(named))
	}
	have := map[string]bool{} // dir.Test for each directory and each end of it
	for _, s := range sources(t, 0) {
		if !s.test {
			continue
		}
		dir := path.Dir(s.path)
		for _, f := range functions(s) {
			for d := dir; ; _, d, _ = strings.Cut(d, "/") {
				have[d+"."+f] = true
				if !strings.Contains(d, "/") {
					break
				}
			}
		}
	}
	for _, n := range named {
		if !have[n[1]+"."+n[2]] {
			t.Errorf("the threat model names %s.%s, which does not exist", n[1], n[2])
		}
	}
	table := false // of attacks
	for _, line := range strings.Split(string(raw), "\n") {
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		switch {
		case !strings.HasPrefix(line, "|"):
			table = false
		case cells[0] == "attack":
			table = true
			if cells[len(cells)-1] != "shown by" {
				t.Errorf("a table of attacks has no column \"shown by\": %s", line)
			}
		case table && !strings.HasPrefix(line, "|---") && !namedTest.MatchString(cells[len(cells)-1]):
			t.Errorf("no test shows what happens: %s", cells[0])
		}
	}
}
