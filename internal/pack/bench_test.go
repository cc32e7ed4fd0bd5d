package pack_test

import (
	"bytes"
	"testing"

	"lifeboat/internal/pack"
	"lifeboat/internal/seal"
)

// BenchmarkBuild seals encoded groups into a pack: what is left for one thread
// when compression is spread over all.
func BenchmarkBuild(b *testing.B) {
	r, c := newRing(), newCodec(b)
	body := noise(1, pack.GroupSize)
	g := pack.NewGroup(pack.GroupSize)
	for at := 0; at < len(body); at += 16 << 10 {
		unit := body[at:min(at+16<<10, len(body))]
		g.Add(r.UnitID(unit), unit)
	}
	payload := c.Encode(nil, g, pack.Bytes)
	buf := make([]byte, 0, pack.MaxSize)
	b.SetBytes(8 * int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		builder, err := pack.NewBuilder(r, buf)
		if err != nil {
			b.Fatal(err)
		}
		for range 8 {
			builder.Add(payload, g.Units)
		}
		blob, _ := builder.Finish()
		buf = blob[:0]
	}
}

// BenchmarkOpen opens a group: what a restore does for each.
func BenchmarkOpen(b *testing.B) {
	r, c := newRing(), newCodec(b)
	for name, body := range map[string][]byte{"noise": noise(1, 1<<20), "text": text(1 << 20)} {
		b.Run(name, func(b *testing.B) {
			blob, info := build(b, r, c, 16<<10, body)
			o, err := pack.NewOpener(r, c, info.Header)
			if err != nil {
				b.Fatal(err)
			}
			g := info.Groups[0]
			sealed := blob[g.Offset:][:g.Sealed]
			dst := make([]byte, 0, g.Plain)
			b.SetBytes(int64(g.Plain))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := o.Open(dst[:0], 0, sealed, int(g.Plain)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkReadIndex decrypts, decodes and verifies an index of some 40,000
// units.
func BenchmarkReadIndex(b *testing.B) {
	r, c, host := newRing(), newCodec(b), seal.NewHostKey()
	_, p := build(b, r, c, 25, noise(1, 1<<20))
	raw := writeIndex(b, r, host, p)
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := pack.ReadIndex(bytes.NewReader(raw), r, &collect{}); err != nil {
			b.Fatal(err)
		}
	}
}
