package pack

import (
	"fmt"

	"github.com/klauspost/compress"
	"github.com/klauspost/compress/zstd"
	"github.com/minio/minlz"

	"lifeboat/internal/dr"
)

// Codec bytes, the first byte of a group's payload.
const (
	codecRaw   = 0
	codecZstd  = 1
	codecMinLZ = 2
)

// Effort says what a group's compression should save.
type Effort int

const (
	// Bytes: sending and keeping them costs more than compressing (zstd).
	Bytes Effort = iota
	// Time: processor time is what is waited for (MinLZ, which takes a third of
	// zstd's time and leaves a quarter more).
	Time
)

const (
	// sampleSize and samples say how much of a body is compressed to see
	// whether the rest is worth it.
	sampleSize = 16 << 10
	samples    = 3
	// A body is stored raw unless compression takes away at least one part in
	// minGain: below that, decompression costs more than the bytes.
	minGain = 32
	// MinLZ is not content with less than one part in minFastGain: zstd may find
	// more, or both nothing.
	minFastGain = 4
)

// Codec compresses and decompresses the bodies of groups. Safe for concurrent
// use; at most workers calls run at a time.
type Codec struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

// NewCodec returns a codec that runs up to workers calls at a time.
func NewCodec(workers int) (*Codec, error) {
	enc, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithEncoderConcurrency(workers),
		zstd.WithEncoderCRC(false), // the seal authenticates
		// Hexadecimal and base64 have no matches, and shrink nevertheless.
		zstd.WithAllLitEntropyCompression(true),
		zstd.WithWindowSize(GroupSize),
		zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, fmt.Errorf("make compressor: %w", err)
	}
	dec, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(workers),
		zstd.WithDecoderMaxMemory(MaxGroup),
		zstd.WithDecoderMaxWindow(MaxGroup),
		zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, fmt.Errorf("make decompressor: %w", err)
	}
	return &Codec{enc: enc, dec: dec}, nil
}

// Close frees the codec.
func (c *Codec) Close() {
	c.dec.Close()
	_ = c.enc.Close() // writes nothing: only EncodeAll was used
}

// Encode returns the payload of a group: codec byte and body, compressed where
// that makes it smaller. What only entropy coding makes smaller (hexadecimal,
// base64) is left to zstd whatever the effort. The payload lies in scratch's memory, in new memory, or
// in the group's own until that is reset: what does not shrink is not copied.
func (c *Codec) Encode(scratch []byte, g *Group, e Effort) []byte {
	body := g.Body()
	if !g.Sorted && !c.shrinks(scratch[:0], body) {
		return g.raw
	}
	if e == Time && 1+minlz.MaxEncodedLen(len(body)) <= cap(scratch) {
		dst, err := minlz.AppendEncoded(append(scratch[:0], codecMinLZ), body, minlz.LevelFastest)
		if err == nil && len(dst)-1 <= len(body)-len(body)/minFastGain {
			return dst
		}
	}
	dst := c.enc.EncodeAll(body, append(scratch[:0], codecZstd))
	if gain(len(body), len(dst)-1) {
		return dst
	}
	return g.raw
}

// shrinks compresses three pieces of a large body to see whether all of it is
// worth compressing; the spare room of scratch is used.
func (c *Codec) shrinks(scratch, body []byte) bool {
	if len(body) <= 2*samples*sampleSize {
		return true // compressing it whole is as cheap
	}
	var in, out int
	for i := range samples {
		at := i * (len(body) - sampleSize) / (samples - 1)
		piece := body[at : at+sampleSize]
		in += len(piece)
		out += len(c.enc.EncodeAll(piece, scratch)) - len(scratch)
	}
	return gain(in, out)
}

func gain(in, out int) bool { return out <= in-in/minGain-1 }

// Decode appends the body of a payload that must have exactly plain bytes. The
// error wraps dr.ErrTampered. dst may not overlap payload.
func (c *Codec) Decode(dst, payload []byte, plain int) ([]byte, error) {
	bad := func(what string) ([]byte, error) {
		return nil, fmt.Errorf("group: %s: %w", what, dr.ErrTampered)
	}
	if len(payload) < 2 || plain < 1 || plain > MaxGroup {
		return bad("length out of bounds")
	}
	switch payload[0] {
	case codecRaw:
		if len(payload)-1 != plain {
			return bad("length is not that of the index")
		}
		return append(dst, payload[1:]...), nil
	case codecZstd:
		start := len(dst)
		if cap(dst)-start < plain {
			dst = append(make([]byte, 0, start+plain), dst...)
		}
		// The capacity bounds what is decoded; nothing may follow after it.
		out, err := c.dec.DecodeAll(payload[1:], dst[:start:start+plain])
		if err != nil {
			return bad("cannot be decompressed")
		}
		if len(out)-start != plain {
			return bad("length is not that of the index")
		}
		return out, nil
	case codecMinLZ:
		// Only the format itself: the decoder would take Snappy, too. The length is
		// said first, and is never exceeded.
		if ok, n, err := minlz.IsMinLZ(payload[1:]); err != nil || !ok || n != plain {
			return bad("length is not that of the index")
		}
		out, err := minlz.AppendDecoded(dst, payload[1:])
		if err != nil {
			return bad("cannot be decompressed")
		}
		if len(out)-len(dst) != plain {
			return bad("length is not that of the index")
		}
		return out, nil
	default:
		return bad("unknown codec")
	}
}

// view is Decode that returns what is not compressed where it is.
func (c *Codec) view(dst, payload []byte, plain int) ([]byte, error) {
	if len(payload) >= 2 && payload[0] == codecRaw && len(payload)-1 == plain && plain <= MaxGroup {
		return payload[1:], nil
	}
	return c.Decode(dst, payload, plain)
}

// Compressible estimates from a sample whether a unit is worth compressing. It
// only sorts units into groups, so that a group is mostly of one kind: being
// wrong costs some bytes and nothing else.
func Compressible(data []byte) bool {
	const look = 1 << 10
	if len(data) < 4*look {
		return true // mostly text, and not worth the look
	}
	mid := len(data) / 2
	// Random bytes reach 0.086 in so small a sample, base64 begins at 0.22.
	const threshold = 0.1
	return compress.Estimate(data[mid-look/2:mid+look/2]) > threshold ||
		compress.Estimate(data[len(data)-look:]) > threshold
}
