package freeze

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// guardians is how many guard one freeze, independently of each other: after
// kill -9 of the parent and of one of them, the other still thaws (ADR 0004).
const guardians = 2

const (
	// startTimeout is how long guardians may take to start; nothing is frozen
	// then, so a busy machine is waited for.
	startTimeout = 20 * time.Second
	// answerTimeout is how long a guardian may take to answer once it runs.
	answerTimeout = 2 * time.Second
	// exitTimeout is how long a guardian that has answered may take to end.
	exitTimeout = 2 * time.Second
)

// watch is the parent's side of the guardians of one freeze.
type watch struct {
	guards  []*guard
	session session
	failed  chan struct{} // closed at the first failure of a guardian
	once    sync.Once
	wait    sync.WaitGroup // for what listens to the guardians
	err     error          // why, once failed is closed
}

// guard is the parent's side of one guardian.
type guard struct {
	name    string
	process *exec.Cmd
	socket  *os.File
	answers chan message
	gone    chan struct{} // closed when it no longer guards
	err     error         // why, once gone is closed
	exited  chan struct{}
}

// startWatch starts the guardians for the members that are ours to thaw and
// waits until all are ready. On error none is left and nothing is frozen.
func startWatch(ctx context.Context, s *Set, record *os.File, command []string) (*watch, limit, error) {
	w := &watch{failed: make(chan struct{})}
	if _, err := rand.Read(w.session[:]); err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrNoGuardian, err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	limits, err := w.start(ctx, s, record, command)
	if err != nil {
		w.end()
		return nil, 0, fmt.Errorf("%w: %w", ErrNoGuardian, err)
	}
	return w, limits, nil
}

func (w *watch) start(ctx context.Context, s *Set, record *os.File, command []string) (limit, error) {
	var su setup
	var cgs []*Cgroup
	files := []*os.File{record}
	defer func() {
		for _, f := range files[1:] {
			f.Close()
		}
	}()
	for _, m := range s.members {
		if m.foreign {
			continue
		}
		if m.cgroup == nil {
			su.Paused = append(su.Paused, m.container.ID)
			su.Pauser = s.spec
			continue
		}
		pair, err := m.cgroup.duplicate()
		files = append(files, pair...)
		if err != nil {
			return 0, err
		}
		su.Versions = append(su.Versions, m.cgroup.version)
		cgs = append(cgs, m.cgroup.cgroup)
	}
	packet, err := su.encode(w.session)
	if err != nil {
		return 0, err
	}
	for i := range guardians {
		g, err := startGuard("guardian "+strconv.Itoa(i+1), command, len(su.Paused) > 0, files)
		if err != nil {
			return 0, err
		}
		w.guards = append(w.guards, g)
		if s.host != nil {
			s.host.release(g.process.Process.Pid)
			if err := s.host.outside(g.process.Process.Pid, cgs); err != nil {
				return 0, err
			}
		}
		if _, err := g.socket.Write(packet); err != nil {
			return 0, fmt.Errorf("%s: send setup: %w", g.name, err)
		}
	}
	var limits limit
	for _, g := range w.guards {
		m, err := g.expect(ctx, kindReady, w.session)
		if err != nil {
			return 0, err
		}
		limits |= limit(m.value)
		w.wait.Go(func() {
			<-g.gone
			w.fail(g.err)
		})
	}
	return limits, nil
}

func (w *watch) fail(err error) {
	w.once.Do(func() {
		w.err = err
		close(w.failed)
	})
}

// ask sends a message to all guardians and waits for all answers.
func (w *watch) ask(ctx context.Context, k kind, value int64, answer kind) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	errs := make([]error, len(w.guards))
	for i, g := range w.guards {
		b := message{kind: k, session: w.session, value: value}.encode()
		if _, err := g.socket.Write(b); err != nil {
			errs[i] = g.lost(ctx, fmt.Errorf("send: %w", err))
		}
	}
	for i, g := range w.guards {
		if errs[i] == nil {
			_, errs[i] = g.expect(ctx, answer, w.session)
		}
	}
	return errors.Join(errs...)
}

// end stops the guardians and waits for them. Their sockets are closed first,
// on which a guardian that was not released makes sure that all is thawed. One
// that does not end is killed; the caller has verified the thaw itself.
func (w *watch) end() {
	for _, g := range w.guards {
		g.socket.Close()
	}
	for _, g := range w.guards {
		t := time.NewTimer(exitTimeout)
		select {
		case <-g.exited:
		case <-t.C:
			_ = g.process.Process.Kill()
			<-g.exited
		}
		t.Stop()
	}
	w.wait.Wait()
}

// abandon closes the sockets and leaves the guardians to their work: something
// is still frozen, and they go on trying to thaw it.
func (w *watch) abandon() {
	for _, g := range w.guards {
		g.socket.Close()
	}
}

// duplicate gives copies of the freezer's files for a child process.
func (f freezer) duplicate() ([]*os.File, error) {
	var files []*os.File
	for _, fd := range []int{f.control, f.status} {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return files, fmt.Errorf("duplicate a freezer's file: %w", err)
		}
		files = append(files, os.NewFile(uintptr(n), "freezer"))
	}
	return files, nil
}

// startGuard starts one guardian process in a session of its own, with the
// socket, the record and the freezer files and nothing else open.
func startGuard(name string, command []string, engine bool, files []*os.File) (*guard, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: socket pair: %w", name, err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "guardian socket")
	defer theirs.Close()
	if err := unix.SetNonblock(fds[0], true); err != nil { // for the poller: reads with an end
		unix.Close(fds[0])
		return nil, fmt.Errorf("%s: socket: %w", name, err)
	}
	ours := os.NewFile(uintptr(fds[0]), name)
	cmd := &exec.Cmd{
		Path:        command[0],
		Args:        append([]string{GuardianCommand}, command[1:]...),
		Env:         guardianEnv(os.Environ(), engine),
		Dir:         "/",
		ExtraFiles:  append([]*os.File{theirs}, files...),
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		ours.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	g := &guard{
		name: name, process: cmd, socket: ours,
		answers: make(chan message, 8), gone: make(chan struct{}), exited: make(chan struct{}),
	}
	go g.listen()
	go func() {
		_ = cmd.Wait() // how it ended does not matter; that it did shows on the socket
		close(g.exited)
	}()
	return g, nil
}

// guardianEnv passes on only what reaching the engine takes, and that only
// where it is needed: the environment of a process can be read by others of
// the same user (invariant 9).
func guardianEnv(env []string, engine bool) []string {
	keep := []string{"GOCOVERDIR"}
	if engine {
		keep = append(keep, "HOME", "PATH", "XDG_RUNTIME_DIR", "SSH_AUTH_SOCK", "DOCKER_HOST", "DOCKER_CONTEXT",
			"DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_API_VERSION")
	}
	out := []string{}
	for _, kv := range env {
		if k, _, ok := strings.Cut(kv, "="); ok && slices.Contains(keep, k) {
			out = append(out, kv)
		}
	}
	return out
}

// listen passes answers on until the guardian ends or says that it thawed.
func (g *guard) listen() {
	b := make([]byte, 2*messageSize)
	for {
		n, err := g.socket.Read(b)
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
				err = errors.New("it ended")
			}
			g.err = fmt.Errorf("%s: %w: %w", g.name, ErrGuardianLost, err)
			break
		}
		m, err := decodeMessage(b[:n])
		if err != nil {
			g.err = fmt.Errorf("%s: %w: %w", g.name, ErrGuardianLost, err)
			break
		}
		if m.kind == kindBroken {
			g.err = brokenBy(g.name, reason(m.value))
			break
		}
		select {
		case g.answers <- m:
		default:
			g.err = fmt.Errorf("%s: %w: it talks out of turn", g.name, ErrGuardianLost)
		}
		if g.err != nil {
			break
		}
	}
	close(g.gone)
}

func brokenBy(name string, r reason) error {
	if r == reasonDeadline {
		return fmt.Errorf("%s thawed: %w", name, ErrFreezeMax)
	}
	return fmt.Errorf("%s: %s", name, r)
}

// expect waits for one kind of answer.
func (g *guard) expect(ctx context.Context, k kind, id session) (message, error) {
	select {
	case m := <-g.answers:
		return g.check(m, k, id)
	default:
	}
	select {
	case m := <-g.answers:
		return g.check(m, k, id)
	case <-g.gone:
		select { // it may have answered before it ended
		case m := <-g.answers:
			return g.check(m, k, id)
		default:
			return message{}, g.err
		}
	case <-ctx.Done():
		return message{}, fmt.Errorf("%s: %w: no answer: %w", g.name, ErrGuardianLost, context.Cause(ctx))
	}
}

func (g *guard) check(m message, k kind, id session) (message, error) {
	if m.kind != k || m.session != id {
		return message{}, fmt.Errorf("%s: %w: unexpected answer %d", g.name, ErrGuardianLost, m.kind)
	}
	return m, nil
}

// lost gives the reason why a guardian is gone where it is known, else err.
func (g *guard) lost(ctx context.Context, err error) error {
	select {
	case <-g.gone:
		return g.err
	case <-ctx.Done():
		return fmt.Errorf("%s: %w: %w", g.name, ErrGuardianLost, err)
	}
}

// escapes are the version 1 hierarchies by which others stop or kill all of a
// unit or container at once: pausing it, runc's kill, systemd's kill. A process
// is moved out of no other: each move makes the kernel wait some ten
// milliseconds for all its processors.
var escapes = [...]string{"freezer", "devices", "name=systemd"}

// release moves a guardian to the root of the hierarchies by which it could be
// stopped together with this process, where that is allowed. There it does not
// die with the unit or the helper container that Lifeboat runs in, and does not
// freeze with it when somebody pauses that container.
func (h *Host) release(pid int) {
	for _, e := range h.self {
		if e.path == "/" && !h.sharesOwn(e) || e.version() == 1 && !slices.ContainsFunc(escapes[:], func(c string) bool {
			return slices.Contains(e.controllers, c)
		}) {
			continue
		}
		for _, m := range h.mounts {
			if m.controls(e) && (m.root == "/" || strings.HasPrefix(m.root, "/..")) {
				_ = os.WriteFile(filepath.Join(m.point, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
				break
			}
		}
	}
}
