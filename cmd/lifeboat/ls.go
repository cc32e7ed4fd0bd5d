package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/ui"
)

func newLsCmd(a *app) *cobra.Command {
	var f restoreFlags
	cmd := &cobra.Command{
		Use:     "ls SYSTEM[@SNAPSHOT]",
		GroupID: groupRecover,
		Short:   "Look into a snapshot: its objects, or the files of a tree",
		Long: `Look into a snapshot: its containers, images, networks, trees and project files, or
the files of one tree. --path takes a path with all below it, or a pattern: * and ?
stand for anything but a slash, [a-z] for one of several, ** for any number of
directories. Put a pattern in quotes, so that the shell leaves it alone. Names that
are printed with \xff and the like can be given so. JSON has the exact bytes of names
that are not UTF-8 as base64, in path_raw and target_raw.`,
		Example: `  lifeboat ls shop
  lifeboat ls shop --volume shop_uploads
  lifeboat ls shop --volume shop_uploads --path '**/*.pdf'
  lifeboat ls shop@5f0c12ab --tree layer:shop-web-1 --path var/www`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runLs(cmd.Context(), args[0], f) },
	}
	cmd.Flags().StringVar(&f.volume, "volume", "", "files of this `VOLUME`")
	cmd.Flags().StringVar(&f.tree, "tree", "", "files of this `TREE`: volume:NAME, bind:/PATH or layer:CONTAINER")
	cmd.Flags().StringVar(&f.path, "path", "", "only this `PATH` and what is below it, or what fits a pattern")
	cmd.ValidArgsFunction = a.completeRefs
	complete(cmd, map[string]completer{"volume": a.completeTrees("volume:"), "tree": a.completeTrees("")})
	return cmd
}

// lsRow is one entry of a tree. Raw members are there where the text is not UTF-8.
type lsRow struct {
	Path      string    `json:"path"`
	PathRaw   []byte    `json:"path_raw,omitempty"`
	Type      string    `json:"type"`
	Mode      string    `json:"mode"`
	UID       uint32    `json:"uid"`
	GID       uint32    `json:"gid"`
	Size      int64     `json:"size"`
	Mtime     time.Time `json:"mtime"`
	Target    string    `json:"target,omitempty"`
	TargetRaw []byte    `json:"target_raw,omitempty"`
	// Opaque directories hide what the image has there.
	Opaque bool `json:"opaque,omitempty"`
}

func (a *app) runLs(ctx context.Context, ref string, f restoreFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	w, err := a.open(ctx, false)
	if err != nil {
		return err
	}
	defer w.close()
	snap, rd, root, err := w.openRef(ctx, ref, func(other string) string { return a.againFor(0, other) })
	if err != nil {
		return err
	}
	defer rd.Close()
	if f.volume == "" && f.tree == "" {
		return a.lsObjects(snap.ID, root)
	}
	trees, err := pickTrees(root, f)
	if err != nil {
		return err
	}
	target, err := catalog.Open(ctx, rd, trees[0].Catalog)
	if err != nil {
		return explainUnread(snap, err)
	}
	match, err := matchIn(ctx, target, f.path)
	if errors.Is(err, dr.ErrNotFound) {
		return fmt.Errorf("%s has nothing at %q: %w", trees[0].Key, f.path, dr.ErrNotFound)
	}
	if err != nil {
		return explainUnread(snap, err)
	}
	entries := []lsRow{}
	found := 0
	for {
		e, err := target.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return explainUnread(snap, err)
		}
		if !match.fits(e.Path) {
			continue
		}
		found++
		r := lsRow{
			e.Path, rawOf(e.Path), e.Type.String(), fmt.Sprintf("%04o", e.Mode), e.UID, e.GID, e.Size,
			time.Unix(e.MtimeSec, int64(e.MtimeNsec)).UTC(), e.Target, rawOf(e.Target), e.Opaque,
		}
		if a.UI().JSON() {
			entries = append(entries, r)
			continue
		}
		line := fmt.Sprintf("%s %-9s %5d %5d %12d %s /%s", r.Mode, r.Type, r.UID, r.GID, r.Size, r.Mtime.Format(time.DateTime), ui.Clean(r.Path))
		if r.Target != "" {
			line += " -> " + ui.Clean(r.Target)
		}
		if r.Opaque {
			line += "  (replaces the image's)"
		}
		if _, err := fmt.Fprintln(a.UI().Out(), line); err != nil {
			return err
		}
	}
	if found == 0 && f.path != "" {
		return fmt.Errorf("%s has nothing at %q: %w", trees[0].Key, f.path, dr.ErrNotFound)
	}
	if a.UI().JSON() {
		return a.UI().Answer(map[string]any{"snapshot": snap.ID, "tree": trees[0].Key, "entries": entries})
	}
	return nil
}

func (a *app) lsObjects(id dr.SnapshotID, root *dr.Root) error {
	t := ui.Table{Columns: []ui.Column{{Title: "object"}, {Title: "what", Elastic: true}, {Title: "entries", Right: true}, {Title: "size", Right: true}}}
	for _, c := range root.Containers {
		t.Rows = append(t.Rows, []string{"container:" + c.Name, c.State + ", image " + c.ImageRef})
	}
	for _, im := range root.Images {
		t.Rows = append(t.Rows, []string{"image:" + strings.Join(im.Tags, ","), im.ID, "", bytesText(im.Bytes)})
	}
	for _, n := range root.Networks {
		t.Rows = append(t.Rows, []string{"network:" + n.Name})
	}
	for _, x := range root.Trees {
		t.Rows = append(t.Rows, []string{x.Key, string(x.Kind), fmt.Sprint(x.Entries), bytesText(x.Bytes)})
	}
	for _, x := range root.Files {
		t.Rows = append(t.Rows, []string{"file:" + x.Path, x.Role, "", bytesText(x.Size)})
	}
	type tree struct {
		Key     string `json:"key"`
		Entries int64  `json:"entries"`
		Bytes   int64  `json:"bytes"`
	}
	ans := struct {
		Snapshot   dr.SnapshotID     `json:"snapshot"`
		System     dr.System         `json:"system"`
		Site       dr.Site           `json:"site"`
		Created    time.Time         `json:"created"`
		Containers []string          `json:"containers"`
		Trees      []tree            `json:"trees"`
		Coverage   []dr.CoverageItem `json:"coverage"`
	}{Snapshot: id, System: root.System, Site: root.Site, Created: root.Created, Containers: []string{}, Trees: []tree{}, Coverage: root.Coverage}
	for _, c := range root.Containers {
		ans.Containers = append(ans.Containers, c.Name)
	}
	for _, x := range root.Trees {
		ans.Trees = append(ans.Trees, tree{x.Key, x.Entries, x.Bytes})
	}
	missing := ui.Table{Title: "not captured, or in part", Columns: []ui.Column{{Title: "object"}, {Title: "why", Elastic: true}}}
	for _, c := range root.Coverage {
		if !c.Captured || c.Partial {
			missing.Rows = append(missing.Rows, []string{c.Object, c.Reason})
		}
	}
	if len(missing.Rows) == 0 {
		return a.UI().Answer(ans, t)
	}
	return a.UI().Answer(ans, t, missing)
}
