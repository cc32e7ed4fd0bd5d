// Package steps is the little language that the containers of engine tests run:
// a list of steps, done one after the other. The probe program runs it in real
// containers, the fake engine in its own.
//
//	write PATH TEXT   cat PATH   exists PATH   rm PATH   out TEXT   err TEXT
//	stdin (copy standard input to standard output)   env NAME   hostname
//	sleep (until asked to end, then exit 0)   exit CODE
package steps

import (
	"fmt"
	"io"
	"strconv"
)

// World is what steps act on.
type World interface {
	WriteFile(path string, text []byte) error
	ReadFile(path string) ([]byte, error)
	Exists(path string) error
	Remove(path string) error
	Getenv(name string) string
	Hostname() (string, error)
	// Sleep returns when the program is asked to end.
	Sleep()
	Stdin() io.Reader
	Stdout() io.Writer
	Stderr() io.Writer
}

// Run does the steps and returns the exit code; what goes wrong is said on Stderr.
func Run(w World, args []string) int {
	for len(args) > 0 {
		step := args[0]
		n, ok := arity[step]
		if !ok || len(args) <= n {
			fmt.Fprintf(w.Stderr(), "probe: no such step or an argument is missing: %q\n", args)
			return 2
		}
		a := args[1 : n+1]
		args = args[n+1:]
		var err error
		switch step {
		case "sleep":
			w.Sleep()
			return 0
		case "exit":
			code, err := strconv.Atoi(a[0])
			if err != nil {
				return 2
			}
			return code
		default:
			err = do(w, step, a)
		}
		if err != nil {
			fmt.Fprintln(w.Stderr(), "probe:", err)
			return 1
		}
	}
	return 0
}

// arity is the number of arguments of each step.
var arity = map[string]int{
	"write": 2, "cat": 1, "exists": 1, "rm": 1, "out": 1, "err": 1, "stdin": 0, "env": 1, "hostname": 0, "sleep": 0, "exit": 1,
}

func do(w World, step string, a []string) error {
	var err error
	switch step {
	case "write":
		err = w.WriteFile(a[0], []byte(a[1]))
	case "cat":
		var b []byte
		if b, err = w.ReadFile(a[0]); err == nil {
			_, err = w.Stdout().Write(b)
		}
	case "exists":
		err = w.Exists(a[0])
	case "rm":
		err = w.Remove(a[0])
	case "out":
		_, err = fmt.Fprintln(w.Stdout(), a[0])
	case "err":
		_, err = fmt.Fprintln(w.Stderr(), a[0])
	case "stdin":
		_, err = io.Copy(w.Stdout(), w.Stdin())
	case "env":
		_, err = fmt.Fprintln(w.Stdout(), w.Getenv(a[0]))
	case "hostname":
		var h string
		if h, err = w.Hostname(); err == nil {
			_, err = fmt.Fprintln(w.Stdout(), h)
		}
	}
	return err
}
