package fake

import (
	"bytes"
	"encoding/binary"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"lifeboat/internal/engine/enginetest/steps"
)

// program is one run of a container's program, or an exec in it.
type program struct {
	pid  int
	term chan struct{} // closed when asked to end
	dead chan struct{} // closed when killed
	done chan struct{} // closed when it has ended

	mu    sync.Mutex
	code  int // of the signal that killed it
	in    io.Reader
	inEnd io.Closer
	out   io.Writer
	err   io.Writer
}

func newProgram(pid int) *program {
	return &program{pid: pid, term: make(chan struct{}), dead: make(chan struct{}), done: make(chan struct{}), in: eof{}, out: io.Discard, err: io.Discard}
}

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

func (p *program) signal(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
		return
	default:
	}
	switch strings.TrimPrefix(name, "SIG") {
	case "KILL", "9":
		p.code = 137
		closeOnce(p.dead)
		if p.inEnd != nil {
			_ = p.inEnd.Close()
		}
	case "TERM", "15", "INT":
		closeOnce(p.term)
	}
}

func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}

func (p *program) killedBy() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.code
}

func (p *program) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	closeOnce(p.done)
}

// world is what a program in a container sees. env are variables of an exec.
func (e *Engine) world(c *ctr, p *program, env []string) *world {
	return &world{
		files: files{upper: c.upper, lower: c.image.dir, mounts: e.sources(c)}, run: p,
		env: append(slices.Clone(strs(c.config, "Env")), env...), hostname: str(c.config, "Hostname"),
	}
}

// sources maps each mount to the directory or file that holds it.
func (e *Engine) sources(c *ctr) map[string]string {
	out := map[string]string{}
	for _, m := range c.mounts {
		out[m.dest] = m.source
		if v := e.volumes[m.volume]; v != nil {
			out[m.dest] = v.dir()
		}
	}
	return out
}

type world struct {
	files
	run      *program
	env      []string
	hostname string
}

func (w *world) Hostname() (string, error) { return w.hostname, nil }
func (w *world) Stdin() io.Reader          { return w.run.in }
func (w *world) Stdout() io.Writer         { return w.run.out }
func (w *world) Stderr() io.Writer         { return w.run.err }

func (w *world) Getenv(name string) string {
	for _, v := range slices.Backward(w.env) {
		if k, v, _ := strings.Cut(v, "="); k == name {
			return v
		}
	}
	return ""
}

func (w *world) Sleep() {
	select {
	case <-w.run.term:
	case <-w.run.dead:
	}
}

// check is the health check of one run.
func (e *Engine) check(c *ctr, run *program, argv []string) {
	e.mu.Lock()
	every := time.Duration(number(sub(c.config, "Healthcheck"), "Interval"))
	retries := number(sub(c.config, "Healthcheck"), "Retries")
	e.mu.Unlock()
	if every == 0 {
		every = 30 * time.Second
	}
	if retries == 0 {
		retries = 3
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	failed := 0
	for {
		select {
		case <-run.done:
			return
		case <-tick.C:
		}
		var out bytes.Buffer
		p := newProgram(0)
		p.out, p.err = &out, &out
		e.mu.Lock()
		w := e.world(c, p, nil)
		e.mu.Unlock()
		code := steps.Run(w, argv[1:])
		status := "starting"
		if code == 0 {
			status, failed = "healthy", 0
		} else if failed++; float64(failed) >= retries {
			status = "unhealthy"
		}
		e.mu.Lock()
		c.health = obj{"Status": status, "FailingStreak": failed, "Log": []obj{{"Start": stamp(time.Now()), "End": stamp(time.Now()), "ExitCode": code, "Output": out.String()}}}
		e.mu.Unlock()
	}
}

// record is what a container wrote.
type record struct {
	mu     sync.Mutex
	pieces []piece
	copies map[io.Writer]bool // attached
}

type piece struct {
	stream byte
	text   []byte
}

func (r *record) stream(n byte) io.Writer { return &recorder{r, n} }

type recorder struct {
	r      *record
	stream byte
}

func (w *recorder) Write(p []byte) (int, error) {
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	w.r.pieces = append(w.r.pieces, piece{w.stream, bytes.Clone(p)})
	for c := range w.r.copies {
		_, _ = c.Write(frame(w.stream, p))
	}
	return len(p), nil
}

// tail gives the last n pieces (a line each, as steps write them), framed.
func (r *record) tail(n int) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pieces
	if n > 0 && len(p) > n {
		p = p[len(p)-n:]
	}
	var out []byte
	for _, x := range p {
		out = append(out, frame(x.stream, x.text)...)
	}
	return out
}

func (r *record) copyTo(w io.Writer, on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.copies == nil {
		r.copies = map[io.Writer]bool{}
	}
	if on {
		r.copies[w] = true
	} else {
		delete(r.copies, w)
	}
}

// frame is the form of a piece of a multiplexed stream.
func frame(stream byte, p []byte) []byte {
	head := make([]byte, 8, 8+len(p))
	head[0] = stream
	binary.BigEndian.PutUint32(head[4:], uint32(len(p)))
	return append(head, p...)
}

// framed writes pieces of one stream to a connection.
type framed struct {
	mu     *sync.Mutex
	w      io.Writer
	stream byte
}

func (f framed) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.w.Write(frame(f.stream, p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// attachTo passes the streams of a container's next run over the connection.
func (e *Engine) attachTo(w http.ResponseWriter, c *ctr) {
	e.mu.Lock()
	conn, err := hijack(w)
	if err != nil {
		e.mu.Unlock()
		reply(w, err)
		return
	}
	c.log.copyTo(conn, true)
	ended := c.ended
	c.stdin = conn
	e.mu.Unlock()
	select {
	case <-ended:
	case <-c.gone:
	}
	c.log.copyTo(conn, false)
	_ = conn.Close()
}

func (e *Engine) waitFor(w http.ResponseWriter, r *http.Request, c *ctr, condition string) {
	e.mu.Lock()
	done := c.ended
	if condition == "removed" {
		done = c.gone
	}
	e.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
	if !until(r.Context(), done) {
		return
	}
	e.mu.Lock()
	code := c.exitCode
	e.mu.Unlock()
	_, _ = w.Write([]byte(`{"StatusCode":` + itoa(code) + `}`))
}

// execution is a command in a running container.
type execution struct {
	c       *ctr
	req     obj
	running bool
	code    int
	run     *program
}

func (e *Engine) createExec(w http.ResponseWriter, r *http.Request, c *ctr) {
	req, err := body(r)
	if err != nil {
		reply(w, err)
		return
	}
	e.locked(w, func() (any, error) {
		if c.state != "running" {
			return nil, refused(http.StatusConflict, "Container %s is not running", c.id)
		}
		id := newID()
		e.execs[id] = &execution{c: c, req: req}
		return obj{"Id": id}, nil
	})
}

func (e *Engine) routeExec(w http.ResponseWriter, r *http.Request, p []string) {
	e.mu.Lock()
	x := e.execs[p[0]]
	e.mu.Unlock()
	if x == nil {
		reply(w, notFound("exec instance", p[0]))
		return
	}
	if p[1] == "json" {
		e.locked(w, func() (any, error) {
			return obj{"ID": p[0], "Running": x.running, "ExitCode": x.code, "ContainerID": x.c.id}, nil
		})
		return
	}
	_, _ = io.Copy(io.Discard, r.Body)
	conn, err := hijack(w)
	if err != nil {
		reply(w, err)
		return
	}
	var mu sync.Mutex
	run := newProgram(0)
	run.out, run.err = framed{&mu, conn, 1}, framed{&mu, conn, 2}
	if boolean(x.req, "AttachStdin") {
		run.in = conn
	}
	e.mu.Lock()
	x.running, x.run = true, run
	wd := e.world(x.c, run, strs(x.req, "Env"))
	main := x.c.run
	e.mu.Unlock()
	e.background(func() {
		defer conn.Close()
		argv := strs(x.req, "Cmd")
		code := 127
		if len(argv) > 0 && argv[0] == "/probe" {
			// A command ends with its container.
			stop := make(chan struct{})
			go func() {
				select {
				case <-main.done:
					run.signal("SIGKILL")
				case <-stop:
				}
			}()
			code = steps.Run(wd, argv[1:])
			close(stop)
		}
		e.mu.Lock()
		x.running, x.code = false, code
		e.mu.Unlock()
	})
}
