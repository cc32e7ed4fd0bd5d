package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"lifeboat/internal/dr"
)

// sshDialer opens connections to an engine on another host: each one is a
// process `ssh HOST docker system dial-stdio`, the way the docker command does.
type sshDialer struct {
	argv []string
}

func newSSHDialer(u *url.URL, ssh []string) (*sshDialer, error) {
	host := u.Hostname()
	// A name that begins with a dash would be taken as an option of ssh.
	if host == "" || strings.HasPrefix(host, "-") || strings.HasPrefix(u.User.Username(), "-") || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("container engine host %q: want ssh://[user@]host[:port][/path/of/socket]: %w", u.Redacted(), dr.ErrUsage)
	}
	if _, has := u.User.Password(); has {
		return nil, fmt.Errorf("container engine host %q: a password does not belong in the host; use an ssh key: %w", u.Redacted(), dr.ErrUsage)
	}
	if len(ssh) == 0 {
		ssh = []string{"ssh"}
	}
	argv := append(append([]string{}, ssh...), "-o", "ConnectTimeout=30", "-o", "BatchMode=yes", "-T")
	if name := u.User.Username(); name != "" {
		argv = append(argv, "-l", name)
	}
	if p := u.Port(); p != "" {
		argv = append(argv, "-p", p)
	}
	argv = append(argv, "--", host, "docker")
	if u.Path != "" && u.Path != "/" {
		// The remote side is a shell: quote the path.
		argv = append(argv, "--host", "'unix://"+strings.ReplaceAll(u.Path, "'", `'\''`)+"'")
	}
	return &sshDialer{argv: append(argv, "system", "dial-stdio")}, nil
}

func (d *sshDialer) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	// The connection outlives the call that opened it, so it is not tied to ctx.
	cmd := exec.Command(d.argv[0], d.argv[1:]...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("dial ssh: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("dial ssh: %w", err)
	}
	c := &processConn{cmd: cmd, in: in, out: out}
	cmd.Stderr = &c.stderr
	// A master connection of ssh may hold stderr open after the process ended.
	cmd.WaitDelay = time.Second
	// An interrupt at the terminal must not cut the connection that the clean-up needs.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("dial ssh: start %s: %w", d.argv[0], err)
	}
	return c, nil
}

// processConn is a connection over the standard streams of a process.
type processConn struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    io.ReadCloser
	worked atomic.Bool // something was received
	stderr tailBuffer
	once   sync.Once
	err    error
}

func (c *processConn) Read(p []byte) (int, error) {
	n, err := c.out.Read(p)
	if n > 0 {
		c.worked.Store(true)
	}
	if err != nil && n == 0 && !c.worked.Load() {
		// It never was a connection. One that was may end, whatever ssh warned of.
		err = c.explain(err)
	}
	return n, err
}

func (c *processConn) Write(p []byte) (int, error) {
	n, err := c.in.Write(p)
	if err != nil {
		err = c.explain(err)
	}
	return n, err
}

// explain adds to the end of the connection what the process said about it.
func (c *processConn) explain(err error) error {
	// It has closed its streams and is about to end; its last words count.
	c.end(2 * time.Second)
	if msg := c.stderr.String(); msg != "" {
		return fmt.Errorf("ssh: %s: %w", msg, err)
	}
	return err
}

// CloseWrite ends the sending direction; an attached container sees the end of
// its standard input.
func (c *processConn) CloseWrite() error { return c.in.Close() }

func (c *processConn) Close() error {
	c.end(0)
	return c.err
}

// end waits for the process to end by itself for a while, then kills it.
func (c *processConn) end(grace time.Duration) {
	c.once.Do(func() {
		_ = c.in.Close()
		kill := time.AfterFunc(grace, func() { _ = c.cmd.Process.Kill() })
		defer kill.Stop()
		err := c.cmd.Wait()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
			c.err = err
		}
	})
}

func (c *processConn) LocalAddr() net.Addr              { return processAddr{} }
func (c *processConn) RemoteAddr() net.Addr             { return processAddr{} }
func (c *processConn) SetDeadline(time.Time) error      { return nil }
func (c *processConn) SetReadDeadline(time.Time) error  { return nil }
func (c *processConn) SetWriteDeadline(time.Time) error { return nil }

type processAddr struct{}

func (processAddr) Network() string { return "ssh" }
func (processAddr) String() string  { return "ssh" }

// tailBuffer keeps the last bytes written to it.
type tailBuffer struct {
	mu sync.Mutex
	b  []byte
}

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > 1024 {
		t.b = t.b[len(t.b)-1024:]
	}
	return len(p), nil
}

func (t *tailBuffer) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}
