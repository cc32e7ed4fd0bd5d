package systems_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/lab"
	"lifeboat/lab/images"
	"lifeboat/lab/systems"
	"lifeboat/lab/treecmp"
)

func TestMain(m *testing.M) {
	lab.Child()
	os.Exit(m.Run())
}

func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 9*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// oneSite makes a laboratory of one site, with images built before.
func oneSite(t *testing.T, engine lab.Engine, sets ...images.Set) *lab.Site {
	t.Helper()
	ctx := testContext(t)
	if err := images.Ensure(ctx, testLog(t), sets...); err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(ctx, lab.Options{Sites: []lab.SiteOptions{{Name: "main", Engine: engine}}, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l.Main()
}

func up(t *testing.T, s *systems.System, site *lab.Site) {
	t.Helper()
	start := time.Now()
	if err := s.Up(testContext(t), site, testLog(t)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s serves after %v", s.Project, time.Since(start).Round(time.Millisecond))
}

func TestWordPress(t *testing.T) {
	ctx := testContext(t)
	blog := systems.WordPress(systems.Params{})
	other := systems.WordPress(systems.Params{Project: "other", Port: 8081, Subnet: "172.28.10", Title: "Another Log"})
	site := oneSite(t, lab.EngineDocker20, blog.Images())
	up(t, blog, site)
	if err := blog.Seed(ctx, site, systems.Seed{ThemeFiles: 200}); err != nil {
		t.Fatal(err)
	}
	page, err := blog.Get(ctx, site, "/")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"The Harbour Log", `data-theme="harbour"`, "Log entry 20", "Hello world!"} {
		if !strings.Contains(page, want) {
			t.Errorf("front page lacks %q: %.2000s", want, page)
		}
	}
	layers, err := blog.Fingerprints(ctx, site, systems.Upper)
	if err != nil {
		t.Fatal(err)
	}
	web := layers["layer web"]
	if e := web["usr/share/wordpress/readme.html"]; e.Type != treecmp.Whiteout {
		t.Errorf("a deleted file of the image: %+v", e)
	}
	if e := web["usr/share/wordpress/wp-admin/images"]; e.Xattrs["trusted.overlay.opaque"] != "y" {
		t.Errorf("a replaced directory of the image: %+v", e)
	}
	if e := web["var/lib/wordpress/wp-content/themes/harbour/parts/200.php"]; e.Type != treecmp.File {
		t.Errorf("the theme is not in the writable layer: %+v", e)
	}
	for _, tree := range []string{"volume blog_database", "volume blog_uploads", "bind /srv/blog/config/wordpress"} {
		if len(layers[tree]) == 0 {
			t.Errorf("no tree %q in %d trees", tree, len(layers))
		}
	}
	// A second one of the same images is a system of its own.
	up(t, other, site)
	if page, err := other.Get(ctx, site, "/"); err != nil || !strings.Contains(page, "Another Log") {
		t.Errorf("second WordPress: %.300s, %v", page, err)
	}
	crashUnderLoad(t, blog, site)
}

func TestGuestbook(t *testing.T) {
	guests := systems.Guestbook(systems.Params{})
	site := oneSite(t, lab.EngineDocker20, guests.Images())
	up(t, guests, site)
	if err := guests.Seed(testContext(t), site, systems.Seed{}); err != nil {
		t.Fatal(err)
	}
	if page, err := guests.Get(testContext(t), site, "/"); err != nil || !strings.Contains(page, "guest 20") {
		t.Errorf("front page: %.300s, %v", page, err)
	}
	crashUnderLoad(t, guests, site)
}

// crashUnderLoad proves the instruments: what was acknowledged is there after a loss of power, because
// the database keeps its promise, and the checks find it.
func crashUnderLoad(t *testing.T, s *systems.System, site *lab.Site) {
	t.Helper()
	ctx := testContext(t)
	load, err := s.StartLoad(ctx, site, systems.LoadOptions{Writers: 3})
	if err != nil {
		t.Fatal(err)
	}
	if err := load.Await(ctx, 50); err != nil {
		t.Fatal(err)
	}
	if err := site.Crash(ctx); err != nil {
		t.Fatal(err)
	}
	acks := load.Stop()
	if _, err := s.Get(ctx, site, "/"); err == nil {
		t.Fatal("a crashed site serves")
	}
	if err := site.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.AwaitServing(ctx, site); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(ctx, site); err != nil {
		t.Error(err)
	}
	ledger, err := s.Ledger(ctx, site)
	if err != nil {
		t.Fatal(err)
	}
	if err := ledger.CheckAcked(acks, time.Now()); err != nil {
		t.Error(err)
	}
	a, err := s.DumpDigest(ctx, site)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := s.DumpDigest(ctx, site); err != nil || a != b {
		t.Errorf("two dumps of the same data: %s, %s, %v", a, b, err)
	}
	failed, _ := load.Failed()
	pause, _ := systems.LongestPause(acks)
	t.Logf("%d acknowledged, %d not, longest pause %v", len(acks), failed, pause)
}

func TestLedgerSeesLostAndTornEntries(t *testing.T) {
	now := time.Unix(1000, 0)
	acks := []systems.Ack{{Seq: 1, Acked: now}, {Seq: 2, Acked: now.Add(time.Second)}}
	torn := systems.Ledger{Begin: []int64{1, 2}, Rows: []int64{1, 3}, Done: []int64{1, 2}}
	if err := torn.Check(); err == nil || !strings.Contains(err.Error(), "[2]") || !strings.Contains(err.Error(), "[3]") {
		t.Errorf("torn ledger: %v", err)
	}
	whole := systems.Ledger{Begin: []int64{1, 2}, Rows: []int64{1, 2}, Done: []int64{1}}
	if err := whole.Check(); err != nil {
		t.Error(err)
	}
	if err := whole.CheckAcked(acks, now); err != nil {
		t.Error(err)
	}
	if err := whole.CheckAcked(acks, now.Add(time.Minute)); err == nil || !strings.Contains(err.Error(), "[2]") {
		t.Errorf("lost entry: %v", err)
	}
	if d, since := systems.LongestPause(acks); d != time.Second || !since.Equal(now) {
		t.Errorf("longest pause %v since %v", d, since)
	}
}

func TestTortureHoldsEverything(t *testing.T) {
	ctx := testContext(t)
	rack := systems.Torture(systems.Params{})
	site := oneSite(t, lab.EngineDocker20, rack.Images())
	up(t, rack, site)
	trees, err := rack.Fingerprints(ctx, site, systems.Upper)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "saved")
	if err := systems.SaveTrees(dir, trees); err != nil {
		t.Fatal(err)
	}
	loaded, err := systems.LoadTrees(dir)
	if err != nil {
		t.Fatal(err)
	}
	if report := systems.CompareTrees(loaded, trees, treecmp.Rules{}); report != "" {
		t.Errorf("saved and loaded:\n%s", report)
	}
	layer := trees["layer busy"]
	if layer["image/deleted"].Type != treecmp.Whiteout || layer["image/replaced"].Xattrs["trusted.overlay.opaque"] != "y" {
		t.Errorf("marks of the overlay: %+v %+v", layer["image/deleted"], layer["image/replaced"])
	}
	for _, tree := range []treecmp.Tree{layer.Under("populated"), trees["volume rack_precious"], trees["volume busy:/anonymous"], trees["bind /srv/rack/data"].Under("populated")} {
		if tree["special/null"].Type != treecmp.Char || tree["attr/capable"].Xattrs["security.capability"] == "" || tree["links/b"].LinkedTo != "links/a" ||
			len(tree["sparse/hole-only"].Data) != 0 || tree["attr/dir"].Xattrs["system.posix_acl_default"] == "" {
			t.Errorf("incomplete tree of %d entries", len(tree))
		}
	}
	if e := trees["volume rack_precious"]["."]; e.UID != 999 || e.Mode != 0o3771 {
		t.Errorf("root of the volume: %+v", e)
	}
	if _, ok := trees["layer never"]; !ok {
		t.Error("no layer of the container that was never started")
	}
	if e := trees["layer finished"]["finished"]; e.Type != treecmp.File {
		t.Errorf("layer of the container that has ended: %+v", e)
	}
	out, err := site.Docker(ctx, "ps", "-a", "--format", "{{.Label \"com.docker.compose.service\"}} {{.State}}")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"busy running", "finished exited", "never created"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("containers lack %q: %s", want, out)
		}
	}
}

func TestNewerEngineWithContainerdStore(t *testing.T) {
	ctx := testContext(t)
	rack := systems.Torture(systems.Params{})
	site := oneSite(t, lab.EngineContainerd, rack.Images())
	out, err := site.Docker(ctx, "info", "--format", "{{.Driver}} {{.ServerVersion}}")
	if err != nil || !strings.HasPrefix(string(out), "overlayfs 28.") {
		t.Fatalf("engine: %s, %v", out, err)
	}
	up(t, rack, site)
	trees, err := rack.Fingerprints(ctx, site, systems.Merged)
	if err != nil {
		t.Fatal(err)
	}
	layer := trees["layer busy"]
	if layer["populated/special/null"].Type != treecmp.Char || layer["image/replaced/new"].Type != treecmp.File || layer["image/deleted"].Type != "" {
		t.Errorf("what the container sees: %d entries", len(layer))
	}
	if _, err := rack.Fingerprints(ctx, site, systems.Upper); err == nil {
		t.Error("upper directories of an engine that does not name them")
	}
	if err := site.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := rack.Container(ctx, site, "busy"); err != nil {
		t.Errorf("after a reboot: %v", err)
	}
}
