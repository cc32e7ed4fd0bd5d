package registry_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"lifeboat/internal/dr"
	"lifeboat/internal/registry"
	"lifeboat/internal/registry/registrytest"
)

func write(t *testing.T, file, content string) string {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestMistakes: every configuration mistake is an error with its reason, never
// a panic, and leaves nothing running or locked.
func TestMistakes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "file"), "junk")
	users := write(t, filepath.Join(dir, "users"), "alice:$2y$05$926C3y10Quzn/LnqQH86VOEVh/18T6RnLaS.khre96jLNL/7e.K5W\n")
	roles := write(t, filepath.Join(dir, "roles"), "alice: {role: wrter}\nbob: {rol: x}")
	stranger := write(t, filepath.Join(dir, "stranger"), "carol: {role: reader}")
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = busy.Close() })
	served := registrytest.Start(t, plain)

	for name, c := range map[string]struct {
		edit func(*registry.Config)
		want error
		says []string
	}{
		"no data":                 {func(c *registry.Config) { c.Data = "" }, dr.ErrUsage, []string{"data: missing"}},
		"data is a file":          {func(c *registry.Config) { c.Data = file }, dr.ErrUsage, []string{"not a directory"}},
		"data below a file":       {func(c *registry.Config) { c.Data = file + "/x" }, dr.ErrUsage, []string{"data"}},
		"data below nothing":      {func(c *registry.Config) { c.Data = dir + "/no/such/dir" }, dr.ErrUsage, []string{"does not exist"}},
		"data in swift":           {func(c *registry.Config) { c.Data = "swift://x/y" }, dr.ErrUsage, []string{"swift"}},
		"data is served":          {func(c *registry.Config) { c.Data = served.Data }, dr.ErrHeld, []string{"served by another process"}},
		"no port":                 {func(c *registry.Config) { c.Listen = "127.0.0.1" }, dr.ErrUsage, []string{"HOST:PORT"}},
		"odd port":                {func(c *registry.Config) { c.Listen = "127.0.0.1:http" }, dr.ErrUsage, []string{"port"}},
		"large port":              {func(c *registry.Config) { c.Listen = "127.0.0.1:70000" }, dr.ErrUsage, []string{"65535"}},
		"unknown host":            {func(c *registry.Config) { c.Listen = "no-such-host.invalid:1" }, dr.ErrUsage, []string{"not known"}},
		"address of others":       {func(c *registry.Config) { c.Listen = "192.0.2.1:0"; c.AllowAnonymous = true }, dr.ErrUsage, []string{"listen at 192.0.2.1:0", "cannot assign"}},
		"port in use":             {func(c *registry.Config) { c.Listen = busy.Addr().String() }, dr.ErrHeld, []string{"already in use"}},
		"open to all":             {func(c *registry.Config) { c.Listen = ":0" }, dr.ErrUsage, []string{"--insecure-no-auth"}},
		"plain for all":           {func(c *registry.Config) { c.Listen = ":0"; c.Htpasswd = users; c.PlainHTTP = true }, dr.ErrUsage, []string{"in the clear"}},
		"plain with certificate":  {func(c *registry.Config) { c.PlainHTTP = true; c.TLSCert, c.TLSKey = file, file }, dr.ErrUsage, []string{"plain HTTP is asked for"}},
		"certificate alone":       {func(c *registry.Config) { c.TLSCert = file }, dr.ErrUsage, []string{"belong together"}},
		"junk certificate":        {func(c *registry.Config) { c.TLSCert, c.TLSKey = file, file }, dr.ErrUsage, []string{"failed to find any PEM data"}},
		"missing certificate":     {func(c *registry.Config) { c.TLSCert, c.TLSKey = dir+"/no", file }, dr.ErrUsage, []string{"no such file"}},
		"odd TLS host":            {func(c *registry.Config) { c.TLSHosts = []string{"a b"} }, dr.ErrUsage, []string{`"a b"`}},
		"htpasswd is missing":     {func(c *registry.Config) { c.Htpasswd = dir + "/no" }, dr.ErrUsage, []string{"htpasswd", "no such file"}},
		"htpasswd is junk":        {func(c *registry.Config) { c.Htpasswd = file }, dr.ErrUsage, []string{"htpasswd", "line 1"}},
		"htpasswd is a directory": {func(c *registry.Config) { c.Htpasswd = dir }, dr.ErrUsage, []string{"not a regular file"}},
		"roles without users":     {func(c *registry.Config) { c.Roles = roles }, dr.ErrUsage, []string{"needs an htpasswd file"}},
		"roles with a typo":       {func(c *registry.Config) { c.Htpasswd, c.Roles = users, roles }, dr.ErrUsage, []string{"roles", "rol"}},
		"role of nobody":          {func(c *registry.Config) { c.Htpasswd, c.Roles = users, stranger }, dr.ErrUsage, []string{"carol", "not in the htpasswd file"}},
		"negative time":           {func(c *registry.Config) { c.StallTimeout = -1 }, dr.ErrUsage, []string{"negative"}},
		"all at once": {func(c *registry.Config) {
			*c = registry.Config{Listen: "x", TLSCert: file, TLSHosts: []string{"?"}, Htpasswd: file, Roles: roles}
		}, dr.ErrUsage, []string{"listen", "data", "tls", "htpasswd", "roles"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := registry.Config{Listen: "127.0.0.1:0", Data: filepath.Join(t.TempDir(), "data")}
			c.edit(&cfg)
			srv, err := registry.New(cfg)
			if err == nil {
				_ = srv.Close()
				t.Fatal("no error")
			}
			if !errors.Is(err, c.want) {
				t.Errorf("%v: want %v", err, c.want)
			}
			for _, s := range c.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%v: want it to say %q", err, s)
				}
			}
			// What was taken before the mistake was found is given back.
			again := registry.Config{Listen: "127.0.0.1:0", Data: cfg.Data}
			if c.want == dr.ErrHeld && cfg.Data != served.Data {
				srv, err := registry.New(again)
				if err != nil {
					t.Fatalf("after the mistake: %v", err)
				}
				_ = srv.Close()
			}
		})
	}
}

// TestUnreadableData runs as a user who may not read the directory.
func TestUnreadableData(t *testing.T) {
	t.Parallel()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// The other user must get as far as the directory, and to a copy of the
	// program.
	for p := dir; p != "/" && p != os.TempDir(); p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(dir, "program")
	b, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, b, 0o755); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Env = []string{envServe + "=" + data, "HOME=/"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Fatalf("%v:\n%s", err, out)
	}
	if !strings.Contains(string(out), "permission denied") || strings.Contains(string(out), "panic") {
		t.Errorf("said:\n%s", out)
	}
}

// TestSelfSigned: made once, named as asked, key unreadable for others, kept.
func TestSelfSigned(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	start := func(hosts ...string) *registrytest.Registry {
		return registrytest.Start(t, func(c *registry.Config) { c.Data, c.TLSHosts = data, hosts })
	}
	r := start("registry.example.org", "192.0.2.7")
	first := r.Fingerprint
	pool := x509.NewCertPool()
	b, err := os.ReadFile(filepath.Join(data, "tls", "cert.pem"))
	if err != nil || !pool.AppendCertsFromPEM(b) {
		t.Fatalf("certificate: %v", err)
	}
	if fi, err := os.Stat(filepath.Join(data, "tls", "key.pem")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("key: %v, %v", fi.Mode(), err)
	}
	for _, name := range []string{"registry.example.org", "192.0.2.7", "127.0.0.1", "localhost"} {
		conn, err := tls.Dial("tcp", r.Addr, &tls.Config{RootCAs: pool, ServerName: name})
		if err != nil {
			t.Errorf("as %s: %v", name, err)
			continue
		}
		_ = conn.Close()
	}
	block, _ := pem.Decode(b)
	if cert, err := x509.ParseCertificate(block.Bytes); err != nil || cert.IsCA {
		t.Errorf("the certificate can sign others (%v)", err)
	}
	r.Stop(t)
	r = start("another.example.org")
	if r.Fingerprint != first {
		t.Error("fingerprint changed at the second start: clients pin it")
	}
	r.Stop(t)

	// A damaged pair is an error that says what to do, not a new identity.
	write(t, filepath.Join(data, "tls", "key.pem"), "junk")
	_, err = registry.New(registry.Config{Listen: "127.0.0.1:0", Data: data})
	if err == nil || !strings.Contains(err.Error(), "remove") {
		t.Errorf("damaged key: %v", err)
	}
}

// TestOwnCertificateRenewed: a renewed certificate is served without a restart.
func TestOwnCertificateRenewed(t *testing.T) {
	t.Parallel()
	made := func() string {
		dir := filepath.Join(t.TempDir(), "data")
		registrytest.Start(t, func(c *registry.Config) { c.Data = dir }).Stop(t)
		return filepath.Join(dir, "tls")
	}
	one, two := made(), made()
	r := registrytest.Start(t, func(c *registry.Config) {
		c.TLSCert, c.TLSKey = filepath.Join(one, "cert.pem"), filepath.Join(one, "key.pem")
	})
	leaf := func() []byte {
		conn, err := tls.Dial("tcp", r.Addr, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		return conn.ConnectionState().PeerCertificates[0].Raw
	}
	before := leaf()
	for _, f := range []string{"key.pem", "cert.pem"} {
		if err := os.Rename(filepath.Join(two, f), filepath.Join(one, f)); err != nil {
			t.Fatal(err)
		}
	}
	if string(leaf()) == string(before) {
		t.Error("still the old certificate")
	}
	write(t, filepath.Join(one, "cert.pem"), "junk")
	if len(leaf()) == 0 {
		t.Error("a broken renewal took the service down")
	}
}

// TestUsersReload: users and roles are taken up while it runs; junk is not.
func TestUsersReload(t *testing.T) {
	t.Parallel()
	var htpasswd, roles string
	r := registrytest.Start(t, plain, withUsers(t, "alice: {role: operator}", "alice"), func(c *registry.Config) { htpasswd, roles = c.Htpasswd, c.Roles })
	c := newClient(t, r)
	status := func(user string) int {
		s, _, _ := c.as(user).do("GET", "/v2/", nil)
		return s
	}
	if status("alice") != http.StatusOK || status("bob") != http.StatusUnauthorized {
		t.Fatal("before")
	}
	if err := registry.SetPassword(htpasswd, "bob", []byte("bob-password")); err != nil {
		t.Fatal(err)
	}
	if got := status("bob"); got != http.StatusForbidden {
		t.Errorf("bob without a role: %d", got)
	}
	write(t, roles+".new", "alice: {role: reader}\nbob: {role: operator}\n")
	if err := os.Rename(roles+".new", roles); err != nil {
		t.Fatal(err)
	}
	if got := status("bob"); got != http.StatusOK {
		t.Errorf("bob with a role: %d", got)
	}
	if s, _, _ := c.as("alice").do("POST", "/v2/dr/blobs/uploads/", nil); s != http.StatusForbidden {
		t.Errorf("alice, now a reader, uploads: %d", s)
	}
	write(t, htpasswd+".new", "junk")
	if err := os.Rename(htpasswd+".new", htpasswd); err != nil {
		t.Fatal(err)
	}
	if got := status("bob"); got != http.StatusOK {
		t.Errorf("after junk: %d", got)
	}
	// A changed password counts at once, although the old one was remembered.
	if err := os.Remove(htpasswd); err != nil {
		t.Fatal(err)
	}
	for _, u := range []string{"alice", "bob"} {
		if err := registry.SetPassword(htpasswd, u, []byte("changed")); err != nil {
			t.Fatal(err)
		}
	}
	if got := status("bob"); got != http.StatusUnauthorized {
		t.Errorf("old password: %d", got)
	}
}

// TestGracefulStop: a request in progress is answered, later ones are refused,
// and the directory is free afterwards.
func TestGracefulStop(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t, plain)
	c := newClient(t, r)
	location := c.startUpload("dr")
	conn, err := net.Dial("tcp", r.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	head := "PATCH " + location + " HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nContent-Type: application/octet-stream\r\nExpect: 100-continue\r\n\r\n"
	if _, err := conn.Write([]byte(head)); err != nil {
		t.Fatal(err)
	}
	rd := bufio.NewReader(conn)
	line, err := rd.ReadString('\n') // 100 Continue: the handler is reading
	if err != nil || !strings.Contains(line, "100") {
		t.Fatalf("%q, %v", line, err)
	}
	stopped := make(chan struct{})
	go func() { defer close(stopped); r.Stop(t) }()
	for { // until it no longer listens
		probe, err := net.Dial("tcp", r.Addr)
		if err != nil {
			break
		}
		_ = probe.Close()
	}
	if _, err := conn.Write([]byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(line, "202") {
		if line, err = rd.ReadString('\n'); err != nil {
			t.Fatalf("request in progress was cut off: %v", err)
		}
	}
	<-stopped
	srv, err := registry.New(registry.Config{Listen: "127.0.0.1:0", Data: r.Data})
	if err != nil {
		t.Fatalf("start again: %v", err)
	}
	if err := srv.Close(); err != nil {
		t.Error(err)
	}
}

// TestTakenPortLeavesNothing: a registry that cannot listen makes no directory.
func TestTakenPortLeavesNothing(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	data := filepath.Join(t.TempDir(), "data")
	if _, err := registry.New(registry.Config{Listen: l.Addr().String(), Data: data}); err == nil {
		t.Fatal("it listens at a port that is taken")
	}
	if _, err := os.Stat(data); !os.IsNotExist(err) {
		t.Errorf("its data directory is there: %v", err)
	}
}
