package main

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/config"
	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/override"
)

func TestOverrideKeys(t *testing.T) {
	t.Parallel()
	root := &dr.Root{
		Containers: []dr.Container{{Name: "web.1", Config: json.RawMessage(`{"Env":["A=1","B"]}`), HostConfig: json.RawMessage(`{"PortBindings":{"80/tcp":[{"HostPort":"8080"},{"HostPort":""}]}}`)}},
		Volumes:    []dr.Volume{{Name: "data"}},
		Binds:      []dr.Bind{{Source: "/srv/a"}},
		Networks:   []dr.Network{{Name: "net"}},
	}
	keys := overrideKeys(root)
	for _, want := range []string{"ports.8080=", `environment."web.1".A=`, "names.volumes.data=", "names.containers.web.1=", "paths./srv/a=", "networks.net.subnet=", "names.prefix="} {
		found := false
		for _, k := range keys {
			found = found || k == want
		}
		if !found {
			t.Errorf("%q is missing in %q", want, keys)
		}
	}
	// Each key is one that the grammar takes; the value is still to be typed.
	for _, k := range keys {
		value := map[string]string{"po": "1", "pa": "/x", "li": "none", "ne": "x", "na": "xx", "en": "x"}[k[:2]]
		if k == "networks.net.subnet=" {
			value = "10.0.0.0/8"
		} else if k == "networks.net.gateway=" {
			value = "10.0.0.1"
		}
		var s override.Set
		if err := s.ParsePair(k + value); err != nil {
			t.Errorf("%s: %v", k, err)
		}
	}
}

func TestTooOld(t *testing.T) {
	t.Parallel()
	now := time.Now()
	row := func(s dr.System, age time.Duration, newest bool) snapshotRow {
		return snapshotRow{System: s, Created: now.Add(-age), Newest: newest}
	}
	rows := []snapshotRow{row("a", 3*time.Hour, false), row("a", time.Minute, true), row("b", 2*time.Hour, true), row("c", 90*time.Minute, true)}
	want := []oldSystem{{System: "b", AgeS: 7200}, {System: "c", AgeS: 5400}}
	if diff := cmp.Diff(want, tooOld(rows, time.Hour, now)); diff != "" {
		t.Error(diff)
	}
	if got := tooOld(rows, 0, now); len(got) != 0 {
		t.Errorf("without --max-age: %v", got)
	}
}

func TestTreeFlags(t *testing.T) {
	t.Parallel()
	for _, f := range []restoreFlags{{volume: "a", tree: "bind:/b"}, {path: "x"}} {
		if err := f.check(); !errors.Is(err, dr.ErrUsage) {
			t.Errorf("%+v: %v", f, err)
		}
	}
	for _, f := range []restoreFlags{{}, {volume: "a", path: "x"}, {tree: "bind:/b"}} {
		if err := f.check(); err != nil {
			t.Errorf("%+v: %v", f, err)
		}
	}
}

func TestVersionOf(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		module, commit string
		modified       bool
		want           string
	}{
		{"v1.2.3", "abc", false, "v1.2.3"},
		{"(devel)", "0123456789abcdef", false, "commit 0123456789ab"},
		{"(devel)", "0123456789abcdef", true, "commit 0123456789ab with changes"},
		{"(devel)", "", false, "unknown"},
		{"", "", false, "unknown"},
	} {
		if got := versionOf(tt.module, tt.commit, tt.modified); got != tt.want {
			t.Errorf("%+v: %q", tt, got)
		}
	}
}

func TestUnusedExcludes(t *testing.T) {
	t.Parallel()
	found := &engine.System{
		Containers: []engine.Container{{Container: dr.Container{Name: "web"}}},
		Volumes:    []engine.Volume{{Volume: dr.Volume{Name: "data"}}},
		Binds:      []engine.Bind{{Bind: dr.Bind{Source: "/srv/a"}}},
	}
	var sys config.System
	for _, s := range []string{"volume:data", "volume:data:/tmp", "volume:dta", "layer:web", "layer:wbe", "bind:/srv/a", "bind:/srv/a/b", "bind:/srv/ab"} {
		x, err := config.ParseExclude(s)
		if err != nil {
			t.Fatal(err)
		}
		sys.Exclude = append(sys.Exclude, x)
	}
	if diff := cmp.Diff([]string{"volume:dta", "layer:wbe", "bind:/srv/ab"}, unusedExcludes(found, sys)); diff != "" {
		t.Error(diff)
	}
}
