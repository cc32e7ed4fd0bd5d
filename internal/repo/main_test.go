package repo_test

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"lifeboat/internal/casetest"
)

// TestMain lets the local state of the hosts lie in memory, and makes fewer
// histories the usual number: rapid's own takes minutes with the race detector.
func TestMain(m *testing.M) {
	flag.Parse()
	err := casetest.TempInMemory()
	if err == nil {
		err = casetest.FewerChecks(20)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}
