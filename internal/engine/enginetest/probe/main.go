// Command probe is the only program of the containers that tests of engines
// run. Its arguments are steps (package steps).
package main

import (
	"io"
	"os"
	"os/signal"
	"syscall"

	"lifeboat/internal/engine/enginetest/steps"
)

func main() { os.Exit(steps.Run(world{}, os.Args[1:])) }

// world is the real one.
type world struct{}

func (world) WriteFile(path string, text []byte) error { return os.WriteFile(path, text, 0o644) }
func (world) ReadFile(path string) ([]byte, error)     { return os.ReadFile(path) }
func (world) Remove(path string) error                 { return os.RemoveAll(path) }
func (world) Getenv(name string) string                { return os.Getenv(name) }
func (world) Hostname() (string, error)                { return os.Hostname() }
func (world) Stdin() io.Reader                         { return os.Stdin }
func (world) Stdout() io.Writer                        { return os.Stdout }
func (world) Stderr() io.Writer                        { return os.Stderr }

func (world) Exists(path string) error {
	_, err := os.Stat(path)
	return err
}

func (world) Sleep() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	<-c
}
