package freeze

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMessageRoundTrip(t *testing.T) {
	for k := kindSetup; k < kindLast; k++ {
		m := message{kind: k, session: session{1, 2, 255}, value: -5}
		got, err := decodeMessage(m.encode())
		if err != nil || got != m {
			t.Errorf("%v: %v, %v", m, got, err)
		}
	}
	s := setup{Versions: []int{1, 2, 2}, Paused: []string{"x"}, Pauser: "unix:///x"}
	b, err := s.encode(session{7})
	if err != nil {
		t.Fatal(err)
	}
	got, id, err := decodeSetup(b)
	if diff := cmp.Diff(s, got); err != nil || id != (session{7}) || diff != "" {
		t.Errorf("%v %v %s", id, err, diff)
	}
	for name, bad := range map[string][]byte{
		"empty": nil, "short": b[:20], "no document": b[:messageSize], "cut": b[:len(b)-1], "more": append(bytes.Clone(b), "{}"...),
		"version":       mustSetup(t, setup{Versions: []int{3}}),
		"unknown field": append(bytes.Clone(b[:messageSize]), `{"versions":[],"x":1}`...),
	} {
		if _, _, err := decodeSetup(bad); !errors.Is(err, errGarbled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (setup{Paused: []string{strings.Repeat("x", maxSetup)}}).encode(session{}); err == nil {
		t.Error("oversized setup")
	}
}

func mustSetup(t *testing.T, s setup) []byte {
	b, err := s.encode(session{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A transcript for each course of a guardian's life.
func TestGuardianPhases(t *testing.T) {
	type stepOf struct {
		e event
		p phase
		a action
	}
	for name, steps := range map[string][]stepOf{
		"as planned": {
			{eventArm, phaseArmed, doArm},
			{eventFrozen, phaseFrozen, doAnswer},
			{eventRelease, phaseDone, doConfirm},
			{eventGone, phaseDone, doNothing},
		},
		"freezing failed":         {{eventArm, phaseArmed, doArm}, {eventRelease, phaseDone, doConfirm}},
		"parent dies at once":     {{eventGone, phaseDone, doNothing}},
		"never armed":             {{eventRelease, phaseDone, doConfirm}},
		"parent dies while armed": {{eventArm, phaseArmed, doArm}, {eventGone, phaseDone, doThaw}},
		"parent dies frozen":      {{eventArm, phaseArmed, doArm}, {eventFrozen, phaseFrozen, doAnswer}, {eventGone, phaseDone, doThaw}},
		"deadline while freezing, then the parent goes on": {
			{eventArm, phaseArmed, doArm},
			{eventDeadline, phaseSpent, doThaw},
			{eventFrozen, phaseSpent, doThaw},
			{eventRelease, phaseSpent, doThaw},
			{eventGone, phaseDone, doThaw},
		},
		"deadline while frozen, then the parent dies": {
			{eventArm, phaseArmed, doArm},
			{eventFrozen, phaseFrozen, doAnswer},
			{eventDeadline, phaseSpent, doThaw},
			{eventDeadline, phaseSpent, doNothing},
			{eventGone, phaseDone, doThaw},
		},
		"garbage":        {{eventArm, phaseArmed, doArm}, {eventGarbled, phaseSpent, doThaw}},
		"out of turn":    {{eventFrozen, phaseSpent, doThaw}},
		"armed twice":    {{eventArm, phaseArmed, doArm}, {eventArm, phaseSpent, doThaw}},
		"frozen twice":   {{eventArm, phaseArmed, doArm}, {eventFrozen, phaseFrozen, doAnswer}, {eventFrozen, phaseSpent, doThaw}},
		"after the end":  {{eventRelease, phaseDone, doConfirm}, {eventGarbled, phaseDone, doNothing}},
		"early deadline": {{eventDeadline, phaseReady, doNothing}},
	} {
		p := phaseReady
		for i, s := range steps {
			var a action
			if p, a = p.next(s.e); p != s.p || a != s.a {
				t.Errorf("%s, step %d: phase %d action %d, want %d %d", name, i, p, a, s.p, s.a)
			}
		}
	}
	// Whatever happens once it is armed: it ends only by release or by thawing.
	for _, p := range []phase{phaseArmed, phaseFrozen, phaseSpent} {
		for e := eventArm; e <= eventGone; e++ {
			if next, a := p.next(e); next == phaseDone && a != doThaw && a != doConfirm {
				t.Errorf("phase %d, event %d: ends without a look at the freezers", p, e)
			}
		}
	}
}

// A real guardian that gets garbage, or a message of another session, thaws.
func TestGuardianThawsOnGarbage(t *testing.T) {
	for name, packet := range map[string][]byte{
		"garbage":         []byte("hello"),
		"too long":        make([]byte, 200),
		"another session": message{kind: kindRelease, session: session{9}}.encode(),
		"out of turn":     nil, // arm a second time
	} {
		t.Run(name, func(t *testing.T) {
			fs := fixtures(t, versions(t)[0], 1)
			set, dir := newTestSet(t, fs), t.TempDir()
			if err := set.look(context.Background()); err != nil {
				t.Fatal(err)
			}
			o, err := Options{StateDir: dir}.checked()
			if err != nil {
				t.Fatal(err)
			}
			rec, err := register(context.Background(), set, o)
			if err != nil {
				t.Fatal(err)
			}
			w, _, err := startWatch(context.Background(), set, rec.file, o.Command)
			if err != nil {
				t.Fatal(err)
			}
			now, err := boottime()
			if err != nil {
				t.Fatal(err)
			}
			if err := w.ask(context.Background(), kindArm, now+int64(long), kindArmed); err != nil {
				t.Fatal(err)
			}
			if err := set.freeze(context.Background()); err != nil {
				t.Fatal(err)
			}
			if packet == nil {
				packet = message{kind: kindArm, session: w.session, value: now + int64(long)}.encode()
			}
			if _, err := w.guards[0].socket.Write(packet); err != nil {
				t.Fatal(err)
			}
			<-w.failed
			if !strings.Contains(w.err.Error(), reasonGarbled.String()) {
				t.Errorf("reason %v", w.err)
			}
			mustRun(t, fs)
			w.end()
			if err := rec.finish(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestGuardianMainByHand(t *testing.T) {
	if code := runGuardianByHand(t); code != 2 {
		t.Errorf("exit code %d", code)
	}
}

func TestGuardianEnvHasNoSecrets(t *testing.T) {
	env := []string{"LIFEBOAT_PASSPHRASE_FILE=x", "AWS_SECRET_ACCESS_KEY=s", "HOME=/root", "DOCKER_HOST=tcp://h:1", "odd"}
	if got := guardianEnv(env, false); len(got) != 0 {
		t.Errorf("without an engine: %v", got)
	}
	if diff := cmp.Diff([]string{"HOME=/root", "DOCKER_HOST=tcp://h:1"}, guardianEnv(env, true)); diff != "" {
		t.Error(diff)
	}
}

func FuzzDecodeMessage(f *testing.F) {
	f.Add(message{kind: kindArm, session: session{1}, value: 9}.encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMessage(b)
		if err == nil && !bytes.Equal(m.encode(), b) {
			t.Errorf("%x decodes to %v, which encodes otherwise", b, m)
		}
	})
}

func FuzzDecodeSetup(f *testing.F) {
	b, _ := setup{Versions: []int{1}, Paused: []string{"a"}}.encode(session{1})
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, id, err := decodeSetup(b)
		if err != nil {
			return
		}
		again, err := s.encode(id)
		if err != nil {
			return // longer when written in full
		}
		s2, id2, err := decodeSetup(again)
		if err != nil || id != id2 || len(s2.Versions) != len(s.Versions) || len(s2.Paused) != len(s.Paused) {
			t.Errorf("%+v: %+v %v", s, s2, err)
		}
	})
}

func FuzzDecodeRecord(f *testing.F) {
	b, _ := record{Version: 1, BootID: "x", Containers: []recordContainer{{ID: idA, Cgroup: 2, Path: "docker/" + idA, Inode: 4}}}.encode()
	f.Add(b)
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			return
		}
		for _, c := range r.Containers {
			if c.Cgroup != 0 && (!filepath.IsLocal(c.Path) || !strings.Contains(c.Path, c.ID)) {
				t.Errorf("accepts path %q of %q", c.Path, c.ID)
			}
		}
	})
}

func FuzzParseMountinfo(f *testing.F) {
	f.Add([]byte("36 35 98:0 /mnt1 /mnt\\0402 rw - cgroup2 cg rw,freezer\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ms, err := parseMountinfo(b)
		if err != nil {
			return
		}
		for _, m := range ms {
			if rel, ok := relative(m.root, "/docker/x"); ok && strings.HasPrefix(rel, "..") {
				t.Errorf("root %q leads out: %q", m.root, rel)
			}
		}
	})
}

func FuzzParseCgroups(f *testing.F) {
	f.Add([]byte("6:freezer:/docker/" + idA + "\n0::/../x\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		es, err := parseCgroups(b)
		if err != nil {
			return
		}
		for _, e := range es {
			if own := (Container{ID: idA}).within(e.path); own != "" && !below(own, e.path) {
				t.Errorf("%q is not above %q", own, e.path)
			}
		}
	})
}

func FuzzParseProc(f *testing.F) {
	f.Add([]byte("  sl  local\n   0: 0100007F:1F90 00000000:0000 0A 0:0 0:0 0 0 0 1587 1\n"))
	f.Add([]byte("/usr/bin/docker-proxy\x00-proto\x00tcp\x00-host-ip\x000.0.0.0\x00-host-port\x0080\x00-container-ip\x00172.17.0.2\x00-container-port\x0080\x00"))
	f.Add([]byte("nameserver 1.1.1.1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, proto := range []string{"tcp", "udp"} {
			if ss, err := parseSockets(b, proto); err == nil {
				for _, s := range ss {
					if !s.Addr.Addr().IsValid() {
						t.Errorf("invalid address of %v", s)
					}
				}
			}
		}
		parseLocalAddrs4(b)
		parseLocalAddrs6(b)
		parseProxy(b)
		_, _, _ = parseRoute(b)
		if len(parseNameservers(b)) == 0 {
			t.Error("no name server at all")
		}
	})
}
