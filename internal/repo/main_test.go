package repo_test

import (
	"fmt"
	"os"
	"testing"

	"lifeboat/internal/casetest"
)

// TestMain lets the local state of the hosts lie in memory.
func TestMain(m *testing.M) {
	if err := casetest.TempInMemory(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}
