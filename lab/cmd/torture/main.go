// Command torture is the only program of the torture image: it makes the image's files when it is
// built, fills and disturbs its file systems when it runs, and then serves HTTP on port 80 until it is told to stop.
//
//	torture image DIR
//	torture run IMAGEDIR [-dir DIR]... [-volume DIR]...
//	torture health
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/lab/torture"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "torture:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "image":
		return torture.Image(args[1])
	case len(args) >= 2 && args[0] == "run":
		return serve(args[1], args[2:])
	case len(args) == 1 && args[0] == "health":
		return health()
	}
	return errors.New("usage: torture image DIR | run IMAGEDIR [-dir DIR]... [-volume DIR]... | health")
}

func serve(image string, args []string) error {
	var dirs, volumes []string
	for ; len(args) >= 2; args = args[2:] {
		switch args[0] {
		case "-dir":
			dirs = append(dirs, args[1])
		case "-volume":
			volumes = append(volumes, args[1])
		default:
			return fmt.Errorf("unknown argument %q", args[0])
		}
	}
	unix.Umask(0o022)
	ready := make(chan struct{})
	if err := torture.Run(image, dirs, volumes, ready); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	server := &http.Server{Addr: ":80", ReadHeaderTimeout: 10 * time.Second}
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "torture: ready") })
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return server.Close()
	}
}

func health() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1/", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
