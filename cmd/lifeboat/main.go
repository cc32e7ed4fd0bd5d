// Lifeboat brings Docker hosts' systems back with nothing but an OCI registry.
//
// This package is the command: one file a command, which reads flags, wires
// packages together and prints. It holds no logic of its own. What an error
// means for the exit code stands in exit.go alone.
package main

import "os"

func main() {
	os.Exit(run(process{args: os.Args[1:], in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Getenv, exit: os.Exit}))
}
