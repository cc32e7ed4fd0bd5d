package e2e

import (
	"bytes"
	"crypto/tls"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"lifeboat/lab"
)

// listing are the contract's keys of snapshots.
type listing struct {
	Snapshots []struct {
		Snapshot string `json:"snapshot"`
		Number   int    `json:"number"`
		Newest   bool   `json:"newest"`
	} `json:"snapshots"`
	Problems []string `json:"problems"`
}

// squat puts a manifest that is no snapshot under a tag, as somebody with a
// login to the registry could.
func (r *rig) squat(tag string) {
	r.t.Helper()
	const empty = `{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2}`
	body := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":` + empty + `,"layers":[` + empty + `]}`
	host := strings.TrimSuffix(strings.TrimPrefix(r.repo, "oci://"), "/dr")
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodPut, "https://"+host+"/v2/dr/manifests/"+tag, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.SetBasicAuth(registryUser, registryPassword)
	req.Header.Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	client := r.main.HTTPClient()
	// The certificate is the registry's own; who squats does not mind.
	client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
	resp, err := client.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		r.t.Fatalf("squat %s: %s", tag, resp.Status)
	}
}

// blobs lists the files of the registry's data that hold blobs of at least size bytes.
func (r *rig) blobs(size int64) []string {
	r.t.Helper()
	var out []string
	err := filepath.WalkDir(filepath.Join(r.cloud.Disk, "registry"), func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() != "data" {
			return err
		}
		st, err := d.Info()
		if err == nil && st.Size() >= size {
			out = append(out, p)
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// expect runs lifeboat and checks exit code and what it says.
func (r *rig) expect(s *lab.Site, code int, says string, args ...string) outcome {
	r.t.Helper()
	o := r.try(s, args...)
	if o.code != code || !strings.Contains(o.stdout+o.stderr, says) {
		r.t.Errorf("lifeboat %v: exit %d, want %d and %q\nstdout: %s\nstderr: %s", args, o.code, code, says, o.stdout, o.stderr)
	}
	return o
}

// TestWhatGoesWrong: each mishap gives its exit code and a message that names
// it; nothing is lost and nothing half done.
func TestWhatGoesWrong(t *testing.T) {
	r := newRig(t, lab.EngineDocker20, lab.EngineDocker20)
	startCounter(t, r.main)
	kit := r.init()
	r.expect(r.main, 10, "count", "snapshot", "count")
	r.expect(r.main, 10, "nope", "protect", "count", "--container", "nope")
	r.expect(r.main, 2, "name", "protect", "Not.A.Name", "--container", "count")
	r.must(r.main, nil, "protect", "count", "--container", "count")
	r.expect(r.standin, 10, "count", "failover", "count", "--yes")
	r.must(r.main, nil, "snapshot", "count")

	t.Run("wrong key", func(t *testing.T) {
		r := *r
		r.t = t
		cmd := r.command(t.Context(), r.main, "snapshots")
		other := filepath.Join(r.dir, "other.txt")
		r.write(other, "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX\n")
		cmd.Env = append(cmd.Env, "LIFEBOAT_KEY_FILE="+other)
		out, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); err == nil || code != 12 && code != 2 {
			t.Errorf("exit %d, want 12: %s", code, out)
		}
		if bytes.Contains(out, []byte("AGE-SECRET")) {
			t.Errorf("the key is in the output: %s", out)
		}
	})
	t.Run("registry down", func(t *testing.T) {
		r := *r
		r.t = t
		if err := r.lab.Cut(t.Context(), "cloud"); err != nil {
			t.Fatal(err)
		}
		cmd := r.command(t.Context(), r.main, "snapshot", "count")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		progressing(t, r.main)
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code == 0 {
			t.Errorf("a snapshot without a registry ended with 0")
		}
		progressing(t, r.main)
		if err := r.lab.Heal(t.Context(), "cloud"); err != nil {
			t.Fatal(err)
		}
		r.must(r.main, nil, "snapshot", "count")
	})
	t.Run("name taken", func(t *testing.T) {
		r := *r
		r.t = t
		if err := imagesOf(t, r.standin); err != nil {
			t.Fatal(err)
		}
		if _, err := r.standin.Docker(t.Context(), "create", "--name", "count", torture, "true"); err != nil {
			t.Fatal(err)
		}
		r.expect(r.standin, 11, "--override names.containers.count=", "failover", "count", "--yes")
		r.must(r.standin, nil, "failover", "count", "--override", "names.containers.count=count2", "--dry-run")
		if _, err := r.standin.Docker(t.Context(), "rm", "count"); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("damaged pack", func(t *testing.T) {
		r := *r
		r.t = t
		r.must(r.main, nil, "verify")
		packs := r.blobs(1 << 20)
		if len(packs) == 0 {
			t.Fatal("the registry holds no pack")
		}
		saved := map[string][]byte{}
		for _, p := range packs {
			raw, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			saved[p] = raw
			bad := bytes.Clone(raw)
			for i := 200; i < len(bad); i += 4096 {
				bad[i] ^= 1
			}
			if err := os.WriteFile(p, bad, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r.expect(r.main, 1, "sha256:", "verify")
		if o := r.try(r.standin, "failover", "count", "--yes"); o.code == 0 {
			t.Error("a failover from damaged packs succeeded")
		}
		if out, err := r.standin.Docker(t.Context(), "ps", "--quiet"); err != nil || len(fields(out)) > 0 {
			t.Errorf("something runs after a failover from damaged packs: %s %v", out, err)
		}
		for p, raw := range saved {
			if err := os.WriteFile(p, raw, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r.must(r.main, nil, "verify")
	})
	t.Run("squatted tag", func(t *testing.T) {
		r := *r
		r.t = t
		r.squat("s.count.3")
		o := r.expect(r.main, 0, "s.count.3", "snapshots", "count", "--json")
		if !strings.Contains(o.stderr, "s.count.3") {
			t.Errorf("the squatted tag is not named: %s", o.stderr)
		}
		var l listing
		o.decode(t, &l)
		if len(l.Snapshots) != 2 || len(l.Problems) != 1 {
			t.Errorf("listing %+v, want the good snapshots and one problem", l)
		}
		r.must(r.main, nil, "snapshot", "count")
		o = r.try(r.main, "snapshots", "count", "--json")
		o.decode(t, &l)
		if len(l.Snapshots) != 3 || l.Snapshots[2].Number != 4 {
			t.Errorf("listing %+v, want numbers 1, 2 and 4", l)
		}
		r.expect(r.main, 3, "s.count.3", "check")
		r.expect(r.main, 3, "s.count.3", "verify")
		// The next test fails over, past a squatted epoch.
		r.squat("e.count.2")
		r.expect(r.main, 3, "e.count.2", "check")
		r.must(r.main, nil, "snapshot", "count")
	})
	t.Run("recover with the kit alone", func(t *testing.T) {
		r := *r
		r.t = t
		if err := r.main.Destroy(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := r.standin.Destroy(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := r.standin.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		bare := func(args ...string) string {
			cmd := r.standin.Command(t.Context(), binary, args...)
			cmd.Env = append(cmd.Env, "LIFEBOAT_STATE_DIR="+r.standin.StateDir)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("lifeboat %v: %v\n%s", args, err, out)
			}
			return string(out)
		}
		if out := bare("recover", "--kit", kit, "--list"); !strings.Contains(out, "count") {
			t.Errorf("the kit does not list the system:\n%s", out)
		}
		bare("recover", "--kit", kit, "--yes")
		progressing(t, r.standin)
		oneInstant(t, r.standin)
	})
}

// TestSecondSystemSendsOnlyItsOwn: a second system from the same images sends
// next to nothing for them.
func TestSecondSystemSendsOnlyItsOwn(t *testing.T) {
	r := newRig(t, lab.EngineDocker20, lab.EngineNone)
	startCounter(t, r.main)
	if _, err := r.main.Docker(t.Context(), "run", "--detach", "--no-healthcheck", "--name", "other", "--volume", "other_data:/vol",
		"--entrypoint", "/bin/sh", torture, "-c", counter); err != nil {
		t.Fatal(err)
	}
	r.init()
	r.must(r.main, nil, "protect", "count", "--container", "count")
	r.must(r.main, nil, "protect", "other", "--container", "other")
	var first, second, again snapshotJSON
	r.must(r.main, &first, "snapshot", "count")
	r.must(r.main, &second, "snapshot", "other")
	r.must(r.main, &again, "snapshot", "count")
	t.Logf("first %d bytes, second system %d, unchanged but for the counter %d", first.BytesSent, second.BytesSent, again.BytesSent)
	if second.BytesSent*10 > first.BytesSent {
		t.Errorf("the second system sent %s bytes, the first %s", strconv.FormatInt(second.BytesSent, 10), strconv.FormatInt(first.BytesSent, 10))
	}
}
