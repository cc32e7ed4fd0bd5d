// Package warden is the process that holds a laboratory: one child process that owns the network and
// mount namespaces of all sites, carries the WAN between them, starts and kills their engines, and
// takes everything away when it is told to or when its parent is gone.
//
// Main types: [Config] (what the laboratory is), [Client] (talks to a warden), and [Run], the warden
// itself. The package knows nothing of images or systems; package lab is the face of it.
package warden

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"

	"lifeboat/lab/wan"
)

// Config is one laboratory, written to config.json in its directory before the warden starts.
type Config struct {
	ID     string       `json:"id"`
	Dir    string       `json:"dir"`    // all files of the laboratory; removed at the end
	Cgroup string       `json:"cgroup"` // name of its top-level control group
	WAN    wan.Params   `json:"wan"`
	Sites  []SiteConfig `json:"sites"`
	// Linger lets the laboratory outlive the process that made it.
	Linger bool `json:"linger"`
}

// SiteConfig is one host of the laboratory.
type SiteConfig struct {
	Name string     `json:"name"`
	IP   netip.Addr `json:"ip"`
	// Bridge is address and length of the engine's default bridge.
	Bridge netip.Prefix `json:"bridge"`
	Engine EngineConfig `json:"engine"`
	// HostNetwork keeps the machine's own network instead of a namespace, without bridges and packet
	// filter rules; it is meant for building images, which needs packages from outside.
	HostNetwork bool `json:"host_network"`
	// Hosts are more lines for /etc/hosts.
	Hosts []string `json:"hosts,omitempty"`
}

// EngineConfig says which engine a site runs.
type EngineConfig struct {
	// None leaves the site without an engine.
	None bool `json:"none,omitempty"`
	// Usr is the /usr directory that the engine sees; empty means the machine's own.
	Usr string `json:"usr,omitempty"`
	// Daemon is the content of the engine's daemon.json.
	Daemon map[string]any `json:"daemon,omitempty"`
	// DataRoot is where the engine keeps its data; empty means the site's disk. A directory elsewhere
	// survives the laboratory.
	DataRoot string `json:"data_root,omitempty"`
	// StorageDriver is passed on when it is not empty.
	StorageDriver string `json:"storage_driver,omitempty"`
}

// Files of a laboratory and of a site, below Config.Dir.
const (
	ConfigFile = "config.json"
	LockFile   = "lock" // held for as long as the warden lives
	LogFile    = "warden.log"
	socketFile = "warden.sock"
)

var nameRule = regexp.MustCompile(`^[a-z][a-z0-9-]{0,14}$`)

// Validate reports all problems of the configuration.
func (c Config) Validate() error {
	var errs []error
	if !nameRule.MatchString(c.ID) {
		errs = append(errs, fmt.Errorf("laboratory name %q does not match %s", c.ID, nameRule))
	}
	if !filepath.IsAbs(c.Dir) || len(c.Dir) > 48 {
		errs = append(errs, fmt.Errorf("directory %q must be absolute and short, for sockets are below it", c.Dir))
	}
	names := map[string]bool{}
	for _, s := range c.Sites {
		if !nameRule.MatchString(s.Name) || names[s.Name] {
			errs = append(errs, fmt.Errorf("site name %q is there twice or does not match %s", s.Name, nameRule))
		}
		names[s.Name] = true
	}
	if len(c.Sites) == 0 {
		errs = append(errs, errors.New("a laboratory needs a site"))
	}
	return errors.Join(append(errs, c.WAN.Validate())...)
}

// SiteDir is where everything of the site is.
func (c Config) SiteDir(site string) string { return filepath.Join(c.Dir, site) }

// DiskDir is the part of a site's directory that survives a crash and is lost with the host.
func (c Config) DiskDir(site string) string { return filepath.Join(c.SiteDir(site), "disk") }

// EngineSocket is where the engine of the site listens, also for processes outside of the site.
func (c Config) EngineSocket(site string) string {
	return filepath.Join(c.SiteDir(site), "run", "docker.sock")
}

// NamespaceFile leads to a namespace ("net", "mnt" or "uts") of a site that is up.
func (c Config) NamespaceFile(site, kind string) string {
	return filepath.Join(c.SiteDir(site), "ns", kind)
}

// HostGroup is the directory of the control group that processes of the site's host join.
func (c Config) HostGroup(site string) string { return filepath.Join(c.SiteDir(site), "ns", "cgroup") }

// Socket is where the warden listens.
func (c Config) Socket() string { return filepath.Join(c.Dir, socketFile) }

// SiteStatus is the state of one site.
type SiteStatus struct {
	Name   string     `json:"name"`
	IP     netip.Addr `json:"ip"`
	Up     bool       `json:"up"`     // the host is switched on
	Engine bool       `json:"engine"` // its engine answers requests or starts
	// BytesCarried counts what the site sent over the WAN since it was switched on.
	BytesCarried uint64 `json:"bytes_carried"`
}

// Status is the state of the laboratory.
type Status struct {
	ID    string       `json:"id"`
	PID   int          `json:"pid"`
	WAN   wan.Params   `json:"wan"`
	Sites []SiteStatus `json:"sites"`
}
