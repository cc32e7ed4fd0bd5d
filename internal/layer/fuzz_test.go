package layer

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"testing"

	"github.com/klauspost/compress/gzip"

	"lifeboat/internal/dr"
	"lifeboat/internal/layer/layertest"
)

// FuzzRecord: a record that is accepted is one that can be worked with.
func FuzzRecord(f *testing.F) {
	digest := DigestOf(nil)
	good := ImageRecord{
		Format: 1, ID: digest, Config: Object{Digest: digest}, Manifest: digest,
		Target: &Descriptor{Digest: digest},
		Layers: []Layer{{DiffID: digest, Size: 3, Blob: &Blob{Digest: digest, Size: 5, Compression: Gzip, Stored: []dr.UnitRef{{Len: 4}}}}},
	}
	seed, err := json.Marshal(good)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := parseRecord(seed); err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(`{"format":1}`))
	f.Add([]byte(`{"format":2}`))
	f.Add(bytes.Replace(seed, []byte(`"gzip"`), []byte(`"xz"`), 1))
	f.Fuzz(func(t *testing.T, data []byte) {
		rec, err := parseRecord(data)
		if err != nil {
			return
		}
		st := layertest.New()
		for _, containerd := range []bool{true, false} {
			h, err := HandoverTo(rec, containerd)
			if err != nil {
				t.Fatal(err)
			}
			// The store is empty: an error, or nothing but an empty layout.
			_ = WriteArchive(t.Context(), io.Discard, st, h.Form, ArchiveImage{Record: rec})
		}
		_ = Units(t.Context(), st, rec, func(dr.UnitRef) error { return nil })
	})
}

// FuzzStretch: what is decoded is encoded to the same bytes or to fewer.
func FuzzStretch(f *testing.F) {
	f.Add(appendRef(nil, dr.UnitRef{ID: dr.UnitID{1}, Len: 70000}))
	f.Add(appendHole(nil, 1<<40))
	f.Add([]byte{0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		s, err := readStretch(r)
		if err != nil {
			return
		}
		if s.len() <= 0 || s.hole == 0 && s.ref.Len > dr.MaxUnit {
			t.Fatalf("%+v", s)
		}
		again := appendHole(nil, s.hole)
		if s.hole == 0 {
			again = appendRef(nil, s.ref)
		}
		if len(again) > len(data)-r.Len() {
			t.Errorf("%d bytes became %d", len(data)-r.Len(), len(again))
		}
	})
}

// FuzzStored: any gzip, well formed or not, comes back or is refused.
func FuzzStored(f *testing.F) {
	for _, level := range []int{1, 6, 9} {
		var b bytes.Buffer
		w, err := gzip.NewWriterLevel(&b, level)
		if err != nil {
			f.Fatal(err)
		}
		if _, err := w.Write(sparseGNU()); err != nil {
			f.Fatal(err)
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte{0x1f, 0x8b, 8, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff})
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd})
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		st := layertest.New()
		l, err := newBlobReader(st, testCutter, true).read(t.Context(), bytes.NewReader(data))
		if err != nil {
			return
		}
		if l.Blob == nil {
			l = storedAs(l, DigestOf(data))
		}
		var out bytes.Buffer
		if err := WriteBlob(t.Context(), st, &l, &out); err != nil || !bytes.Equal(out.Bytes(), data) {
			t.Errorf("%d bytes became %d, %v", len(data), out.Len(), err)
		}
		if err := WriteLayer(t.Context(), st, &l, io.Discard); err != nil {
			t.Error(err)
		}
	})
}

// FuzzCapture: whatever is sent for an archive, there is an answer.
func FuzzCapture(f *testing.F) {
	for _, name := range []string{"docker-20.10", "docker-28-containerd"} {
		packed, err := os.Open("testdata/" + name + ".tar.gz")
		if err != nil {
			f.Fatal(err)
		}
		zr, err := gzip.NewReader(packed)
		if err != nil {
			f.Fatal(err)
		}
		data, err := io.ReadAll(zr)
		if err != nil {
			f.Fatal(err)
		}
		packed.Close()
		f.Add(data)
	}
	want := []Digest{
		"sha256:6f1e0efef798288ddb3f1f18f85fc987118a234e2b839197e551c39a0610ed2d",
		"sha256:f28692b34e61e768c67053f020aac89def42b2805a6c5361c0b13ddab3d7f7e1",
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		st := layertest.New()
		got, err := Capture(t.Context(), bytes.NewReader(data), CaptureOptions{Want: want, Sink: st, Cutter: testCutter, Recipes: true})
		if err != nil {
			return
		}
		for _, c := range got {
			if c.Err != nil {
				continue
			}
			// An image that was captured is whole.
			h, err := HandoverTo(c.Record, c.Record.Target != nil)
			if err != nil || !h.SameID {
				t.Fatal(h, err)
			}
			if err := WriteArchive(t.Context(), io.Discard, st, h.Form, ArchiveImage{Record: c.Record}); err != nil {
				t.Error(err)
			}
		}
	})
}
