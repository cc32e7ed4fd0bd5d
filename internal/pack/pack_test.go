package pack_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"lifeboat/internal/dr"
	"lifeboat/internal/pack"
	"lifeboat/internal/seal"
)

func newRing() *seal.Ring { return seal.NewRing(seal.NewSecret()) }

func newCodec(t testing.TB) *pack.Codec {
	t.Helper()
	c, err := pack.NewCodec(2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// noise is incompressible, the same for each seed.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	key[0], key[1], key[2] = byte(seed), byte(seed>>8), byte(seed>>16)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

// group is a group of one unit.
func group(body []byte) *pack.Group {
	g := pack.NewGroup(len(body))
	g.Add(dr.UnitID{1}, body)
	return g
}

func text(n int) []byte {
	return bytes.Repeat([]byte("The quick brown fox jumps over the lazy dog. "), n/45+1)[:n]
}

func TestGroupFillsUpToItsSize(t *testing.T) {
	t.Parallel()
	g := pack.NewGroup(0)
	if !g.Fits(dr.MaxUnit) {
		t.Fatal("an empty group takes any unit")
	}
	g.Add(dr.UnitID{1}, make([]byte, pack.GroupSize-1))
	if !g.Fits(1) || g.Fits(2) {
		t.Fatal("the size is not kept")
	}
	g.Reset()
	for range pack.MaxGroupUnits {
		g.Add(dr.UnitID{1}, []byte{1})
	}
	if g.Fits(1) {
		t.Fatal("the number of units is not kept")
	}
}

func TestCodecRoundTrip(t *testing.T) {
	t.Parallel()
	c := newCodec(t)
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 300<<10).Draw(t, "n")
		body := text(n)
		if rapid.Bool().Draw(t, "noise") {
			body = noise(uint64(n), n)
		}
		if k := rapid.IntRange(0, n).Draw(t, "mixed"); k > 0 {
			copy(body[n-k:], noise(1, k))
		}
		g := group(body)
		g.Sorted = rapid.Bool().Draw(t, "sorted")
		scratch := make([]byte, 0, rapid.SampledFrom([]int{0, pack.PayloadRoom}).Draw(t, "scratch"))
		payload := c.Encode(scratch, g, rapid.SampledFrom([]pack.Effort{pack.Bytes, pack.Time}).Draw(t, "effort"))
		if len(payload) > len(body)+1 {
			t.Fatalf("%d bytes became %d", len(body), len(payload))
		}
		got, err := c.Decode(nil, payload, len(body))
		if err != nil || !bytes.Equal(got, body) {
			t.Fatalf("decode: %v", err)
		}
		if !bytes.Equal(g.Body(), body) {
			t.Fatal("encoding changed the group")
		}
		for _, wrong := range []int{len(body) - 1, len(body) + 1, 0, pack.MaxGroup + 1} {
			if _, err := c.Decode(nil, payload, wrong); !errors.Is(err, dr.ErrTampered) {
				t.Fatalf("decode to %d instead of %d bytes: %v", wrong, len(body), err)
			}
		}
	})
}

func TestCodecDoesNotCompressNoise(t *testing.T) {
	t.Parallel()
	c := newCodec(t)
	if p := c.Encode(nil, group(noise(1, 1<<20)), pack.Bytes); len(p) != 1<<20+1 || p[0] != 0 {
		t.Errorf("noise: %d bytes, codec %d", len(p), p[0])
	}
	if p := c.Encode(nil, group(text(1<<20)), pack.Bytes); len(p) > 1<<16 || p[0] != 1 {
		t.Errorf("text: %d bytes, codec %d", len(p), p[0])
	}
	if !pack.Compressible(text(100)) || !pack.Compressible(text(100<<10)) || pack.Compressible(noise(1, 100<<10)) {
		t.Error("the estimate does not tell text from noise")
	}
	if coded := []byte(base64.StdEncoding.EncodeToString(noise(1, 100<<10))); !pack.Compressible(coded) {
		t.Error("base64 is taken for noise")
	}
	for seed := range uint64(2000) {
		if pack.Compressible(noise(seed, 8<<10)) {
			t.Fatalf("noise %d is taken for text", seed)
		}
	}
}

// What has no repetitions and few different characters shrinks: mail attachments,
// dumps, tokens.
func TestCodecCompressesCharacters(t *testing.T) {
	t.Parallel()
	c := newCodec(t)
	random := noise(1, 1<<20)
	for name, x := range map[string]struct {
		body []byte
		most int // per cent
	}{
		"hexadecimal": {[]byte(hex.EncodeToString(random[:1<<19])), 52},
		"base64":      {[]byte(base64.StdEncoding.EncodeToString(random[:3<<18])), 77},
	} {
		for _, e := range []pack.Effort{pack.Bytes, pack.Time} {
			p := c.Encode(make([]byte, 0, pack.PayloadRoom), group(x.body), e)
			if share := 100 * len(p) / len(x.body); share > x.most {
				t.Errorf("%s, effort %d: %d %% are left", name, e, share)
			}
		}
	}
}

// TestCodecFast: with time at stake another format is chosen, which needs no more
// memory than it was given.
func TestCodecFast(t *testing.T) {
	t.Parallel()
	c := newCodec(t)
	g, scratch := group(text(pack.GroupSize)), make([]byte, 0, pack.PayloadRoom)
	if p := c.Encode(scratch, g, pack.Time); p[0] != 2 || &p[0] != &scratch[:1][0] {
		t.Errorf("codec %d, its own memory %v", p[0], &p[0] != &scratch[:1][0])
	}
	if p := c.Encode(nil, g, pack.Time); p[0] != 1 {
		t.Errorf("without memory: codec %d", p[0])
	}
	if p := c.Encode(scratch, group(noise(1, 1<<20)), pack.Time); p[0] != 0 {
		t.Errorf("noise: codec %d", p[0])
	}
}

// A decompression bomb must not take more memory than the index allows
// (invariant 10).
func TestCodecBoundsABomb(t *testing.T) {
	t.Parallel()
	c := newCodec(t)
	for _, e := range []pack.Effort{pack.Bytes, pack.Time} {
		boundsABomb(t, c, c.Encode(make([]byte, 0, pack.MaxGroup+64), group(make([]byte, pack.MaxGroup)), e))
	}
}

func boundsABomb(t *testing.T, c *pack.Codec, bomb []byte) {
	t.Helper()
	if len(bomb) > 4096 {
		t.Fatalf("the bomb has %d bytes", len(bomb))
	}
	allocs := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := c.Decode(nil, bomb, 100); !errors.Is(err, dr.ErrTampered) {
				b.Fatal(err)
			}
		}
	})
	if per := allocs.AllocedBytesPerOp(); per > 1<<16 {
		t.Fatalf("%d bytes taken for a group of 100", per)
	}
}

func TestPadme(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]int64{0: 0, 1: 1, 2: 2, 8: 8, 9: 10, 100: 104, 1000: 1024, 16<<20 - 1: 16 << 20, 16 << 20: 16 << 20, 16<<20 + 1: 16<<20 + 1<<19} {
		if got := pack.Padme(n); got != want {
			t.Errorf("Padme(%d) = %d, want %d", n, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(1, pack.MaxSize).Draw(t, "n")
		if p := pack.Padme(n); p < n || p > n+n*12/100+1 || pack.Padme(p) != p {
			t.Fatalf("Padme(%d) = %d", n, p)
		}
	})
}

// build makes a pack of the given bodies, each a group of units of unit bytes.
func build(t testing.TB, r *seal.Ring, c *pack.Codec, unit int, bodies ...[]byte) ([]byte, pack.Info) {
	t.Helper()
	b, err := pack.NewBuilder(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range bodies {
		g := pack.NewGroup(len(body))
		for len(body) > 0 {
			n := min(unit, len(body))
			g.Add(r.UnitID(body[:n]), body[:n])
			body = body[n:]
		}
		b.Add(c.Encode(nil, g, pack.Bytes), g.Units)
	}
	blob, info := b.Finish()
	info.Digest = sha256.Sum256(blob)
	return blob, info
}

func TestPackRoundTrip(t *testing.T) {
	t.Parallel()
	r, c := newRing(), newCodec(t)
	bodies := [][]byte{text(700000), noise(1, 900000), {7}, noise(2, 3<<20)}
	blob, info := build(t, r, c, 64<<10, bodies...)
	if int64(len(blob)) != info.Size || pack.Padme(info.Size) != info.Size {
		t.Fatalf("pack of %d bytes says %d", len(blob), info.Size)
	}
	if err := info.Header.CheckHeader(blob[:pack.HeaderSize]); err != nil {
		t.Fatal(err)
	}
	o, err := pack.NewOpener(r, c, info.Header)
	if err != nil {
		t.Fatal(err)
	}
	for i, g := range info.Groups {
		got, err := o.Open(nil, i, bytes.Clone(blob[g.Offset:g.Offset+g.Sealed]), int(g.Plain))
		if err != nil || !bytes.Equal(got, bodies[i]) {
			t.Fatalf("group %d: %v", i, err)
		}
		at := 0
		for _, u := range g.Units {
			if r.UnitID(got[at:at+int(u.Len)]) != u.ID {
				t.Fatalf("group %d: a unit is not where the index says", i)
			}
			at += int(u.Len)
		}
	}
}

// Invariant 10: a group is bound to its place, its pack and its repository.
func TestGroupOpensOnlyInItsPlace(t *testing.T) {
	t.Parallel()
	s := seal.NewSecret()
	r, c := seal.NewRing(s), newCodec(t)
	blob, info := build(t, r, c, 1<<20, text(5000), noise(1, 5000))
	_, other := build(t, r, c, 1<<20, text(5000))
	g := info.Groups[0]
	sealed := blob[g.Offset : g.Offset+g.Sealed]
	try := func(name string, h pack.Header, r *seal.Ring, i int, sealed []byte) {
		t.Helper()
		o, err := pack.NewOpener(r, c, h)
		if err == nil {
			_, err = o.Open(nil, i, bytes.Clone(sealed), int(g.Plain))
		}
		if !errors.Is(err, dr.ErrTampered) {
			t.Errorf("%s: %v, want ErrTampered", name, err)
		}
	}
	try("as another group", info.Header, r, 1, sealed)
	try("in another pack", other.Header, r, 0, sealed)
	try("in another repository", info.Header, newRing(), 0, sealed)
	try("cut", info.Header, r, 0, sealed[:len(sealed)-1])
	try("nothing", info.Header, r, 0, nil)
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 4
		try("bit flipped", info.Header, r, 0, bad)
	}
	h := info.Header
	h.Generation = 9
	try("of an unknown generation", h, r, 0, sealed)
	if err := other.Header.CheckHeader(blob[:pack.HeaderSize]); !errors.Is(err, dr.ErrTampered) {
		t.Errorf("header of another pack: %v", err)
	}
}

// collect gathers an index again.
type collect struct{ packs []pack.Info }

func (c *collect) Pack(p pack.Info, groups int) error {
	p.Groups = make([]pack.GroupInfo, 0, min(groups, 1024))
	c.packs = append(c.packs, p)
	return nil
}

func (c *collect) Group(g pack.GroupInfo, _ int) error {
	p := &c.packs[len(c.packs)-1]
	p.Groups = append(p.Groups, g)
	return nil
}

func (c *collect) Unit(u dr.UnitRef) error {
	p := &c.packs[len(c.packs)-1]
	g := &p.Groups[len(p.Groups)-1]
	g.Units = append(g.Units, u)
	return nil
}

func writeIndex(t testing.TB, r *seal.Ring, host *seal.HostKey, packs ...pack.Info) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := pack.NewIndexWriter(&out, r, host, len(packs))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range packs {
		if err := w.Pack(p, len(p.Groups)); err != nil {
			t.Fatal(err)
		}
		for _, g := range p.Groups {
			if err := w.Group(g); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestIndexRoundTrip(t *testing.T) {
	t.Parallel()
	r, c, host := newRing(), newCodec(t), seal.NewHostKey()
	var packs []pack.Info
	for i := range 3 {
		// Units of a few bytes make an index of several segments.
		_, p := build(t, r, c, 16+i, noise(uint64(i), 60000), text(50000), noise(9, 1<<19))
		packs = append(packs, p)
	}
	raw := writeIndex(t, r, host, packs...)
	if len(raw) < seal.SegmentSize {
		t.Fatalf("the index has %d bytes: one segment only", len(raw))
	}
	var got collect
	signer, err := pack.ReadIndex(bytes.NewReader(raw), r, &got)
	if err != nil || signer != host.ID() {
		t.Fatalf("signer %s, %v", signer.Short(), err)
	}
	if !reflect.DeepEqual(packs, got.packs) {
		t.Fatal("another index came back")
	}
	for i := 0; i < len(raw); i += len(raw)/16 + 1 {
		bad := bytes.Clone(raw)
		bad[i] ^= 2
		if _, err := pack.ReadIndex(bytes.NewReader(bad), r, &collect{}); !errors.Is(err, dr.ErrTampered) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
		if _, err := pack.ReadIndex(bytes.NewReader(raw[:i]), r, &collect{}); !errors.Is(err, dr.ErrTampered) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
}

// A host that holds the key may write nonsense; it must be refused by its
// bounds, not by luck.
func TestIndexBounds(t *testing.T) {
	t.Parallel()
	r, c, host := newRing(), newCodec(t), seal.NewHostKey()
	fresh := func() pack.Info {
		_, p := build(t, r, c, 100, text(300), noise(1, 300))
		return p
	}
	for name, spoil := range map[string]func(p *pack.Info){
		"pack too large":           func(p *pack.Info) { p.Size = pack.MaxSize + 1 },
		"pack too small":           func(p *pack.Info) { p.Size = 3 },
		"generation zero":          func(p *pack.Info) { p.Header.Generation = 0 },
		"no groups":                func(p *pack.Info) { p.Groups = nil },
		"gap before a group":       func(p *pack.Info) { p.Groups[1].Offset++ },
		"groups overlap":           func(p *pack.Info) { p.Groups[1].Offset-- },
		"group beyond the pack":    func(p *pack.Info) { p.Groups[1].Sealed = uint32(p.Size) },
		"group of no sealed bytes": func(p *pack.Info) { p.Groups[0].Sealed = 17 },
		"group of no bytes":        func(p *pack.Info) { p.Groups[0].Plain = 0 },
		"group too large":          func(p *pack.Info) { p.Groups[0].Plain = pack.MaxGroup + 1 },
		"group smaller than stored": func(p *pack.Info) {
			p.Groups[1].Plain, p.Groups[1].Units = 1, []dr.UnitRef{{Len: 1}}
		},
		"no units":              func(p *pack.Info) { p.Groups[0].Units = nil },
		"units do not fill":     func(p *pack.Info) { p.Groups[0].Units = p.Groups[0].Units[1:] },
		"units overflow":        func(p *pack.Info) { p.Groups[0].Units = append(p.Groups[0].Units, dr.UnitRef{Len: 1}) },
		"unit of no bytes":      func(p *pack.Info) { p.Groups[0].Units[0].Len = 0 },
		"unit larger than rest": func(p *pack.Info) { p.Groups[0].Units[2].Len = 101 },
	} {
		p := fresh()
		spoil(&p)
		raw := writeIndex(t, r, host, p)
		if _, err := pack.ReadIndex(bytes.NewReader(raw), r, &collect{}); !errors.Is(err, dr.ErrTampered) {
			t.Errorf("%s: %v, want ErrTampered", name, err)
		}
	}
	if _, err := pack.NewIndexWriter(&bytes.Buffer{}, r, host, 0); err == nil {
		t.Error("an index of no packs was begun")
	}
	if _, err := pack.NewIndexWriter(&bytes.Buffer{}, r, host, pack.MaxPacks+1); err == nil {
		t.Error("an index of too many packs was begun")
	}
	p := fresh()
	raw := writeIndex(t, r, host, p)
	boom := errors.New("disk full")
	if _, err := pack.ReadIndex(bytes.NewReader(raw), r, failing{boom}); !errors.Is(err, boom) || errors.Is(err, dr.ErrTampered) {
		t.Errorf("an error of the visitor came back as %v", err)
	}
}

type failing struct{ err error }

func (f failing) Pack(pack.Info, int) error       { return f.err }
func (f failing) Group(pack.GroupInfo, int) error { return f.err }
func (f failing) Unit(dr.UnitRef) error           { return f.err }

// FuzzIndex feeds the plaintext of an index, sealed anew, so that the fuzzer
// gets past the seal; the signature is then wrong, the bounds are not.
func FuzzIndex(f *testing.F) {
	r, host := newRing(), seal.NewHostKey()
	c := newCodec(f)
	_, p := build(f, r, c, 100, text(300))
	raw := writeIndex(f, r, host, p)
	x, err := r.NewIndexReader(bytes.NewReader(raw))
	if err != nil {
		f.Fatal(err)
	}
	var plain bytes.Buffer
	if _, err := plain.ReadFrom(x); err != nil {
		f.Fatal(err)
	}
	want := plain.Bytes()
	f.Add(want)
	f.Add(want[:len(want)-64])
	f.Fuzz(func(t *testing.T, b []byte) {
		var out bytes.Buffer
		w, err := r.NewIndexWriter(&out)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		var got collect
		if signer, err := pack.ReadIndex(&out, r, &got); err == nil && signer == host.ID() && !bytes.Equal(b, want) {
			t.Fatal("a changed index kept its signature")
		}
	})
}

func FuzzCodec(f *testing.F) {
	c := newCodec(f)
	f.Add(c.Encode(nil, group(text(1000)), pack.Bytes), 1000)
	f.Add(c.Encode(nil, group(noise(1, 1000)), pack.Bytes), 1000)
	f.Add(c.Encode(make([]byte, 0, pack.PayloadRoom), group(text(1000)), pack.Time), 1000)
	f.Fuzz(func(t *testing.T, payload []byte, plain int) {
		if got, err := c.Decode(nil, payload, plain); err == nil && len(got) != plain {
			t.Fatalf("%d bytes instead of %d", len(got), plain)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	c := newCodec(b)
	for name, body := range map[string][]byte{"text": mixedText(), "noise": noise(1, 1<<20)} {
		for effort, e := range map[string]pack.Effort{"bytes": pack.Bytes, "time": pack.Time} {
			b.Run(name+"/"+effort, func(b *testing.B) {
				b.SetBytes(int64(len(body)))
				b.ReportAllocs()
				dst := make([]byte, 0, 2<<20)
				g := group(body)
				var n int
				for b.Loop() {
					n = len(c.Encode(dst, g, e))
				}
				b.ReportMetric(float64(n)/float64(len(body)), "ratio")
			})
		}
	}
}

func BenchmarkCompressible(b *testing.B) {
	for name, body := range map[string][]byte{"text": mixedText(), "noise": noise(1, 1<<20), "noise-4k": noise(1, 4<<10)} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				pack.Compressible(body)
			}
		})
	}
}

// mixedText has about the entropy of program text.
func mixedText() []byte {
	words := []string{"func ", "return ", "if err != nil {\n", "}\n", "<div class=", "SELECT ", "static const ", "x", "value", "= ", ", ", "0x1f", "\t"}
	rnd := rand.New(rand.NewPCG(1, 2))
	var out []byte
	for len(out) < 1<<20 {
		out = append(out, words[rnd.IntN(len(words))]...)
		out = append(out, byte('a'+rnd.IntN(26)))
	}
	return out[:1<<20]
}
