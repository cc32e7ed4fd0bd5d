package modeltest_test

import (
	"flag"
	"fmt"
	"os"
	"testing"
)

// TestMain makes the short form the usual one: rapid's own default would take
// many minutes here. The flags that are given count (make soak).
func TestMain(m *testing.M) {
	flag.Parse()
	given := map[string]bool{}
	flag.Visit(func(f *flag.Flag) { given[f.Name] = true })
	for name, value := range map[string]string{"rapid.checks": "6", "rapid.steps": "40", "rapid.shrinktime": "60s"} {
		if given[name] {
			continue
		}
		if err := flag.Set(name, value); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
	}
	os.Exit(m.Run())
}
