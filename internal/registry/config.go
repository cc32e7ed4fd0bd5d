package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"lifeboat/internal/dr"
)

// Config says what to serve and to whom. Validate names everything that is
// wrong with it.
type Config struct {
	// Listen is the address to listen at, HOST:PORT; an empty host means all
	// addresses, port 0 any free port.
	Listen string
	// Data is the directory that holds everything; it is made where it is
	// missing. It must be on a local file system and belongs to one Server at a
	// time.
	Data string

	// PlainHTTP serves without TLS; on other than loopback addresses Insecure
	// must allow it.
	PlainHTTP bool
	// Insecure allows PlainHTTP on every address.
	Insecure bool
	// TLSCert and TLSKey are PEM files. Left out, a self-signed certificate is
	// made at the first start and kept in Data.
	TLSCert, TLSKey string
	// TLSHosts are host names and addresses that a self-signed certificate names
	// besides those that are known: the listen address, loopback, the host's name.
	TLSHosts []string

	// Htpasswd is a file of users with bcrypt hashes. Left out, nobody logs in
	// and everybody may do everything, which is for loopback addresses only
	// unless AllowAnonymous.
	Htpasswd string
	// AllowAnonymous allows every address without Htpasswd.
	AllowAnonymous bool
	// Roles is a YAML file of access roles. Left out, every user is an operator.
	Roles string

	// StallTimeout ends a request of which no byte moved for so long. 0 means 2
	// minutes.
	StallTimeout time.Duration
	// DrainTimeout is how long Serve waits for requests in progress when it is
	// told to stop. 0 means 10 seconds.
	DrainTimeout time.Duration
	// CollectInterval is how often room is taken back that no manifest needs; 0
	// means an hour. CollectGrace is how long ago a blob that no manifest names was
	// uploaded before it goes; 0 means 24 hours. It has to be longer than it takes
	// any client from a blob to the manifest that names it.
	CollectInterval, CollectGrace time.Duration
	// Logger hears what fails; nil means silence.
	Logger *slog.Logger
}

// Validate checks the configuration and the files it names without changing
// anything. The error joins all problems and wraps dr.ErrUsage.
func (c Config) Validate() error {
	_, err := c.validate()
	return err
}

// validate also returns the users, which it has to read anyway.
func (c Config) validate() (*users, error) {
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }

	loopback, err := listensOnLoopback(c.Listen)
	if err != nil {
		bad("listen: %w", err)
	}
	if err := checkData(c.Data); err != nil {
		bad("data: %w", err)
	}
	if c.PlainHTTP {
		if c.TLSCert != "" || c.TLSKey != "" || len(c.TLSHosts) > 0 {
			bad("tls: a certificate or its hosts are given, but plain HTTP is asked for")
		}
		if !loopback && !c.Insecure && err == nil {
			bad("listen: plain HTTP at %s would send passwords in the clear; serve TLS, listen on loopback, or allow it with --insecure", c.Listen)
		}
	} else if err := c.checkTLS(); err != nil {
		bad("tls: %w", err)
	}
	if c.Htpasswd == "" {
		if c.Roles != "" {
			bad("roles: a roles file needs an htpasswd file")
		}
		if !loopback && !c.AllowAnonymous && err == nil {
			bad("htpasswd: without users everybody who reaches %s may write and delete; add users with lifeboat registry passwd, or allow it with --insecure-no-auth", c.Listen)
		}
	}
	if c.StallTimeout < 0 || c.DrainTimeout < 0 || c.CollectInterval < 0 || c.CollectGrace < 0 {
		bad("timeouts: must not be negative")
	}
	log := c.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	u, err := loadUsers(c.Htpasswd, c.Roles, log)
	if err != nil {
		problems = append(problems, err)
	}
	if len(problems) > 0 {
		return nil, fmt.Errorf("registry configuration: %w: %w", errors.Join(problems...), dr.ErrUsage)
	}
	return u, nil
}

// listensOnLoopback reports whether every address that addr means is loopback.
func listensOnLoopback(addr string) (bool, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return false, fmt.Errorf("%q: want HOST:PORT", addr)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return false, fmt.Errorf("%q: port %q is not a number up to 65535", addr, port)
	}
	if host == "" {
		return false, nil
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().IsLoopback(), nil
	}
	ips, err := net.LookupIP(host)
	if err != nil {
		return false, fmt.Errorf("%q: host is not known here", addr)
	}
	for _, ip := range ips {
		if !ip.IsLoopback() {
			return false, nil
		}
	}
	return true, nil
}

// checkData accepts a directory, or a path where one can be made.
func checkData(dir string) error {
	if dir == "" {
		return errors.New("missing; want a directory")
	}
	if scheme, _, ok := strings.Cut(dir, "://"); ok {
		return fmt.Errorf("%q: this build keeps data in directories only, not in %s", dir, scheme)
	}
	fi, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		parent, err := os.Stat(filepath.Dir(filepath.Clean(dir)))
		if err != nil {
			return fmt.Errorf("%q does not exist, and neither does the directory above it", dir)
		}
		if !parent.IsDir() {
			return fmt.Errorf("%q: %q is not a directory", dir, filepath.Dir(dir))
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("%q cannot be used: %w", dir, pathless(err))
	}
	if !fi.IsDir() {
		return fmt.Errorf("%q is not a directory", dir)
	}
	if _, err := os.ReadDir(dir); err != nil {
		return fmt.Errorf("%q cannot be read: %w", dir, pathless(err))
	}
	return nil
}

// pathless drops the path from an error whose message has it already.
func pathless(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func (c Config) checkTLS() error {
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return errors.New("certificate and key belong together; one of them is missing")
	}
	var problems []error
	if c.TLSCert != "" {
		if len(c.TLSHosts) > 0 {
			problems = append(problems, errors.New("hosts are for a self-signed certificate, but a certificate is given"))
		}
		if _, err := loadPair(c.TLSCert, c.TLSKey); err != nil {
			problems = append(problems, err)
		}
	}
	for _, h := range c.TLSHosts {
		if _, err := netip.ParseAddr(h); err != nil && !hostRE.MatchString(h) {
			problems = append(problems, fmt.Errorf("host %q is neither a host name nor an address", h))
		}
	}
	return errors.Join(problems...)
}
