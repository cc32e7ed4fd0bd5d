// Lifeboat brings Docker hosts' systems back with nothing but an OCI registry.
//
// This package is the command: one file a command, which reads flags, wires
// packages together and prints. It holds no logic of its own. What an error
// means for the exit code stands in exit.go alone.
package main

import (
	"context"
	"fmt"
	"os"

	"lifeboat/internal/engine"
	"lifeboat/internal/freeze"
)

func main() {
	// A guardian does as little as possible before it guards (invariant 5).
	if len(os.Args) > 1 && os.Args[1] == freeze.GuardianCommand {
		os.Exit(freeze.GuardianMain(freeze.GuardianConfig{NewPauser: enginePauser}))
	}
	tuneMemory()
	p := process{args: os.Args[1:], in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Getenv, exit: os.Exit}
	gone, err := enterHelper(&p)
	if err != nil {
		fmt.Fprintln(os.Stderr, "lifeboat:", err)
		os.Exit(codeFailed)
	}
	p.gone = gone
	os.Exit(run(p))
}

// enginePauser reaches the engine for a guardian, where containers are frozen
// through the engine because their cgroups cannot be reached.
func enginePauser(host string) (freeze.Pauser, error) {
	return engine.Open(context.Background(), engine.Options{Host: host})
}
