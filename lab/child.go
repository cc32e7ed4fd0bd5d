package lab

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"lifeboat/lab/warden"
)

// childEnv marks a process that was started by New from the same executable, and says as what.
const childEnv = "LIFEBOAT_LAB_CHILD"

// Child must be called first thing in main or TestMain of a program that makes laboratories. In a
// process that New started it does that process's work and exits; in any other it returns at once.
func Child() {
	role, dir, ok := strings.Cut(os.Getenv(childEnv), ":")
	if !ok {
		return
	}
	if role != "warden" {
		fmt.Fprintf(os.Stderr, "lab: unknown role %q of a child process\n", role)
		os.Exit(2)
	}
	// Engines must not inherit the lock, or they would hold it longer than the warden lives.
	for _, fd := range []int{3, 4} {
		unix.CloseOnExec(fd)
	}
	// Inherited by New's arrangement: 0 the lifeline, 3 the word "ready"; 4, the lock, just stays open.
	if err := warden.Run(dir, os.Stdin, os.NewFile(3, "ready")); err != nil {
		fmt.Fprintf(os.Stderr, "lab: warden: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}
