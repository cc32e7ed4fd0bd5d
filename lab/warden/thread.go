package warden

import (
	"errors"
	"runtime"

	"golang.org/x/sys/unix"
)

// thread is an operating system thread that may live in namespaces of its own: functions given to do
// run there one after another, and processes that they start inherit its namespaces. It ends, and is
// never used for anything else again, with stop.
type thread struct {
	jobs chan func()
	done chan struct{}
}

func newThread() *thread {
	t := &thread{jobs: make(chan func()), done: make(chan struct{})}
	go t.run()
	return t
}

func (t *thread) run() {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread cannot end and so would keep the namespaces for ever: hold it busy while another is found.
		again := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(again)
			t.serve()
		}()
		<-again
		runtime.UnlockOSThread()
		return
	}
	t.serve()
}

// serve never unlocks its thread, which so ends with the goroutine.
func (t *thread) serve() {
	defer close(t.done)
	for job := range t.jobs {
		job()
	}
}

var errThreadEnded = errors.New("the site was switched off meanwhile")

// do runs f on the thread and returns its error.
func (t *thread) do(f func() error) error {
	result := make(chan error, 1)
	select {
	case t.jobs <- func() { result <- f() }:
		return <-result
	case <-t.done:
		return errThreadEnded
	}
}

// stop ends the thread when its current job is done. It is called once.
func (t *thread) stop() {
	close(t.jobs)
	<-t.done
}
