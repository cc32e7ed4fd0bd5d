package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/ui"
)

func newDiffCmd(a *app) *cobra.Command {
	var f restoreFlags
	cmd := &cobra.Command{
		Use:     "diff SYSTEM[@SNAPSHOT] [SYSTEM]@SNAPSHOT",
		GroupID: groupRecover,
		Short:   "Compare two snapshots: objects, and the files of their trees",
		Long: `Compare two snapshots, of one system or of two: containers, images, networks,
volumes, project files, and the files of all trees or of one. Without a snapshot
the newest is meant; the second SYSTEM may be left out.

Signs: + only in the second, - only in the first, C content or type differs,
M only mode, owner, time or attributes. Of a file with other content the bytes are
told that differ, by the units in which it is stored. What both share is not read, so the cost
is that of what differs.`,
		Example: `  lifeboat diff shop@5f0c12ab @latest
  lifeboat diff 'shop@#12' '@#13' --volume shop_uploads
  lifeboat diff shop@5f0c12ab shop-test@9b1d --tree layer:web --path var/www --json`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runDiff(cmd.Context(), args[0], args[1], f) },
	}
	cmd.Flags().StringVar(&f.volume, "volume", "", "only files of this `VOLUME`")
	cmd.Flags().StringVar(&f.tree, "tree", "", "only files of this `TREE`: volume:NAME, bind:/PATH or layer:CONTAINER")
	cmd.Flags().StringVar(&f.path, "path", "", "only this `PATH` and what is below it, or what fits a pattern (see ls)")
	cmd.ValidArgsFunction = a.completeRefs
	complete(cmd, map[string]completer{"volume": a.completeTrees("volume:"), "tree": a.completeTrees("")})
	return cmd
}

// diffFile is one path that differs.
type diffFile struct {
	Tree string `json:"tree"`
	Path string `json:"path"`
	// PathRaw is there where Path is not UTF-8.
	PathRaw []byte `json:"path_raw,omitempty"`
	Change  string `json:"change"` // added, removed, content, metadata
	Type    string `json:"type"`
	// What says which parts of the metadata differ.
	What []string `json:"what,omitempty"`
	// SizeA and SizeB are -1 where the path is not there.
	SizeA int64 `json:"size_a"`
	SizeB int64 `json:"size_b"`
	// BytesNew are only in the second, BytesGone only in the first: of a file with
	// other content those of its units that differ.
	BytesNew  int64 `json:"bytes_new"`
	BytesGone int64 `json:"bytes_gone"`
}

// diffObject is one container, image, network, volume or project file.
type diffObject struct {
	Object string `json:"object"`
	Change string `json:"change"` // added, removed, changed
	// What says which parts differ.
	What []string `json:"what,omitempty"`
}

// diffTotals sums up the trees.
type diffTotals struct {
	Added, Removed, Content, Metadata int64
	// BytesAdded is the size of what is only in the second, or has other content
	// there; BytesRemoved the same of the first.
	BytesAdded, BytesRemoved int64
	// BytesNew and BytesGone count of files with other content only what differs.
	BytesNew, BytesGone int64
}

// MarshalJSON gives the keys their form.
func (t diffTotals) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]int64{
		"added": t.Added, "removed": t.Removed, "content": t.Content, "metadata": t.Metadata,
		"bytes_added": t.BytesAdded, "bytes_removed": t.BytesRemoved,
		"bytes_new": t.BytesNew, "bytes_gone": t.BytesGone,
	})
}

// side is one of the two snapshots.
type diffSide struct {
	snap *repo.Snapshot
	rd   *repo.Reader
	root *dr.Root
}

// diffSides opens both; again is this run's command line with another word for one of
// them.
func (w *world) diffSides(ctx context.Context, refA, refB string, again func(at int, ref string) string) (a, b diffSide, err error) {
	if strings.HasPrefix(refB, "@") {
		sys, _, _ := strings.Cut(refA, "@")
		refB = sys + refB
	}
	if a.snap, a.rd, a.root, err = w.openRef(ctx, refA, func(ref string) string { return again(0, ref) }); err != nil {
		return a, b, fmt.Errorf("%s: %w", refA, err)
	}
	if b.snap, b.rd, b.root, err = w.openRef(ctx, refB, func(ref string) string { return again(1, ref) }); err != nil {
		a.rd.Close()
		return a, b, fmt.Errorf("%s: %w", refB, err)
	}
	return a, b, nil
}

func (a *app) runDiff(ctx context.Context, refA, refB string, f restoreFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	match, err := newPathMatch(f.path)
	if err != nil {
		return err
	}
	w, err := a.open(ctx, false)
	if err != nil {
		return err
	}
	defer w.close()
	x, y, err := w.diffSides(ctx, refA, refB, a.againFor)
	if err != nil {
		return err
	}
	defer x.rd.Close()
	defer y.rd.Close()
	oneTree := f.volume != "" || f.tree != ""
	objects := []diffObject{}
	if !oneTree {
		if objects, err = diffObjects(x.root, y.root); err != nil {
			return err
		}
		for _, o := range objects {
			a.diffLine("%s %s%s", map[string]string{"added": "+", "removed": "-", "changed": "C"}[o.Change], o.Object, inBrackets(o.What))
		}
	}
	files := []diffFile{}
	var sum diffTotals
	err = diffTrees(ctx, x, y, f, func(d diffFile) error {
		if !match.fits(d.Path) {
			return nil
		}
		sum.count(d)
		if a.UI().JSON() {
			files = append(files, d)
			return nil
		}
		sign := map[string]string{"added": "+", "removed": "-", "content": "C", "metadata": "M"}[d.Change]
		a.diffLine("%s %s:/%s%s", sign, d.Tree, d.Path, inBrackets(d.describe()))
		return nil
	})
	if err != nil {
		return explainUnread(y.snap, err)
	}
	if a.UI().JSON() {
		return a.UI().Answer(map[string]any{"a": x.snap.ID, "b": y.snap.ID, "objects": objects, "files": files, "totals": sum})
	}
	return a.UI().Answer(nil, ui.Text(fmt.Sprintf("%d added, %d removed, %d with other content, %d with other metadata; %s new, %s gone",
		sum.Added, sum.Removed, sum.Content, sum.Metadata, bytesText(sum.BytesNew), bytesText(sum.BytesGone))))
}

func (a *app) diffLine(format string, args ...any) {
	if a.UI().JSON() {
		return
	}
	// What cannot be written is told when the answer ends.
	_, _ = fmt.Fprintln(a.UI().Out(), ui.Clean(fmt.Sprintf(format, args...)))
}

func inBrackets(what []string) string {
	if len(what) == 0 {
		return ""
	}
	return "  (" + strings.Join(what, ", ") + ")"
}

func (d diffFile) describe() []string {
	var out []string
	switch {
	case d.Type != "file":
		out = append(out, d.Type)
	case d.SizeA < 0:
		out = append(out, bytesText(d.SizeB))
	case d.SizeB < 0:
		out = append(out, bytesText(d.SizeA))
	case d.SizeA != d.SizeB:
		out = append(out, bytesText(d.SizeA)+" to "+bytesText(d.SizeB))
	default:
		if d.Change == "content" {
			out = append(out, bytesText(d.SizeB))
		}
	}
	if d.Change == "content" && d.Type == "file" {
		out = append(out, bytesText(d.BytesNew)+" new", bytesText(d.BytesGone)+" gone")
	}
	return append(out, d.What...)
}

func (t *diffTotals) count(d diffFile) {
	switch d.Change {
	case "added":
		t.Added++
	case "removed":
		t.Removed++
	case "content":
		t.Content++
	default:
		t.Metadata++
		return
	}
	t.BytesAdded += max(d.SizeB, 0)
	t.BytesRemoved += max(d.SizeA, 0)
	t.BytesNew += d.BytesNew
	t.BytesGone += d.BytesGone
}

// diffTrees calls fn for each path that differs, tree by tree.
func diffTrees(ctx context.Context, x, y diffSide, f restoreFlags, fn func(diffFile) error) error {
	want := f.tree
	if f.volume != "" {
		want = "volume:" + f.volume
	}
	trees := map[string][2]*dr.Tree{}
	for i, root := range []*dr.Root{x.root, y.root} {
		for k := range root.Trees {
			t := &root.Trees[k]
			pair := trees[t.Key]
			pair[i] = t
			trees[t.Key] = pair
		}
	}
	var keys []string
	for key := range trees {
		if want == "" || key == want {
			keys = append(keys, key)
		}
	}
	if want != "" && len(keys) == 0 {
		return fmt.Errorf("neither snapshot has a tree %q: %w", want, dr.ErrNotFound)
	}
	slices.Sort(keys)
	for _, key := range keys {
		pair := trees[key]
		if pair[0] != nil && pair[1] != nil && x.root.Repo == y.root.Repo && slices.Equal(pair[0].Catalog, pair[1].Catalog) {
			continue
		}
		if err := diffTree(ctx, key, x.rd, y.rd, pair, fn); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

func diffTree(ctx context.Context, key string, x, y *repo.Reader, pair [2]*dr.Tree, fn func(diffFile) error) error {
	var in [2]*catalog.Reader
	for i, rd := range []*repo.Reader{x, y} {
		if pair[i] == nil {
			continue
		}
		var err error
		if in[i], err = catalog.Open(ctx, rd, pair[i].Catalog); err != nil {
			return err
		}
	}
	return catalog.Diff(ctx, in[0], in[1], func(c catalog.Change) error {
		d := newDiffFile(key, c.Path())
		d.Change = c.Kind.String()
		if c.A != nil {
			d.SizeA, d.Type = c.A.Size, c.A.Type.String()
		}
		if c.B != nil {
			d.SizeB, d.Type = c.B.Size, c.B.Type.String()
		}
		d.BytesNew, d.BytesGone = max(d.SizeB, 0), max(d.SizeA, 0)
		if c.A != nil && c.B != nil {
			d.What = whatDiffers(c.A, c.B)
			d.BytesNew, d.BytesGone = 0, 0
			if c.Kind == catalog.Content {
				var err error
				if d.BytesNew, d.BytesGone, err = unitBytes(ctx, in[0], in[1], c.A, c.B); err != nil {
					return fmt.Errorf("content of %q: %w", d.Path, err)
				}
			}
		}
		return fn(d)
	})
}

// newDiffFile is a path that is in neither of the two yet.
func newDiffFile(tree, path string) diffFile {
	return diffFile{Tree: tree, Path: path, PathRaw: rawOf(path), SizeA: -1, SizeB: -1}
}

// whatDiffers names the metadata in which two entries of one path differ.
func whatDiffers(a, b *catalog.Entry) (out []string) {
	for _, c := range []struct {
		differs bool
		what    string
	}{
		{a.Type != b.Type, a.Type.String() + " to " + b.Type.String()},
		{a.Target != b.Target, "target"},
		{a.Major != b.Major || a.Minor != b.Minor, "device"},
		{a.Mode != b.Mode, fmt.Sprintf("mode %04o to %04o", a.Mode, b.Mode)},
		{a.UID != b.UID || a.GID != b.GID, fmt.Sprintf("owner %d:%d to %d:%d", a.UID, a.GID, b.UID, b.GID)},
		{a.MtimeSec != b.MtimeSec || a.MtimeNsec != b.MtimeNsec, "time"},
		{!catalog.SameXattrs(a.Xattrs, b.Xattrs), "attributes"},
		{a.Opaque != b.Opaque, "hides the image's or not"},
		{a.LinkGroup != b.LinkGroup, "hard links"},
	} {
		if c.differs {
			out = append(out, c.what)
		}
	}
	return out
}

// object is something of a root record with the parts that are compared.
type object struct {
	name  string
	parts map[string]any
}

func objectsOf(r *dr.Root) (out []object) {
	for _, c := range r.Containers {
		out = append(out, object{"container:" + c.Name, map[string]any{
			"image": c.Image, "state": c.State, "configuration": c.Config, "host configuration": c.HostConfig, "networks": c.Endpoints,
			"mounts": c.Mounts, "dependencies": c.DependsOn,
		}})
	}
	for _, im := range r.Images {
		name := strings.Join(im.Tags, ",")
		if name == "" {
			name = im.ID
		}
		out = append(out, object{"image:" + name, map[string]any{"id": im.ID}})
	}
	for _, n := range r.Networks {
		out = append(out, object{"network:" + n.Name, map[string]any{"configuration": n.Spec, "external": n.External}})
	}
	for _, v := range r.Volumes {
		out = append(out, object{"volume:" + v.Name, map[string]any{"driver": v.Driver, "options": v.Options, "labels": v.Labels}})
	}
	for _, b := range r.Binds {
		out = append(out, object{"bind:" + b.Source, map[string]any{"kind": b.File}})
	}
	for _, f := range r.Files {
		out = append(out, object{"file:" + f.Path, map[string]any{"content": f.Content, "mode": f.Mode, "owner": [2]uint32{f.UID, f.GID}}})
	}
	return out
}

// diffObjects compares what two root records hold beside their trees.
func diffObjects(a, b *dr.Root) ([]diffObject, error) {
	out := []diffObject{}
	before, after := map[string]object{}, map[string]object{}
	for _, o := range objectsOf(a) {
		before[o.name] = o
	}
	for _, o := range objectsOf(b) {
		after[o.name] = o
		was, ok := before[o.name]
		if !ok {
			out = append(out, diffObject{Object: o.name, Change: "added"})
			continue
		}
		what, err := partsThatDiffer(was.parts, o.parts)
		if err != nil {
			return nil, err
		}
		if len(what) > 0 {
			out = append(out, diffObject{Object: o.name, Change: "changed", What: what})
		}
	}
	for _, o := range objectsOf(a) {
		if _, ok := after[o.name]; !ok {
			out = append(out, diffObject{Object: o.name, Change: "removed"})
		}
	}
	slices.SortFunc(out, func(x, y diffObject) int { return strings.Compare(x.Object, y.Object) })
	return out, nil
}

// partsThatDiffer compares by their JSON. Values are not shown: configurations
// hold passwords.
func partsThatDiffer(a, b map[string]any) (out []string, err error) {
	for name := range a {
		x, err := json.Marshal(a[name])
		if err != nil {
			return nil, err
		}
		y, err := json.Marshal(b[name])
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(x, y) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out, nil
}
