package layer_test

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"

	"lifeboat/internal/layer"
	"lifeboat/internal/layer/layertest"
)

// TestCaptureDirect: the record is the one that the engine's archive gives, a
// layer that stands twice is read once, and a known one not at all.
func TestCaptureDirect(t *testing.T) {
	a := tarball(file{name: "a", data: text(300 << 10)}, file{name: "b", data: noise(1, 2<<20)})
	b := tarball(file{name: "c", data: text(10)})
	img := newImage("amd64", a, b, a)
	id := layer.DigestOf(img.config)
	var mu sync.Mutex
	opened := map[layer.Digest]int{}
	open := func(d layer.Digest) (io.ReadCloser, error) {
		mu.Lock()
		defer mu.Unlock()
		opened[d]++
		for _, l := range img.layers {
			if layer.DigestOf(l) == d {
				return io.NopCloser(bytes.NewReader(l)), nil
			}
		}
		return nil, layer.ErrLayerMissing
	}
	st := layertest.New()
	o := layer.CaptureOptions{Sink: st, Cutter: cutter}
	rec, err := layer.CaptureDirect(t.Context(), id, img.config, open, o)
	if err != nil {
		t.Fatal(err)
	}
	saved, err := layer.Capture(t.Context(), bytes.NewReader(tarball(legacy(img)...)), layer.CaptureOptions{Want: []layer.Digest{id}, Sink: st, Cutter: cutter})
	if err != nil || saved[0].Err != nil {
		t.Fatal(err, saved[0].Err)
	}
	if got, want := toJSON(rec), toJSON(saved[0].Record); !bytes.Equal(got, want) {
		t.Errorf("record %s\nthe engine's archive gives %s", got, want)
	}
	for i := range rec.Layers {
		if !bytes.Equal(bytesOf(t, st, &rec.Layers[i]), img.layers[i]) {
			t.Errorf("layer %d is not what it was", i)
		}
	}
	if opened[layer.DigestOf(a)] != 1 {
		t.Errorf("a layer that stands twice was opened %d times", opened[layer.DigestOf(a)])
	}
	clear(opened)
	o.Known = layer.KnownLayers(rec)
	if again, err := layer.CaptureDirect(t.Context(), id, img.config, open, o); err != nil || len(opened) != 0 {
		t.Errorf("known layers were opened: %v, %v", opened, err)
	} else if !bytes.Equal(toJSON(again), toJSON(rec)) {
		t.Error("known layers give another record")
	}

	for name, try := range map[string]func() error{
		"another configuration": func() error {
			_, err := layer.CaptureDirect(t.Context(), layer.DigestOf(a), img.config, open, layer.CaptureOptions{Sink: st, Cutter: cutter})
			return err
		},
		"another layer": func() error {
			_, err := layer.CaptureDirect(t.Context(), id, img.config, func(layer.Digest) (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(b)), nil
			}, layer.CaptureOptions{Sink: st, Cutter: cutter})
			return err
		},
	} {
		if err := try(); !errors.Is(err, layer.ErrDigest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
