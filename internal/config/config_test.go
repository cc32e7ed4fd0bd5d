package config_test

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/config"
	"lifeboat/internal/dr"
	"lifeboat/internal/override"
	"lifeboat/internal/retain"
)

var comparers = cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}

const full = `
repo: oci://registry.example.org:5000/team/dr
site: main
state_dir: /srv/lifeboat
key_file: secrets/key.txt
registry:
  ca_file: /etc/lifeboat/ca.pem
  fingerprint: sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
  username: backup
  password_file: /etc/lifeboat/pw
  stall_timeout: 90s
mirrors:
  - repo: oci://second.example.com/dr
    username: backup
    password_file: pw2
  - {repo: "oci+http://127.0.0.1:5000/dr", stall_timeout: 5s}
engine: {host: "unix:///run/docker.sock"}
sites:
  cloud: {engine: ssh://root@standby.example.org:2222}
freeze_max: 800ms
secure_buffer: 128MiB
limits: {upload: 80Mbit/s, download: 0}
keep: {last: 10, daily: 7, yearly: unlimited, within: 2d12h}
systems:
  shop:
    project: shop
    keep: {weekly: 4}
    exclude: [volume:cache, "layer:web:/tmp", bind:/srv/shop/logs]
    overrides:
      ports:
        8080: 18080
        "127.0.0.1:8443:443/tcp": none
      paths: {/srv/shop: /data/shop}
      environment:
        web: {DEBUG: null, RETRIES: 3, URL: "https://x", FLAG: true}
      networks:
        shop_default: {subnet: [172.30.0.0/24, "fd00::/64"], gateway: 172.30.0.1}
      limits: {web: {memory: 1GiB, cpus: 1.5, pids: 100}}
      names: {prefix: dr-, containers: {job: chore}}
  mail:
    containers: [postfix, dovecot]
`

func TestParse(t *testing.T) {
	t.Parallel()
	got, err := config.Parse("/etc/lifeboat/lifeboat.yaml", []byte(full))
	if err != nil {
		t.Fatal(err)
	}
	var o override.Set
	for _, p := range []string{
		"ports.8080=18080", "ports.127.0.0.1:8443:443/tcp=none", "paths./srv/shop=/data/shop", "environment.web.DEBUG", "environment.web.RETRIES=3",
		"environment.web.URL=https://x", "environment.web.FLAG=true", "networks.shop_default.subnet=172.30.0.0/24,fd00::/64", "networks.shop_default.gateway=172.30.0.1",
		"limits.web.memory=1GiB", "limits.web.cpus=1.5", "limits.web.pids=100", "names.prefix=dr-", "names.containers.job=chore",
	} {
		if err := o.ParsePair(p); err != nil {
			t.Fatal(err)
		}
	}
	want := &config.Config{
		Path: "/etc/lifeboat/lifeboat.yaml", Repo: "oci://registry.example.org:5000/team/dr", Site: "main", StateDir: "/srv/lifeboat", KeyFile: "/etc/lifeboat/secrets/key.txt",
		Registry: config.Registry{
			CAFile: "/etc/lifeboat/ca.pem", Fingerprint: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
			Username: "backup", PasswordFile: "/etc/lifeboat/pw", StallTimeout: 90 * time.Second,
		},
		Mirrors: []config.Mirror{
			{Repo: "oci://second.example.com/dr", Registry: config.Registry{Username: "backup", PasswordFile: "/etc/lifeboat/pw2"}},
			{Repo: "oci+http://127.0.0.1:5000/dr", Registry: config.Registry{StallTimeout: 5 * time.Second}},
		},
		Engine: config.Engine{Host: "unix:///run/docker.sock"}, Sites: map[dr.Site]config.Site{"cloud": {Engine: "ssh://root@standby.example.org:2222"}},
		FreezeMax: 800 * time.Millisecond, SecureBuffer: 128 << 20, Limits: config.Limits{Upload: 10_000_000},
		Keep: retain.Policy{Last: 10, Daily: 7, Yearly: retain.Unlimited, Within: retain.Span{Days: 2, Hours: 12}},
		Systems: map[dr.System]config.System{
			"shop": {Project: "shop", Overrides: o, Keep: retain.Policy{Weekly: 4}, Exclude: []config.Exclude{
				{Kind: dr.TreeVolume, Name: "cache"}, {Kind: dr.TreeLayer, Name: "web", Path: "/tmp"}, {Kind: dr.TreeBind, Name: "/srv/shop/logs"},
			}},
			"mail": {Containers: []string{"postfix", "dovecot"}},
		},
	}
	if d := cmp.Diff(want, got, comparers); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestEmptyFilesAreDefaults(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "\n", "# only words\n", "---\n", "systems:\nsites:\nlimits:\nregistry:\nengine:\n", config.Template} {
		got, err := config.Parse("f", []byte(text))
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		want := config.Default()
		want.Path = "f"
		if d := cmp.Diff(want, got, comparers); d != "" {
			t.Errorf("%q: %s", text, d)
		}
	}
}

// TestEveryProblemAtOnce holds the text of the messages: they are what an
// operator has to work with.
func TestEveryProblemAtOnce(t *testing.T) {
	t.Parallel()
	const text = `repo: https://u:hunter2@example.org/dr
sites:
  Main: {engine: "unix:///x"}
  b: {engine: http://x}
  c: {}
  d: [1]
stie: main
site: 2026-01-01
freeze_max: 5
secure_buffer: 1KiB
limits: {upload: 10M/s, download: 5MiB}
registry:
  password: hunter2
  username: x
systems:
  shop:
    project: [a]
    containers: [a]
    project: b
  a.b: {project: x}
  mail:
    containers: [ok, ok, "a b", {}]
    exclude: [cache, "bind:relative", 7]
    overrides:
      ports: {x: 1, 8080: {}}
      path: {}
      environment: {web: [A=1]}
      networks: {n: {subnet: 10.0.0.1/8}}
      limits: {web: {memory: 5}}
      names: {prefix: {}, colour: red}
  none: {}
  first: {project: one}
  second: {project: one}
  <<: {x: {project: y}}
key_file: ~/key
state_dir:
engine: unix:///x
mirrors:
  - {repo: "oci://b.example.org/dr", fingerprint: sha1}
  - {repo: "oci://b.example.org/dr", stall_timeout: 1ms}
  - {username: x}
  - oci://c.example.org/dr
`
	_, err := config.Parse("/etc/lifeboat/lifeboat.yaml", []byte(text))
	var p *config.Problems
	if !errors.As(err, &p) || !errors.Is(err, dr.ErrUsage) {
		t.Fatalf("got %v", err)
	}
	var got []string
	for _, one := range p.List {
		got = append(got, one.String())
	}
	want := []string{
		`repo: line 1: repository: the scheme is "https"; want oci://host[:port]/name, or oci+http:// for plain HTTP on loopback`,
		`sites.Main: line 3: site name "Main": want 1 to 63 of a-z, 0-9, _ and -, starting and ending with a letter or digit`,
		`sites.b.engine: line 4: engine: the scheme is "http"; want unix:///run/docker.sock, ssh://user@host or tcp://host:port`,
		`sites.c: line 5: there is no engine; a site needs one, such as ssh://root@host or unix:///run/docker.sock`,
		`sites.d: line 6: is a list; want keys and values`,
		`stie: line 7: unknown key (did you mean "site"?); known are engine, freeze_max, keep, key_file, limits, mirrors, registry, repo, secure_buffer, site, sites, state_dir, systems`,
		`site: line 8: 2026-01-01 is a date; want text, so put it in quotes`,
		`freeze_max: line 9: "5" is not a duration such as 300ms, 5s or 2m`,
		`secure_buffer: line 10: 1KiB is out of bounds: from 1MiB to 16GiB`,
		`limits.upload: line 11: "10M": the unit "M" is ambiguous`,
		`limits.download: line 11: "5MiB" has no "/s" at its end, want a rate such as 10MiB/s or 80Mbit/s`,
		`registry.password: line 13: secrets do not stand in the configuration, which others may read; put it into a file of mode 0600 and name that file (registry.password_file, key_file)`,
		`registry.username: line 14: there is no password_file beside it; without both, credentials come from Docker's store`,
		`systems.shop: line 16: there are both project and containers; a system is one or the other`,
		`systems.shop.project: line 17: is a list; want text`,
		`systems.shop.containers[0]: line 18: "a" is not a container name`,
		`systems.shop.project: line 19: is given twice, first in line 17`,
		`systems["a.b"]: line 20: system name "a.b": want 1 to 63 of a-z, 0-9, _ and -, starting and ending with a letter or digit`,
		`systems.mail.containers[1]: line 22: "ok" is in the list already`,
		`systems.mail.containers[2]: line 22: "a b" is not a container name`,
		`systems.mail.containers[3]: line 22: is a mapping; want text`,
		`systems.mail.exclude[0]: line 23: "cache": want volume:NAME, layer:CONTAINER (either may be followed by :/PATH inside) or bind:/PATH of the host`,
		`systems.mail.exclude[1]: line 23: "bind:relative": want `,
		`systems.mail.exclude[2]: line 23: "7": want `,
		`systems.mail.overrides.ports.x: line 25: port "x": `,
		`systems.mail.overrides.ports.8080: line 25: is a mapping; want a value`,
		`systems.mail.overrides.path: line 26: unknown key (did you mean "paths"?)`,
		`systems.mail.overrides.environment.web: line 27: is a list; want keys and values`,
		`systems.mail.overrides.networks.n.subnet: line 28: "10.0.0.1/8" is not a subnet such as 172.30.5.0/24`,
		`systems.mail.overrides.limits.web.memory: line 29: memory: "5" has no unit, want a size such as 64MiB or 1.5GB`,
		`systems.mail.overrides.names.colour: line 30: unknown field "colour"`,
		`systems.none: line 31: there is neither project nor containers; say what belongs to the system`,
		`systems.second: line 33: project "one" belongs to systems.first already; one system holds it`,
		`systems["<<"]: line 34: merging (<<) is not supported here; write the keys out`,
		`key_file: line 35: "~/key": ~ is not expanded here; write the path out`,
		`state_dir: line 36: has no value`,
		`engine: line 37: is text; want keys and values`,
		`mirrors[0].fingerprint: line 39: "sha1" is not a fingerprint`,
		`mirrors[1].stall_timeout: line 40: 1ms is out of bounds: from 1s to 1h0m0s`,
		`mirrors[1]: line 40: oci://b.example.org/dr is in the list already`,
		`mirrors[2].username: line 41: there is no password_file beside it`,
		`mirrors[2]: line 41: there is no repo; say where the copy is`,
		`mirrors[3]: line 42: is text; want keys and values`,
	}
	for i := range max(len(want), len(got)) {
		switch {
		case i >= len(want):
			t.Errorf("more than wanted: %s", got[i])
		case i >= len(got):
			t.Errorf("missing: %s", want[i])
		case !strings.HasPrefix(got[i], want[i]):
			t.Errorf("problem %d\n got %s\nwant %s", i, got[i], want[i])
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error shows a secret:\n%v", err)
	}
}

func TestKeep(t *testing.T) {
	t.Parallel()
	c, err := config.Parse("f", []byte("keep: {daily: 7}\nsystems: {shop: {project: s, keep: {last: 2}}, mail: {project: m}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[dr.System]retain.Policy{"shop": {Last: 2}, "mail": {Daily: 7}, "elsewhere": {Daily: 7}} {
		if got := c.KeepOf(name); got != want {
			t.Errorf("%s: %+v", name, got)
		}
	}
	for text, want := range map[string]string{
		"keep: {}":             "keep: line 1: keeps nothing",
		"keep: {last: 0}":      "keep: line 1: keeps nothing",
		"keep: {last: -1}":     `keep.last: line 1: "-1" is not a count`,
		"keep: {within: 7w}":   `keep.within: line 1: "7w" is not a span`,
		"keep: {minutely: 3}":  "keep.minutely: line 1: unknown key",
		"keep: {daily: [1]}":   "keep.daily: line 1: is a list",
		"keep: {hourly: true}": "keep.hourly: line 1: true is true or false; want text",
	} {
		if _, err := config.Parse("f", []byte(text)); !errors.Is(err, dr.ErrUsage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// A policy is written as it is read, and declaring a system again leaves it.
func TestKeepIsWritten(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lifeboat.yaml")
	want := config.System{Project: "shop", Keep: retain.Policy{Last: 3, Monthly: retain.Unlimited, Within: retain.Span{Days: 7}}}
	if _, err := config.AddSystem(path, "shop", want); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(path)
	if err != nil || c.Systems["shop"].Keep != want.Keep {
		t.Fatalf("%+v, %v", c, err)
	}
	if changed, err := config.AddSystem(path, "shop", config.System{Project: "shop"}); err != nil || changed {
		t.Errorf("declared again: %v, %v", changed, err)
	}
}

func TestNotAConfiguration(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"a: b: c":            "configuration f: line 1: not YAML: mapping values are not allowed in this context",
		"repo: [":            "not YAML: ",
		"site: a\n---\nb: c": "line 2: a second document begins here; the file holds one",
		"site: a\n\x00":      "line 2: there is a NUL byte",
		"- a":                "line 1: is a list; want keys and values",
		"hello":              "line 1: is text; want keys and values",
		"site: *x":           "not YAML: ",
		"? {a: b}\n: c":      "a key is a mapping; want a word",
		"\xff\xfe\x01":       "not YAML: ",
		"systems: {a: &a {overrides: {ports: *a}}}": "systems.a.overrides.ports",
	} {
		_, err := config.Parse("f", []byte(text))
		if !errors.Is(err, dr.ErrUsage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := config.Load(filepath.Join(dir, "none")); !errors.Is(err, dr.ErrNotFound) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if _, err := config.Load(dir); err == nil {
		t.Error("a directory was read")
	}
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, []byte(strings.Repeat("#", 1<<20+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(big); !errors.Is(err, dr.ErrUsage) {
		t.Errorf("large file: %v", err)
	}
}

func TestLookups(t *testing.T) {
	t.Parallel()
	c, err := config.Parse("f", []byte(full))
	if err != nil {
		t.Fatal(err)
	}
	if s, err := c.System("shop"); err != nil || s.Project != "shop" {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := c.System("shpo"); !errors.Is(err, dr.ErrNotFound) || !strings.Contains(err.Error(), `did you mean "shop"?`) {
		t.Errorf("got %v", err)
	}
	if s, err := c.OtherSite("cloud"); err != nil || s.Engine == "" {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := config.Default().OtherSite("cloud"); !errors.Is(err, dr.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	c, err := config.Parse("/etc/lb/lifeboat.yaml", []byte("repo: oci://file/x\nengine: {host: unix:///file}\n"))
	if err != nil {
		t.Fatal(err)
	}
	env := func(m map[string]string) func(string) string { return func(k string) string { return m[k] } }
	none := env(nil)

	got, err := c.Settings(config.Flags{}, none)
	want := config.Settings{
		Repo:       config.Setting{Value: "oci://file/x", From: "/etc/lb/lifeboat.yaml"},
		KeyFile:    config.Setting{Value: "/etc/lb/key.txt", From: "default"},
		StateDir:   config.Setting{Value: "/var/lib/lifeboat", From: "default"},
		EngineHost: config.Setting{Value: "unix:///file", From: "/etc/lb/lifeboat.yaml"},
	}
	if err != nil || got != want {
		t.Errorf("file alone: %+v, %v", got, err)
	}

	vars := env(map[string]string{
		"LIFEBOAT_REPO": "oci://env/x", "LIFEBOAT_KEY_FILE": "/env/key", "LIFEBOAT_PASSPHRASE_FILE": "/env/pass",
		"LIFEBOAT_STATE_DIR": "/env/state", "DOCKER_HOST": "ssh://env",
	})
	got, err = c.Settings(config.Flags{}, vars)
	want = config.Settings{
		Repo: config.Setting{Value: "oci://env/x", From: "LIFEBOAT_REPO"}, KeyFile: config.Setting{Value: "/env/key", From: "LIFEBOAT_KEY_FILE"},
		PassphraseFile: config.Setting{Value: "/env/pass", From: "LIFEBOAT_PASSPHRASE_FILE"}, StateDir: config.Setting{Value: "/env/state", From: "LIFEBOAT_STATE_DIR"},
		EngineHost: config.Setting{Value: "ssh://env", From: "DOCKER_HOST"},
	}
	if err != nil || got != want {
		t.Errorf("environment over file: %+v, %v", got, err)
	}

	got, err = c.Settings(config.Flags{Repo: "oci://flag/x", StateDir: "state"}, vars)
	if err != nil || got.Repo != (config.Setting{Value: "oci://flag/x", From: "--repo"}) || !filepath.IsAbs(got.StateDir.Value) {
		t.Errorf("flag over environment: %+v, %v", got, err)
	}
	if _, err = c.Settings(config.Flags{}, env(map[string]string{"LIFEBOAT_REPO": "oci://u:hunter2@h/x"})); !errors.Is(err, dr.ErrUsage) ||
		!strings.Contains(err.Error(), "LIFEBOAT_REPO") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("bad variable: %v", err)
	}
	if _, err = c.Settings(config.Flags{}, env(map[string]string{"DOCKER_HOST": "npipe://x"})); !errors.Is(err, dr.ErrUsage) || !strings.Contains(err.Error(), "DOCKER_HOST") {
		t.Errorf("bad variable: %v", err)
	}

	if p, explicit := config.Path("", none); p != config.DefaultPath || explicit {
		t.Errorf("default path: %s, %v", p, explicit)
	}
	if p, explicit := config.Path("", env(map[string]string{"LIFEBOAT_CONFIG": "/e"})); p != "/e" || !explicit {
		t.Errorf("path of the environment: %s, %v", p, explicit)
	}
	if p, _ := config.Path("/f", env(map[string]string{"LIFEBOAT_CONFIG": "/e"})); p != "/f" {
		t.Errorf("path of the flag: %s", p)
	}
}

func TestChecks(t *testing.T) {
	t.Parallel()
	for s, ok := range map[string]bool{
		"oci://h/n": true, "oci://h:5000/a/b-c/d__e.f": true, "oci+http://[::1]:5000/n": true, "oci://h": false, "oci://h/": false, "oci:///n": false,
		"oci://h/N": false, "oci://h/n?x=1": false, "oci://h/n#x": false, "oci:h/n": false, "h/n": false, "oci://u@h/n": false, "oci://h/../n": false, "oci://%zz/n": false,
		"oci://h/" + strings.Repeat("a", 200): false,
	} {
		if err := config.CheckRepo(s); (err == nil) != ok {
			t.Errorf("CheckRepo(%q) = %v", s, err)
		}
	}
	for s, ok := range map[string]bool{
		"unix:///run/x.sock": true, "ssh://h": true, "ssh://u@h:22": true, "tcp://h:2375": true, "unix://run/x": false, "ssh://": false, "ssh://-oProxyCommand=x": false,
		"tcp://h": false, "ssh://u:p@h": false, "/run/x": false, "tcp://[::1]:5": true, "": false, "%": false,
	} {
		if err := config.CheckEngine(s); (err == nil) != ok {
			t.Errorf("CheckEngine(%q) = %v", s, err)
		}
	}
	for in, want := range map[string]dr.Site{"Main-01.example.org": "main-01", "": "site", "___": "site", "ünïx": "n-x", strings.Repeat("a", 80): dr.Site(strings.Repeat("a", 63)), ".x": "site"} {
		got := config.SanitizeName(in)
		if _, err := dr.ParseSite(string(got)); got != want || err != nil {
			t.Errorf("SanitizeName(%q) = %q, %v", in, got, err)
		}
	}
}

func TestReadSecretFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string, mode fs.FileMode) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	if got, err := config.ReadSecretFile(file("good", "hunter2\n", 0o400)); err != nil || string(got) != "hunter2\n" {
		t.Errorf("%q, %v", got, err)
	}
	for name, p := range map[string]string{
		"others": file("o", "hunter2", 0o604), "group": file("a b", "hunter2", 0o640), "writable": file("w", "hunter2", 0o620),
		"empty": file("e", " \n", 0o600), "large": file("l", strings.Repeat("x", 1<<17), 0o600), "directory": dir,
	} {
		if _, err := config.ReadSecretFile(p); !errors.Is(err, dr.ErrUsage) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := config.ReadSecretFile(filepath.Join(dir, "a b")); err == nil || !strings.Contains(err.Error(), "run: chmod 600 '"+dir+"/a b'") {
		t.Errorf("no hint: %v", err)
	}
	if _, err := config.ReadSecretFile(filepath.Join(dir, "none")); !errors.Is(err, dr.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := os.OpenFile(pipe, os.O_RDWR, 0) // does not block: both ends
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		got, err := config.ReadSecretFile(pipe)
		if err == nil && string(got) != "from a pipe" {
			err = errors.New("read " + string(got))
		}
		done <- err
	}()
	if _, err := w.WriteString("from a pipe"); err != nil {
		t.Fatal(err)
	}
	// The reader may open before or after the writer closes; either way it must
	// not hang.
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil && !errors.Is(err, dr.ErrUsage) {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte(config.Template))
	f.Add([]byte("systems: {a: &a {overrides: {ports: *a}}}"))
	f.Add([]byte("a: b: c"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := config.Parse("/f", text)
		if (c == nil) == (err == nil) || err != nil && !errors.Is(err, dr.ErrUsage) {
			t.Errorf("%q: %v, %v", text, c, err)
		}
	})
}
