package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"lifeboat/internal/dr"
)

// AttachedRun is a container that is run like a child process: its standard
// streams are ours, it ends when we do, and nothing of it stays.
type AttachedRun struct {
	Name       string
	Config     json.RawMessage // create request; the streams are set by RunAttached
	HostConfig json.RawMessage
	Stdin      io.Reader // nil gives an empty one
	Stdout     io.Writer
	Stderr     io.Writer
	// Grace is how long it may take to end after ctx did; 0 is ten seconds.
	Grace time.Duration
}

// RunAttached creates and starts a container, passes its streams, waits for its
// end and removes it. Its standard input stays open until Stdin ends or this
// process does, however that ends. When ctx ends it is asked to stop, killed
// after Grace, and removed; the error is then ctx's.
func (e *Engine) RunAttached(ctx context.Context, r AttachedRun) (exit int, err error) {
	what := "run container " + r.Name
	id, err := e.createAttached(ctx, r)
	if err != nil {
		return 0, notAllowed(err)
	}
	// The engine removes it at its end; this is for when it never starts, for
	// when the engine forgets, and for the end of ctx.
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if rmErr := e.Remove(clean, id, RemoveOptions{Force: true, Volumes: true}); rmErr != nil {
			err = errors.Join(err, rmErr)
		}
	}()
	conn, err := e.cli.ContainerAttach(ctx, id, client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		return 0, failed(what+": attach", err)
	}
	// The wait outlives ctx, so that the exit code of a container that ends when
	// asked to is still learned.
	waitCtx, cancelWait := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelWait()
	wait := e.cli.ContainerWait(waitCtx, id, client.ContainerWaitOptions{Condition: container.WaitConditionRemoved})
	if err := e.Start(ctx, id); err != nil {
		conn.Close()
		return 0, notAllowed(err)
	}
	stdin := r.Stdin
	if stdin == nil {
		stdin = eof{}
	}
	pumped := make(chan error, 1)
	go func() { pumped <- pump(waitCtx, &conn.HijackedResponse, stdin, r.Stdout, r.Stderr) }()
	var ended <-chan time.Time
	done := ctx.Done()
	for {
		select {
		case res := <-wait.Result:
			// An engine that closes with input unread resets the connection; what
			// was written has been read by then.
			if err := <-pumped; err != nil && ctx.Err() == nil && !errors.Is(err, syscall.ECONNRESET) {
				return int(res.StatusCode), fmt.Errorf("%s: %w", what, err)
			}
			if ctx.Err() != nil {
				return int(res.StatusCode), fmt.Errorf("%s: %w", what, context.Cause(ctx))
			}
			return int(res.StatusCode), nil
		case err := <-wait.Error:
			cancelWait()
			<-pumped
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return 0, fmt.Errorf("%s: wait for its end: %w: %w", what, err, dr.ErrOutcomeUnknown)
		case <-done:
			done = nil
			grace := r.Grace
			if grace == 0 {
				grace = 10 * time.Second
			}
			ended = time.After(grace)
			stop, cancel := context.WithTimeout(waitCtx, 5*time.Second)
			if err := e.Kill(stop, id, "SIGTERM"); err != nil {
				e.log.Warn("container could not be asked to end", "container", r.Name, "error", err)
			}
			cancel()
		case <-ended:
			cancelWait()
			<-pumped
			return 0, fmt.Errorf("%s: it did not end when asked to and was killed: %w", what, context.Cause(ctx))
		}
	}
}

func (e *Engine) createAttached(ctx context.Context, r AttachedRun) (string, error) {
	req, err := parseObject(r.Config)
	if err != nil {
		return "", fmt.Errorf("create container %s: %w", r.Name, err)
	}
	for _, field := range []string{"OpenStdin", "StdinOnce", "AttachStdin", "AttachStdout", "AttachStderr"} {
		req.set(field, true)
	}
	req.set("Tty", false)
	req["HostConfig"] = r.HostConfig
	var out struct {
		ID string `json:"Id"`
	}
	if err := e.call(ctx, "POST", "/containers/create", url.Values{"name": {r.Name}}, req, &out); err != nil {
		return "", changed("create container "+r.Name, err)
	}
	return out.ID, nil
}

// eof is an empty input.
type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

// LabelledImages lists the images that carry a label.
func (e *Engine) LabelledImages(ctx context.Context, label string) ([]Image, error) {
	res, err := e.cli.ImageList(ctx, client.ImageListOptions{Filters: make(client.Filters).Add("label", label)})
	if err != nil {
		return nil, failed("list images", err)
	}
	var out []Image
	for _, i := range res.Items {
		out = append(out, Image{ID: i.ID, Tags: real(i.RepoTags), Labels: i.Labels, Size: i.Size})
	}
	return out, nil
}
