package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/internal/dr"
	"lifeboat/internal/registry/registrytest"
	"lifeboat/internal/store/ocistore"
	"lifeboat/internal/ui"
)

// lose takes tags away behind Lifeboat's back.
func (p place) lose(reg *registrytest.Registry, tags ...string) {
	p.t.Helper()
	o := reg.Options()
	o.Username, o.Password = "admin", "admin secret"
	st, err := ocistore.Open(p.t.Context(), reg.URL("dr"), o)
	if err != nil {
		p.t.Fatal(err)
	}
	for _, tag := range tags {
		if err := st.DeleteTag(p.t.Context(), tag); err != nil {
			p.t.Fatal(err)
		}
	}
}

// TestOlderStateUntilAccepted: every command that looks names an older state, those
// that remove refuse, until the operator accepts it.
func TestOlderStateUntilAccepted(t *testing.T) {
	t.Parallel()
	reg, p := withRoles(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--username", "admin",
		"--password-file", p.write("admin", "admin secret\n"), "--site", "main", "--kit", p.path("kit.txt"))
	p.store(reg, "shop", 4)
	var listed listing
	p.do(0, &listed, "snapshots")
	p.lose(reg, "s.shop.3", "s.shop.4")
	for run := range 2 {
		errs := p.do(codePartial, &listed, "snapshots", "shop")
		if len(listed.Snapshots) != 2+3*run || len(listed.Problems) != 1 || !strings.Contains(errs, "snapshots shop --accept-older") || !strings.Contains(errs, "number 4") {
			t.Errorf("%+v\n%s", listed, errs)
		}
		var found checkAnswer
		if errs := p.do(codeFailed, &found, "check"); len(found.Problems) != 1 || !strings.Contains(errs, "snapshots --accept-older") {
			t.Errorf("%+v\n%s", found, errs)
		}
		for _, args := range [][]string{{"forget", "shop", "--keep-last", "1"}, {"gc"}} {
			var refused said
			p.do(codeFailed, &refused, args...)
			if !strings.Contains(refused.next(), "snapshots --accept-older") || refused.Error.State == "" || !strings.Contains(refused.Error.Message, "nothing was removed") || !strings.Contains(refused.Error.Message, "--accept-older") {
				t.Errorf("%v: %+v", args, refused.Error)
			}
		}
		// It stands also once there is a higher number than was ever seen.
		p.store(reg, "shop", 3)
	}
	p.do(0, &listed, "snapshots", "shop", "--accept-older")
	p.do(0, &listed, "snapshots", "shop")
	var found checkAnswer
	p.do(0, &found, "check")
	p.do(0, &forgetAnswer{}, "forget", "shop", "--keep-last", "1")
	p.do(0, &found, "check")
	if len(found.Forgotten) != 0 {
		t.Errorf("its own forgetting: %q", found.Forgotten)
	}
}

// TestForgottenElsewhereIsANotice: a snapshot that is not there and that this host
// has seen is told by check, and is no problem.
func TestForgottenElsewhereIsANotice(t *testing.T) {
	t.Parallel()
	reg, p := withRoles(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--username", "admin",
		"--password-file", p.write("admin", "admin secret\n"), "--site", "main", "--kit", p.path("kit.txt"))
	p.store(reg, "shop", 3)
	p.do(0, &listing{}, "snapshots")
	mirror := copyRegistry(t, reg)
	p.lose(reg, "s.shop.2")
	var found checkAnswer
	p.do(0, &found, "check")
	if len(found.Problems) != 0 || len(found.Forgotten) != 1 || found.Forgotten[0] != "s.shop.2" {
		t.Errorf("%+v", found)
	}
	if _, out, _ := call(p.env, "check"); !strings.Contains(out, "forgotten by another host, or hidden by the registry: s.shop.2") {
		t.Errorf("%s", out)
	}
	// It is told how to have it back, and that works.
	p.do(0, &struct{}{}, "copy", "--mirror", "--repo", mirror.URL("dr"), "--to", reg.URL("dr"))
	if p.do(0, &found, "check"); len(found.Forgotten) != 0 {
		t.Errorf("%+v", found)
	}
	p.do(0, &struct{}{}, "restore", "shop@#2", "--to", p.path("to"))
}

// TestSnapshotTakenOnAnOlderState: the snapshot was taken, and the command says why
// that is not all.
func TestSnapshotTakenOnAnOlderState(t *testing.T) {
	t.Parallel()
	s := &snapshotAnswer{System: "shop", Number: 5, Problems: []string{"tag s.shop.*: older"}}
	err := s.shortcoming()
	var x ui.Explained
	if !errors.Is(err, dr.ErrPartial) || !errors.As(err, &x) || !strings.Contains(x.State, "number 5") || !strings.Contains(strings.Join(x.Next, "\n"), "snapshots shop --accept-older") {
		t.Errorf("%v", err)
	}
	s.Missing = []string{"container web"}
	if err := s.shortcoming(); !errors.Is(err, dr.ErrPartial) || !strings.Contains(err.Error(), "older") || !strings.Contains(err.Error(), "container web") {
		t.Errorf("%v", err)
	}
	if err := (&snapshotAnswer{}).shortcoming(); err != nil {
		t.Error(err)
	}
}

// TestRestoreFromAnOlderState: without its newest snapshot a system is not restored
// unasked; the refusal names the one that is there, and that works.
func TestRestoreFromAnOlderState(t *testing.T) {
	t.Parallel()
	reg, p := withRoles(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--username", "admin",
		"--password-file", p.write("admin", "admin secret\n"), "--site", "main", "--kit", p.path("kit.txt"))
	p.store(reg, "shop", 3)
	p.do(0, &listing{}, "snapshots")
	p.lose(reg, "s.shop.3")
	to := p.path("out")
	stderr := p.do(codeFailed, &struct{}{}, "restore", "shop", "--to", to)
	for _, want := range []string{"restore shop@#2 --to DIR", "repair --from", "--accept-older"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q is missing in\n%s", want, stderr)
		}
	}
	if _, err := os.Stat(to); !os.IsNotExist(err) {
		t.Errorf("%v", err)
	}
	p.do(0, &struct{}{}, "restore", "shop@#2", "--to", to)
}

// TestLookingAtAnOlderState: ls and diff name the snapshot that is there, as restore
// does, and the command with which it is looked at.
func TestLookingAtAnOlderState(t *testing.T) {
	t.Parallel()
	reg, p := withRoles(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--username", "admin",
		"--password-file", p.write("admin", "admin secret\n"), "--site", "main", "--kit", p.path("kit.txt"))
	p.store(reg, "shop", 3)
	p.do(0, &listing{}, "snapshots")
	p.lose(reg, "s.shop.3")
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"ls", "shop", "--volume", "data"}, "lifeboat ls shop@#2 "},
		{[]string{"diff", "shop@#1", "@latest"}, "lifeboat diff shop@#1 shop@#2 "},
		{[]string{"diff", "shop", "@#1"}, "lifeboat diff shop@#2 @#1 "},
	} {
		var refused said
		p.do(codeFailed, &refused, tt.args...)
		for _, want := range []string{tt.want, "repair --from", "snapshots shop --accept-older"} {
			if !strings.Contains(refused.next(), want) {
				t.Errorf("%v: %q is missing in %q", tt.args, want, refused.next())
			}
		}
	}
	p.do(0, &struct{}{}, "ls", "shop@#2", "--volume", "data")
	p.do(0, &struct{}{}, "diff", "shop@#1", "shop@#2")

	// The newest that is there is damaged: not only "check".
	for _, name := range packFiles(t, reg) {
		if err := os.Truncate(name, 100); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"ls", "shop@#2"}, {"diff", "shop@#1", "shop@#2"}} {
		var refused said
		p.do(codeFailed, &refused, args...)
		if !strings.Contains(refused.next(), "lifeboat restore shop@#NUMBER") || !strings.Contains(refused.next(), "repair --from") {
			t.Errorf("%v: %q", args, refused.next())
		}
	}
}

// TestMirrorOfAnOlderState: a mirror that lacks what the registry does not show is made
// in part.
func TestMirrorOfAnOlderState(t *testing.T) {
	t.Parallel()
	reg, p := withRoles(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--username", "admin",
		"--password-file", p.write("admin", "admin secret\n"), "--site", "main", "--kit", p.path("kit.txt"))
	p.store(reg, "shop", 3)
	p.do(0, &listing{}, "snapshots")
	to := registrytest.Start(t)
	copying := []string{"copy", "--mirror", "--to", to.URL("mirror"), "--to-fingerprint", to.Fingerprint}
	p.do(0, &copyAnswer{}, copying...)
	p.lose(reg, "s.shop.3")
	for _, args := range [][]string{copying, append(copying, "--dry-run")} {
		var ans copyAnswer
		errs := p.do(codePartial, &ans, args...)
		if len(ans.Problems) != 1 || !strings.Contains(errs, "older state") || !strings.Contains(errs, "snapshots --accept-older") || !strings.Contains(errs, "repair --from") {
			t.Errorf("%v: %+v\n%s", args, ans.Problems, errs)
		}
	}
	p.do(0, &listing{}, "snapshots", "--accept-older")
	p.do(0, &copyAnswer{}, copying...)
}

// TestRepairFromHere: a tag that the registry has lost is put back from what it stores
// still, without a mirror; what is refused until then does not advise itself.
func TestRepairFromHere(t *testing.T) {
	t.Parallel()
	for _, tag := range []string{"host.1", "s.shop.3"} {
		t.Run(tag, func(t *testing.T) {
			t.Parallel()
			reg, p := withRoles(t), newPlace(t)
			p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--username", "admin",
				"--password-file", p.write("admin", "admin secret\n"), "--site", "main", "--kit", p.path("kit.txt"))
			p.store(reg, "shop", 3)
			p.do(0, &listing{}, "snapshots")
			link := filepath.Join(reg.Data, "store/docker/registry/v2/repositories/dr/_manifests/tags", tag, "current/link")
			if err := os.Truncate(link, 0); err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{{"restore", "shop@#3", "--to", p.path("to")}, {"ls", "shop@#3"}} {
				var refused said
				p.do(codeFailed, &refused, args...)
				for line := range strings.Lines(refused.next()) {
					if strings.Contains(line, args[0]+" shop@#3") || strings.Contains(line, "#NUMBER") {
						t.Errorf("%v advises %q", args, line)
					}
				}
				if !strings.Contains(refused.next(), "lifeboat repair  (") {
					t.Errorf("%v: %q", args, refused.next())
				}
			}
			var looked said
			p.do(codeFailed, &looked, "check")
			if n := strings.Count(looked.next(), "lifeboat repair --from URL"); n != 1 || !strings.Contains(looked.next(), "lifeboat repair  (") {
				t.Errorf("%q", looked.next())
			}
			p.do(0, &repairAnswer{}, "repair", "--dry-run")
			p.do(0, &repairAnswer{}, "repair")
			p.do(0, &struct{}{}, "check")
			p.do(0, &struct{}{}, "ls", "shop@#3")
		})
	}
}
