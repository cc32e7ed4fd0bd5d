package enginetest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/engine"
)

// RoundTrip makes a system on one engine, makes it again on the other from its
// description alone, and checks that everything that was said of it is said of
// the other. Both engines must see from.Dir.
func RoundTrip(t *testing.T, from, to Target) {
	a, b := Open(t, from.Host), Open(t, to.Host)
	f := &fixture{T: t, e: a, target: from, image: Image(t, a)}
	f.shop()
	ctx := t.Context()
	sys, err := a.Discover(ctx, engine.Selector{Project: "lbtest-shop"})
	f.ok("discover", err)

	g := &fixture{T: t, e: b, target: to}
	g.carryImage(a)
	for _, n := range sys.Networks {
		_, err := b.CreateNetwork(ctx, n.Spec, map[string]string{engine.LabelSystem: "shop"})
		f.ok("create network "+n.Name, err)
		t.Cleanup(func() { f.ok("remove network", b.RemoveNetwork(context.Background(), n.Name)) })
	}
	for _, v := range sys.Volumes {
		_, err := b.CreateVolume(ctx, v.Volume, map[string]string{engine.LabelSystem: "shop"})
		f.ok("create volume "+v.Name, err)
		t.Cleanup(func() { f.ok("remove volume", b.RemoveVolume(context.Background(), v.Name)) })
	}
	g.create(b, sys)
	there, err := b.Discover(ctx, engine.Selector{Project: "lbtest-shop"})
	f.ok("discover on the other engine", err)
	for i, c := range sys.Containers {
		o := there.Containers[i]
		f.equal("name", o.Name, c.Name)
		kept(f, c.Name+" configuration", c.Config, o.Config)
		kept(f, c.Name+" host configuration", c.HostConfig, o.HostConfig)
		f.equal(c.Name+" networks", endpointText(o), endpointText(c))
		f.equal(c.Name+" mounts", o.Mounts, c.Mounts)
		f.equal(c.Name+" dependencies", o.DependsOn, c.DependsOn)
	}
	for i, n := range sys.Networks {
		kept(f, "network "+n.Name, n.Spec, there.Networks[i].Spec)
	}
	for i, v := range sys.Volumes {
		f.equal("volume "+v.Name, there.Volumes[i].Volume, v.Volume)
	}
}

// carryImage takes the probe's image over as an archive.
func (f *fixture) carryImage(from *engine.Engine) {
	f.Helper()
	r, err := from.SaveImage(f.Context(), ImageRef)
	f.ok("save image", err)
	b, err := io.ReadAll(r)
	f.ok("save image", err)
	f.ok("save image", r.Close())
	_, err = f.e.LoadImage(f.Context(), bytes.NewReader(b))
	f.ok("load image", err)
	img, err := f.e.Image(f.Context(), ImageRef)
	f.ok("inspect image", err)
	f.image = img.ID
	f.Cleanup(func() { f.ok("remove image", f.e.RemoveImage(context.Background(), img.ID)) })
}

// kept checks that every field of one object that says something is the same in
// the other. Fields that one of two engines does not know cannot be compared.
func kept(f *fixture, what string, before, after json.RawMessage) {
	f.Helper()
	var a, b map[string]any
	f.ok("decode", json.Unmarshal(before, &a))
	f.ok("decode", json.Unmarshal(after, &b))
	for field, v := range a {
		w, known := b[field]
		if !known || empty(v) && empty(w) {
			continue
		}
		if d := cmp.Diff(v, w); d != "" {
			f.Errorf("%s: field %s differs (-before +after):\n%s", what, field, d)
		}
	}
}

func empty(v any) bool {
	if v == nil {
		return true
	}
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.Slice, reflect.Map:
		return r.Len() == 0
	default:
		return r.IsZero()
	}
}
