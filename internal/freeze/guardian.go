package freeze

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// GuardianCommand is the first argument with which the binary is run again as
// a guardian. A main function that sees it calls GuardianMain and exits.
const GuardianCommand = "guardian"

// GuardianConfig is what a guardian needs from the program around it.
type GuardianConfig struct {
	// NewPauser makes the Pauser for the engine that SetConfig.PauserSpec
	// described; it is called only when containers are frozen through the
	// engine. May be nil where that never happens.
	NewPauser func(spec string) (Pauser, error)
}

// Files that a guardian inherits.
const (
	guardianSocket = 3
	guardianRecord = 4
	guardianFiles  = 5 // first freezer file
)

// guardianPatience is how long a guardian goes on trying to thaw what does not
// follow. After it the record on disk remains for Sweep.
const guardianPatience = 10 * time.Minute

// GuardianMain is the guardian's main function; it returns the exit code. Run
// by anything but Do it returns 2 at once and does nothing.
//
// From the moment it is ready it touches no file system, network or terminal,
// takes no lock and starts no process: it waits for a packet, for the end of
// its parent or for its timer, and writes to freezers that are already open.
// (Containers that are frozen through the engine are the exception: they can
// only be thawed through it.) Ordinary signals are ignored.
func GuardianMain(cfg GuardianConfig) int {
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGPIPE, unix.SIGALRM,
		unix.SIGUSR1, unix.SIGUSR2, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGXCPU, unix.SIGPWR)
	if t, err := unix.GetsockoptInt(guardianSocket, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || t != unix.SOCK_SEQPACKET {
		return 2
	}
	runtime.LockOSThread()
	debug.SetGCPercent(-1) // it allocates next to nothing and lives for seconds
	g := &guardian{buf: make([]byte, maxSetup+1)}
	n, gone := g.receive()
	if gone {
		return 1
	}
	s, id, err := decodeSetup(g.buf[:n])
	if err != nil {
		return 1
	}
	g.session = id
	if why := g.prepare(cfg, s); why != 0 {
		g.send(kindBroken, int64(why))
		return 1
	}
	g.send(kindReady, int64(g.harden()))
	g.watch()
	return 0
}

// guardian is the state of a guardian's process.
type guardian struct {
	session session
	cgroups []freezer
	engine  []*member // what only the engine can thaw
	timer   int
	buf     []byte
}

func (g *guardian) prepare(cfg GuardianConfig, s setup) reason {
	for i, v := range s.Versions {
		g.cgroups = append(g.cgroups, freezer{version: v, control: guardianFiles + 2*i, status: guardianFiles + 2*i + 1})
	}
	if len(s.Paused) > 0 {
		if cfg.NewPauser == nil {
			return reasonPauser
		}
		p, err := cfg.NewPauser(s.Pauser)
		if err != nil {
			return reasonPauser
		}
		for _, id := range s.Paused {
			c := Container{ID: id}
			b := &pauseBrake{pauser: p, container: c}
			// Asked before the freeze, so that an engine that this process
			// cannot reach is found out while nothing is frozen.
			ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
			_, err := b.set(ctx)
			cancel()
			if err != nil {
				return reasonPauser
			}
			g.engine = append(g.engine, &member{container: c, brake: b})
		}
	}
	var err error
	if g.timer, err = unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK); err != nil {
		return reasonTimer
	}
	return 0
}

// harden makes the guardian hard to starve and to kill by accident, as far as
// this process may, and tells what it may not.
func (g *guardian) harden() limit {
	var l limit
	// Not "lifeboat": whoever kills all of Lifeboat by name in a panic shall
	// get the containers back at once, not lose what thaws them.
	_ = os.WriteFile("/proc/self/comm", []byte(GuardianCommand), 0)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	_ = os.Chdir("/")
	if unix.Setpriority(unix.PRIO_PROCESS, 0, -20) != nil {
		l |= limitPriority
	}
	if lockMemory() != nil {
		l |= limitMemory
	}
	return l
}

// lockMemory makes sure that the guardian never waits for a disk: what it has
// touched stays in memory, and so does all of the binary. The rest of what the
// Go runtime has mapped is not populated (a plain mlockall would do that, for
// 300 ms): using more of it takes memory but no file.
func lockMemory() error {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_ONFAULT); err != nil {
		return err
	}
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(maps)) {
		var from, to uintptr
		if !strings.HasSuffix(strings.TrimSpace(line), exe) {
			continue
		}
		if _, err := fmt.Sscanf(line, "%x-%x ", &from, &to); err != nil {
			return err
		}
		if _, _, e := unix.Syscall(unix.SYS_MLOCK, from, to-from, 0); e != 0 {
			return e
		}
	}
	return nil
}

// watch guards until it is released or its parent is gone.
func (g *guardian) watch() {
	for p := phaseReady; p != phaseDone; {
		e, m := g.wait()
		var a action
		p, a = p.next(e)
		switch a {
		case doArm:
			if err := g.arm(m.value); err != nil {
				g.send(kindBroken, int64(reasonTimer))
				return // nothing is frozen before the answer
			}
			g.send(kindArmed, 0)
		case doAnswer:
			g.send(kindGuarded, 0)
		case doConfirm:
			g.confirm()
		case doThaw:
			g.thaw()
			g.send(kindBroken, int64(reasonOf(e)))
		}
	}
}

func reasonOf(e event) reason {
	switch e {
	case eventDeadline:
		return reasonDeadline
	case eventGone:
		return reasonParentGone
	}
	return reasonGarbled
}

// arm sets the timer to a time of CLOCK_BOOTTIME, which goes on while the
// machine sleeps.
func (g *guardian) arm(deadline int64) error {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(deadline, 1))}
	return unix.TimerfdSettime(g.timer, unix.TFD_TIMER_ABSTIME, &spec, nil)
}

// wait gives the next event. What the parent said before a deadline counts
// before it, also if both are found at once.
func (g *guardian) wait() (event, message) {
	fds := []unix.PollFd{{Fd: guardianSocket, Events: unix.POLLIN}, {Fd: int32(g.timer), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return eventGone, message{}
		}
		if fds[0].Revents != 0 {
			n, gone := g.receive()
			if gone {
				return eventGone, message{}
			}
			return g.interpret(g.buf[:n])
		}
		if fds[1].Revents != 0 {
			var ticks [8]byte
			if _, err := unix.Read(g.timer, ticks[:]); err == nil {
				return eventDeadline, message{}
			}
		}
	}
}

func (g *guardian) interpret(b []byte) (event, message) {
	m, err := decodeMessage(b)
	if err != nil || m.session != g.session {
		return eventGarbled, m
	}
	switch m.kind {
	case kindArm:
		return eventArm, m
	case kindFrozen:
		return eventFrozen, m
	case kindRelease:
		return eventRelease, m
	}
	return eventGarbled, m
}

// receive waits for one packet; gone means that no parent is there any more.
func (g *guardian) receive() (n int, gone bool) {
	for {
		n, _, err := unix.Recvfrom(guardianSocket, g.buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			_, _ = unix.Poll([]unix.PollFd{{Fd: guardianSocket, Events: unix.POLLIN}}, -1)
			continue
		}
		return n, err != nil || n == 0
	}
}

// send never waits: a parent that does not read must not hold up a guardian.
func (g *guardian) send(k kind, value int64) {
	b := message{kind: k, session: g.session, value: value}.encode()
	_ = unix.Sendto(guardianSocket, b, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
}

// confirm answers the release. The parent has thawed and verified; should
// anything be frozen nevertheless, it must not stay so.
func (g *guardian) confirm() {
	for _, f := range g.cgroups {
		on, err := f.asked()
		if on || err != nil && !errors.Is(err, errGone) {
			g.thaw()
			g.send(kindBroken, int64(reasonNotThawed))
			return
		}
	}
	g.send(kindHeld, 0)
}

// thaw thaws everything and verifies it, in rounds, until done or until
// patience ends. Then the record is emptied: nothing is left to sweep.
func (g *guardian) thaw() {
	cgroups, engine := g.cgroups, g.engine
	began := time.Now()
	for wait := pollFirst; len(cgroups)+len(engine) > 0; wait = min(2*wait, liftPause) {
		cgroups = thawRound(cgroups)
		engine = unpauseRound(engine)
		if time.Since(began) > guardianPatience {
			return
		}
		if len(cgroups)+len(engine) > 0 {
			time.Sleep(wait)
		}
	}
	_ = unix.Ftruncate(guardianRecord, 0)
}

// thawRound asks all first and looks afterwards, so that a freezer that fails
// holds up none behind it. It gives those that remain.
func thawRound(fs []freezer) []freezer {
	errs := make([]error, len(fs))
	for i, f := range fs {
		errs[i] = f.ask(false)
	}
	var left []freezer
	for i, f := range fs {
		if errors.Is(errs[i], errGone) {
			continue
		}
		on, err := f.asked()
		if errors.Is(err, errGone) || errs[i] == nil && err == nil && !on {
			continue
		}
		left = append(left, f)
	}
	return left
}

// unpauseRound tries all at once, because the engine may hang on one.
func unpauseRound(ms []*member) []*member {
	failed := make([]bool, len(ms))
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	var done sync.WaitGroup
	for i, m := range ms {
		done.Go(func() { failed[i] = m.brake.lift(ctx) != nil })
	}
	done.Wait()
	var left []*member
	for i, m := range ms {
		if failed[i] {
			left = append(left, m)
		}
	}
	return left
}
